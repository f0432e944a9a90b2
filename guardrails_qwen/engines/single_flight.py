"""One caller finds something out, and those who want to know the same wait for it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future

from guardrails_qwen.verdict import Verdict

Flight = Future[Verdict | None]
"""What a caller is finding out: a verdict, or None where it has none to tell."""


class Flights:
    """The keys that callers have in hand. Threads and event loops may mix."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[str, Flight] = {}

    def claim(
        self, keys: Iterable[str], *, wait: bool
    ) -> tuple[dict[str, Flight], dict[str, Flight]]:
        """What is the caller's to land now, and what it may wait for: nothing, if it will not."""
        mine: dict[str, Flight] = {}
        others: dict[str, Flight] = {}
        with self._lock:
            for key in keys:
                if key not in self._flights:
                    self._flights[key] = mine[key] = _flight()
                elif wait:
                    others[key] = self._flights[key]
        return mine, others

    def land(self, claims: dict[str, Flight], verdicts: Mapping[str, Verdict | None]) -> None:
        """Tell those who wait what became of some claims, and give these up."""
        landing = {key: claims.pop(key) for key in verdicts if key in claims}
        with self._lock:
            for key in landing:
                del self._flights[key]
        for key, flight in landing.items():
            flight.set_result(verdicts[key])


def waited(flights: Mapping[str, Flight], patience: float) -> dict[str, Verdict | None]:
    """What landed within `patience` seconds.

    On the thread of an event loop it does not wait at all: it would hold up the tasks of that loop,
    and one of these may be who it waits for.
    """
    concurrent.futures.wait(flights.values(), timeout=0 if _in_a_loop() else patience)
    return _landed(flights)


async def awaited(flights: Mapping[str, Flight], patience: float) -> dict[str, Verdict | None]:
    """`waited`, without blocking the event loop."""
    waiting = [asyncio.wrap_future(flight) for flight in flights.values()]
    try:
        await asyncio.wait(waiting, timeout=patience)
    finally:
        for future in waiting:
            future.cancel()  # this loop's end only: a flight itself cannot be cancelled
    return _landed(flights)


def _flight() -> Flight:
    flight = Flight()
    flight.set_running_or_notify_cancel()  # what runs is not cancelled by those who wait for it
    return flight


def _landed(flights: Mapping[str, Flight]) -> dict[str, Verdict | None]:
    return {key: flight.result() for key, flight in flights.items() if flight.done()}


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
