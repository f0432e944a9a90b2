"""Temperatures from labelled rows: the likeliest ones, and what they are worth on other rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from guardrails_qwen.calibration.labelled import LabelledRow
from guardrails_qwen.calibration.report import (
    FieldReport,
    Forecast,
    Report,
    change_in_ece,
    measure,
    negative_log_likelihood,
)
from guardrails_qwen.calibration.temperatures import Calibration, tempered, with_none
from guardrails_qwen.engines.base import Engine
from guardrails_qwen.errors import EngineError
from guardrails_qwen.verdict import Category, Scores, Severity, Verdict

FOLDS = 5
ENOUGH_ROWS = 50
"""With fewer a field keeps temperature 1."""
FEW = 25
"""With fewer rows where the event happened, or did not, the report warns."""
LOWEST, HIGHEST = 0.05, 20.0
"""Temperatures are looked for between these."""

_LEVELS = tuple(Severity)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Example:
    """A distribution over choices, and which of them the label allows."""

    probabilities: tuple[float, ...]
    right: frozenset[int]
    event: frozenset[int]
    """The choices whose joint probability is the forecast."""
    fold: int

    def likelihood(self, temperature: float) -> float:
        calibrated = tempered(self.probabilities, temperature)
        return sum(calibrated[i] for i in self.right)

    def forecast(self, temperature: float) -> Forecast:
        calibrated = tempered(self.probabilities, temperature)
        return min(1.0, sum(calibrated[i] for i in self.event)), bool(self.event & self.right)


def fit(
    engine: Engine,
    rows: Sequence[LabelledRow],
    *,
    positive: Severity = Severity.CONTROVERSIAL,
    batch: int = 32,
    progress: Callable[[int], object] = lambda _: None,
) -> tuple[Calibration, Report]:
    """Fit one temperature for each field of the engine's answers.

    A temperature makes the labels likeliest (it minimises their negative log-likelihood). The
    errors after it are measured in five folds, each with the temperature of the four others; rows
    with one prompt share a fold. Then it is fitted on all rows. A field with fewer than 50 rows, or
    with one kind of label only, keeps temperature 1, and the report says so.

    Args:
        engine: It has to give probabilities, not calibrated yet.
        rows: What is judged, with its labels.
        positive: From which severity on a text counts as unsafe, for labels that know two
            severities only, and for what is measured.
        batch: How many rows are handed to the engine at a time.
        progress: Called with the number of rows done so far.

    Raises:
        EngineError: The engine is not available, or judged none of the rows with probabilities.
        ValueError: There are no rows, or `positive` is Safe.
    """
    if not rows or positive is Severity.SAFE:
        raise ValueError("labelled rows are needed" if not rows else "a safe text is no positive")
    judged, failed = _judge(engine, rows, batch, progress)
    if not judged:
        causes = ", ".join(f"{name}: {count}" for name, count in failed.items())
        raise EngineError(f"none of {len(rows)} rows was judged with probabilities ({causes})")
    reports = (
        _fit_field("severity", _event(positive), _severities(judged, positive)),
        _fit_field("category", "the likeliest category, or none, is right", _categories(judged)),
        _fit_field("refusal", "the assistant refused", _refusals(judged)),
    )
    report = Report(
        model=engine.name,
        demonstration=bool(getattr(engine, "demonstration", False)),
        positive=positive,
        fields=reports,
        judged=len(judged),
        failed=failed,
    )
    severity, category, refusal = (field.temperature for field in reports)
    calibration = Calibration(
        severity=severity,
        category=category,
        refusal=refusal,
        model=engine.name,
        fingerprint=engine.fingerprint,
    )
    return calibration, report


def _event(positive: Severity) -> str:
    return positive.label if positive is max(Severity) else f"{positive.label} or worse"


_Judged = Sequence[tuple[LabelledRow, Scores]]


def _judge(
    engine: Engine, rows: Sequence[LabelledRow], batch: int, progress: Callable[[int], object]
) -> tuple[_Judged, Counter[str]]:
    judged: list[tuple[LabelledRow, Scores]] = []
    failed: Counter[str] = Counter()
    for start in range(0, len(rows), batch):
        asked = rows[start : start + batch]
        outcomes = engine.judge([row.conversation for row in asked])
        for row, outcome in zip(asked, outcomes, strict=True):
            if not isinstance(outcome, Verdict):
                failed[type(outcome).__name__] += 1
            elif outcome.scores is None:
                failed["no probabilities"] += 1
            else:
                judged.append((row, outcome.scores))
        progress(start + len(asked))
    return judged, failed


def _severities(judged: _Judged, positive: Severity) -> Iterator[_Example]:
    event = frozenset(level.value for level in _LEVELS if level >= positive)
    for row, scores in judged:
        if row.severity is not None:
            right = frozenset([row.severity.value])
        elif row.unsafe is not None:
            right = event if row.unsafe else frozenset(range(len(_LEVELS))) - event
        else:
            continue
        probabilities = tuple(scores.severity[level] for level in _LEVELS)
        yield _example(row, probabilities, right, event)


def _categories(judged: _Judged) -> Iterator[_Example]:
    for row, scores in judged:
        if row.categories is None or not scores.category:
            continue
        found = with_none([scores.category.get(category, 0.0) for category in Category])
        right = frozenset(i for i, category in enumerate(Category) if category in row.categories)
        likeliest = max(range(len(found)), key=found.__getitem__)
        yield _example(
            row, tuple(found), right or frozenset([len(found) - 1]), frozenset([likeliest])
        )


def _refusals(judged: _Judged) -> Iterator[_Example]:
    for row, scores in judged:
        if row.refusal is not None and scores.refusal is not None:
            probabilities = (1 - scores.refusal, scores.refusal)
            yield _example(row, probabilities, frozenset([int(row.refusal)]), frozenset([1]))


def _example(
    row: LabelledRow, probabilities: tuple[float, ...], right: frozenset[int], event: frozenset[int]
) -> _Example:
    return _Example(probabilities=probabilities, right=right, event=event, fold=row.key % FOLDS)


def _fit_field(name: str, event: str, found: Iterator[_Example]) -> FieldReport:
    examples = list(found)
    plain = [example.forecast(1.0) for example in examples]
    report = FieldReport(
        name=name, event=event, rows=len(examples), positives=sum(yes for _, yes in plain)
    )
    if not examples:
        return replace(report, notes=("no labelled rows",))
    before = measure(plain, [example.likelihood(1.0) for example in examples])
    report = replace(report, before=before)
    if note := _too_little(examples):
        return replace(report, notes=(note,))
    return _fitted(report, examples, plain)


def _too_little(examples: Sequence[_Example]) -> str:
    if len(examples) < ENOUGH_ROWS:
        return f"only {len(examples)} rows, and {ENOUGH_ROWS} are needed: temperature 1 is kept"
    if len({example.right for example in examples}) < 2:
        return "all labels are the same: temperature 1 is kept"
    return ""


def _fitted(
    report: FieldReport, examples: Sequence[_Example], plain: Sequence[Forecast]
) -> FieldReport:
    unseen = [
        _temperature([example for example in examples if example.fold != fold])
        for fold in range(FOLDS)
    ]
    forecasts = [example.forecast(unseen[example.fold]) for example in examples]
    likelihoods = [example.likelihood(unseen[example.fold]) for example in examples]
    temperature = _temperature(examples)
    return replace(
        report,
        temperature=temperature,
        after=measure(forecasts, likelihoods),
        change=change_in_ece(plain, forecasts),
        notes=tuple(_doubts(report, temperature)),
    )


def _doubts(report: FieldReport, temperature: float) -> Iterator[str]:
    if temperature in {LOWEST, HIGHEST}:
        yield f"the temperature is at the bound of {LOWEST:g} … {HIGHEST:g}: do not trust it"
    rarer = min(report.positives, report.rows - report.positives)
    if rarer < FEW:
        yield f"only {rarer} rows of the rarer kind: label more of them before relying on it"


def _temperature(examples: Sequence[_Example]) -> float:
    """The one that makes the labels likeliest; a bound exactly, where that is the best.

    The loss has one minimum where a label is one choice; a label that allows several could make
    more, so a coarse grid comes before the search by golden section.
    """
    if not examples:
        return 1.0

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        return negative_log_likelihood([e.likelihood(temperature) for e in examples])

    low, high, steps = math.log(LOWEST), math.log(HIGHEST), 12
    grid = [low + (high - low) * i / steps for i in range(steps + 1)]
    best = min(range(len(grid)), key=[loss(point) for point in grid].__getitem__)
    found = _golden_section(loss, grid[max(best - 1, 0)], grid[min(best + 1, steps)])
    for bound, log_bound in ((LOWEST, low), (HIGHEST, high)):
        if abs(found - log_bound) < 1e-3:
            return bound
    return math.exp(found)


def _golden_section(loss: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum between `low` and `high` has it, to 1e-4."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-4:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    return (low + high) / 2
