"""Replies that a guard took back, marked as LangChain marks refusals.

The `content_blocks` of such a reply end with the standard refusal block, where the installed
langchain-core knows it (1.7.5 and later): there its parsers and `ModelRefusalMiddleware` look for
it. The content stays the closing text. A refusal block in the content itself would be lost by some
of langchain-core's translators, and some providers refuse it when the conversation goes on.

LangChain reads the blocks of a message in the way of its provider, by the provider's name. So the
name of one who was interrupted says that, and by it the message is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.messages.block_translators import PROVIDER_TRANSLATORS, register_translator
from langchain_core.messages.content import KNOWN_BLOCK_TYPES, ContentBlock

INTERRUPTED = "+guardrails-qwen"
"""The end of a provider's name. Chunks are added up, and so are the names in their metadata."""

FILTERED = {"finish_reason": "content_filter"}
"""How providers mark a reply of which they took away the end."""

_PROVIDER = "model_provider"
_REFUSAL = "refusal"


def taken_back(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The response metadata of a reply that a guard took back."""
    provider = _provider(metadata)
    return {**metadata, **_interrupted(provider, added_to="")}


def cut_off(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The response metadata of the last chunk of a reply of which a guard took back the rest.

    Args:
        metadata: That of a chunk before it, to which it will be added.
    """
    provider = _provider(metadata)
    return _interrupted(provider, added_to=provider)


def refusal_fields(metadata: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Additional arguments by which the provider's own package knows a refusal.

    Args:
        metadata: The provider's response metadata, marked or not.
        text: What is said in place of the reply.
    """
    return {_REFUSAL: text} if text and _provider(metadata) == "openai" else {}


def read_as_refused(provider: str) -> None:
    """See to it that LangChain reads the interrupted replies of a provider."""
    if _REFUSAL in KNOWN_BLOCK_TYPES and provider + INTERRUPTED not in PROVIDER_TRANSLATORS:
        register_translator(provider + INTERRUPTED, _blocks, _blocks)


def _interrupted(provider: str, *, added_to: str) -> dict[str, Any]:
    read_as_refused(provider)
    name = {_PROVIDER: f"{provider.removeprefix(added_to)}{INTERRUPTED}"}
    return {**FILTERED, **(name if _REFUSAL in KNOWN_BLOCK_TYPES else {})}


def _provider(metadata: Mapping[str, Any]) -> str:
    name = metadata.get(_PROVIDER)
    return name.removesuffix(INTERRUPTED) if isinstance(name, str) else ""


def _blocks(message: AIMessage) -> list[ContentBlock]:
    """What the provider's translator reads, and a refusal behind it."""
    metadata = {**message.response_metadata, _PROVIDER: _provider(message.response_metadata)}
    blocks = message.model_copy(update={"response_metadata": metadata}).content_blocks
    kinds: set[str] = {block["type"] for block in blocks}
    if _REFUSAL in kinds:
        return blocks
    # without a text of its own: that is among the blocks already
    refusal: Any = {"type": _REFUSAL, _REFUSAL: message.additional_kwargs.get(_REFUSAL) or ""}
    return [*blocks, refusal]


# also for messages that another process made
for _name in ("", *PROVIDER_TRANSLATORS):
    read_as_refused(_name)
