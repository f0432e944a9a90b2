"""Verdicts and scores of the ways of asking, beside those of the local engine, on real texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guardrails_qwen import Conversation, Scores, Verdict
from guardrails_qwen.engines.base import Engine, Outcome

TOLERANCE = 1e-2
"""How far scores may be from those of the local engine."""


@dataclass(slots=True, kw_only=True)
class Agreement:
    """How alike the outcomes of two engines are."""

    texts: int = 0
    same: int = 0
    """Equal severity, categories and refusal; or the same kind of error."""
    errors: int = 0
    """Of the engine that is compared."""
    scored: int = 0
    """Pairs of equal verdicts that both have scores, which what follows is about."""
    apart: int = 0
    """Pairs with a score that differs by more than the tolerance."""
    severity: float = 0.0
    """The largest difference of P(severity); and likewise:"""
    category: float = 0.0
    refusal: float = 0.0

    def add(self, ours: Outcome, theirs: Outcome) -> None:
        """Compare a pair; `ours` is the one that the other is held against."""
        self.texts += 1
        self.errors += not isinstance(theirs, Verdict)
        self.same += _said(ours) == _said(theirs)
        if _said(ours) == _said(theirs) and isinstance(ours, Verdict):
            self._compare(ours.scores, theirs.scores if isinstance(theirs, Verdict) else None)

    def _compare(self, ours: Scores | None, theirs: Scores | None) -> None:
        if ours is None or theirs is None:
            return
        self.scored += 1
        severity = max(_apart(ours.severity.get(k), p) for k, p in theirs.severity.items())
        pairs = [_apart(ours.category.get(k), p) for k, p in theirs.category.items()]
        category, refusal = max(pairs, default=0.0), _apart(ours.refusal, theirs.refusal)
        self.apart += max(severity, category, refusal) > TOLERANCE
        self.severity = max(self.severity, severity)
        self.category = max(self.category, category)
        self.refusal = max(self.refusal, refusal)


def agreement(local: Sequence[Outcome], engine: Engine, asked: Sequence[Conversation]) -> Agreement:
    """Have all judged by an engine, and compare with what the local engine found."""
    result = Agreement()
    for ours, theirs in zip(local, engine.judge(asked), strict=True):
        result.add(ours, theirs)
    return result


def real_texts(most: int) -> list[Conversation]:
    """Prompts and exchanges, half of each, from the tests' data; none if that is absent."""
    from tests.engines.data import FOLDER, conversations

    if not (FOLDER / "benchmarks").is_dir():
        return []
    half = most // 2
    return [
        *conversations(replies=False, most=most - half),
        *conversations(replies=True, most=half),
    ]


def _said(outcome: Outcome) -> object:
    if isinstance(outcome, Verdict):
        return outcome.severity, outcome.categories, outcome.refusal
    return type(outcome)


def _apart(one: float | None, other: float | None) -> float:
    """How far two probabilities are from each other; 0 where there is only one."""
    return abs(one - other) if one is not None and other is not None else 0.0
