"""A model that echoes, the eight ways to run a runnable, and the types of the fixtures."""

import asyncio
import operator
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import reduce
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    message_chunk_to_message,
)
from langchain_core.messages.content import KNOWN_BLOCK_TYPES
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import ConfigDict, Field, SkipValidation

from langchain_guardrails_qwen import GuardRunnable

UNSAFE = "Safety: Unsafe\nCategories: Violent"
SCRIPT = {"bomb": UNSAFE}
REPLACED = "This content was removed by the safety policy."
FILTERED = {
    "finish_reason": "content_filter",
    # where langchain-core knows refusals: the mark by which it reads the reply as one
    **({"model_provider": "+guardrails-qwen"} if "refusal" in KNOWN_BLOCK_TYPES else {}),
}


class EchoModel(BaseChatModel):
    """Replies "re: " and what it was sent, streams it word by word, and records its calls."""

    prefix: str = "re: "
    sent: list[list[BaseMessage]] = Field(default_factory=list[list[BaseMessage]])
    events: list[str] = Field(default_factory=list[str])
    seconds: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "echo"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        time.sleep(self.seconds)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self._reply(messages)))])

    async def _agenerate(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> ChatResult:
        return self._generate(messages)

    def _stream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for word in self._reply(messages).split(" "):
            self.events.append("token")
            yield ChatGenerationChunk(message=AIMessageChunk(content=f"{word} "))

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages):
            yield chunk

    def _reply(self, messages: list[BaseMessage]) -> str:
        self.sent.append(messages)
        return f"{self.prefix}{messages[-1].text}"


class WritingModel(BaseChatModel):
    """Writes the given chunks, and logs what it wrote and how that ended.

    Args:
        chunks: Message chunks; an exception is raised, and None hangs until it is cancelled.
    """

    chunks: SkipValidation[Iterable[Any]]
    log: list[str] = Field(default_factory=list[str])
    sent: list[list[BaseMessage]] = Field(default_factory=list[list[BaseMessage]])
    hanging: asyncio.Event = Field(default_factory=asyncio.Event)
    model_config = ConfigDict(arbitrary_types_allowed=True)

    @property
    def _llm_type(self) -> str:
        return "writing"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self.sent.append(messages)
        total = reduce(operator.add, (c for c in self.chunks if isinstance(c, AIMessageChunk)))
        message = AIMessage(**message_chunk_to_message(total).model_dump(exclude={"type"}))
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> ChatResult:
        if None in self.chunks:
            try:
                await self._hang()
            finally:
                self.log.append("closed")
        return self._generate(messages)

    def _stream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        self.sent.append(messages)
        try:
            for chunk in self.chunks:
                yield self._written(chunk)
            self.log.append("done")
        except GeneratorExit:
            self.log.append("closed")
            raise

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        self.sent.append(messages)
        try:
            for chunk in self.chunks:
                if chunk is None:
                    await self._hang()
                yield self._written(chunk)
                await asyncio.sleep(0)
            self.log.append("done")
        except (GeneratorExit, asyncio.CancelledError):
            self.log.append("closed")
            raise

    def _written(self, chunk: AIMessageChunk | Exception | None) -> ChatGenerationChunk:
        if not isinstance(chunk, AIMessageChunk):
            raise chunk or AssertionError("only what is asynchronous can hang")
        self.log.append(chunk.text)
        return ChatGenerationChunk(message=chunk.model_copy())

    async def _hang(self) -> None:
        self.hanging.set()
        await asyncio.Event().wait()


def writing(text: str, size: int = 0, **last: Any) -> WritingModel:
    """A model that writes a text word by word, or so many characters at once."""
    parts = re.findall(rf".{{1,{size}}}" if size else r"\s*\S+", text, re.DOTALL)
    *chunks, end = [AIMessageChunk(content=part, id="msg-1") for part in parts]
    return WritingModel(chunks=[*chunks, end.model_copy(update=last)])


Door = Callable[..., Awaitable[list[Any]]]
"""Runs a runnable on a value, perhaps with a config, and lists what comes out."""

Guarding = Callable[..., GuardRunnable]
Texts = Callable[[], list[list[str]]]


async def invoke(
    runnable: Runnable[Any, Any], value: Any, config: RunnableConfig | None = None
) -> list[Any]:
    return [runnable.invoke(value, config)]


async def ainvoke(
    runnable: Runnable[Any, Any], value: Any, config: RunnableConfig | None = None
) -> list[Any]:
    return [await runnable.ainvoke(value, config)]


async def batch(
    runnable: Runnable[Any, Any], value: Any, config: RunnableConfig | None = None
) -> list[Any]:
    return runnable.batch([value], config)


async def abatch(
    runnable: Runnable[Any, Any], value: Any, config: RunnableConfig | None = None
) -> list[Any]:
    return await runnable.abatch([value], config)


async def stream(
    runnable: Runnable[Any, Any], value: Any, config: RunnableConfig | None = None
) -> list[Any]:
    return list(runnable.stream(value, config))


async def astream(
    runnable: Runnable[Any, Any], value: Any, config: RunnableConfig | None = None
) -> list[Any]:
    return [chunk async for chunk in runnable.astream(value, config)]


async def transform(
    runnable: Runnable[Any, Any], value: Any, config: RunnableConfig | None = None
) -> list[Any]:
    return list(runnable.transform(iter([value]), config))


async def atransform(
    runnable: Runnable[Any, Any], value: Any, config: RunnableConfig | None = None
) -> list[Any]:
    async def values() -> AsyncIterator[Any]:
        yield value

    return [chunk async for chunk in runnable.atransform(values(), config)]


DOORS = [invoke, ainvoke, batch, abatch, stream, astream, transform, atransform]
