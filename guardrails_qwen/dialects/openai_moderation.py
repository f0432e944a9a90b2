"""OpenAI's moderation endpoint: how what it answers is read.

Facts from the published API reference and moderation guide: each result has a flag, 13 categories
with a flag and a score each, and the kinds of input that each score is of. Only six categories look
at images; the others score 0 there. Models before `omni` lack the two `illicit` ones.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict, ValidationError

from guardrails_qwen.errors import UnreadableVerdict
from guardrails_qwen.verdict import Category, Scores, Severity, Verdict

CATEGORIES: Mapping[str, frozenset[Category]] = MappingProxyType(
    {
        "harassment": frozenset({Category.UNETHICAL_ACTS}),
        "harassment/threatening": frozenset({Category.UNETHICAL_ACTS, Category.VIOLENT}),
        "hate": frozenset({Category.UNETHICAL_ACTS}),
        "hate/threatening": frozenset({Category.UNETHICAL_ACTS, Category.VIOLENT}),
        "illicit": frozenset({Category.NON_VIOLENT_ILLEGAL_ACTS}),
        "illicit/violent": frozenset({Category.VIOLENT}),
        "self-harm": frozenset({Category.SUICIDE_AND_SELF_HARM}),
        "self-harm/intent": frozenset({Category.SUICIDE_AND_SELF_HARM}),
        "self-harm/instructions": frozenset({Category.SUICIDE_AND_SELF_HARM}),
        "sexual": frozenset({Category.SEXUAL_CONTENT}),
        "sexual/minors": frozenset({Category.SEXUAL_CONTENT}),
        "violence": frozenset({Category.VIOLENT}),
        "violence/graphic": frozenset({Category.VIOLENT}),
    }
)
"""The endpoint's categories in ours. docs/families.md says why."""

IMAGE_CATEGORIES = frozenset(
    {"self-harm", "self-harm/intent", "self-harm/instructions", "sexual"}
    | {"violence", "violence/graphic"}
)
"""Those that look at images as well; `sexual/minors` does not."""

_NEWER = frozenset({"illicit", "illicit/violent"})
_NAME = re.compile(r"[a-z0-9][a-z0-9/_-]{0,63}")
_DECIDED = 0.5
"""The least probability of what the endpoint itself decided."""


class _Result(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    flagged: bool
    categories: dict[str, bool | None]
    category_scores: dict[str, float | None]
    category_applied_input_types: dict[str, list[str] | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIModeration:
    """How results become verdicts.

    `Scores` are made of the endpoint's scores, which are its confidence in each category by itself:
    P(Unsafe) is the highest of all, P(category) the highest of those that are this category of
    ours, and each is at least one half where the endpoint flagged it. So a rule with a threshold
    below that never holds less often than one without, and a higher one is a threshold of one's
    own. They are bounds that err towards firing, not a distribution that anybody predicted.
    """

    controversial: float | None = None
    """Score in 0 … 1 from which on a category that is not flagged is Controversial; None: none."""

    def __post_init__(self) -> None:
        if self.controversial is not None and not 0 < self.controversial <= 1:
            raise ValueError(
                f"controversial is {self.controversial}: use a score in 0 … 1, or None"
            )

    @property
    def fingerprint(self) -> str:
        """A digest of how categories are read, and of the threshold."""
        table = {
            name: sorted(category.label for category in CATEGORIES[name]) for name in CATEGORIES
        }
        plain = json.dumps([table, self.controversial])
        return hashlib.sha256(plain.encode()).hexdigest()[:16]

    def read(self, result: object, *, images: bool = False) -> Verdict:
        """The verdict in one of the `results`.

        What contradicts itself is never safe: a flag without a category is Unsafe, and so is a
        category without the flag. A category that is not documented yet counts as well, as the one
        that it is a part of, or else as Unethical Acts; its own name is among the labels.

        Args:
            result: As the endpoint wrote it.
            images: Whether there was an image, which some category has to have looked at.

        Raises:
            UnreadableVerdict: It is not of the documented format, or the image was not judged.
        """
        answer = _validated(result)
        if images and not any("image" in (of or ()) for of in _applied(answer).values()):
            raise UnreadableVerdict("", "no category looked at the image")
        scores = {n: score for n, score in answer.category_scores.items() if score is not None}
        flagged = {name for name, found in answer.categories.items() if found}
        unsafe = answer.flagged or bool(flagged)
        found = flagged if unsafe else self._doubtful(scores)
        level = Severity.UNSAFE if unsafe else Severity.CONTROVERSIAL if found else Severity.SAFE
        return Verdict(
            severity=level,
            categories=frozenset(category for name in found for category in _ours(name)),
            labels=frozenset(found),
            label_scores=scores,
            scores=_scores(level, found, scores),
        )

    def _doubtful(self, scores: Mapping[str, float]) -> set[str]:
        threshold = self.controversial
        return {n for n, score in scores.items() if threshold is not None and score >= threshold}


def _validated(result: object) -> _Result:
    try:
        answer = _Result.model_validate(result)
    except (ValidationError, RecursionError):
        raise UnreadableVerdict("", "a result that is not in the documented format") from None
    names = {*answer.categories, *answer.category_scores}
    if not all(map(_NAME.fullmatch, names)):
        raise UnreadableVerdict("", "a result with a category that is no name")
    for told in (answer.categories, answer.category_scores):
        if any(told.get(name) is None for name in names - _NEWER):
            raise UnreadableVerdict("", "a result that leaves a category out")
    if not CATEGORIES.keys() - _NEWER <= names:
        raise UnreadableVerdict("", "a result that leaves a documented category out")
    if not all(0 <= (score or 0.0) <= 1 for score in answer.category_scores.values()):
        raise UnreadableVerdict("", "a result with a score that is not in 0 … 1")
    return answer


def _applied(answer: _Result) -> Mapping[str, list[str] | None]:
    return answer.category_applied_input_types or {}


def _ours(name: str) -> frozenset[Category]:
    """A category in ours; of one that is not documented, what it is a part of."""
    known = CATEGORIES.get(name) or CATEGORIES.get(name.split("/", maxsplit=1)[0])
    return known or frozenset({Category.UNETHICAL_ACTS})


def _scores(level: Severity, found: set[str], scores: Mapping[str, float]) -> Scores:
    """Bounds on probabilities; see `OpenAIModeration`."""
    sure = {**scores, **{name: max(scores.get(name, 0.0), _DECIDED) for name in found}}
    unsafe = max(scores.values())
    if level is Severity.UNSAFE:
        unsafe = max(unsafe, _DECIDED)
    harmful = max(unsafe, _DECIDED) if level else unsafe
    by_category = dict[Category, float]()
    for name, p in sure.items():
        for category in _ours(name):
            by_category[category] = max(p, by_category.get(category, 0.0))
    return Scores(
        severity={
            Severity.SAFE: 1 - harmful,
            Severity.CONTROVERSIAL: harmful - unsafe,
            Severity.UNSAFE: unsafe,
        },
        category=by_category,
    )
