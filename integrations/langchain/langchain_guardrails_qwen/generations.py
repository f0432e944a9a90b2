"""What chat models generate, as messages for a guard, and back. Pure."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from guardrails_qwen.streaming import aclose_source, close_source
from langchain_guardrails_qwen.messages import kept_metadata
from langchain_guardrails_qwen.notes import noted
from langchain_guardrails_qwen.refusals import FILTERED, refusal_fields, taken_back

_PROVIDER = ("model_provider",)


def message_of(generation: ChatGeneration) -> BaseMessage:
    """The message of a generation, with its information as metadata, as chat models give it."""
    message = generation.message
    if not generation.generation_info:
        return message
    metadata = {**generation.generation_info, **message.response_metadata}
    return message.model_copy(update={"response_metadata": metadata})


def chunk_of(message: Any) -> ChatGenerationChunk:
    """A chunk of a message as a chunk of a generation."""
    return ChatGenerationChunk(message=message, generation_info=message.response_metadata or None)


def messages_of(chunks: Iterator[ChatGenerationChunk]) -> Iterator[BaseMessage]:
    """The messages of generations; closed, these are closed."""
    try:
        yield from map(message_of, chunks)
    finally:
        close_source(chunks)


async def amessages_of(
    chunks: AsyncIterator[ChatGenerationChunk],
) -> AsyncGenerator[BaseMessage, None]:
    """The same."""
    try:
        async for chunk in chunks:
            yield message_of(chunk)
    finally:
        await aclose_source(chunks)


def replies_of(result: ChatResult) -> list[BaseMessage]:
    """The messages of a result."""
    return [generation.message for generation in result.generations]


def with_messages(result: ChatResult, messages: Sequence[BaseMessage]) -> ChatResult:
    """A result with other messages. What is said beside a changed one may repeat the old one."""
    pairs = list(zip(result.generations, messages, strict=True))
    if all(generation.message is message for generation, message in pairs):
        return result
    told = kept_metadata(result.llm_output or {})
    generations = [
        generation if generation.message is message else _changed(generation, message, told)
        for generation, message in pairs
    ]
    return ChatResult(generations=generations, llm_output=told or None)


def with_notes(result: ChatResult, notes: Sequence[dict[str, Any]]) -> ChatResult:
    """A result of which each reply has notes: the very same one where there are none."""
    if not any(notes):
        return result
    generations = [
        ChatGeneration(
            message=noted(generation.message, note), generation_info=generation.generation_info
        )
        for generation, note in zip(result.generations, notes, strict=True)
    ]
    return ChatResult(generations=generations, llm_output=result.llm_output)


def _changed(
    generation: ChatGeneration, message: BaseMessage, told: dict[str, Any]
) -> ChatGeneration:
    """A generation of which the message was changed.

    Args:
        generation: As it came.
        message: What is passed on of it.
        told: What is known of the provider.
    """
    if message.response_metadata.get("finish_reason") == FILTERED["finish_reason"]:
        message = _refused(message, {**message.response_metadata, **told})
    info = kept_metadata(generation.generation_info or {}) | message.response_metadata
    return ChatGeneration(message=message, generation_info=info or None)


def _refused(message: BaseMessage, metadata: dict[str, Any]) -> BaseMessage:
    """A reply that was taken back, marked as a refusal."""
    marked = taken_back({key: metadata[key] for key in _PROVIDER if key in metadata})
    return message.model_copy(
        update={
            "additional_kwargs": refusal_fields(marked, message.text),
            "response_metadata": message.response_metadata | marked,
        }
    )
