"""What a LlamaIndex node says: its text, and whatever else of it may reach a prompt. Pure."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import cast

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import (
    BaseNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from pydantic import BaseModel

from guardrails_qwen import ConversationError
from guardrails_qwen.fields import is_token, lines_of
from llama_index_guardrails_qwen.media import media_lines, media_of
from llama_index_guardrails_qwen.note_field import KEY, is_note

_ELSEWHERE = frozenset(
    {"text", "metadata", "relationships", "obj", "embedding", "text_embedding"}
    | {"excluded_embed_metadata_keys", "excluded_llm_metadata_keys"}
    | {"start_char_idx", "end_char_idx", "id_", "index_id"}
)
"""Fields of nodes that are read by readers of their own, or hold numbers, or are never shown."""

_TECHNICAL = frozenset({"mimetype", "image_mimetype"})
_TEMPLATES = frozenset({"text_template", "metadata_template"})
_DEEPEST = 8


class About(str, Enum):
    """Which part of a node a text is."""

    TEXT = "text"
    METADATA = "metadata"
    FIELDS = "fields"
    """Templates, addresses of pictures, and what its class adds to a node."""
    IDS = "ids"
    """Its id and those of its relations, where they are more than ids."""
    RELATIONSHIPS = "relationships"
    """The metadata of other nodes, which it carries about."""
    REFERENCE = "reference"
    """The object that an `IndexNode` stands for."""
    RENDERED = "rendered"
    """All of it as its templates put it together, where these make new words of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a node that says something, or why it cannot be read."""

    about: About
    text: str | ConversationError = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Which metadata of nodes is read; their text is always."""

    metadata_mode: MetadataMode = MetadataMode.ALL
    metadata_fields: frozenset[str] | None = None
    """Of those, the ones that are read; None: all."""

    @property
    def everything(self) -> bool:
        """Whether nothing shall be left out: ids and what is carried about are read as well."""
        return self.metadata_mode is MetadataMode.ALL and self.metadata_fields is None

    def reads(self, node: BaseNode, key: object) -> bool:
        """Whether a field of a node's metadata is read."""
        if key == KEY or not (self.metadata_fields is None or key in self.metadata_fields):
            return False
        return {
            MetadataMode.ALL: True,
            MetadataMode.LLM: key not in node.excluded_llm_metadata_keys,
            MetadataMode.EMBED: key not in node.excluded_embed_metadata_keys,
            MetadataMode.NONE: False,
        }[self.metadata_mode]

    def parts(self, node: BaseNode) -> tuple[Part, ...]:
        """All that a node says, part by part, each text once."""
        return tuple(dict.fromkeys(_parts(node, self, depth=0)))

    def unjudged(self, node: BaseNode) -> list[str]:
        """What a text model cannot judge of a node: `image`, `audio`, `video`."""
        return media_of(node)


def _parts(node: BaseNode, reading: Reading, depth: int) -> Iterator[Part]:
    for about, read in _READERS.items():
        try:
            texts = list(read(node, reading, depth))
        except ConversationError as error:
            yield Part(about=about, text=error)
            continue
        yield from (Part(about=about, text=text) for text in texts if text.strip())


def _text(node: BaseNode, reading: Reading, depth: int) -> Iterator[str]:
    yield node.get_content(metadata_mode=MetadataMode.NONE)
    if isinstance(node, TextNode):
        yield node.text
    elif isinstance(node, Node) and node.text_resource:
        yield node.text_resource.text or ""


def _metadata(node: BaseNode, reading: Reading, depth: int) -> Iterator[str]:
    items = cast("Mapping[object, object]", node.metadata).items()
    said = [(key, item) for key, item in items if reading.reads(node, key)]
    yield "\n".join(lines_of([*said, *(_foreign_notes(node.metadata) if depth else [])]))


def _fields(node: BaseNode, reading: Reading, depth: int) -> Iterator[str]:
    if reading.metadata_mode is not MetadataMode.NONE:
        yield "\n".join(line for pair in _own(node).items() for line in _field(*pair))


def _ids(node: BaseNode, reading: Reading, depth: int) -> Iterator[str]:
    if reading.everything:
        own = [node.id_, getattr(node, "index_id", None)]
        related = [
            mark for info in _related(node) for mark in (info.node_id, info.node_type, info.hash)
        ]
        marks = [str(mark) for mark in [*own, *related] if mark]
        yield "\n".join(mark for mark in dict.fromkeys(marks) if not is_token(mark))


def _relationships(node: BaseNode, reading: Reading, depth: int) -> Iterator[str]:
    if reading.everything:
        for info in _related(node):
            items = cast("Mapping[object, object]", info.metadata).items()
            said = [(key, item) for key, item in items if key != KEY]
            yield "\n".join(lines_of([*said, *_foreign_notes(info.metadata)]))


