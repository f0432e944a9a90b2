"""Whether a server is out of order, or only out of order for one text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from guardrails_qwen.engines.breaker import Breaker
from guardrails_qwen.engines.reliability import Reliability
from guardrails_qwen.engines.transport import Deadline
from guardrails_qwen.errors import GuardError, RequestRejected, unavailable

Result = TypeVar("Result")

_SHARE = 0.8
"""The part of a deadline that a request has; the rest is for asking about a harmless text."""


class Health:
    """Tells outages from texts that a server, or what stands before it, cannot bear.

    A firewall may reset the connection over a text, a proxy may answer 503, a model may hang. That
    looks like an outage, which `on_error: allow` waves through. So a failure counts as an outage
    only if nobody else was judged in the meantime and a harmless text is not judged either.
    Otherwise it is `RequestRejected`. Outages in a row open a circuit breaker, which no text can.

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
        if await self._judges_others(started, harmless, deadline):
            raise RequestRejected(f"the server judges other texts, and not this one: {failed}")
        self._breaker.failed()
        raise failed

    def _judged(self) -> None:
        self._answered = time.monotonic()
        self._breaker.succeeded()

    async def _judges_others(
        self,
        since: float,
        harmless: Callable[[Deadline], Awaitable[object]],
        deadline: Deadline,
    ) -> bool:
        """Whether any other text was judged since then, or is now. All who ask share one look."""
        if self._answered > since:
            return True
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look(harmless, deadline))
        return await asyncio.shield(self._looking)

    async def _look(
        self, harmless: Callable[[Deadline], Awaitable[object]], deadline: Deadline
    ) -> bool:
        try:
            await harmless(deadline)
        except GuardError as error:
            if unavailable(error):
                return False
        self._judged()
        return True
