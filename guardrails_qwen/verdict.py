"""What a safety model thinks of a text, detached from the model and from what we do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any


class Severity(IntEnum):
    """How harmful the model judged a text. Ordered, so `max()` is the worst.

    The three levels of Qwen3Guard (tech report, arXiv 2510.14276). Controversial: harmful or not
    depending on the context or on whom you ask; a policy decides how it counts.
    """

    SAFE = 0
    CONTROVERSIAL = 1
    UNSAFE = 2

    @property
    def label(self) -> str:
        """The name as the models write it: `Safe`, `Controversial`, `Unsafe`."""
        return self.name.capitalize()

    @classmethod
    def from_label(cls, label: str) -> Severity:
        """The inverse of `label`, in any case.

        Raises:
            ValueError: No severity is called so.
        """
        try:
            return cls[label.upper()]
        except KeyError:
            labels = ", ".join(severity.label for severity in cls)
            raise ValueError(f"unknown severity: use one of {labels}") from None


class Category(str, Enum):
    """The nine categories of Qwen3Guard, named as the models write them."""

    VIOLENT = "Violent"
    NON_VIOLENT_ILLEGAL_ACTS = "Non-violent Illegal Acts"
    SEXUAL_CONTENT = "Sexual Content or Sexual Acts"
    PII = "PII"
    SUICIDE_AND_SELF_HARM = "Suicide & Self-Harm"
    UNETHICAL_ACTS = "Unethical Acts"
    POLITICALLY_SENSITIVE_TOPICS = "Politically Sensitive Topics"
    COPYRIGHT_VIOLATION = "Copyright Violation"
    JAILBREAK = "Jailbreak"
    """Of prompts only: an attempt to override the instructions of the model that is guarded."""

    @property
    def label(self) -> str:
        """The name as the models write it."""
        return self.value


LONGEST_LABEL = 64
"""Characters; a model's name for what it finds is shorter, and a text is mostly longer."""

