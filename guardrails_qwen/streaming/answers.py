"""A prompt that is judged, and what answers it: one after the other, or at the same time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import TypeVar

from guardrails_qwen.streaming.beside import abeside, beside
from guardrails_qwen.streaming.sources import aclose_source

_Prompt = TypeVar("_Prompt")
_Chunk = TypeVar("_Chunk")


class _ChangedError(Exception):
    """The prompt may not be answered as it is."""


def answers(
    judge: Callable[[], _Prompt],
    call: Callable[[_Prompt], Iterable[_Chunk]],
    prompt: _Prompt,
    *,
    early: bool,
) -> Iterator[_Chunk]:
    """What answers a prompt.

    Args:
        judge: Gives what may pass of the prompt, the very same object where it passes unchanged.
        call: Answers a prompt.
        prompt: The prompt.
        early: Answer it while it is judged. No chunk is there before the verdict; where `judge`
            raises, the answer is closed; where the prompt passes changed, that is answered anew.
    """
    if not early:
        yield from call(judge())
        return
    passed = list[_Prompt]()

    def require_unchanged() -> None:
        passed.append(judge())
        if passed[0] is not prompt:
            raise _ChangedError

    try:
        yield from beside(require_unchanged, call(prompt))
    except _ChangedError:
        yield from call(passed[0])


async def aanswers(
    judge: Callable[[], Awaitable[_Prompt]],
    call: Callable[[_Prompt], AsyncIterable[_Chunk]],
    prompt: _Prompt,
    *,
    early: bool,
) -> AsyncGenerator[_Chunk, None]:
    """`answers`, without blocking the event loop; an answer that hangs is cancelled at once."""
    passed = list[_Prompt]()

    async def require_unchanged() -> None:
        passed.append(await judge())
        if passed[0] is not prompt:
            raise _ChangedError

    if early:
        try:
            async with aclosing(abeside(require_unchanged(), call(prompt))) as chunks:
                async for chunk in chunks:
                    yield chunk
        except _ChangedError:
            pass
        else:
            return
    else:
        passed.append(await judge())
    source = call(passed[0])
    try:
        async for chunk in source:
            yield chunk
    finally:
        await aclose_source(source)


def once(call: Callable[[_Prompt], _Chunk], prompt: _Prompt) -> Iterator[_Chunk]:
    """An answer that comes in one piece."""
    yield call(prompt)


async def aonce(
    call: Callable[[_Prompt], Awaitable[_Chunk]], prompt: _Prompt
) -> AsyncGenerator[_Chunk, None]:
    """The same."""
    yield await call(prompt)
