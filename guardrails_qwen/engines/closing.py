"""What an engine that has to be closed is: a context manager, with two doors out."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class Closing(ABC):
    """A base for what is closed at the end: `with` and `async with` close it."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything. Closing again does nothing."""

    async def aclose(self) -> None:
        """`close`, without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def close_all(parts: Iterable[object]) -> None:
    """Close what can be closed, in order and each once, even where one fails to.

    Raises:
        Exception: What the last of those that failed raised.
    """
    with ExitStack() as stack:
        for part in _backwards(parts):
            if close := getattr(part, "close", None):
                stack.callback(close)


async def aclose_all(parts: Iterable[object]) -> None:
    """`close_all`, by `aclose` where there is one and else on a thread."""
    async with AsyncExitStack() as stack:
        for part in _backwards(parts):
            if aclose := getattr(part, "aclose", None):
                stack.push_async_callback(aclose)
            elif close := getattr(part, "close", None):
                stack.push_async_callback(asyncio.to_thread, close)


def _backwards(parts: Iterable[object]) -> list[object]:
    """Each once, the last first: a stack turns them round."""
    return list({id(part): part for part in parts}.values())[::-1]
