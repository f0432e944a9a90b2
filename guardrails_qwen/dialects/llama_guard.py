"""Llama Guard 3 and 4: how they are asked, and how their answer is read.

Facts from the model cards and the published chat templates: the answer is `safe`, or `unsafe` and a
second line of codes, `S1,S10`; a blank line in front is usual. The template takes strictly
alternating turns, and judges the last.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.dialects.base import Step
from guardrails_qwen.dialects.neutral import Markers, without_special_tokens
from guardrails_qwen.dialects.turns import turns
from guardrails_qwen.errors import CheckpointError, UnreadableVerdict
from guardrails_qwen.verdict import Category, Scores, Severity, Verdict

SAFE, UNSAFE = "safe", "unsafe"
ANSWER_TOKENS = 64
"""The most tokens of an answer: all 14 codes, with their commas, take 45 of Llama 3's."""

CATEGORIES: Mapping[str, frozenset[Category]] = MappingProxyType(
    {
        "S1": frozenset({Category.VIOLENT}),
        "S2": frozenset({Category.NON_VIOLENT_ILLEGAL_ACTS}),
        "S3": frozenset({Category.SEXUAL_CONTENT, Category.VIOLENT}),
        "S4": frozenset({Category.SEXUAL_CONTENT, Category.VIOLENT}),
        "S5": frozenset({Category.UNETHICAL_ACTS}),
        "S6": frozenset({Category.UNETHICAL_ACTS}),
        "S7": frozenset({Category.PII}),
        "S8": frozenset({Category.COPYRIGHT_VIOLATION}),
        "S9": frozenset({Category.VIOLENT}),
        "S10": frozenset({Category.UNETHICAL_ACTS}),
        "S11": frozenset({Category.SUICIDE_AND_SELF_HARM}),
        "S12": frozenset({Category.SEXUAL_CONTENT}),
        "S13": frozenset({Category.POLITICALLY_SENSITIVE_TOPICS}),
        "S14": frozenset({Category.NON_VIOLENT_ILLEGAL_ACTS}),
    }
)
"""The model's categories in ours. docs/families.md says why."""

_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "S1": "violent",
        "S2": "non-violent",
        "S3": "sex",
        "S4": "child",
        "S5": "defamation",
        "S6": "advice",
        "S7": "privacy",
        "S8": "intellectual",
        "S9": "weapons",
        "S10": "hate",
        "S11": "self-harm",
        "S12": "sexual",
        "S13": "election",
        "S14": "code",
    }
)
"""A word of the name of each category, which all templates of the family have in it."""
_NAMED = re.compile(r"^[ \t]*([A-Z]+\d+)\s*[:.]([^\n]*)", re.MULTILINE)

