"""Chunks of a stream: what they add up to, and which of them may be released. Pure."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, cast

from langchain_core.messages import BaseMessageChunk
from langchain_core.runnables.utils import AddableDict

from guardrails_qwen import ConversationError
from guardrails_qwen.fields import is_token
from langchain_guardrails_qwen.content import is_words, word_field

_PIECES = (str, BaseMessageChunk, list, AddableDict)
"""Kinds of values that are streamed in pieces."""

_NOT_ADDED = frozenset(
    {"type", "example", "response_metadata", "usage_metadata", "artifact"}
    | {"tool_calls", "invalid_tool_calls", "chunk_position"}
)
"""Fields of chunks that say nothing, or nothing that `tool_call_chunks` does not say."""

_KEPT_ONCE = frozenset({"type", "id", "index"})
"""Marks: of several that are added up, one is kept."""

_SPOKEN = "content"
"""The place of words."""


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
    """Whether a message says what the chunks say that were added up to it, in the same order.

    Blocks are added up by their index, so that what was judged may be in another order than what
    came: then nobody may read the chunks as they came.
    """
    if not isinstance(total, BaseMessageChunk):
        return True
    came = defaultdict[str, str](str)
    for chunk in chunks:
        for place, text in _texts(chunk):
            came[place] += text
    whole = defaultdict[str, str](str)
    for place, text in _texts(total):
        whole[place] += text
    return came == whole


def spoken(value: object) -> str:
    """The words of a text or a message; unlike `words`, of blocks that only end another one too."""
    if isinstance(value, BaseMessageChunk):
        return "".join(text for place, text in _texts(value) if place == _SPOKEN)
    return value if isinstance(value, str) else ""


def _texts(chunk: BaseMessageChunk) -> Iterator[tuple[str, str]]:
    """All texts of a message, each with its place: the fields that it is in."""
    fields = {**vars(chunk), **(chunk.model_extra or {})}
    for key, value in fields.items():
        if key == "content":
            for block in [value] if isinstance(value, str) else value:
                yield from _block_texts(block)
        elif key not in _NOT_ADDED:
            yield from _leaves(key, value)


def _block_texts(block: str | dict[str, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(block, str):
        yield _SPOKEN, block
        return
    aloud = word_field(block) if is_words(block) else None
    for key, value in block.items():
        yield from _leaves(_SPOKEN if key == aloud else f"content.{key}", value)


def _leaves(place: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in cast("Mapping[object, object]", value).items():
            yield from _leaves(f"{place}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for item in cast("Iterable[object]", value):
            yield from _leaves(place, item)
    elif value and not isinstance(value, (int, float)):
        text = str(value)
        if not (is_token(text) and place.rpartition(".")[2] in _KEPT_ONCE):
            yield place, text
