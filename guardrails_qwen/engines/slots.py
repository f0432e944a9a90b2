"""So many requests at once, and callers take turns."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from contextvars import ContextVar

caller: ContextVar[object] = ContextVar("caller", default=None)
"""On whose behalf work is done: set once for each call of an engine."""

urgent: ContextVar[bool] = ContextVar("urgent", default=False)
"""Whether work waits for no slot: it takes one more than there are."""


class Slots:
    """A semaphore that is fair to callers: one with a thousand requests does not starve the others.

    Those who wait get a slot caller by caller in turn, and each caller's requests in order. Belongs
    to one event loop.

    Args:
        most: How many may hold a slot at once.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: OrderedDict[object, deque[asyncio.Future[None]]] = OrderedDict()

    async def __aenter__(self) -> None:
        if urgent.get() or (self._free > 0 and not self._waiting):
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller.get(), deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it got its slot at the same moment
                self._pass_on()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        """Give a slot to the next who still waits, or keep it free."""
        while self._waiting and self._free >= 0:
            who, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[who] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
