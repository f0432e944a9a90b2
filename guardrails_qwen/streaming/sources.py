"""Closing what chunks come from, so that a language model stops when nobody reads on."""

from __future__ import annotations

import inspect


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
                await closing
