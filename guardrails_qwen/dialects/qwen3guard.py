"""Qwen3Guard-Gen: how it is asked, and how its answer is read.

Facts from the model cards and the tech report (arXiv 2510.14276). The published chat template
knows two speakers, judges by the role of the last message, escapes nothing, and loses text in every
other case; `turns` and `GuardTemplate` see to it that all text reaches the model, as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby

from guardrails_qwen.conversation import Conversation, Role
from guardrails_qwen.dialects.answer import AnswerFormat, Field
from guardrails_qwen.errors import CheckpointError, UnreadableVerdict
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

Turn = tuple[Role, str]
"""A user's or an assistant's turn, as the model reads it."""


def judges_response(conversation: Conversation) -> bool:
    """Whether the last message is judged as a response: an assistant's is, all others are not."""
    return conversation.last.role is Role.ASSISTANT


def answer_format(*, response: bool) -> AnswerFormat:
    """The answer to expect: that on a response also tells whether the assistant refused."""
    return RESPONSE_ANSWER if response else PROMPT_ANSWER


def turns(conversation: Conversation) -> list[Turn]:
    """A conversation as strictly alternating turns, a user's first, with no text left out.

    System, developer and tool messages count as the user's: they reach the guarded model from
    outside. Consecutive messages of one side become one turn. Tool calls are the assistant's words.
    An assistant's first turn gets an empty user turn before it, without which the published
    template renders an empty conversation.
    """
    sides = [
        (Role.ASSISTANT if message.role is Role.ASSISTANT else Role.USER, message.judged_text)
        for message in conversation.messages
    ]
    merged = [
        (side, "\n\n".join(text for _, text in group if text))
        for side, group in groupby(sides, key=lambda turn: turn[0])
    ]
    return [(Role.USER, ""), *merged] if merged[0][0] is Role.ASSISTANT else merged


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of a prompt. Only in `scaffold` do special tokens mean what they say."""

    text: str = field(repr=False)
    scaffold: bool


Render = Callable[[list[dict[str, str]]], str]
"""A checkpoint's chat template: role/content messages to a prompt."""

_SLOT = "\ue000{index}\ue001"
_SLOTS = re.compile(r"\ue000(\d+)\ue001")
_SECTION = re.compile(r"<([A-Z][A-Z]+(?:[ _&/-]+[A-Z]+)*)>")
_LABEL = re.compile(r"(\w+):\s*\Z")


class GuardTemplate:
    """A checkpoint's own chat template, rendered so that content stays content.

    The template is run on placeholders and the content put in afterwards, so the template can
    neither lose nor change it, and the boundaries are known instead of searched for. Section
    markers and speaker labels of the template lose their force in content: `<END CONVERSATION>`
    becomes `(END CONVERSATION)`.

    Raises:
        CheckpointError: The template is not one of a guard: it loses messages, adds none of its own
            words, or does not distinguish prompts from responses.
    """

    def __init__(self, render: Render) -> None:
        self._render = render
        self.scaffold = lru_cache(maxsize=256)(self._scaffold)
        prompt, response = self.scaffold(1), self.scaffold(2)
        if prompt[0] == response[0] and prompt[-1] == response[-1]:
            raise CheckpointError(
                "the chat template treats prompts and responses alike: it is not a guard's; "
                "use the chat_template.jinja that comes with Qwen3Guard-Gen"
            )
        scaffold = "\n".join([*prompt, *response])
        names = sorted(set(_SECTION.findall(scaffold)), key=len, reverse=True)
        labels = sorted({m[1] for piece in [*prompt, *response] for m in _LABEL.finditer(piece)})
        self._sections = [re.compile(_spaced(name), re.IGNORECASE) for name in names]
        self._labels = _label_pattern(labels) if labels else None

    def pieces(self, conversation: Conversation) -> list[Piece]:
        """The prompt that asks for a verdict on the last message of a conversation."""
        said = turns(conversation)
        first, *others = self.scaffold(len(said))
        pieces = [Piece(text=first, scaffold=True)]
        for (_, text), after in zip(said, others, strict=True):
            pieces.append(Piece(text=self.defanged(text), scaffold=False))
            pieces.append(Piece(text=after, scaffold=True))
        return pieces

    def defanged(self, text: str) -> str:
        """Content in which the template's markers and labels are ordinary words."""
        for section in self._sections:
            text = section.sub(lambda match: f"({match[1]})", text)
        return self._labels.sub(_in_parentheses, text) if self._labels else text

    def _scaffold(self, count: int) -> tuple[str, ...]:
        """The template's own text around and between `count` alternating turns."""
        roles = [(Role.USER, Role.ASSISTANT)[index % 2] for index in range(count)]
        messages = [
            {"role": role.value, "content": _SLOT.format(index=index)}
            for index, role in enumerate(roles)
        ]
        parts = _SLOTS.split(self._render(messages))
        if parts[1::2] != [str(index) for index in range(count)]:
            raise CheckpointError(
                f"the chat template does not render each of {count} alternating user and "
                "assistant messages exactly once, in order: it is not a guard's"
            )
        return tuple(parts[::2])


_UNSEEN = "\u00ad\u200b-\u200f\u2060-\u2064\ufeff"
"""Characters that take no room: they do not keep a marker or a label apart."""


def _label_pattern(labels: Sequence[str]) -> re.Pattern[str]:
    """A speaker's label anywhere, and first of all one that is in parentheses already."""
    label = rf"(?:{'|'.join(labels)})[\s{_UNSEEN}]*"
    return re.compile(rf"\({label}:\)|(?<!\w)({label})[:：]", re.IGNORECASE)


def _in_parentheses(label: re.Match[str]) -> str:
    return f"({label[1]}:)" if label[1] else label[0]


def _spaced(name: str) -> str:
    """A section marker in any spelling that reads like it, full-width brackets included."""
    gap = rf"[\s{_UNSEEN}]*"
    words = rf"[\s_&/{_UNSEEN}-]+".join(map(re.escape, re.split(r"[ _&/-]+", name)))
    return rf"[<＜]{gap}(?:/{gap})?({words}){gap}(?:/{gap})?[>＞]"
