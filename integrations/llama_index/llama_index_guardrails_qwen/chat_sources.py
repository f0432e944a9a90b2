"""What a chat engine tells beside its reply: what it has asked a query engine, say. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.tools import ToolOutput

from guardrails_qwen.fields import is_token
from llama_index_guardrails_qwen.responses import aside_text
from llama_index_guardrails_qwen.tool_outputs import texts_of

_ANSWERS = (Response, PydanticResponse, StreamingResponse, AsyncStreamingResponse)


def beside_reply(response: object, known: Collection[str]) -> str:
    """What is told beside a reply, but for what was found for it.

    Args:
        response: What the engine answered with.
        known: Texts that were judged.

    Raises:
        ConversationError: It cannot be read.
    """
    sources: list[ToolOutput] = getattr(response, "sources", None) or []
    told = [text for source in sources for text in _told_of(source)]
    told += texts_of(getattr(response, "metadata", None))
    return "\n".join(dict.fromkeys(text for text in told if text not in known))


def _told_of(source: ToolOutput) -> Iterator[str]:
    yield from (text for text in [source.tool_name] if not is_token(text))
    yield from texts_of(source.raw_input)
    if isinstance(source.raw_output, _ANSWERS):
        yield aside_text(source.raw_output)
