"""Text in which nothing can pass for a special token, a marker or a speaker's label. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(
    r"<[|\uff5c](?=[^<>\n]{0,64}[|\uff5c]>)|<(?=/?(?:think|tool_call|tool_response)>)"
)


def without_special_tokens(text: str) -> str:
    """The text with a space in whatever a tokenizer could take for a special token.

    For endpoints that are sent text and read `<|im_end|>` in it as the end of a turn: it becomes
    `<| im_end|>`. Where prompts are encoded here this is not needed.
    """
    return _SPECIAL.sub(lambda match: f"{match[0]} ", text)


class Markers:
    """The section markers and speakers' labels of a prompt, which content must not forge.

    Args:
        sections: What stands in brackets: `END CONVERSATION` for `<END CONVERSATION>`.
        labels: What stands before a colon: `USER` for `USER:`.
    """

    def __init__(self, sections: Iterable[str], labels: Iterable[str]) -> None:
        names = sorted(set(sections), key=len, reverse=True)
        labels = sorted(set(labels))
        self._sections = [re.compile(_spaced(name), re.IGNORECASE) for name in names]
        self._labels = _label_pattern(labels) if labels else None

    @classmethod
    def of(cls, scaffold: Sequence[str]) -> Markers:
        """Those in a template's own text; each piece of it ends where content begins."""
        sections = (name for piece in scaffold for name in _SECTION.findall(piece))
        return cls(sections, (m[1] for piece in scaffold for m in _LABEL.finditer(piece)))

    def defanged(self, text: str) -> str:
        """The text with markers and labels as ordinary words: `(END CONVERSATION)`, `(USER:)`."""
        for section in self._sections:
            text = section.sub(lambda match: f"({match[1]})", text)
        return self._labels.sub(_in_parentheses, text) if self._labels else text


_SECTION = re.compile(r"<([A-Z][A-Z]+(?:[ _&/-]+[A-Z]+)*)>")
_LABEL = re.compile(r"(\w+):\s*\Z")
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
