"""How patient an engine is with its server."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Retries, circuit breaker and hedging of one server. Times are in seconds.

    Tried again are connection errors, timeouts, 429 and 5xx, and answers that are no JSON; never
    any other 4xx. All of it happens within the engine's deadline.
    """

    attempts: int = 3
    """How often a request is tried, the first time included."""
    timeout: float = 10.0
    """What one attempt may take."""
    first_wait: float = 0.1
    """About how long the second attempt waits; it doubles with each one, with full jitter. A
    server's `Retry-After` counts where it is longer."""
    longest_wait: float = 5.0
    """The longest of these waits. A longer `Retry-After` ends the attempts."""
    failures: int = 8
    """Outages in a row that open the circuit breaker: nobody waits for what will fail. A failure
    is an outage if a harmless text is not judged either."""
    rest: float = 5.0
    """How long it stays open before one request is let through to see."""
    hedge: float | None = None
    """After how long a request without an answer is sent a second time; the first answer counts.
    None for never. It takes load for latency: set it to what 95 in 100 requests take."""

    def __post_init__(self) -> None:
        for name in ("attempts", "failures"):
            value: object = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value}: use a whole number from 1 on")
        for name in ("timeout", "first_wait", "longest_wait", "rest"):
            _require_seconds(name, getattr(self, name))
        if self.hedge is not None:
            _require_seconds("hedge", self.hedge)


def _require_seconds(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}: use a number of seconds above 0")
