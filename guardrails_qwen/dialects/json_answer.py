"""Answers that are one JSON object, read strictly."""

from __future__ import annotations

import json
import re
from typing import Any, cast

from guardrails_qwen.errors import UnreadableVerdict

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)


def read_object(answer: str) -> dict[str, Any]:
    """The object that an answer is, all of it; a code fence around it is no part of it.

    Raises:
        UnreadableVerdict: It is something else, there is a word beside it, or a key is in it twice.
    """
    text = answer.strip()
    fenced = _FENCE.fullmatch(text)
    try:
        value: object = json.loads(fenced[1] if fenced else text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise UnreadableVerdict(answer, "not one JSON object") from None
    if not isinstance(value, dict):
        raise UnreadableVerdict(answer, "not one JSON object")
    return cast("dict[str, Any]", value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key twice")
    return fields
