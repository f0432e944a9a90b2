"""A small engine for everything, and a large one for what the small one is not sure of."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.engines.base import Engine, Outcome
from guardrails_qwen.engines.closing import Closing, aclose_all, close_all
from guardrails_qwen.engines.members import (
    Ask,
    Steps,
    Watch,
    adriven,
    any_demonstration,
    digest,
    driven,
    failed,
    gravest,
    timed,
)
from guardrails_qwen.errors import EngineClosed, GuardError
from guardrails_qwen.verdict import Severity, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeStats:
    """Who answered."""

    small: int = 0
    """Verdicts of the small engine."""
    large: int = 0
    """Verdicts of the large engine."""
    unjudged: int = 0
    """Conversations that neither gave a verdict on that counts: the large engine failed."""

    @property
    def escalated(self) -> int:
        """Conversations that the large engine was asked about."""
        return self.large + self.unjudged

    @property
    def escalation_rate(self) -> float:
        """Their share of all, in 0 … 1; 0 where none was asked."""
        return self.escalated / (self.escalated + self.small) if self.escalated else 0.0

    def __add__(self, other: CascadeStats) -> CascadeStats:
        return CascadeStats(
            small=self.small + other.small,
            large=self.large + other.large,
            unjudged=self.unjudged + other.unjudged,
        )


class CascadeEngine(Closing):
    """Asks a small engine about everything, and a large one where the small one is not sure.

    It is not sure where any of these holds:

    - P(Controversial or worse) or P(Unsafe), by its scores, lies in the band, edges included.
      These are the two lines that a policy may draw: strict and loose;
    - its verdict is Controversial;
    - its verdict has no scores;
    - it gave no verdict, for whatever reason.

    Then the large engine's outcome counts. Where that is an error, the small one's verdict does not
    take its place; but if the small one did not say Safe, or its own error is one that no
    `on_error: allow` lets pass, then so is the outcome.

    A verdict's `model` and `fingerprint` are those of the engine that gave it. Its `tokens` are
    those of both engines, its `seconds` those of the whole call.

    Args:
        small: Judges everything.
        large: Judges what the small one is not sure of.
        band: Two probabilities. By default 0.05 and 0.95: of the texts beyond either, the small
            engine is wrong about no more than one in twenty, if its probabilities mean what they
            say; see calibration.
        escalate_unscored: Whether a verdict without scores goes to the large engine as well, if it
            is not Controversial.
    """

    def __init__(
        self,
        small: Engine,
        large: Engine,
        band: tuple[float, float] = (0.05, 0.95),
        *,
        escalate_unscored: bool = True,
    ) -> None:
        low, high = band
        if not 0 <= low <= high <= 1:
            raise ValueError(f"band is {low} … {high}: use two probabilities, the smaller first")
        self.small = small
        self.large = large
        self._band = (float(low), float(high))
        self._escalate_unscored = escalate_unscored
        self._watches = (Watch("cascade: the small engine"), Watch("cascade: the large engine"))
        self._stats = CascadeStats()
        self._lock = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"CascadeEngine({self.small!r}, {self.large!r}, band={self._band})"

    @property
    def name(self) -> str:
        """The models, the small one first."""
        return f"{self.small.name}, then {self.large.name}"

    @property
    def fingerprint(self) -> str:
        """The engines and when the large one is asked, exactly, as of now."""
        parts = (self.small.fingerprint, self.large.fingerprint)
        return digest("cascade", *parts, self._band, self._escalate_unscored)

    @property
    def demonstration(self) -> bool:
        """Whether either engine is a demonstration, which protects nobody."""
        return any_demonstration((self.small, self.large))

    @property
    def stats(self) -> CascadeStats:
        """All calls so far."""
        return self._stats

    def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """Judge a batch; blocks until done. What engines raise becomes an outcome.

        Raises:
            EngineClosed: After `close()`.
        """
        return driven(self._steps(list(conversations)))

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """`judge`, without blocking the event loop."""
        return await adriven(self._steps(list(conversations)))

    def close(self) -> None:
        """Close both engines, even where one fails to. Later calls raise `EngineClosed`."""
        self._closed = True
        close_all((self.small, self.large))

    async def aclose(self) -> None:
        """`close`, through the engines' `aclose` where they have one."""
        self._closed = True
        await aclose_all((self.small, self.large))

    def _steps(self, conversations: Sequence[Conversation]) -> Steps:
        if self._closed:
            raise EngineClosed("the engine is closed")
        started = time.perf_counter()
        first = (yield Ask(self.small, conversations)) if conversations else []
        self._watches[0].note(self.small, first)
        unsure = [i for i, outcome in enumerate(first) if self._unsure(outcome)]
        second = (yield Ask(self.large, [conversations[i] for i in unsure])) if unsure else []
        self._watches[1].note(self.large, second)
        self._count(len(first), second)
        settled = {i: _settled(first[i], large) for i, large in zip(unsure, second, strict=True)}
        return timed([settled.get(i, outcome) for i, outcome in enumerate(first)], started)

    def _unsure(self, small: Outcome) -> bool:
        """Whether the large engine is to be asked."""
        if not isinstance(small, Verdict) or small.severity is Severity.CONTROVERSIAL:
            return True
        if small.scores is None:
            return self._escalate_unscored
        low, high = self._band
        lines = (Severity.CONTROVERSIAL, Severity.UNSAFE)
        return any(low <= small.probability(line) <= high for line in lines)

    def _count(self, asked: int, second: Sequence[Outcome]) -> None:
        large = sum(isinstance(outcome, Verdict) for outcome in second)
        more = CascadeStats(small=asked - len(second), large=large, unjudged=len(second) - large)
        with self._lock:
            self._stats += more


def _settled(small: Outcome, large: Outcome) -> Outcome:
    """The outcome where both were asked: the large one's, which no failure makes harmless."""
    if isinstance(large, Verdict):
        return replace(large, tokens=_both(small, large))
    if isinstance(small, GuardError):
        return gravest([large, small])
    return _harmful(large) if small.severity and failed(large) else large


def _harmful(error: GuardError) -> GuardError:
    """What stands for a failure where harm is likely: neither policies nor fallbacks pass it on."""
    harmful = GuardError(
        "the small engine did not say Safe, and the large one could not judge: "
        f"{type(error).__name__}"
    )
    harmful.__cause__ = error
    return harmful


def _both(small: Outcome, large: Verdict) -> int | None:
    """Tokens of both, as far as they are known."""
    if not isinstance(small, Verdict) or small.tokens is None:
        return large.tokens
    return small.tokens + (large.tokens or 0)
