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


def said_by(value: BaseModel) -> str:
    """All that an object says, a line for each field: as its fields have it, then as JSON shows it.

    Of the JSON there is only what the fields do not say: what a serializer of the object's own
    makes of them. Nothing is escaped, so that no escape hides a word.

    Raises:
        ConversationError: It is nested too deeply, or cannot be written.
    """
    shown = _shown(value)
    return "\n".join(dict.fromkeys([*lines_in(_fields(value)), *lines_in(shown)]))


def said_by_all(values: Iterable[object]) -> str:
    """What the items of a stream say, without what a later one says with more behind it.

    Objects that are streamed grow, so that each says again what those before it said.

    Raises:
        ConversationError: One of them is nested too deeply, or cannot be written.
    """
    lines = [line for value in values for line in _item_lines(value)]
    ordered = sorted(set(lines))
    begun = {less for less, more in pairwise(ordered) if more.startswith(less)}
    return "\n".join(line for line in dict.fromkeys(lines) if line not in begun)


def lines_in(fields: Mapping[str, Any]) -> list[str]:
    """What fields say, a line for each, of objects in them as well.

    Raises:
        ConversationError: Something is nested too deeply, or cannot be written.
    """
    plain = {key: _plain(item) for key, item in fields.items()}
    return list(lines_of(plain.items()))


def _item_lines(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, BaseModel):
        return said_by(value).split("\n")
    return lines_in({"": value})


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
