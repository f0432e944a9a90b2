"""What a LlamaIndex message says: words, thoughts, tool calls and pictures. Pure."""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Iterable, Iterator
from io import IOBase
from itertools import pairwise

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from guardrails_qwen import ConversationError, ToolCall
from guardrails_qwen.calls import calls_in, openai_forms
from guardrails_qwen.fields import texts_in

_CALLS = ("tool_calls", "function_call")
"""Additional arguments that are calls."""

_SHOWN = re.compile(r"[A-Za-z0-9_.-]{1,24}")
_ESCAPE = re.compile(r"\\+u([0-9a-fA-F]{4})")


def words(message: ChatMessage) -> str:
    """The text of a message as LlamaIndex gives it: the text blocks, a line for each.

    Raises:
        ConversationError: A block is something that a text model cannot judge, audio say.
    """
    return "\n".join(text for block in message.blocks for text in _words_of(block))


def hidden(message: ChatMessage) -> str:
    """What else is in a message for somebody to read: thoughts, sources, additional arguments.

    This is also the text as `read_otherwise` gives it.

    Raises:
        ConversationError: Something in it cannot be judged by a text model.
    """
    more = {key: item for key, item in message.additional_kwargs.items() if key not in _CALLS}
    beside = [text for block in message.blocks for text in _beside_words(block)]
    return "\n".join([*texts_in(more), *beside, *read_otherwise(message)])


def tool_calls(message: ChatMessage) -> tuple[ToolCall, ...]:
    """All tool calls of a message, each once: of its blocks and of its additional arguments.

    Raises:
        ConversationError: One of them is of no known form.
    """
    return calls_in(_call_forms(message))


def images(message: ChatMessage) -> tuple[str, ...]:
    """The pictures in a message, as URLs.

    Raises:
        ConversationError: One of them is neither here nor at a URL.
    """
    shown = (image for block in message.blocks for image in _images_of(block))
    return tuple(url for image in shown for url in _urls(image))


def is_in_files(message: ChatMessage) -> bool:
    """Whether to read a message is to read files, which takes its time."""
    return any(image.path for block in message.blocks for image in _images_of(block))


def is_words(message: ChatMessage) -> bool:
    """Whether one text is all that a message says, however it is read."""
    return (
        not message.additional_kwargs
        and len(message.blocks) <= 1
        and all(isinstance(block, TextBlock) for block in message.blocks)
        and not any(read_otherwise(message))
    )


def _words_of(block: object) -> Iterator[str]:
    if isinstance(block, TextBlock):
        yield block.text
    elif isinstance(block, CitableBlock):
        for part in block.content:
            yield from _words_of(part)
    elif isinstance(block, CitationBlock):
        yield from _words_of(block.cited_content)
    elif not isinstance(block, (ImageBlock, ThinkingBlock, ToolCallBlock, CachePoint)):
        kind = getattr(block, "block_type", None)
        shown = repr(kind) if isinstance(kind, str) and _SHOWN.fullmatch(kind) else "unknown"
        raise ConversationError(
            f"a content block of type {shown} cannot be judged by a text model: take it out and "
            "judge it by other means"
        )


def _images_of(block: object) -> Iterator[ImageBlock]:
    if isinstance(block, ImageBlock):
        yield block
    elif isinstance(block, CitableBlock):
        yield from (part for part in block.content if isinstance(part, ImageBlock))
    elif isinstance(block, CitationBlock):
        yield from _images_of(block.cited_content)


def _beside_words(block: object) -> Iterator[str]:
    if isinstance(block, ThinkingBlock):
        yield from texts_in([block.content, block.additional_information])
    elif isinstance(block, CitableBlock):
        yield from texts_in([block.title, block.source])
    elif isinstance(block, CitationBlock):
        yield from texts_in([block.title, block.source, block.additional_location_info])


def read_otherwise(message: ChatMessage) -> Iterator[str]:
    """The text as others may read it.

    Models may be given blocks without anything in between: where two of them meet in the middle of
    a word, that is the text without line ends. Agents find calls in a text and read them as JSON:
    where it has escapes, that is the text without them.
    """
    texts = [text for block in message.blocks for text in _words_of(block)]
    shown = [text for text in map(_without_invisible, texts) if text]
    if any(left[-1].isalnum() and right[0].isalnum() for left, right in pairwise(shown)):
        yield "".join(shown)
    if any(map(_ESCAPE.search, texts)):
        yield _unescaped("\n".join(texts))


def _without_invisible(text: str) -> str:
    """Format characters at a seam would hide that two words meet there."""
    return "".join(character for character in text if unicodedata.category(character) != "Cf")


def _unescaped(text: str) -> str:
    plain = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _call_forms(message: ChatMessage) -> Iterable[object]:
    for block in message.blocks:
        if isinstance(block, ToolCallBlock):
            yield {
                "name": block.tool_name,
                "arguments": block.tool_kwargs,
                "id": block.tool_call_id,
            }
    yield from openai_forms(message.additional_kwargs.get("tool_calls"))
    if legacy := message.additional_kwargs.get("function_call"):
        yield legacy


def _urls(block: ImageBlock) -> Iterator[str]:
    """Where a picture is, and what is in the block: providers send the one or the other."""
    url = str(block.url or "")
    inside = bool(block.image or block.path)
    if not (url.startswith(("https:", "data:")) or (inside and not url)):
        raise ConversationError(
            "an image is neither in the message nor at an https: URL: load it first, or take it out"
        )
    if url:
        yield url
    if inside:
        yield _inlined(block)


def _inlined(block: ImageBlock) -> str:
    try:
        data = block.resolve_image(as_base64=True).read()
        if isinstance(block.image, IOBase):  # which is given as it is
            block.image.seek(0)
            data = base64.b64encode(data)
        return f"data:{block.image_mimetype};base64,{data.decode()}"
    except Exception as error:  # noqa: BLE001 - whatever it is, it may quote where the image lies
        cause = type(error).__name__
    raise ConversationError(f"an image cannot be read ({cause}): load it first, or take it out")
