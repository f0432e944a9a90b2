"""Whether a server is out of order, or only out of order for one text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from guardrails_qwen.engines.breaker import Breaker
from guardrails_qwen.engines.reliability import Reliability
from guardrails_qwen.engines.slots import urgent
from guardrails_qwen.engines.transport import Deadline
from guardrails_qwen.errors import GuardError, RequestRejected, unavailable

Result = TypeVar("Result")

_SHORTEST_LOOK = 2.0
_LONGEST_LOOK = 10.0
"""Seconds that the question about a harmless text may take."""
_SHARE = 0.8
"""The part of a deadline that a request has; the rest is for asking about a harmless text."""


class Health:
    """Tells outages from texts that a server, or what stands before it, cannot bear.

    A firewall may reset the connection over a text, a proxy may answer 503, a model may hang. That
    looks like an outage, which `on_error: allow` waves through. So a failure counts as an outage
    only if nobody else was judged in the meantime and a harmless text is not judged either.
    Otherwise it is `RequestRejected`. Looks in a row that find the server out of order open a
    circuit breaker, which no text can.

    Args:
        reliability: When the breaker opens, and for how long.
    """

    def __init__(self, reliability: Reliability) -> None:
        self._breaker = Breaker(reliability.failures, reliability.rest, time.monotonic)
        self._answered = 0.0
        self._looking: asyncio.Task[bool] | None = None

    async def ask(
        self,
        ask: Callable[[Deadline], Awaitable[Result]],
        harmless: Callable[[Deadline], Awaitable[object]],
        deadline: Deadline,
    ) -> Result:
        """What a server answers about a text.

        Args:
            ask: Asks about the text.
            harmless: Asks about a harmless one.
            deadline: For both.

        Raises:
            EngineUnavailable: The server is out of order, or left alone because it was.
            RequestRejected: It judges other texts, but not this one.
            GuardError: What `ask` raises.
        """
        probing = self._breaker.admit()
        try:
            return await self._asked(ask, harmless, deadline)
        except GuardError:
            raise
        except BaseException:
            if probing:
                self._breaker.released()
            raise

    async def harmless(self, ask: Callable[[], Awaitable[Result]]) -> Result:
        """What a server answers where no text has a part in the question.

        Raises:
            EngineUnavailable: The server is left alone, because it was out of order.
            GuardError: What `ask` raises.
        """
        probing = self._breaker.admit()
        try:
            answer = await ask()
        except GuardError as error:
            if unavailable(error):
                self._breaker.failed()
            else:
                self._breaker.succeeded()
            raise
        except BaseException:
            if probing:
                self._breaker.released()
            raise
        self._judged()
        return answer

    async def _asked(
        self,
        ask: Callable[[Deadline], Awaitable[Result]],
        harmless: Callable[[Deadline], Awaitable[object]],
        deadline: Deadline,
    ) -> Result:
        """`ask`; the breaker is told whatever comes of it, but for what is no `GuardError`."""
        started = time.monotonic()
        try:
            answer = await ask(deadline.part(_SHARE))
        except GuardError as error:
            failed = error
        else:
            self._judged()
            return answer
        if not unavailable(failed):
            self._judged()
            raise failed
        outage = await self._out_of_order(started, harmless, deadline)
        if outage:
            raise failed
        unknown = "it could not be told in time whether others are judged"
        others = unknown if outage is None else "others are judged, and not this text"
        raise RequestRejected(f"{others}: {failed}")

    def _judged(self) -> None:
        self._answered = time.monotonic()
        self._breaker.succeeded()

    async def _out_of_order(
        self,
        since: float,
        harmless: Callable[[Deadline], Awaitable[object]],
        deadline: Deadline,
    ) -> bool | None:
        """Whether nobody else was judged since then, and is not now; None if time is up before.

        All who ask share one look.
        """
        if self._answered > since:
            return False
        if self._looking is None or self._looking.done():
            left = deadline.left
            time_to_look = _LONGEST_LOOK if left is None else max(_SHORTEST_LOOK, 0.9 * left)
            self._looking = asyncio.ensure_future(self._look(harmless, Deadline(time_to_look)))
        with anyio.move_on_after(deadline.left):
            return not await asyncio.shield(self._looking)
        return None

    async def _look(
        self, harmless: Callable[[Deadline], Awaitable[object]], deadline: Deadline
    ) -> bool:
        """Whether a harmless text is judged. It waits for no slot, which texts may be holding."""
        urgent.set(True)
        try:
            await harmless(deadline)
        except GuardError as error:
            if unavailable(error):
                self._breaker.failed()
                return False
        self._judged()
        return True
