"""A model that echoes, the eight ways to run a runnable, and the types of the fixtures."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import Field

from langchain_guardrails_qwen import GuardRunnable

UNSAFE = "Safety: Unsafe\nCategories: Violent"
SCRIPT = {"bomb": UNSAFE}
REPLACED = "This content was removed by the safety policy."
FILTERED = {"finish_reason": "content_filter"}


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
