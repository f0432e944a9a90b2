"""Query engines by script, and both colours of asking and reading them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from typing_extensions import override

Make = Callable[[str], Any]
"""From the text of a query to its answer."""


class Answering(BaseQueryEngine):
    """Answers each query with what `make` makes of its text; keeps what it is asked.

    Args:
        make: Makes the answers.
        streaming: Whether it says that it answers in streams, as LlamaIndex's own engines do.
    """

    def __init__(self, make: Make, *, streaming: bool = False) -> None:
        super().__init__(None)
        self.make = make
        self.asked: list[QueryBundle] = []
        self.doors: list[str] = []
        self._streaming = streaming

    @override
    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    @override
    def _query(self, query_bundle: QueryBundle) -> Any:
        return self._answer("query", query_bundle)

    @override
    async def _aquery(self, query_bundle: QueryBundle) -> Any:
        return self._answer("aquery", query_bundle)

    @override
    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self._answer("retrieve", query_bundle)
        return [node(query_bundle.query_str)]

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """As `retrieve`."""
        self._answer("aretrieve", query_bundle)
        return [node(query_bundle.query_str)]

    @override
    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> Any:
        return self._answer("synthesize", query_bundle)

    @override
    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> Any:
        return self._answer("asynthesize", query_bundle)

    def _answer(self, door: str, query: QueryBundle) -> Any:
        self.doors.append(door)
        self.asked.append(query)
        return self.make(query.query_str)


class Source:
    """Items of a stream; keeps what became of it.

    Args:
        items: What comes, an error where one is to be raised.
    """

    def __init__(self, *items: Any) -> None:
        self.items = items
        self.log: list[str] = []
        """"gave" for each item, and "closed" at the end, however it came."""

    def stream(self) -> Generator[Any, None, None]:
        """The items."""
        try:
            for item in self.items:
                self.log.append("gave")
                yield self._given(item)
        finally:
            self.log.append("closed")

    async def astream(self) -> AsyncGenerator[Any, None]:
        """The items."""
        try:
            for item in self.items:
                self.log.append("gave")
                yield self._given(item)
        finally:
            self.log.append("closed")

    def _given(self, item: Any) -> Any:
        if isinstance(item, Exception):
            raise item
        return item


def node(text: str) -> NodeWithScore:
    """A source of an answer."""
    return NodeWithScore(node=TextNode(id_=f"id-{text}", text=text, metadata={"file": "a"}))


async def asked(door: str, engine: BaseQueryEngine, query: Any) -> Any:
    """What an engine answers, by its door `query` or `aquery`."""
    return engine.query(query) if door == "query" else await engine.aquery(query)


async def read(response: Any) -> list[Any]:
    """All that a stream gives, or the one text of another answer."""
    if isinstance(response, StreamingResponse):
        return list(response.response_gen)
    if isinstance(response, AsyncStreamingResponse):
        return [item async for item in response.response_gen]
    assert isinstance(response, Response)
    return [response.response]
