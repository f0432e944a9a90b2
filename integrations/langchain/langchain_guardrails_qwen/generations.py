"""What chat models generate, as messages for a guard, and back. Pure."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from guardrails_qwen.streaming import aclose_source, close_source
from langchain_guardrails_qwen.messages import kept_metadata


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
    generations = [
        generation if generation.message is message else _changed(generation, message)
        for generation, message in pairs
    ]
    return ChatResult(
        generations=generations, llm_output=kept_metadata(result.llm_output or {}) or None
    )


def _changed(generation: ChatGeneration, message: BaseMessage) -> ChatGeneration:
    info = kept_metadata(generation.generation_info or {}) | message.response_metadata
    return ChatGeneration(message=message, generation_info=info or None)
