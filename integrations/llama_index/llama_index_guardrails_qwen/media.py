"""Pictures, sound and films in nodes: what is there, and what of it is text after all. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

from llama_index.core.schema import BaseNode, MediaResource

from guardrails_qwen import ConversationError
from guardrails_qwen.fields import is_token, lines_of

_KINDS = {
    "image": ("image", "image_path", "image_url", "image_resource"),
    "audio": ("audio_resource",),
    "video": ("video_resource",),
}
_MEDIA_URL = re.compile(r"data:(image|audio|video)/[A-Za-z0-9.+-]+;base64,[A-Za-z0-9+/=]*")
_TEXTUAL = re.compile(r"text/|application/(json|xml|xhtml|x-ndjson|yaml)|image/svg")


def media_of(node: BaseNode) -> list[str]:
    """Which of `image`, `audio` and `video` a node has."""
    return [kind for kind, names in _KINDS.items() if any(_there(node, name) for name in names)]


def media_lines(name: str, value: object) -> Iterator[str]:
    """What is text in a field that holds media: addresses, and data that is no picture.

    Raises:
        ConversationError: Data that says to be text is none.
    """
    if isinstance(value, MediaResource):
        yield from _resource_lines(name, value)
    elif name == "image" and isinstance(value, str) and _is_base64(value):
        yield from _decoded(name, value.encode(), None)
    elif not (isinstance(value, str) and _MEDIA_URL.fullmatch(value)):
        yield from lines_of([(name, value)])


def _resource_lines(name: str, resource: MediaResource) -> Iterator[str]:
    url = str(resource.url) if resource.url else ""
    pairs: list[tuple[object, object]] = [
        (f"{name}.text", resource.text),
        (f"{name}.path", resource.path),
        (f"{name}.url", "" if _MEDIA_URL.fullmatch(url) else url),
    ]
    if resource.mimetype and not is_token(resource.mimetype):
        pairs.append((f"{name}.mimetype", resource.mimetype))
    yield from lines_of(pairs)
    if resource.data:
        yield from _decoded(name, resource.data, resource.mimetype)


def _decoded(name: str, data: bytes, mimetype: str | None) -> Iterator[str]:
    """The text in data, which is said to be text, or that of a text without any type."""
    try:
        text = base64.b64decode(data).decode()
    except (binascii.Error, UnicodeDecodeError):
        if mimetype and _TEXTUAL.match(mimetype):
            raise ConversationError("data in a node says to be text and is none") from None
        return
    yield from lines_of([(f"{name}.data", text)])


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _there(node: BaseNode, name: str) -> bool:
    value = getattr(node, name, None)
    if isinstance(value, MediaResource):
        return bool(value.data or value.path or value.url)
    return bool(value)
