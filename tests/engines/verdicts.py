"""Conversations and verdicts for the tests of what keeps verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from guardrails_qwen import (
    Category,
    Conversation,
    Outcome,
    Scores,
    Severity,
    Span,
    TextTooLong,
    Verdict,
)

TOO_LONG = TextTooLong(9, 8)
SCRIPT = {
    "bomb": "Safety: Unsafe\nCategories: Violent",
    "long": TOO_LONG,
    "cake": Verdict(severity=Severity.SAFE, tokens=7, seconds=1.5),
}
FULL = Verdict(
    severity=Severity.UNSAFE,
    categories=frozenset({Category.VIOLENT, Category.PII}),
    refusal=False,
    scores=Scores(
        severity={Severity.SAFE: 0.1, Severity.CONTROVERSIAL: 0.2, Severity.UNSAFE: 0.7},
        category={Category.VIOLENT: 1 / 3},
        refusal=2 / 7,
    ),
    spans=(Span(start=1, end=4, categories=frozenset({Category.VIOLENT})),),
    labels=frozenset({"S1", "S10"}),
    label_scores={"S1": 0.9, "S2": 1e-9},
    model="m",
    fingerprint="f",
    tokens=12,
    seconds=0.25,
)


def said(*texts: str) -> list[Conversation]:
    return [Conversation.of(text) for text in texts]


def severities(outcomes: Sequence[Outcome]) -> list[object]:
    return [o.severity.label if isinstance(o, Verdict) else type(o).__name__ for o in outcomes]
