"""The field of the metadata in which guards leave their verdict, and what it may hold. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from guardrails_qwen import Category
from guardrails_qwen.fields import is_token

KEY = "guardrails_qwen"
"""The field that holds the verdict. What a node brings along there is never believed unsigned."""

_LONGEST = 20_000
_LABELS = frozenset(category.label for category in Category)


def parsed(value: object) -> dict[str, Any] | None:
    """The note in a field as data; None: it is none."""
    if not isinstance(value, str) or len(value) > _LONGEST:
        return None
    try:
        body: object = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", body) if isinstance(body, dict) else None


def is_note(value: object) -> bool:
    """Whether a field holds nothing but marks, as notes do, so that it need not be judged."""
    body = parsed(value)
    try:
        return body is not None and all(is_token(text) or text in _LABELS for text in _texts(body))
    except RecursionError:
        return False


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in cast("Mapping[str, object]", value).items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            yield from _texts(item)
