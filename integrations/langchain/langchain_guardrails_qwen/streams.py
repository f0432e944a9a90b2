"""Chunks of a stream: what they add up to, and which of them may be released. Pure."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any

from langchain_core.messages import BaseMessageChunk
from langchain_core.runnables.utils import AddableDict

from guardrails_qwen import ConversationError

_PIECES = (str, BaseMessageChunk, list, AddableDict)
"""Kinds of values that are streamed in pieces; any other chunk is a value by itself."""


def added_up(chunks: Sequence[Any]) -> list[Any]:
    """The values that a stream consisted of: one, if it was streamed in pieces.

    Raises:
        ConversationError: The pieces do not fit together.
    """
    for kind in _PIECES:
        if len(chunks) > 1 and all(isinstance(chunk, kind) for chunk in chunks):
            return [_sum(chunks)]
    return list(chunks)


def released(chunks: Sequence[Any], values: Sequence[Any], passed_on: Sequence[Any]) -> list[Any]:
    """The chunks as they came, if what they add up to was passed on unchanged; else what was.

    Dicts are released added up in any case: in some versions adding loses what cannot be added, and
    nothing that was not judged may be released.

    Raises:
        Exception: The first one among `passed_on`.
    """
    for result in passed_on:
        if isinstance(result, Exception):
            raise result
    as_they_came = all(
        new is old and not isinstance(old, dict) for new, old in zip(passed_on, values, strict=True)
    )
    return list(chunks if as_they_came else passed_on)


def _sum(chunks: Sequence[Any]) -> Any:
    try:
        return reduce(operator.add, chunks)
    except TypeError:
        kind = type(chunks[0]).__name__
    raise ConversationError(f"the {kind} chunks of this stream cannot be added up to be judged")
