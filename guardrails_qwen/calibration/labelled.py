"""Labelled texts: JSON Lines, one object a line."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from typing_extensions import Self

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.errors import ConversationError
from guardrails_qwen.verdict import Category, Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRow:
    """What is judged, and what people say that it is. At least one label is given."""

    conversation: Conversation
    severity: Severity | None = None
    unsafe: bool | None = None
    """For labels that know two severities only; not read where `severity` is given."""
    categories: frozenset[Category] | None = None
    """The right ones; empty says that there is none, None that nobody looked."""
    refusal: bool | None = None
    """Whether the assistant refused; read where a reply is judged."""

    @property
    def key(self) -> int:
        """A number that depends on the first text only, the same in every process."""
        text = self.conversation.messages[0].judged_text
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRows:
    """Rows that were read, in order."""

    rows: tuple[LabelledRow, ...]
    unlabelled: int = 0
    """Rows without a label that can be used; they are left out."""

    def limited(self, limit: int | None) -> LabelledRows:
        """At most `limit` rows, drawn by a hash: files that are sorted by label do no harm."""
        if limit is None or limit >= len(self.rows):
            return self
        drawn = sorted(range(len(self.rows)), key=lambda i: (self.rows[i].key, i))[:limit]
        kept = tuple(self.rows[i] for i in sorted(drawn))
        return LabelledRows(rows=kept, unlabelled=self.unlabelled)


def read_rows(paths: Sequence[str | Path]) -> LabelledRows:
    """Read JSON Lines files, `.gz` among them.

    Fields of a line: `prompt`; `response` (a text or null: then the prompt is judged); and labels
    of what is judged: `severity`, or `unsafe`, `categories` and `refusal`. In place of `unsafe`
    there may be `label_unsafe_prompt` and `label_unsafe_response`. Other fields are ignored.

    Raises:
        ValueError: A file cannot be read, or a line is wrong; the message names file and line and
            does not quote it.
    """
    read = [row for path in paths for row in _read_file(Path(path))]
    labelled = tuple(row for row in read if row is not None)
    return LabelledRows(rows=labelled, unlabelled=len(read) - len(labelled))


def _read_file(path: Path) -> Iterator[LabelledRow | None]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            yield _row(_Line.model_validate(json.loads(line)))
        except (ValidationError, ConversationError, ValueError, RecursionError) as error:
            reason = _reason(error)
        else:
            continue
        raise ValueError(f"{path}, line {number}: {reason}")


def _lines(path: Path) -> Iterator[bytes]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as lines:
            yield from lines
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it is not a whole gzip file"
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _severity(value: object) -> object:
    return Severity.from_label(value) if isinstance(value, str) else value


def _category(value: object) -> object:
    known = {category.label.lower(): category for category in Category}
    if not isinstance(value, str) or value.lower() not in known:
        raise ValueError(f"unknown category; use one of: {', '.join(c.label for c in Category)}")
    return known[value.lower()]


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    prompt: str
    response: str | None = None
    severity: Annotated[Severity | None, BeforeValidator(_severity)] = None
    unsafe: bool | None = None
    label_unsafe_prompt: bool | None = None
    label_unsafe_response: bool | None = None
    categories: list[Annotated[Category, BeforeValidator(_category)]] | None = None
    refusal: bool | None = None

    @model_validator(mode="after")
    def _one_label(self) -> Self:
        given = [self.severity, self.unsafe]
        if None not in given:
            raise ValueError("give severity or unsafe, not both")
        if self.severity is Severity.SAFE and self.categories:
            raise ValueError("a safe text has no categories: give an empty list, or none at all")
        return self


def _row(line: _Line) -> LabelledRow | None:
    """A row, or None where it has no label of what is judged."""
    judges_reply = line.response is not None
    named = line.label_unsafe_response if judges_reply else line.label_unsafe_prompt
    unsafe = line.unsafe if line.unsafe is not None else named
    refusal = line.refusal if judges_reply else None
    if line.severity is None and unsafe is None and line.categories is None and refusal is None:
        return None
    return LabelledRow(
        conversation=Conversation.exchange(line.prompt, line.response)
        if line.response is not None
        else Conversation.of(line.prompt),
        severity=line.severity,
        unsafe=unsafe if line.severity is None else None,
        categories=None if line.categories is None else frozenset(line.categories),
        refusal=refusal,
    )


def _reason(error: Exception) -> str:
    """What is wrong with a line, without any of it."""
    if isinstance(error, ValidationError):
        problem: Any = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, problem["loc"])) or "the whole"
        return f"{where}: {str(problem['msg']).removeprefix('Value error, ')}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg}, at character {error.pos + 1}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    return (
        str(error)
        if isinstance(error, ConversationError)
        else "nested too deep, or a number too long"
    )
