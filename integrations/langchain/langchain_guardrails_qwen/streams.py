"""Chunks of a stream: what they add up to, and which of them may be released. Pure."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, cast

from langchain_core.messages import BaseMessageChunk
from langchain_core.runnables.utils import AddableDict

from guardrails_qwen import ConversationError
from langchain_guardrails_qwen.content import is_token

_PIECES = (str, BaseMessageChunk, list, AddableDict)
"""Kinds of values that are streamed in pieces."""

_NOT_ADDED = frozenset(
    {"type", "example", "response_metadata", "usage_metadata", "artifact"}
    | {"tool_calls", "invalid_tool_calls"}
)
"""Fields of chunks that say nothing, or nothing that `tool_call_chunks` does not say."""


def added_up(chunks: Sequence[Any]) -> list[Any]:
    """The value that a stream consisted of, if it had any chunks.

    Raises:
        ConversationError: They do not add up to one. Judged one by one, they could say together
            what none of them says.
    """
    if len(chunks) < 2:
        return list(chunks)
    if not any(all(isinstance(chunk, kind) for chunk in chunks) for kind in _PIECES):
        raise _not_added_up(chunks)
    if len({chunk.type for chunk in chunks if isinstance(chunk, BaseMessageChunk)}) > 1:
        raise _not_added_up(chunks)
    try:
        return [reduce(operator.add, chunks)]
    except Exception:  # noqa: BLE001 - whatever it is, it may quote the text
        error = _not_added_up(chunks)
    raise error


def released(chunks: Sequence[Any], values: Sequence[Any], passed_on: Sequence[Any]) -> list[Any]:
    """The chunks as they came, if what they add up to was passed on unchanged; else what was.

    Released added up are also dicts, and messages that lost something when they were added:
    nothing that was not judged may be released.

    Raises:
        Exception: The first one among `passed_on`.
    """
    for result in passed_on:
        if isinstance(result, Exception):
            raise result
    as_they_came = all(
        new is old and not isinstance(old, dict) and is_complete(old, chunks)
        for new, old in zip(passed_on, values, strict=True)
    )
    return list(chunks if as_they_came else passed_on)


def _not_added_up(chunks: Sequence[Any]) -> ConversationError:
    kinds = " and ".join(sorted({type(chunk).__name__ for chunk in chunks}))
    return ConversationError(
        f"the {kinds} chunks of this stream do not add up to one value that can be judged: stream "
        "texts, message chunks of one kind or AddableDicts, or use invoke"
    )


def is_complete(total: object, chunks: Sequence[Any]) -> bool:
    """Whether a message says all that the chunks say that were added up to it."""
    if not isinstance(total, BaseMessageChunk):
        return True
    said = "\0".join(_texts(_fields(total)))
    return all(text in said for chunk in chunks for text in _texts(_fields(chunk)))


def _fields(chunk: BaseMessageChunk) -> dict[str, Any]:
    fields = {**vars(chunk), **(chunk.model_extra or {})}
    own = {key: value for key, value in fields.items() if key not in _NOT_ADDED}
    if chunk.id and is_token(chunk.id):
        del own["id"]  # of several ids one is kept
    return own


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in cast("Mapping[object, object]", value).items():
            if key != "type":
                yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in cast("Iterable[object]", value):
            yield from _texts(item)
    elif value is not None and not isinstance(value, (int, float)):
        yield str(value)
