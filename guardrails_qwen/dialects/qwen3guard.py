"""Qwen3Guard-Gen: how it is asked, and how its answer is read.

Facts from the model cards and the tech report (arXiv 2510.14276). The published chat template
knows two speakers, judges by the role of the last message, escapes nothing, and loses text in every
other case; `turns` and `GuardTemplate` see to it that all text reaches the model, as text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.dialects.answer import AnswerFormat, Field
from guardrails_qwen.dialects.base import Step
from guardrails_qwen.dialects.neutral import Markers, without_special_tokens
from guardrails_qwen.dialects.steps import shares
from guardrails_qwen.dialects.token_tree import Scored
from guardrails_qwen.dialects.turns import judges_response, turns
from guardrails_qwen.errors import UnreadableVerdict
from guardrails_qwen.verdict import Category, Scores, Severity, Verdict

NO_CATEGORY = "None"
_SAFETY = Field(name="Safety", choices=tuple(s.label for s in Severity))
_CATEGORIES = Field(
    name="Categories", choices=(NO_CATEGORY, *(c.label for c in Category)), many=True
)
_REFUSAL = Field(name="Refusal", choices=("Yes", "No"))

PROMPT_ANSWER = AnswerFormat((_SAFETY, _CATEGORIES))
RESPONSE_ANSWER = AnswerFormat((_SAFETY, _CATEGORIES, _REFUSAL))

EXPECTED = (Severity.SAFE.label, NO_CATEGORY)
"""How the commonest answer begins."""


_MARKERS = Markers(("BEGIN CONVERSATION", "END CONVERSATION"), ("USER", "ASSISTANT"))
_ANSWER_TOKENS = 64
_LEAST = 0.4
"""The least probability of the severity that a model writes; a third, and room for rounding."""


def answer_format(*, response: bool) -> AnswerFormat:
    """The answer to expect: that on a response also tells whether the assistant refused."""
    return RESPONSE_ANSWER if response else PROMPT_ANSWER


def read(answer: str, *, response: bool) -> Verdict:
    """The verdict in a generated answer.

    Raises:
        UnreadableVerdict: The answer is not of the documented format, or contradicts itself.
    """
    severity, categories, *refusal = answer_format(response=response).read(answer)
    return _verdict(answer, severity[0], categories, refusal[0][0] if refusal else None)


def verdict(values: Sequence[str], scores: Scores | None = None) -> Verdict:
    """The verdict of an answer of one choice a field.

    Raises:
        UnreadableVerdict: The answer contradicts itself.
    """
    severity, category, *refusal = values
    written = answer_format(response=bool(refusal)).write(values)
    return _verdict(written, severity, (category,), refusal[0] if refusal else None, scores)


def scored_verdict(scored: Scored, calibrate: Callable[[Scores], Scores]) -> Verdict:
    """The verdict of an answer whose tokens were scored.

    Raises:
        UnreadableVerdict: The answer contradicts itself.
    """
    refusal = scored.last if len(scored.answer) > len(EXPECTED) else None
    return verdict(scored.answer, calibrate(scores(scored.distribution, refusal)))


def scores(
    distribution: Mapping[tuple[str, ...], float], refusal: Mapping[str, float] | None = None
) -> Scores:
    """Scores from P(severity, category) and P(refusal), by the model's own labels."""
    by_severity = dict.fromkeys(Severity, 0.0)
    by_category = dict.fromkeys(Category, 0.0)
    for (severity, category), p in distribution.items():
        by_severity[Severity.from_label(severity)] += p
        if category != NO_CATEGORY:
            by_category[Category(category)] += p
    return Scores(
        severity=by_severity,
        category=by_category,
        refusal=refusal["Yes"] if refusal is not None else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3Guard:
    """Qwen3Guard-Gen behind a chat endpoint. Fits `Dialect`."""

    @property
    def name(self) -> str:
        """The family."""
        return "qwen3guard"

    @property
    def fingerprint(self) -> str:
        """Nothing beside the model: the instructions are in its template."""
        return ""

    @property
    def answer_tokens(self) -> int:
        """The most tokens of an answer: one with a long list of categories."""
        return _ANSWER_TOKENS

    @property
    def options(self) -> Mapping[str, Any]:
        """Nothing: the template has it all."""
        return {}

    @property
    def probes(self) -> Sequence[Conversation]:
        """A prompt and an exchange."""
        return (
            Conversation.of("What is the capital of France?"),
            Conversation.exchange("What is the capital of France?", "It is Paris."),
        )

    def messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        """Alternating turns, in which the markers of the published template are words."""
        return [
            {"role": role.value, "content": without_special_tokens(_MARKERS.defanged(text))}
            for role, text in turns(conversation)
        ]

    def regex(self, conversation: Conversation) -> str | None:
        """For the lines that a prompt, or a response, is answered with."""
        return answer_format(response=judges_response(conversation)).regex

    def read(self, answer: str, conversation: Conversation, steps: Sequence[Step] = ()) -> Verdict:
        """The verdict in an answer, with probabilities of severity and refusal.

        Those of categories would take the other severities' answers, which nobody wrote.

        Raises:
            UnreadableVerdict: It is not of the documented format, contradicts itself, or the model
                held another severity much likelier: then the server does not decode greedily.
        """
        found = read(answer, response=judges_response(conversation))
        severities = shares(steps, _SAFETY.name, _SAFETY.choices)
        if severities is None:
            return found
        by_level = {Severity.from_label(label): p for label, p in severities.items()}
        if by_level[found.severity] < min(_LEAST, max(by_level.values())):
            raise UnreadableVerdict(answer, "the model held another answer likelier")
        refusal = shares(steps, _REFUSAL.name, _REFUSAL.choices)
        scores = Scores(severity=by_level, refusal=refusal["Yes"] if refusal else None)
        return replace(found, scores=scores)


def _verdict(
    answer: str,
    severity: str,
    categories: Sequence[str],
    refusal: str | None,
    scores: Scores | None = None,
) -> Verdict:
    level = Severity.from_label(severity)
    named = frozenset(Category(label) for label in categories if label != NO_CATEGORY)
    if named and (level is Severity.SAFE or NO_CATEGORY in categories):
        raise UnreadableVerdict(answer, "it contradicts itself: a category, and none or safe")
    refused = None if refusal is None else refusal == "Yes"
    return Verdict(severity=level, categories=named, refusal=refused, scores=scores)