def _reference(node: BaseNode, reading: Reading, depth: int) -> Iterator[str]:
    yield from _said(getattr(node, "obj", None), reading, depth + 1)


def _rendered(node: BaseNode, reading: Reading, depth: int) -> Iterator[str]:
    templates = [getattr(node, "text_template", ""), node.metadata_template]
    joins = any(_joins(template) for template in templates)
    if not joins and not _touches(node.metadata_separator):
        return
    try:
        texts = list(_shown_as(node))
    except Exception as error:  # noqa: BLE001 - whatever it is, it may quote the node
        cause = type(error).__name__
    else:
        yield from texts
        return
    raise ConversationError(f"the templates of a node cannot be filled in ({cause})")


_READERS: Mapping[About, Callable[[BaseNode, Reading, int], Iterable[str]]] = {
    About.TEXT: _text,
    About.METADATA: _metadata,
    About.FIELDS: _fields,
    About.IDS: _ids,
    About.RELATIONSHIPS: _relationships,
    About.REFERENCE: _reference,
    About.RENDERED: _rendered,
}


def _foreign_notes(metadata: Mapping[str, object]) -> Iterator[tuple[object, object]]:
    """What stands where a note would, in a node that does not get one of its own."""
    if KEY in metadata and not is_note(metadata[KEY]):
        yield KEY, metadata[KEY]


def _shown_as(node: BaseNode) -> Iterator[str]:
    """The node as it may be shown, with and without a note: templates are for metadata only."""
    own = {key: item for key, item in node.metadata.items() if key != KEY}
    excluded = {
        name: list(dict.fromkeys([*getattr(node, name), KEY]))
        for name in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
    }
    for metadata in (own, {**own, KEY: "-"}):
        shown = node.model_copy(update={"metadata": metadata, **excluded})
        yield from (shown.get_content(metadata_mode=mode) for mode in MetadataMode)


def _own(node: BaseNode) -> dict[str, object]:
    own = {**vars(node), **(node.model_extra or {})}
    return {name: value for name, value in own.items() if name not in _ELSEWHERE}


def _field(name: str, value: object) -> Iterator[str]:
    if name in _TEMPLATES and isinstance(value, str):
        if any(map(str.isalnum, "".join(literal for literal, _ in _pieces(value)))):
            yield f"{name}: {value}"
    elif name == "metadata_separator" or name in _TECHNICAL:
        separates = isinstance(value, str) and not any(map(str.isalnum, value))
        if not separates and not (isinstance(value, str) and is_token(value)):
            yield from lines_of([(name, value)])
    elif name == "text_resource" and isinstance(value, MediaResource):
        yield from media_lines(name, value.model_copy(update={"text": None}))
    elif isinstance(value, MediaResource) or name in ("image", "image_url", "image_path"):
        yield from media_lines(name, value)
    else:
        yield from lines_of([(name, value)])


def _said(value: object, reading: Reading, depth: int) -> Iterator[str]:
    """What the object of an `IndexNode` says; retrievers and engines speak when they are asked."""
    if depth > _DEEPEST:
        raise ConversationError("nodes within nodes are nested too deeply to be judged")
    if isinstance(value, NodeWithScore):
        value = value.node
    if isinstance(value, BaseNode):
        for part in _parts(value, reading, depth):
            if isinstance(part.text, ConversationError):
                raise part.text
            yield part.text
    elif isinstance(value, (str, Mapping, list, tuple, set, frozenset, BaseModel)):
        yield "\n".join(lines_of([("obj", cast("object", value))]))
    elif value is not None and not isinstance(value, (BaseRetriever, BaseQueryEngine)):
        raise ConversationError(
            f"a node that stands for {type(value).__name__} cannot be judged: retrievers, query "
            "engines and nodes can be retrieved"
        )


def _related(node: BaseNode) -> Iterator[RelatedNodeInfo]:
    for infos in node.relationships.values():
        yield from infos if isinstance(infos, list) else [infos]


def _pieces(template: str) -> list[tuple[str, str | None]]:
    """A template as texts, each with the name of the field behind it.

    Raises:
        ConversationError: It is none, or it does more than to put fields in.
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError:
        raise ConversationError("a template of a node is none") from None
    if any(spec or how or (name and not name.isidentifier()) for _, name, spec, how in pieces):
        raise ConversationError("a template of a node does more than to put fields in")
    return [(literal, name) for literal, name, _, _ in pieces]


def _joins(template: str) -> bool:
    """Whether a template puts what it shows so close together that it makes new words."""
    pieces = _pieces(template)
    before = any(name is not None and literal and literal[-1].isalnum() for literal, name in pieces)
    after = any(
        left[1] is not None and (not right[0] or right[0][0].isalnum())
        for left, right in pairwise(pieces)
    )
    return before or after


def _touches(separator: str) -> bool:
    return not separator or separator[0].isalnum() or separator[-1].isalnum()