_SECTIONS = ("CONVERSATION", "UNSAFE CONTENT CATEGORIES")
_MARKERS = Markers(
    (f"{end} {section}" for end in ("BEGIN", "END") for section in _SECTIONS), ("User", "Agent")
)
_CODE = "(?:" + "|".join(sorted(CATEGORIES, key=len, reverse=True)) + ")"
_ANSWER = re.compile(
    rf"(?:{SAFE}|(?P<unsafe>{UNSAFE})"
    rf"(?:[ \t]*\r?\n\s*(?P<codes>{_CODE}(?:[ \t]*,[ \t]*{_CODE})*))?)"
)
_REGEX = rf"\n{{0,2}}(?:{SAFE}|{UNSAFE}\n{_CODE}(?:,{_CODE}){{0,{len(CATEGORIES) - 1}}})"
_BEGINNING = re.compile(rf"{UNSAFE}[\sS\d,]*")
_LEAST = 0.4
"""The least probability of the severity that a model writes; half, less what rounding can do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaGuard:
    """Fits `Dialect`."""

    @property
    def name(self) -> str:
        """The family."""
        return "llama_guard"

    @property
    def fingerprint(self) -> str:
        """A digest of how its codes are read."""
        return _FINGERPRINT

    @property
    def answer_tokens(self) -> int:
        """The most tokens that an answer may take."""
        return ANSWER_TOKENS

    @property
    def options(self) -> Mapping[str, Any]:
        """Nothing: the template has all instructions."""
        return {}

    @property
    def probes(self) -> Sequence[Conversation]:
        """A prompt and an exchange."""
        return (
            Conversation.of("What is the capital of France?"),
            Conversation.exchange("What is the capital of France?", "It is Paris."),
        )

    def messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        """Alternating turns, as texts.

        Templates that want a list of parts (Llama Guard 3 1B, Llama Guard 4) are served by servers
        that make parts of a text, as vLLM does; docs/families.md names others.
        """
        return [
            {"role": role.value, "content": without_special_tokens(_MARKERS.defanged(text))}
            for role, text in turns(conversation)
        ]

    def regex(self, conversation: Conversation) -> str | None:
        """The answer to a prompt is like that to a response."""
        return _REGEX

    def read(self, answer: str, conversation: Conversation, steps: Sequence[Step] = ()) -> Verdict:
        """The verdict in an answer; `unsafe` without a code is Unsafe without a category.

        Raises:
            UnreadableVerdict: It is not of the documented format, has an unknown code, or the
                model held another answer much likelier.
        """
        return read(answer, scores(steps))


def require_its_categories(prompt: str) -> None:
    """Refuse a prompt whose codes mean something else than those of Llama Guard 3 and 4.

    Llama Guard 2 numbers its categories differently, and anybody may write a template with others:
    read by our table they would be wrong.

    Raises:
        CheckpointError: It names no codes, or others.
    """
    named = _NAMED.findall(prompt)
    others = [code for code, name in named if _NAMES.get(code, "\n") not in name.lower()]
    if others or not named:
        raise CheckpointError(
            "the chat template has other categories than Llama Guard 3 and 4"
            f" ({', '.join(others[:5]) or 'none'}): what its answers mean is not known here"
        )


def parse(answer: str) -> tuple[Severity, tuple[str, ...]]:
    """What an answer says: a severity and codes.

    White space around the answer and around its commas does not matter. Case does.

    Raises:
        UnreadableVerdict: It is not of the documented format, or has an unknown code.
    """
    match = _ANSWER.fullmatch(answer.strip())
    if match is None:
        raise UnreadableVerdict(answer)
    codes = re.findall(_CODE, match["codes"] or "")
    return (Severity.UNSAFE if match["unsafe"] else Severity.SAFE), tuple(codes)


def may_become(answer: str) -> bool:
    """Whether the beginning of an answer may still become a documented one."""
    text = answer.strip()
    return bool(_BEGINNING.fullmatch(text)) or SAFE.startswith(text) or UNSAFE.startswith(text)


def read(answer: str, scores: Scores | None = None) -> Verdict:
    """The verdict in an answer, with scores that go with it.

    Raises:
        UnreadableVerdict: As `parse`, or the scores hold another answer much likelier.
    """
    level, codes = parse(answer)
    if scores and scores.severity[level] < _LEAST:
        raise UnreadableVerdict(answer, "its probabilities say otherwise")
    return Verdict(
        severity=level,
        categories=frozenset(category for code in codes for category in CATEGORIES[code]),
        labels=frozenset(codes),
        scores=scores,
    )


def decided_by(token: str) -> Severity | None:
    """The severity that a token decides, by how it begins; None if it decides nothing.

    The two words begin with different letters, so the first token of either decides, however a
    tokenizer cuts it.
    """
    text = token.strip()
    if not text:
        return None
    decided = {UNSAFE: Severity.UNSAFE, SAFE: Severity.SAFE}
    return next((level for word, level in decided.items() if word.startswith(text)), None)


def severity_scores(unsafe: float) -> Scores:
    """Scores from P(unsafe), of safe and unsafe. There is nothing in between."""
    return Scores(
        severity={
            Severity.SAFE: 1 - unsafe,
            Severity.CONTROVERSIAL: 0.0,
            Severity.UNSAFE: unsafe,
        }
    )


def scores(steps: Sequence[Step]) -> Scores | None:
    """Scores from the step that decides, the first that is not white space; None without any.

    What is missing from its likeliest tokens counts as impossible.
    """
    deciding = next((step for step in steps if step.text.strip()), None)
    if deciding is None:
        return None
    p = {Severity.SAFE: 0.0, Severity.UNSAFE: 0.0}
    for token, logprob in deciding.logprobs.items():
        level = decided_by(token)
        if level is not None:
            p[level] += math.exp(logprob)
    total = sum(p.values())
    return severity_scores(p[Severity.UNSAFE] / total) if total > 0 else None


_FINGERPRINT = hashlib.sha256(
    json.dumps({code: sorted(found) for code, found in CATEGORIES.items()}).encode()
).hexdigest()[:16]
