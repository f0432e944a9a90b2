"""A circuit breaker: a server that is out of order is left alone for a while. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from guardrails_qwen.errors import EngineUnavailable


@dataclass(slots=True)
class Breaker:
    """Counts failures in a row; when there are too many, nobody waits for what will fail.

    Closed, it lets everything through. Open, it refuses everything for `rest` seconds. Then it is
    half-open: it lets one request through as a probe, whose success closes it and whose failure
    opens it again. What only a text may have provoked must not be reported to it as a failure:
    with `on_error: allow` an open breaker lets every other text pass.
    """

    failures: int
    """Failures in a row that open it."""
    rest: float
    """Seconds that it stays open."""
    clock: Callable[[], float]
    """Monotonic time, in seconds."""
    _count: int = 0
    _until: float = 0.0
    _probing: bool = False

    @property
    def open(self) -> bool:
        """Whether it refuses all but a probe."""
        return self._count >= self.failures

    def admit(self) -> bool:
        """Let a request through, and say whether it is the probe.

        It has to be reported then, as `succeeded`, `failed` or, if it was the probe, `released`.

        Raises:
            EngineUnavailable: It is open, or half-open with a probe under way.
        """
        if not self.open:
            return False
        left = self._until - self.clock()
        if left > 0 or self._probing:
            when = f"in {left:.1f} s" if left > 0 else "under way"
            raise EngineUnavailable(
                f"the server failed {self._count} times in a row and is left alone; "
                f"the next try is {when}"
            )
        self._probing = True
        return True

    def succeeded(self) -> None:
        """The server answered, whatever it said."""
        self._count, self._probing = 0, False

    def failed(self) -> None:
        """The server did not answer, or is out of order."""
        self._count, self._probing = self._count + 1, False
        if self.open:
            self._until = self.clock() + self.rest

    def released(self) -> None:
        """The probe was given up before there was an answer."""
        self._probing = False
