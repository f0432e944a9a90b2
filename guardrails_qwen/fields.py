"""What the fields of messages and documents say: all the texts in them, at any depth. Pure.

For adapters of frameworks, whose messages and documents carry more than their text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time
from typing import cast
from uuid import UUID

from pydantic import BaseModel

from guardrails_qwen.errors import ConversationError

_TECHNICAL = frozenset(
    {"type", "id", "call_id", "tool_call_id", "tool_use_id", "item_id", "file_id", "container_id"}
    | {"response_id", "index", "status", "phase", "format", "ttl", "mime_type"}
    | {"signature", "thought_signature", "encrypted_content", "encrypted_index"}
)
"""Fields that say nothing, as long as they hold tokens: marks, ids, and what is encrypted."""

_SIGNATURES = "__gemini_function_call_thought_signatures__"
"""A dict of signatures."""

_MEDIA = frozenset(
    {"audio", "input_audio", "image", "images", "image_url", "video", "video_url", "base64"}
    | {"inline_data", "file_data"}
)
"""Fields that hold what a text model cannot judge."""

_TOKEN = re.compile(r"[A-Za-z0-9+/=_.:@-]*")
_WORD = re.compile(r"[A-Z]?[a-z]{2,}|[A-Z]{2,}")
_LONGEST = 40
_MOST = 3
"""Characters and words of a name; more may be a sentence."""

_MARK = re.compile(r"[0-9A-Fa-f:.+_-]*")
"""A number, a date, a hash or a UUID, which says nothing."""

_NUMBERS = (int, float, date, time, UUID)
_DEEPEST = 32

Pairs = Iterable[tuple[object, object]]
"""Fields and what they hold."""


def is_token(text: str) -> bool:
    """Whether a text is a mark or an id, which says nothing."""
    return _TOKEN.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether a text is no more than the name of a field: a token of a few words, or a number.

    Who chooses names may write sentences as names, without any blank.
    """
    if _MARK.fullmatch(text):
        return True
    return is_token(text) and len(text) <= _LONGEST and len(_WORD.findall(text)) <= _MOST


def texts_in(value: object, *, technical: bool = False) -> Iterator[str]:
    """All the texts in a field of a message; names of fields too, if they are more than names.

    Args:
        value: What the field holds.
        technical: Whether marks and ids say nothing here, as they do in fields that are known to
            hold them.

    Raises:
        ConversationError: There is something else in it, or it is nested too deeply.
    """
    yield from _texts_in(value, technical=technical, depth=0)


def lines_of(pairs: Pairs) -> Iterator[str]:
    """The metadata of a document as a prompt may show it, a line for each field that says anything.

    Names of fields are in it, because they may be anybody's. Objects are read as `str` writes them,
    as prompts do.

    Raises:
        ConversationError: A field is nested too deeply, or cannot be written as text.
    """
    yield from _lines(pairs, depth=0)


def says(value: object) -> bool:
    """Whether there is any text in a field of metadata. Raises as `lines_of` does."""
    return any(_said(value, depth=0))


def written(value: object) -> str:
    """A field of metadata, or the name of one, as `str` writes it.

    Raises:
        ConversationError: It cannot be written as text.
    """
    if isinstance(value, str):
        return value
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - whatever it is, it may quote the value
        cause = type(error).__name__
    raise ConversationError(
        f"metadata that is {type(value).__name__} cannot be written as text ({cause}): take it out"
    )


def _texts_in(value: object, *, technical: bool, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ConversationError("a field of a message is nested too deeply to be judged")
    if isinstance(value, BaseModel):
        value = vars(value) | (value.model_extra or {})
    if isinstance(value, str):
        if value and not (technical and is_token(value)):
            yield value
    elif isinstance(value, Mapping):
        fields = cast("Mapping[object, object]", value)
        if depth and fields.get("type") in _MEDIA:
            raise ConversationError(
                "what a field shows cannot be judged by a text model: take it out and judge it by "
                "other means"
            )
        for key, item in fields.items():
            yield from _field(key, item, technical=technical, depth=depth)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in cast("Iterable[object]", value):
            yield from _texts_in(item, technical=technical, depth=depth + 1)
    elif value is not None and not isinstance(value, _NUMBERS):
        raise ConversationError(
            f"a field that is {type(value).__name__} cannot be judged by a text model: take it out"
        )


def _field(key: object, item: object, *, technical: bool, depth: int) -> Iterator[str]:
    if item and key in _MEDIA:
        raise ConversationError(
            f"a field {key!r} cannot be judged by a text model: take it out and judge it, or its "
            "transcript, by other means"
        )
    named = isinstance(key, str) and (key == _SIGNATURES or is_name(key))
    if not named:
        yield from _texts_in(key, technical=technical, depth=depth + 1)
    opaque = key in _TECHNICAL and isinstance(item, str)
    inner = opaque or technical or key == _SIGNATURES
    yield from _texts_in(item, technical=inner, depth=depth + 1)


def _lines(pairs: Pairs, depth: int) -> Iterator[str]:
    for key, value in pairs:
        name, said = written(key), "\n".join(_said(value, depth + 1))
        if said or not is_name(name):
            yield f"{name}: {said}"


def _said(value: object, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ConversationError("the metadata of a document is nested too deeply to be judged")
    if isinstance(value, Mapping):
        yield from _lines(cast("Mapping[object, object]", value).items(), depth)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in cast("Iterable[object]", value):
            yield from _said(item, depth + 1)
    elif value is not None and not isinstance(value, _NUMBERS):
        text = written(value)
        if not _MARK.fullmatch(text):
            yield text
