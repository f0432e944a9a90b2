"""How far probabilities are from what happened, and what a calibration changes about it."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from guardrails_qwen.verdict import Severity

BINS = 15
"""Equal in width, over 0 … 1."""
FLOOR = 1e-12
"""A likelihood below it counts as this much: one impossible label would outweigh all others."""

Forecast = tuple[float, bool]
"""P(an event), and whether it happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The forecasts of one range of probabilities."""

    count: int
    predicted: float
    """Their mean."""
    observed: float
    """How many of them came true, in 0 … 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Three errors; less is better."""

    ece: float
    """Expected calibration error: the mean over the rows of |predicted - observed| of their bin."""
    brier: float
    """The mean squared difference between P(event) and what happened (0 or 1)."""
    nll: float
    """The mean negative logarithm of the label's probability, in nats."""
    bins: tuple[Bin, ...] = field(default=(), repr=False)
    """Those that are not empty, in rising order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldReport:
    """One field of the answer."""

    name: str
    event: str
    """What is forecast, in words."""
    rows: int
    positives: int
    """Rows where it happened."""
    temperature: float = 1.0
    before: Measures | None = None
    """None where there are no rows."""
    after: Measures | None = None
    """On rows that were not fitted; None where nothing was fitted."""
    change: tuple[float, float] | None = None
    """95 % interval of the change in ECE, from a bootstrap of the rows; below 0 is better."""
    notes: tuple[str, ...] = ()

    @property
    def effect(self) -> str:
        """What the calibration does to the ECE: better, worse, or no clear change."""
        if self.change is None:
            return "not fitted"
        low, high = self.change
        return "better" if high < 0 else "worse" if low > 0 else "no clear change"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "effect": self.effect}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured on labelled rows."""

    model: str
    demonstration: bool
    """Whether the model is one that protects nobody."""
    positive: Severity
    """From which severity on a text counts as unsafe."""
    fields: tuple[FieldReport, ...]
    judged: int
    failed: Mapping[str, int]
    """Rows without probabilities, by the name of what went wrong; they are left out."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data; it holds no text."""
        return {
            "model": self.model,
            "demonstration": self.demonstration,
            "positive": self.positive.label,
            "judged": self.judged,
            "failed": dict(self.failed),
            "fields": {report.name: report.to_dict() for report in self.fields},
        }


def measure(forecasts: Sequence[Forecast], likelihoods: Sequence[float]) -> Measures:
    """The errors of forecasts, and of the labels' likelihoods; at least one of each."""
    squares = [(p - happened) ** 2 for p, happened in forecasts]
    found = bins(forecasts)
    return Measures(
        ece=_ece(found, len(forecasts)),
        brier=math.fsum(squares) / len(squares),
        nll=negative_log_likelihood(likelihoods),
        bins=found,
    )


def negative_log_likelihood(likelihoods: Sequence[float]) -> float:
    """The mean, in nats."""
    return -math.fsum(math.log(max(p, FLOOR)) for p in likelihoods) / len(likelihoods)


def bins(forecasts: Sequence[Forecast]) -> tuple[Bin, ...]:
    """The forecasts by their probability; empty bins are left out."""
    counts, predicted, observed = [0] * BINS, [0.0] * BINS, [0] * BINS
    for p, happened in forecasts:
        i = min(int(p * BINS), BINS - 1)
        counts[i] += 1
        predicted[i] += p
        observed[i] += happened
    return tuple(
        Bin(count=n, predicted=p / n, observed=o / n)
        for n, p, o in zip(counts, predicted, observed, strict=True)
        if n
    )


def change_in_ece(
    before: Sequence[Forecast], after: Sequence[Forecast], *, rounds: int = 200, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the change in ECE, rows drawn again and again; nothing is fitted again."""
    generator, rows = random.Random(seed), range(len(before))
    changes: list[float] = []
    for _ in range(rounds):
        drawn = generator.choices(rows, k=len(rows))
        old, new = bins([before[i] for i in drawn]), bins([after[i] for i in drawn])
        changes.append(_ece(new, len(rows)) - _ece(old, len(rows)))
    changes.sort()
    return changes[round(0.025 * rounds)], changes[round(0.975 * rounds) - 1]


def _ece(found: Sequence[Bin], rows: int) -> float:
    return math.fsum(b.count * abs(b.predicted - b.observed) for b in found) / rows
