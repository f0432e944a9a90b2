"""Closing what chunks come from, so that a language model stops when nobody reads on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager
from inspect import isasyncgen, isawaitable

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


class aclosed_after:  # noqa: N801  a context manager
    """The same, by `aclose` where there is one; `close` may be a coroutine function.

    It is no generator: those are closed at any time by a loop that ends.
    """

    def __init__(self, chunks: object) -> None:
        self._parts = [chunks]

    async def __aenter__(self) -> list[object]:
        return self._parts

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            await aclose_source(*self._parts)
        else:
            await aclose_quietly(self._parts)


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
    """The same, by `aclose` where there is one; `close` may be a coroutine function.

    A loop that ends closes all generators at once, which leaves nothing to do with these.
    """
    for part in parts:
        if isasyncgen(part) and _ends(asyncio.get_running_loop()):
            continue
        if close := getattr(part, "aclose", None) or getattr(part, "close", None):
            closing = close()
            if isawaitable(closing):
                await closing


def _ends(loop: object) -> bool:
    """Whether an event loop is closing its generators; one that does not say so is not."""
    return bool(getattr(loop, "_asyncgens_shutdown_called", False))


def _log(error: Exception) -> None:
    logger.warning("a source could not be closed: %s", type(error).__name__)
