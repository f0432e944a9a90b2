"""What objects say: structured answers, and what engines tell beside an answer. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, cast

from pydantic import BaseModel

from guardrails_qwen import ConversationError
from guardrails_qwen.fields import lines_of

_DEEPEST = 32


class Growing:
    """What the items of a stream say that are no texts, read as they come.

    Objects that are streamed grow, and each says again what the last one said. So what the next one
    says with more behind it is not kept; what it takes back is.
    """

    def __init__(self) -> None:
        self._kept = list[str]()
        self._last = list[str]()
        self._error: ConversationError | None = None

    def add(self, item: object) -> None:
        """One more item."""
        try:
            lines = _item_lines(item)
        except ConversationError as error:
            self._error = error
            return
        ordered = sorted({*self._last, *lines})
        begun = {less for less, more in pairwise(ordered) if more.startswith(less)}
        again = begun.union(lines)
        self._kept += [line for line in self._last if line not in again]
        self._last = lines

    def text(self) -> str:
        """All that they said.

        Raises:
            ConversationError: One of them is nested too deeply, or cannot be written.
        """
        if self._error:
            raise self._error
        return "\n".join(dict.fromkeys([*self._kept, *self._last]))


def said_by(value: BaseModel) -> str:
    """All that an object says, a line for each field: as its fields have it, then as JSON shows it.

    Of the JSON there is only what the fields do not say: what a serializer of the object's own
    makes of them. Nothing is escaped, so that no escape hides a word.

    Raises:
        ConversationError: It is nested too deeply, or cannot be written.
    """
    return "\n".join(_object_lines(value))


def lines_in(fields: Mapping[str, Any]) -> list[str]:
    """What fields say, a line for each, of objects in them as well.

    Raises:
        ConversationError: Something is nested too deeply, or cannot be written.
    """
    plain = {key: _plain(item) for key, item in fields.items()}
    return list(lines_of(plain.items()))


def _item_lines(item: object) -> list[str]:
    return _object_lines(item) if isinstance(item, BaseModel) else lines_in({"": item})


def _object_lines(value: BaseModel) -> list[str]:
    return list(dict.fromkeys([*lines_in(_fields(value)), *lines_in(_shown(value))]))


def _fields(value: BaseModel) -> dict[str, Any]:
    return vars(value) | (value.model_extra or {})


def _shown(value: BaseModel) -> dict[str, Any]:
    try:
        shown: object = json.loads(value.model_dump_json(warnings=False))
    except Exception as error:  # noqa: BLE001 - whatever it is, it may quote the object
        cause = type(error).__name__
    else:
        return cast("dict[str, Any]", shown) if isinstance(shown, dict) else {"root": shown}
    raise ConversationError(f"a structured answer cannot be written as JSON ({cause})")


def _plain(value: object, depth: int = 0) -> object:
    """Objects as dicts of their fields; what prompts and readers see of anything else."""
    if depth > _DEEPEST:
        raise ConversationError("a structured answer is nested too deeply to be judged")
    if isinstance(value, BaseModel):
        value = _fields(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {key: _plain(item, depth + 1) for key, item in items}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, depth + 1) for item in cast("Iterable[object]", value)]
    return value
