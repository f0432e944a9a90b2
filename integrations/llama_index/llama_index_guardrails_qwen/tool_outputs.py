"""What a tool gives says: all the texts in it. Pure."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import cast

from llama_index.core.base.response.schema import Response, StreamingResponse
from llama_index.core.schema import BaseNode
from llama_index.core.tools import ToolOutput
from pydantic import BaseModel

from guardrails_qwen import ConversationError
from guardrails_qwen.fields import is_name, says, written
from llama_index_guardrails_qwen.media import media_of
from llama_index_guardrails_qwen.nodes_text import Reading

_DEEPEST = 32
_SEARCHED = 10_000_000
"""Characters to look through for what a content says already."""


def beside_content(output: ToolOutput, known: object) -> str:
    """What programs get of an output and the model does not, in as far as it says more.

    Args:
        output: What a tool gives.
        known: What need not be said again: the call, and what the application gave the tool.

    Raises:
        ConversationError: Something in it cannot be judged; see `texts_of`.
    """
    beside = [output.raw_output, output.exception, output.raw_input, output.tool_name]
    old = set(texts_of(known))
    said = [text for text in dict.fromkeys(texts_of(beside)) if text not in old]
    if len(said) * len(output.content) <= _SEARCHED:  # else it is cheaper to judge them again
        said = [text for text in said if text not in output.content]
    return "\n".join(said)


def read_through(output: ToolOutput) -> ToolOutput:
    """The same; of an answer that streamed into its content, what is left of it."""
    raw = output.raw_output
    if isinstance(raw, StreamingResponse) and raw.response_txt is not None:
        output.raw_output = Response(raw.response_txt, raw.source_nodes, raw.metadata)
    return output


def texts_of(value: object) -> Iterator[str]:
    """All that a value says to those who read it, or print it.

    Of objects of unknown kinds that is what `str` writes.

    Raises:
        ConversationError: Something in it cannot be judged by a text model, or not without using it
            up, or it is nested too deeply.
    """
    return _texts_of(value, 0, {})


def errors_behind(
    error: BaseException | None, but: BaseException | None = None
) -> Iterator[BaseException]:
    """An error and all that it was raised from, or while handling, each once.

    Args:
        error: The last of them.
        but: One behind it that is left out, with all that is behind no other.
    """
    seen = dict[int, BaseException | None]() if but is error else {id(but): but}
    waiting = deque([error])
    while waiting:
        error = waiting.popleft()
        if error is not None and id(error) not in seen:
            seen[id(error)] = error
            yield error
            waiting += _before(error)


def _texts_of(value: object, depth: int, seen: dict[int, object]) -> Iterator[str]:
    """The texts; each object is read once, however often and from where it is referred to."""
    if isinstance(value, str):
        if says(value):
            yield value
        return
    if id(value) not in seen:
        seen[id(value)] = value
        yield from _texts_in(value, depth, seen)


def _texts_in(value: object, depth: int, seen: dict[int, object]) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ConversationError("what a tool gives is nested too deeply to be judged")
    if isinstance(value, Mapping):
        for key, item in cast("Mapping[object, object]", value).items():
            yield from (text for text in _texts_of(key, depth + 1, seen) if not is_name(text))
            yield from _texts_of(item, depth + 1, seen)
    elif isinstance(value, (bytes, bytearray, Iterator, AsyncIterator)):
        raise ConversationError(
            f"what a tool gives is {type(cast('object', value)).__name__}, which cannot be judged "
            "by a text model"
        )
    elif (parts := _parts(value)) is not None:
        for part in parts:
            yield from _texts_of(part, depth + 1, seen)
    elif says(value):
        yield written(value)


def _parts(value: object) -> Iterable[object] | None:
    """What a value is made of; None: it is one thing."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return cast("Iterable[object]", value)
    if isinstance(value, BaseException):
        return _parts_of_error(value)
    if isinstance(value, BaseNode):
        return _parts_of_node(value)
    if isinstance(value, BaseModel):
        return (vars(value) | (value.model_extra or {})).values()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return None


def _parts_of_error(error: BaseException) -> list[object]:
    """What handlers print of an error, and of those behind it."""
    notes: list[str] = getattr(error, "__notes__", [])
    return [written(error), list(error.args), notes, *_before(error)]


def _before(error: BaseException) -> list[BaseException | None]:
    members: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return [error.__cause__, error.__context__, *members]


def _parts_of_node(node: BaseNode) -> list[object]:
    if media_of(node):
        raise ConversationError("a node holds what cannot be judged by a text model")
    parts = [part.text for part in Reading().parts(node)]
    for error in parts:
        if isinstance(error, ConversationError):
            raise error
    return list(parts)
