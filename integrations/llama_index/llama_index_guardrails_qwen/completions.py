"""Completions as chats of one message, and back. Pure."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Sequence

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
)

from guardrails_qwen.streaming import aclosed_after, closed_after
from llama_index_guardrails_qwen.messages import said
from llama_index_guardrails_qwen.metadata import extra_of


def messages_of(prompt: str) -> list[ChatMessage]:
    """A prompt as what a user says."""
    return [said(MessageRole.USER, prompt)]


def prompt_of(messages: Sequence[ChatMessage]) -> str:
    """The inverse of `messages_of`."""
    return "".join(message.content or "" for message in messages)


def chat_of(completion: CompletionResponse) -> ChatResponse:
    """A completion as a reply."""
    return ChatResponse(
        message=said(MessageRole.ASSISTANT, completion.text),
        delta=completion.delta,
        raw=completion.raw,
        additional_kwargs=extra_of(completion),
    )


def completion_of(chat: ChatResponse) -> CompletionResponse:
    """A reply as a completion."""
    return CompletionResponse(
        text=chat.message.content or "",
        delta=chat.delta,
        raw=chat.raw,
        additional_kwargs=extra_of(chat),
    )


def completions_of(chats: Iterable[ChatResponse]) -> Generator[CompletionResponse, None, None]:
    """Replies as completions; closed, these are closed."""
    with closed_after(chats):
        for chat in chats:
            yield completion_of(chat)


async def acompletions_of(
    chats: AsyncIterable[ChatResponse],
) -> AsyncGenerator[CompletionResponse, None]:
    """The same."""
    async with aclosed_after(chats):
        async for chat in chats:
            yield completion_of(chat)
