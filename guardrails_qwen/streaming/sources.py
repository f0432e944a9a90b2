"""Closing what chunks come from, so that a language model stops when nobody reads on."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

logger = logging.getLogger("guardrails_qwen")


@contextmanager
def closed_after(chunks: object) -> Generator[list[object]]:
    """Close chunks at the end, and what was put before them into the list, an iterator of them.

    What closing raises is raised where all else went well. On the way out of an exception it is
    logged, so that it takes the place of none.
    """
    parts = [chunks]
    try:
        yield parts
    except BaseException:
        close_quietly(parts)
        raise
    close_source(*parts)


@asynccontextmanager
async def aclosed_after(chunks: object) -> AsyncGenerator[list[object]]:
    """The same, by `aclose` where there is one; `close` may be a coroutine function."""
    parts = [chunks]
    try:
        yield parts
    except BaseException:
        await aclose_quietly(parts)
        raise
    await aclose_source(*parts)


def close_quietly(parts: list[object]) -> None:
    """Close all that is in the list, and empty it. What that raises is logged, by its type."""
    while parts:
        try:
            close_source(parts.pop(0))
        except Exception as error:  # noqa: BLE001  something that matters more is under way
            _log(error)


async def aclose_quietly(parts: list[object]) -> None:
    """The same for `aclose`."""
    while parts:
        try:
            await aclose_source(parts.pop(0))
        except Exception as error:  # noqa: BLE001  something that matters more is under way
            _log(error)


def close_source(*parts: object) -> None:
    """Close an iterator and what it came from, as far as they can be closed."""
    for part in parts:
        if close := getattr(part, "close", None):
            close()


async def aclose_source(*parts: object) -> None:
    """The same, by `aclose` where there is one; `close` may be a coroutine function."""
    for part in parts:
        if close := getattr(part, "aclose", None) or getattr(part, "close", None):
            closing = close()
            if inspect.isawaitable(closing):
                try:
                    await closing
                except RuntimeError:
                    # a loop that ends closes all generators at once, this one too
                    if not getattr(part, "ag_running", False):
                        raise


def _log(error: Exception) -> None:
    logger.warning("a source could not be closed: %s", type(error).__name__)
