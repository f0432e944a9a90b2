"""What a verdict answers of the questions that decision models are asked. Pure.

A safety model reads no instructions: it says how severe something is, and of what category. So a
question is answered by its form, and one that asks for anything else is an error. No probability
is made up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from langchain_core.decisions import (
    Answer,
    Choice,
    ChoiceAnswer,
    Noul,
    NoulAnswer,
    Question,
    Score,
    ScoreAnswer,
)

from guardrails_qwen import (
    Category,
    ConversationError,
    Decision,
    EngineError,
    GuardViolation,
    Policy,
    Severity,
    Verdict,
)

NO_CATEGORY = "none"
"""The label of a choice between categories that stands for all that are not given, and for none."""

_MIDDLE = 0.5
_Label = TypeVar("_Label")
_SEVERITIES = {level.label.lower(): level for level in Severity}
_CATEGORIES = {category.label.lower(): category for category in Category}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a guard decided, and by which policy."""

    decision: Decision
    policy: Policy

    @property
    def verdict(self) -> Verdict:
        """What the model thought.

        Raises:
            GuardViolation: Nobody could judge, and the policy blocks what is unjudged.
            EngineError: Nobody could judge, and the policy waves it through, which is no answer.
        """
        if self.decision.verdict:
            return self.decision.verdict
        if not self.decision.allowed:
            raise GuardViolation(self.decision)
        raise EngineError(f"what was not judged has no probability: {self.decision.error}")

    @property
    def risk(self) -> float:
        """P(the policy does not let it pass), in 0 … 1, over what the verdict might have been.

        Its severities have the model's probabilities; where the engine offers none, the verdict is
        certain. The policy has the last word: what it does not let pass counts at least one half,
        and all of it where nobody could judge.

        Raises:
            EngineError: Nobody could judge, and the policy waves it through: no gate is to take
                that for a low risk.
        """
        if self.decision.degraded and not self.decision.allowed:
            return 1.0
        p = _bounded(sum(self._severity(level) for level in Severity if self._refuses(level)))
        return p if self.decision.allowed else max(p, _MIDDLE)

    @property
    def severities(self) -> dict[Severity, float]:
        """P(severity)."""
        return _shares({level: self._severity(level) for level in Severity})

    def categories(self, asked: Iterable[Category]) -> dict[Category | None, float]:
        """P(category is named) of those that are asked for; None: none of them.

        Raises:
            ConversationError: The verdict names several of them, and no probabilities.
        """
        verdict = self.verdict
        known = dict(verdict.scores.category) if verdict.scores else {}
        found = {c: known.get(c, 0.0) for c in asked}
        if not known:
            found = {category: float(category in verdict.categories) for category in found}
            if sum(found.values()) > 1:
                raise ConversationError(
                    "the verdict names several of the categories and the engine offers no "
                    "probabilities: ask about severities, or use an engine that offers them"
                )
        return _shares({**found, None: max(0.0, 1 - sum(found.values()))})

    def _severity(self, level: Severity) -> float:
        scores = self.verdict.scores
        return scores.severity[level] if scores else float(self.verdict.severity is level)

    def _refuses(self, level: Severity) -> bool:
        """Whether the policy would not let pass what was this severe, and of the same category."""
        verdict = self.verdict
        categories = verdict.categories or _likeliest(verdict)
        supposed = replace(verdict, severity=level, categories=categories, scores=None)
        return not self.policy.decide(self.decision.stage, supposed).allowed


Reader = Callable[[Judgement], Answer]
"""Reads the answer to one question."""


def readers(questions: Mapping[str, Question], risks: Collection[str]) -> dict[str, Reader]:
    """How each question is answered.

    Args:
        questions: By their ids.
        risks: The ids of questions that ask, in whatever words, if something is unsafe.

    Raises:
        ConversationError: A question cannot be answered by a safety model.
    """
    if not questions:
        raise ConversationError("there is no question to answer")
    return {key: _reader(key, question, risks) for key, question in questions.items()}


def _reader(key: str, question: Question, risks: Collection[str]) -> Reader:
    reader: Reader | None = None
    if isinstance(question, Noul) and key in risks:
        reader = _noul
    elif isinstance(question, Choice):
        reader = _choice_reader(tuple(question.criteria))
    elif isinstance(question, Score) and list(map(_folded, question.criteria)) == [*_SEVERITIES]:
        reader = partial(_score, question)
    if reader is None:
        raise ConversationError(
            f"the guard cannot answer question {key!r}, because it reads no instructions. It "
            f"answers a Noul with an id of `risk_questions` ({', '.join(sorted(risks))}), a Choice "
            "between Safe, Controversial and Unsafe or between None and names of categories, and a "
            "Score of Safe, Controversial, Unsafe"
        )
    return reader


def _choice_reader(labels: tuple[str, ...]) -> Reader | None:
    words = {label: _folded(label) for label in labels}
    asked = sorted(words.values())
    if asked == sorted(_SEVERITIES):
        levels = {label: _SEVERITIES[word] for label, word in words.items()}
        return partial(_severity_choice, levels)
    distinct = len(asked) == len(set(asked)) > 1
    if distinct and NO_CATEGORY in asked and _CATEGORIES.keys() >= {*asked} - {NO_CATEGORY}:
        return partial(_category_choice, {k: _CATEGORIES.get(word) for k, word in words.items()})
    return None


def _folded(label: object) -> str:
    return label.strip().lower() if isinstance(label, str) else ""


def _severity_choice(levels: Mapping[str, Severity], judgement: Judgement) -> ChoiceAnswer:
    found = judgement.severities
    return _choice({label: found[level] for label, level in levels.items()})


def _category_choice(
    categories: Mapping[str, Category | None], judgement: Judgement
) -> ChoiceAnswer:
    found = judgement.categories(filter(None, categories.values()))
    return _choice({label: found[category] for label, category in categories.items()})


def _noul(judgement: Judgement) -> NoulAnswer:
    return NoulAnswer(type="noul", noul=judgement.risk)


def _choice(probabilities: dict[str, float]) -> ChoiceAnswer:
    chosen = max(probabilities, key=probabilities.__getitem__)
    return ChoiceAnswer(
        type="choice",
        choice=chosen,
        probabilities=probabilities,
        confidence=probabilities[chosen],
    )


def _score(question: Score, judgement: Judgement) -> ScoreAnswer:
    probabilities = {int(level): p for level, p in judgement.severities.items()}
    return ScoreAnswer(
        type="score",
        score=sum(level * p for level, p in probabilities.items()),
        legend=dict(enumerate(question.criteria)),
        probabilities=probabilities,
        confidence=max(probabilities.values()),
    )


def _likeliest(verdict: Verdict) -> frozenset[Category]:
    """The category that a safe verdict would most likely have named."""
    if not (verdict.scores and verdict.scores.category):
        return frozenset()
    known = verdict.scores.category
    return frozenset({max(known, key=known.__getitem__)})


def _shares(weights: dict[_Label, float]) -> dict[_Label, float]:
    """Probabilities that sum to 1: an engine's do so nearly."""
    total = sum(weights.values())
    return {label: _bounded(weight / total) for label, weight in weights.items()}


def _bounded(probability: float) -> float:
    return min(1.0, max(0.0, probability))
