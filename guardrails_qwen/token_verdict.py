"""What a safety model thinks at one token of a reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from guardrails_qwen.verdict import Category, Scores, Severity, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenVerdict:
    """One judgement of a reply up to a token. Its repr tells no text.

    The token is characters `start` (included) to `end` (excluded) of the reply. Several tokens can
    share one character, since tokens are made of bytes.
    """

    start: int
    end: int
    token: int = field(repr=False)
    """Its id in the guard's vocabulary. Ids can be read back as text: do not log them."""
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


class Labels(Protocol):
    """What the outputs of a model stand for, in their order."""

    @property
    def severities(self) -> Sequence[Severity]:
        """All three."""
        ...

    @property
    def categories(self) -> Sequence[Category]:
        """Those that the model knows."""
        ...


def token_verdict(  # noqa: PLR0913
    labels: Labels,
    severities: Sequence[float],
    categories: Sequence[float],
    *,
    start: int = 0,
    end: int = 0,
    token: int = 0,
    model: str = "",
    fingerprint: str = "",
) -> TokenVerdict:
    """The verdict that a model's probabilities amount to, given in the order of its labels."""
    severity_scores = dict(zip(labels.severities, severities, strict=True))
    category_scores = dict(zip(labels.categories, categories, strict=True))
    return TokenVerdict(
        start=start,
        end=end,
        token=token,
        severity=max(severity_scores, key=severity_scores.__getitem__),
        category=max(category_scores, key=category_scores.__getitem__),
        severity_scores=severity_scores,
        category_scores=category_scores,
        model=model,
        fingerprint=fingerprint,
    )
