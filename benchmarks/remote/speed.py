"""How long a verdict takes, and how many a second there are, contenders in turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import median

from benchmarks.remote.contenders import Contender
from benchmarks.remote.questions import Kind, Question, mixed, questions
from guardrails_qwen import Verdict
from guardrails_qwen.engines.base import Outcome


@dataclass(slots=True, kw_only=True)
class Latency:
    """Verdicts that one contender asked for, one after another."""

    seconds: list[float] = field(default_factory=list[float])
    wrong: int = 0
    """Errors, and verdicts of another severity than the question has."""

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def p95(self) -> float:
        """What 95 in 100 did not exceed."""
        return sorted(self.seconds)[max(0, round(0.95 * len(self.seconds)) - 1)]


@dataclass(slots=True, kw_only=True)
class Throughput:
    """Verdicts that callers of one contender asked for at once."""

    rates: list[float] = field(default_factory=list[float])
    """Verdicts a second, in each round."""
    wrong: int = 0

    @property
    def median(self) -> float:
        return median(self.rates)


def latencies(contenders: Sequence[Contender], kind: Kind, rounds: int) -> dict[str, Latency]:
    """Each contender asks one question of a kind at a time by the blocking door.

    Nobody's question has been asked before. Who begins a round changes.
    """
    asked = questions(kind)
    measured = {one.name: Latency() for one in contenders}
    for one in contenders:
        one.judge(next(asked).conversation)
    for number in range(rounds):
        for one in _rotated(contenders, number):
            question, latency = next(asked), measured[one.name]
            started = time.perf_counter()
            outcome = one.judge(question.conversation)
            latency.seconds.append(time.perf_counter() - started)
            latency.wrong += is_wrong(outcome, question)
    return measured


async def throughputs(
    contenders: Sequence[Contender], callers: int, total: int, rounds: int
) -> dict[str, Throughput]:
    """In each round each contender has `total` questions judged, `callers` at a time."""
    asked = mixed()
    measured = {one.name: Throughput() for one in contenders}
    for one in contenders:
        await ask(one, list(islice(asked, callers)), callers)
    for number in range(rounds):
        for one in _rotated(contenders, number):
            throughput = measured[one.name]
            batch = list(islice(asked, total))
            started = time.perf_counter()
            throughput.wrong += await ask(one, batch, callers)
            throughput.rates.append(total / (time.perf_counter() - started))
    return measured


def is_wrong(outcome: Outcome, question: Question) -> bool:
    """Whether it is no verdict, or one of another severity than the question has."""
    return not isinstance(outcome, Verdict) or outcome.severity is not question.severity


async def ask(contender: Contender, asked: Sequence[Question], callers: int) -> int:
    """Have all questions judged, `callers` at a time; how many were wrong."""
    left = iter(asked)

    async def caller() -> int:
        wrong = 0
        for one in left:
            wrong += is_wrong(await contender.ajudge(one.conversation), one)
        return wrong

    return sum(await asyncio.gather(*(caller() for _ in range(callers))))


def _rotated(contenders: Sequence[Contender], by: int) -> Sequence[Contender]:
    by %= len(contenders)
    return [*contenders[by:], *contenders[:by]]
