"""LlamaIndex's decorators for methods of models, which tell handlers of calls, with types."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, TypeVar, cast

from llama_index.core.llms import callbacks

from guardrails_qwen.streaming import aclose_source, close_source

_T = TypeVar("_T")
_Method = TypeVar("_Method", bound=Callable[..., Any])
_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def chat_callback(method: _Method) -> _Method:
    """Tell handlers of a chat: its messages and its reply."""
    return cast("Any", callbacks).llm_chat_callback()(method)


def completion_callback(method: _Method) -> _Method:
    """Tell handlers of a completion: its prompt and its text."""
    return cast("Any", callbacks).llm_completion_callback()(method)


def streamed(callback: _Decorator, method: _Method) -> _Method:
    """The same of a method that streams; closed, what it gives is closed.

    LlamaIndex leaves that to the garbage collector, which never comes where a handler keeps what
    ended the stream.
    """

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        opened = list[Generator[Any, None, None]]()

        def opening(self: Any, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
            opened.append(method(self, *args, **kwargs))
            return opened[0]

        return _closing(callback(opening)(self, *args, **kwargs), opened)

    return cast("_Method", call)


def astreamed(callback: _Decorator, method: _Method) -> _Method:
    """The same of an asynchronous one."""

    @functools.wraps(method)
    async def call(self: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        opened = list[AsyncGenerator[Any, None]]()

        async def opening(self: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            opened.append(await method(self, *args, **kwargs))
            return opened[0]

        return _aclosing(await callback(opening)(self, *args, **kwargs), opened)

    return cast("_Method", call)


def _closing(
    told: Generator[_T, None, None], opened: list[Generator[_T, None, None]]
) -> Generator[_T, None, None]:
    try:
        yield from told
    finally:
        for source in (told, *opened):
            close_source(source)


async def _aclosing(
    told: AsyncGenerator[_T, None], opened: list[AsyncGenerator[_T, None]]
) -> AsyncGenerator[_T, None]:
    try:
        async for item in told:
            yield item
    finally:
        for source in (told, *opened):
            await aclose_source(source)
