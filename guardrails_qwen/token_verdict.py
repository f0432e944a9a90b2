"""What a safety model thinks at one token of a reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from guardrails_qwen.verdict import Category, Scores, Severity, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenVerdict:
    """One judgement of a reply up to a token. It holds no text.

    The token is characters `start` (included) to `end` (excluded) of the reply. Several tokens can
    share one character, since tokens are made of bytes.
    """

    start: int
    end: int
    token: int
    """Its id in the guard's vocabulary."""
    severity: Severity
    """The likeliest."""
    category: Category
    """The likeliest; it means nothing where the severity is Safe."""
    severity_scores: Mapping[Severity, float]
    """P(severity); all three, summing to 1."""
    category_scores: Mapping[Category, float]
    """P(category | not Safe), for those that the model knows, summing to 1."""
    model: str = ""
    fingerprint: str = ""

    @property
    def verdict(self) -> Verdict:
        """The same as policies read it."""
        harmful = 1 - self.severity_scores[Severity.SAFE]
        named = (
            frozenset({self.category}) if self.severity > Severity.SAFE else frozenset[Category]()
        )
        return Verdict(
            severity=self.severity,
            categories=named,
            scores=Scores(
                severity=self.severity_scores,
                category={name: harmful * p for name, p in self.category_scores.items()},
            ),
            model=self.model,
            fingerprint=self.fingerprint,
        )
