"""A model, asked so that nobody hears what it says. Whatever it is asked, a reply comes back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from functools import partial
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.llms.llm import LLM

from llama_index_guardrails_qwen.completions import chat_of, prompt_of
from llama_index_guardrails_qwen.unheard import (
    aunheard_call,
    aunheard_steps,
    unheard_call,
    unheard_steps,
)


def chat(inner: LLM, messages: list[ChatMessage], **kwargs: Any) -> ChatResponse:
    """A reply."""
    return unheard_call(partial(inner.chat, messages, **kwargs))


async def achat(inner: LLM, messages: list[ChatMessage], **kwargs: Any) -> ChatResponse:
    """The same."""
    return await aunheard_call(partial(inner.achat, messages, **kwargs))


def stream_chat(
    inner: LLM, messages: list[ChatMessage], **kwargs: Any
) -> Generator[ChatResponse, None, None]:
    """A reply while it is written."""
    return unheard_steps(partial(inner.stream_chat, messages, **kwargs))


def astream_chat(
    inner: LLM, messages: list[ChatMessage], **kwargs: Any
) -> AsyncGenerator[ChatResponse, None]:
    """The same."""
    return aunheard_steps(partial(inner.astream_chat, messages, **kwargs))


def complete(inner: LLM, messages: list[ChatMessage], **kwargs: Any) -> ChatResponse:
    """A reply to the only message."""
    return chat_of(unheard_call(partial(inner.complete, prompt_of(messages), **kwargs)))


async def acomplete(inner: LLM, messages: list[ChatMessage], **kwargs: Any) -> ChatResponse:
    """The same."""
    return chat_of(await aunheard_call(partial(inner.acomplete, prompt_of(messages), **kwargs)))


def stream_complete(
    inner: LLM, messages: list[ChatMessage], **kwargs: Any
) -> Generator[ChatResponse, None, None]:
    """A reply to the only message, while it is written."""
    steps = unheard_steps(partial(inner.stream_complete, prompt_of(messages), **kwargs))
    try:
        for completion in steps:
            yield chat_of(completion)
    finally:
        steps.close()


async def astream_complete(
    inner: LLM, messages: list[ChatMessage], **kwargs: Any
) -> AsyncGenerator[ChatResponse, None]:
    """The same."""
    steps = aunheard_steps(partial(inner.astream_complete, prompt_of(messages), **kwargs))
    try:
        async for completion in steps:
            yield chat_of(completion)
    finally:
        await steps.aclose()


def only(response: ChatResponse) -> Generator[ChatResponse, None, None]:
    """A reply in one chunk."""
    yield response


async def aonly(response: ChatResponse) -> AsyncGenerator[ChatResponse, None]:
    """The same."""
    yield response
