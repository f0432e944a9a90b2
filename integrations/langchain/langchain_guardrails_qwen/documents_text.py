"""What a document says beside its content: the texts in its metadata. Pure."""

from __future__ import annotations

from collections.abc import Collection

from langchain_core.documents import Document

from guardrails_qwen.fields import Pairs, is_name, lines_of, says, written

KEY = "guardrails_qwen"
"""The field of the metadata that holds the verdict. What it held before is never believed."""

_FIELDS = frozenset(Document.model_fields) - {"id"}


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
    return "\n".join(lines_of([*_beside_metadata(document, fields), *judged.items()]))


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
        elif is_name(written(key)):
            metadata[key] = instead if says(value) else value
    identity = None if fields is None and says(document.id) else document.id
    return Document(id=identity, page_content=document.page_content, metadata=metadata)


def _beside_metadata(document: Document, fields: Collection[str] | None) -> Pairs:
    """What else a prompt might show; a choice of fields is one of metadata, and leaves it out."""
    if fields is not None:
        return []
    own = {**vars(document), **(document.model_extra or {})}
    return [(key, value) for key, value in own.items() if key not in _FIELDS]
