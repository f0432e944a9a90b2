"""Chunks of a reply that say nothing but text: reading them, and cutting them. Pure."""

from __future__ import annotations

import re
from typing import Any, cast

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.ai import UsageMetadata, add_usage

from guardrails_qwen import ConversationError
from langchain_guardrails_qwen.content import (
    is_words,
    says_only_words,
    thoughts,
    tool_calls,
    word_field,
)
from langchain_guardrails_qwen.messages import identity, kept_metadata
from langchain_guardrails_qwen.refusals import cut_off, refusal_fields

ReplyChunk = str | AIMessageChunk
"""What a reply comes in."""

_HALF = re.compile("[\ud800-\udfff]")
_ENDS = ("finish_reason", "stop_reason", "done_reason")
_GOES_ON = (None, "", "null")


def plain_text(chunk: ReplyChunk) -> str | None:
    """The text of a chunk; None where it says more than that, or nothing that can be judged.

    More are tool calls, reasoning, other blocks, additional arguments, names, and fields of other
    classes. Half a character is no text.
    """
    if isinstance(chunk, str):
        return None if _HALF.search(chunk) else chunk
    if chunk.name or any(chunk.additional_kwargs.values()) or not says_only_words(chunk):
        return None
    try:
        text = None if thoughts(chunk) or tool_calls(chunk) else said_by(chunk)
    except (ConversationError, TypeError):
        return None
    return None if text is None or _HALF.search(text) else text


def said_by(chunk: ReplyChunk) -> str:
    """The text of a chunk of plain text; a block may have none, as the end of one does.

    Raises:
        TypeError: A block has something else in its place.
    """
    if isinstance(chunk, str):
        return chunk
    return chunk.content if isinstance(chunk.content, str) else "".join(map(_text, chunk.content))


def part(
    chunk: ReplyChunk, start: int, end: int, *, last: bool = True, changed: bool = False
) -> ReplyChunk:
    """Characters `start` to `end` of a chunk: the very chunk where that is all of it.

    Args:
        chunk: A chunk of plain text.
        start: The first character.
        end: Behind the last one.
        last: Whether this is the end of the chunk: only that has its usage and metadata.
        changed: Whether anything of the reply was taken out: metadata may repeat it.
    """
    if isinstance(chunk, str):
        return chunk[start:end]
    whole = start == 0 and end >= len(said_by(chunk))
    if whole and last and not changed:
        return chunk
    content: dict[str, Any] = {"content": _cut(chunk.content, start, end, last=last)}
    metadata = kept_metadata(chunk.response_metadata) if changed else chunk.response_metadata
    return chunk.model_copy(
        update=content | ({"response_metadata": metadata} if last else _no_end())
    )


def said(chunk: ReplyChunk, text: str) -> ReplyChunk:
    """Another text as a chunk of the same reply, without anything else."""
    if isinstance(chunk, str):
        return text
    return AIMessageChunk(content=_content(chunk, text), id=identity(chunk))


def closing(chunk: ReplyChunk, text: str, usage: UsageMetadata | None) -> ReplyChunk:
    """The last chunk of a reply that ends early: its finish reason is "content_filter".

    It is marked as a refusal; see `refusals`.

    Args:
        chunk: One of the same reply.
        text: What the reader gets instead of the rest.
        usage: What the rest cost.
    """
    if isinstance(chunk, str):
        return text
    return AIMessageChunk(
        content=_content(chunk, text),
        id=identity(chunk),
        additional_kwargs=refusal_fields(chunk.response_metadata, text),
        response_metadata=cut_off(chunk.response_metadata),
        usage_metadata=usage,
        chunk_position="last",
    )


def ended(chunk: ReplyChunk) -> ReplyChunk:
    """A chunk as the last one of a reply."""
    if isinstance(chunk, str):
        return chunk
    return chunk.model_copy(update={"chunk_position": "last"})


def is_end(chunk: ReplyChunk) -> bool:
    """Whether a chunk says that the reply is complete, and why."""
    if isinstance(chunk, str):
        return False
    reasons = [chunk.response_metadata.get(key) for key in _ENDS]
    return bool(chunk.chunk_position) or any(reason not in _GOES_ON for reason in reasons)


