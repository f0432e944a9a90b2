"""The answer of a safety model as data: fields with choices.

From the same data come the parser, the regular expression that a server can constrain generation
with, and the token tree (`token_tree`) that the local engine scores.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from guardrails_qwen.errors import UnreadableVerdict

_EMPTY_THINKING = re.compile(r"\A\s*<think>\s*</think>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One line of an answer: `name: choice`."""

    name: str
    choices: tuple[str, ...]
    many: bool = False
    """Whether a comma-separated list of choices is an answer as well."""


@dataclass(frozen=True)
class AnswerFormat:
    """Lines in a fixed order, one for each field."""

    fields: tuple[Field, ...]

    def write(self, values: Sequence[str]) -> str:
        """The answer as the model writes it, one choice for each field."""
        lines = zip(self.fields, values, strict=True)
        return "\n".join(f"{field.name}: {value}" for field, value in lines)

    def read(self, answer: str) -> tuple[tuple[str, ...], ...]:
        """The choices that an answer names, field by field.

        White space around the answer, its colons and its commas does not matter, and neither does
        an empty think block in front. Case does.

        Raises:
            UnreadableVerdict: Anything else: a line too many or too few, an unknown choice.
        """
        match = self._pattern.fullmatch(_EMPTY_THINKING.sub("", answer).strip())
        if match is None:
            raise UnreadableVerdict(answer)
        return tuple(tuple(re.split(r"[ \t]*,[ \t]*", value)) for value in match.groups())

    @cached_property
    def regex(self) -> str:
        """A regular expression for exactly what `write` writes, and lists where allowed."""
        return r"\n".join(_line(field, colon=": ", comma=", ") for field in self.fields)

    @cached_property
    def answers(self) -> tuple[tuple[str, ...], ...]:
        """Every answer of one choice a field."""
        return tuple(product(*(field.choices for field in self.fields)))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        lines = [
            _line(field, colon=r"[ \t]*:[ \t]*", comma=r"[ \t]*,[ \t]*", group="")
            for field in self.fields
        ]
        return re.compile(r"[ \t]*\r?\n[ \t]*".join(lines))


def _line(field: Field, *, colon: str, comma: str, group: str = "?:") -> str:
    choices = "|".join(map(re.escape, sorted(field.choices, key=len, reverse=True)))
    value = f"(?:{choices})" + (f"(?:{comma}(?:{choices}))*" if field.many else "")
    return f"{re.escape(field.name)}{colon}({group}{value})"
