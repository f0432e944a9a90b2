"""What chunks come from: started before it is read, and closed, so that a model stops."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from itertools import islice
from typing import Any

from guardrails_qwen.streaming import aclose_source, close_source


def started(source: Iterator[Any], first: list[Any]) -> Iterator[Any]:
    """Nothing; but when asked for, the first chunk of a source is moved to `first`.

    For LangChain, which starts a run's input before the run, and would then keep all of it for the
    run's trace, and read it to its end whatever happens.
    """
    first.extend(islice(source, 1))
    yield from ()


async def astarted(source: AsyncIterator[Any], first: list[Any]) -> AsyncIterator[Any]:
    """The same."""
    async for chunk in source:
        first.append(chunk)
        break
    for nothing in ():
        yield nothing


def resumed(first: list[Any], source: Iterator[Any]) -> Iterator[Any]:
    """A source that was started."""
    try:
        yield from first
        yield from source
    finally:
        close_source(source)


async def aresumed(first: list[Any], source: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    """The same."""
    try:
        for chunk in first:
            yield chunk
        async for chunk in source:
            yield chunk
    finally:
        await aclose_source(source)