def may_repeat(chunk: ReplyChunk) -> bool:
    """Whether the metadata of a chunk may repeat text, perhaps text that did not come yet."""
    return not isinstance(chunk, str) and bool(_repeating(chunk.response_metadata))


def told_later(chunk: ReplyChunk) -> tuple[ReplyChunk, ReplyChunk | None]:
    """A chunk without the metadata that may repeat text, and a chunk of only that, if there is any.

    It may repeat text that is not judged yet, so that it has to wait for all of it.
    """
    if isinstance(chunk, str) or not may_repeat(chunk):
        return chunk, None
    given, repeating = chunk.response_metadata, _repeating(chunk.response_metadata)
    first = {key: value for key, value in given.items() if key not in repeating}
    later = AIMessageChunk(
        content="" if isinstance(chunk.content, str) else [],
        id=identity(chunk),
        response_metadata=repeating,
    )
    return chunk.model_copy(update={"response_metadata": first}), later


def is_silent(chunk: ReplyChunk) -> bool:
    """Whether a chunk without text has no usage and no metadata either."""
    if isinstance(chunk, str):
        return True
    return not (chunk.usage_metadata or chunk.response_metadata or chunk.chunk_position)


def usage_of(chunks: list[ReplyChunk]) -> UsageMetadata | None:
    """What chunks cost together; None where none of them says."""
    known = [c.usage_metadata for c in chunks if not isinstance(c, str) and c.usage_metadata]
    total = None
    for usage in known:
        total = add_usage(total, usage)
    return total


class BlockOrder:
    """Notices chunks that do not continue the text where it ends.

    Content blocks are added up by their index. A chunk may so add to a block before the last one,
    and what is read in the end is not what came.
    """

    def __init__(self) -> None:
        self._past = set[object]()
        self._place: tuple[object, object] = (None, None)

    def continues(self, chunk: ReplyChunk) -> bool:
        """Whether a chunk's text stands behind that of all chunks before it."""
        content = "" if isinstance(chunk, str) else chunk.content
        blocks = [content] if isinstance(content, str) else content
        return all(self._continues(block) for block in blocks if block)

    def _continues(self, block: str | dict[Any, Any]) -> bool:
        index, name = (
            (None, None) if isinstance(block, str) else (block.get("index"), block.get("id"))
        )
        last, named = self._place
        if index == last:
            self._place = index, name or named
            return not (name and named) or name == named or index is None
        self._past.add(last)
        self._place = index, name
        return index is None or index not in self._past


def _repeating(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata that may repeat text; numbers do not, nor does what is empty."""
    kept = kept_metadata(metadata)
    return {
        key: value
        for key, value in metadata.items()
        if value and not isinstance(value, (int, float)) and (key not in kept or kept[key] != value)
    }


def _no_end() -> dict[str, Any]:
    return {"response_metadata": {}, "usage_metadata": None, "chunk_position": None}


def _cut(content: Any, start: int, end: int, *, last: bool) -> Any:
    if isinstance(content, str):
        return content[start:end]
    kept, at = list[Any](), 0
    for block in cast("list[str | dict[str, Any]]", content):
        text = _text(block)
        piece = text[max(0, start - at) : max(0, end - at)]
        at += len(text)
        if piece or (last and not text and start <= at):
            kept.append(block if piece == text else _retold(block, piece))
    return kept


def _content(chunk: AIMessageChunk, text: str) -> Any:
    """A text in the form of the chunk's own."""
    if isinstance(chunk.content, str):
        return text
    like = next((block for block in reversed(chunk.content) if is_words(block)), {"type": "text"})
    return [_retold(like, text)] if text else []


def _text(block: str | dict[str, Any]) -> str:
    return block if isinstance(block, str) else block.get(word_field(block), "")


def _retold(block: str | dict[str, Any], text: str) -> str | dict[str, Any]:
    if isinstance(block, str):
        return text
    kept = {key: block[key] for key in ("type", "id", "index") if key in block}
    return {**kept, word_field(block): text}
