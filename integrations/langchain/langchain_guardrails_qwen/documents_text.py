"""What a document says beside its content: the texts in its metadata. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import date, time
from typing import cast
from uuid import UUID

from langchain_core.documents import Document

from guardrails_qwen import ConversationError
from langchain_guardrails_qwen.content import is_token

KEY = "guardrails_qwen"
"""The field of the metadata that holds the verdict. What it held before is never believed."""

_FIELDS = frozenset(Document.model_fields) - {"id"}
_MARK = re.compile(r"[0-9A-Fa-f:.+_-]*")
"""A number, a date, a hash or a UUID, which says nothing."""

_NUMBERS = (int, float, date, time, UUID)
_DEEPEST = 32

_Pairs = Iterable[tuple[object, object]]


def metadata_text(document: Document, fields: Collection[str] | None) -> str:
    """Metadata as a prompt may show it, a line for each text; empty where it says nothing.

    Names of fields are in it, because they may be anybody's. Objects are read as `str` writes them,
    as prompts do.

    Args:
        document: The document.
        fields: Those to read. None: all, and also the id and what its class adds to a `Document`.

    Raises:
        ConversationError: A field is nested too deeply, or cannot be written as text.
    """
    judged = {
        key: value
        for key, value in document.metadata.items()
        if key != KEY and (fields is None or key in fields)
    }
    return "\n".join(_lines([*_beside_metadata(document, fields), *judged.items()], depth=0))


def without_texts(document: Document, fields: Collection[str] | None, instead: str) -> Document:
    """A document with `instead` wherever `metadata_text` has read a text.

    A field whose name is more than a name is left out, and so is an id that is none.

    Raises:
        ConversationError: As `metadata_text` does.
    """
    metadata = dict[object, object]()
    for key, value in document.metadata.items():
        if fields is not None and key not in fields:
            metadata[key] = value
        elif is_token(_written(key)):
            metadata[key] = instead if _says(value) else value
    identity = None if fields is None and _says(document.id) else document.id
    return Document(id=identity, page_content=document.page_content, metadata=metadata)


def _beside_metadata(document: Document, fields: Collection[str] | None) -> _Pairs:
    """What else a prompt might show; a choice of fields is one of metadata, and leaves it out."""
    if fields is not None:
        return []
    own = {**vars(document), **(document.model_extra or {})}
    return [(key, value) for key, value in own.items() if key not in _FIELDS]


def _lines(pairs: _Pairs, depth: int) -> Iterator[str]:
    for key, value in pairs:
        name, said = _written(key), "\n".join(_texts(value, depth + 1))
        if said or not is_token(name):
            yield f"{name}: {said}"


def _texts(value: object, depth: int = 0) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ConversationError("the metadata of a document is nested too deeply to be judged")
    if isinstance(value, Mapping):
        yield from _lines(cast("Mapping[object, object]", value).items(), depth)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in cast("Iterable[object]", value):
            yield from _texts(item, depth + 1)
    elif value is not None and not isinstance(value, _NUMBERS):
        text = _written(value)
        if not _MARK.fullmatch(text):
            yield text


def _says(value: object) -> bool:
    return any(_texts(value))


def _written(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - whatever it is, it may quote the value
        cause = type(error).__name__
    raise ConversationError(
        f"metadata that is {type(value).__name__} cannot be written as text ({cause}): take it out"
    )