_CATEGORY_ORDER = {category: index for index, category in enumerate(Category)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Probabilities behind a verdict, each in 0 … 1.

    They are the model's own, taken from its next-token distribution over the documented answers.
    They are as the model gives them unless the engine was loaded with a calibration, which brings
    them nearer to frequencies on texts like those that it was fitted on.
    """

    severity: Mapping[Severity, float]
    """P(severity); all three, summing to 1."""
    category: Mapping[Category, float] = field(default_factory=dict[Category, float])
    """P(category is named), over all severities; what is missing to 1 is P(no category). Empty
    where the engine offers none."""
    refusal: float | None = None
    """P(the assistant refused), given the severity and category that the verdict names; None where
    only a prompt was judged."""

    def __post_init__(self) -> None:
        if set(self.severity) != set(Severity):
            raise ValueError("a probability is needed for each of the three severities")
        for p in (*self.severity.values(), *self.category.values(), self.refusal or 0.0):
            if not -1e-6 <= p <= 1 + 1e-6:  # also true of NaN, which would pass every threshold
                raise ValueError(f"a probability is {p}: it has to be between 0 and 1")
        total = sum(self.severity.values())
        if abs(total - 1) > 1e-3:
            raise ValueError(f"the probabilities of the severities sum to {total:g}, not to 1")

    def at_least(self, severity: Severity) -> float:
        """P(severity or worse)."""
        return sum(p for level, p in self.severity.items() if level >= severity)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` reads it back."""
        return {
            "severity": {level.label: p for level, p in self.severity.items()},
            "category": {category.label: p for category, p in self.category.items()},
            "refusal": self.refusal,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scores:
        """The inverse of `to_dict`."""
        return cls(
            severity={Severity.from_label(k): float(p) for k, p in data["severity"].items()},
            category={Category(k): float(p) for k, p in data.get("category", {}).items()},
            refusal=data.get("refusal"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of a text: characters `start` (included) to `end` (excluded)."""

    start: int
    end: int
    categories: frozenset[Category] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` reads it back."""
        return {
            "start": self.start,
            "end": self.end,
            "categories": _labels(self.categories),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Span:
        """The inverse of `to_dict`."""
        return cls(
            start=data["start"],
            end=data["end"],
            categories=frozenset(map(Category, data.get("categories", ()))),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One judgement. It holds no text."""

    severity: Severity
    categories: frozenset[Category] = frozenset()
    refusal: bool | None = None
    """Whether the assistant refused; None where only a prompt was judged."""
    scores: Scores | None = field(default=None, compare=False)
    """None where the engine offers no probabilities."""
    spans: tuple[Span, ...] = ()
    """Where in the judged text the harm is, if the engine can tell."""
    labels: frozenset[str] = frozenset()
    """What the model found, by its own names where these are not ours: `S1`, `violence/graphic`.
    `categories` says the same by ours, so policies need not know them."""
    label_scores: Mapping[str, float] = field(default_factory=dict[str, float], compare=False)
    """How sure the model is of each of its own labels, in 0 … 1, found or not; what the number
    means is the model's to say. Empty where it tells none."""
    model: str = ""
    """The model that judged, by name."""
    fingerprint: str = ""
    """The model that judged, exactly: weights, template, tokenizer and precision."""
    tokens: int | None = field(default=None, compare=False)
    """Cost: tokens computed for this judgement, shared prefixes not counted."""
    seconds: float | None = field(default=None, compare=False)
    """Cost: wall-clock time of the batch that this judgement was part of."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "severity", Severity(self.severity))
        object.__setattr__(self, "categories", frozenset(map(Category, self.categories)))
        object.__setattr__(self, "labels", frozenset(self.labels))
        for name in (*self.labels, *self.label_scores):
            if not (name.isprintable() and 0 < len(name) <= LONGEST_LABEL):
                raise ValueError("a label is a short printable name, and this is none")
        if not all(0 <= score <= 1 for score in self.label_scores.values()):  # NaN is not
            raise ValueError("the score of a label has to be between 0 and 1")

    @property
    def summary(self) -> str:
        """`Unsafe (Violent)`: for people, without text."""
        named = ", ".join(_labels(self.categories))
        return f"{self.severity.label} ({named})" if named else self.severity.label

    def probability(self, severity: Severity, category: Category | None = None) -> float:
        """P(severity or worse, and `category` named), from the scores.

        Without scores the verdict counts as certain, and so do its categories where the scores have
        none. The joint probability is bounded from above by the smaller of the two, so a threshold
        on it errs towards firing.
        """
        p = self.scores.at_least(severity) if self.scores else float(self.severity >= severity)
        if category is None:
            return p
        if self.scores and self.scores.category:
            return min(p, self.scores.category.get(category, 0.0))
        return p if category in self.categories else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` reads it back."""
        return {
            "severity": self.severity.label,
            "categories": _labels(self.categories),
            "refusal": self.refusal,
            "scores": self.scores.to_dict() if self.scores else None,
            "spans": [span.to_dict() for span in self.spans],
            "labels": sorted(self.labels),
            "label_scores": dict(sorted(self.label_scores.items())),
            "model": self.model,
            "fingerprint": self.fingerprint,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verdict:
        """The inverse of `to_dict`."""
        scores = data.get("scores")
        return cls(
            severity=Severity.from_label(data["severity"]),
            categories=frozenset(map(Category, data.get("categories", ()))),
            refusal=data.get("refusal"),
            scores=Scores.from_dict(scores) if scores else None,
            spans=tuple(map(Span.from_dict, data.get("spans", ()))),
            labels=frozenset(data.get("labels", ())),
            label_scores={k: float(p) for k, p in data.get("label_scores", {}).items()},
            model=data.get("model", ""),
            fingerprint=data.get("fingerprint", ""),
            tokens=data.get("tokens"),
            seconds=data.get("seconds"),
        )


def _labels(categories: frozenset[Category]) -> list[str]:
    """Labels in the order of the enum: a set's own order differs between processes."""
    return [category.label for category in sorted(categories, key=_CATEGORY_ORDER.__getitem__)]
