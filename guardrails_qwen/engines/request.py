"""One call of an engine: its conversations as what has to run for them, and back. Pure."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic, TypeVar

from guardrails_qwen.engines.base import Outcome
from guardrails_qwen.errors import GuardError, TextTooLong
from guardrails_qwen.longtext import Window, merged
from guardrails_qwen.verdict import Verdict

Job = TypeVar("Job", bound=Hashable)
"""What a model runs for one window; equal jobs run once."""


@dataclass(frozen=True, kw_only=True)
class Request(Generic[Job]):
    """One call: its conversations, cut, and what has to run for them; what is equal runs once."""

    found: Sequence[list[Window] | GuardError] = field(repr=False)
    """For each conversation its windows."""
    tried: Sequence[Job | TextTooLong] = field(repr=False)
    """For each window, in order."""

    @cached_property
    def jobs(self) -> list[Job]:
        """What the model has to judge."""
        return list(dict.fromkeys(job for job in self.tried if not isinstance(job, TextTooLong)))

    def outcomes(self, judged: Sequence[Outcome], started: float) -> list[Outcome]:
        """One outcome for each conversation, from those of the jobs."""
        seconds = time.perf_counter() - started
        ready = dict(zip(self.jobs, judged, strict=True))
        each = iter([self._of(job, ready) for job in self.tried])
        return [
            item
            if isinstance(item, GuardError)
            else _timed(merged(item, [next(each) for _ in item]), seconds)
            for item in self.found
        ]

    @staticmethod
    def _of(job: Job | TextTooLong, ready: dict[Job, Outcome]) -> Outcome:
        """The outcome of a job; what ran once costs once."""
        if isinstance(job, TextTooLong):
            return job
        outcome = ready[job]
        if isinstance(outcome, Verdict):
            ready[job] = replace(outcome, tokens=0)
        return outcome


def _timed(outcome: Outcome, seconds: float) -> Outcome:
    return replace(outcome, seconds=seconds) if isinstance(outcome, Verdict) else outcome
