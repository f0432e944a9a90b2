"""Several engines in order: the first that answers, counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

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
from guardrails_qwen.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackStats:
    """Who answered."""

    answers: tuple[int, ...]
    """Verdicts of each engine, in the order of the engines."""
    unjudged: int = 0
    """Conversations that have no verdict."""


class FallbackEngine(Closing):
    """Asks the first engine, and the next about what it failed to judge, and so on.

    Each conversation goes its own way: those that the first engine judged keep its verdicts. On to
    the next goes what an engine failed at: `EngineError`, `UnreadableVerdict` among them,
    `CheckpointError`, and any exception that is not this library's. What says something of the text
    stays: one that is too long, or in part not safe, is not handed on until somebody calls it safe.

    Where all fail, the outcome is the first engine's error, unless another's says more than that an
    engine was not available: `on_error: allow` lets a text pass only if every engine was
    unavailable. A verdict's `model` and `fingerprint` are those of the engine that gave it, its
    `seconds` are those of the whole call.

    Args:
        engines: In order of preference; not empty.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = tuple(engines)
        if not self.engines:
            raise ValueError("no engines: use at least one")
        places = range(1, len(self.engines) + 1)
        self._watches = [Watch(f"fallback: engine {i} of {len(places)}") for i in places]
        self._stats = FallbackStats(answers=(0,) * len(places))
        self._lock = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"FallbackEngine([{', '.join(map(repr, self.engines))}])"

    @property
    def name(self) -> str:
        """The models, in order, each once."""
        return ", else ".join(dict.fromkeys(engine.name for engine in self.engines))

    @property
    def fingerprint(self) -> str:
        """The engines and their order, exactly, as of now. Which of them answers it cannot tell."""
        return digest("fallback", *(engine.fingerprint for engine in self.engines))

    @property
    def demonstration(self) -> bool:
        """Whether any engine is a demonstration, which protects nobody."""
        return any_demonstration(self.engines)

    @property
    def stats(self) -> FallbackStats:
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
        """Close all engines, even where one fails to. Later calls raise `EngineClosed`."""
        self._closed = True
        close_all(self.engines)

    async def aclose(self) -> None:
        """`close`, through the engines' `aclose` where they have one."""
        self._closed = True
        await aclose_all(self.engines)

    def _steps(self, conversations: Sequence[Conversation]) -> Steps:
        if self._closed:
            raise EngineClosed("the engine is closed")
        started = time.perf_counter()
        errors: list[list[GuardError]] = [[] for _ in conversations]
        outcomes: dict[int, Outcome] = {}
        answers: list[int] = []
        for engine, watch in zip(self.engines, self._watches, strict=True):
            left = [i for i in range(len(conversations)) if i not in outcomes]
            answered = (yield Ask(engine, [conversations[i] for i in left])) if left else []
            watch.note(engine, answered)
            answers.append(sum(isinstance(outcome, Verdict) for outcome in answered))
            for i, outcome in zip(left, answered, strict=True):
                if isinstance(outcome, GuardError) and failed(outcome):
                    errors[i].append(outcome)
                else:
                    outcomes[i] = outcome
        self._count(answers, len(conversations))
        for i, found in enumerate(errors):
            if i not in outcomes:
                outcomes[i] = gravest(found)
        return timed([outcomes[i] for i in range(len(conversations))], started)

    def _count(self, answers: Sequence[int], asked: int) -> None:
        with self._lock:
            self._stats = FallbackStats(
                answers=tuple(map(sum, zip(self._stats.answers, answers, strict=True))),
                unjudged=self._stats.unjudged + asked - sum(answers),
            )
