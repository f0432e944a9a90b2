"""What the LlamaIndex examples put in the place of a language model and an embedding.

There are real ones in LlamaIndex's packages, `llama-index-llms-…` and `llama-index-embeddings-…`:
put those in their place. These need neither a key nor a network, and say the same each time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from llama_index.core.base.llms.types import (
    CompletionResponse,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms.custom import CustomLLM


class StandIn(CustomLLM):
    """A language model that answers by a function, and streams word by word."""

    answer: Callable[[str], str]

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="stand-in")

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=self.answer(prompt))

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        text = ""
        for word in re.findall(r"\s*\S+", self.answer(prompt)):
            text += word
            yield CompletionResponse(text=text, delta=word)


class WordCounts(BaseEmbedding):
    """Texts as counts of a few words: good enough to find four pages."""

    words: list[str]

    def _get_text_embedding(self, text: str) -> list[float]:
        said = re.findall(r"\w+", text.lower())
        return [float(said.count(word)) for word in self.words]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)
