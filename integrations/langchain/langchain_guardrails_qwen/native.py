"""The steps of a model, also of one that streams only in LangChain's events of the third version.

What such a model writes is one step: the message that its events make.
"""

# pyright: reportPrivateUsage=false
# models stream by methods whose names begin with an underscore

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_model_stream import ChatModelStream
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from guardrails_qwen.streaming import aclose_source, close_source

_SYNC, _ASYNC = "_stream_chat_model_events", "_astream_chat_model_events"


def steps(model: BaseChatModel, prompt: list[BaseMessage], /, **call: Any) -> Iterator[Any]:
    """What a model writes, as generations.

    Raises:
        NotImplementedError: It does not stream.
    """
    native = getattr(model, _SYNC, None)
    if native is None or type(model)._stream is not BaseChatModel._stream:
        return model._stream(prompt, **call)
    return _whole(native(prompt, **call))


def asteps(model: BaseChatModel, prompt: list[BaseMessage], /, **call: Any) -> AsyncIterator[Any]:
    """The same."""
    native = getattr(model, _ASYNC, None)
    kind = type(model)
    streams = kind._stream is not BaseChatModel._stream or (
        kind._astream is not BaseChatModel._astream
    )
    if native is None or streams:
        return model._astream(prompt, **call)
    return _awhole(native(prompt, **call))


def _whole(events: Iterator[Any]) -> Iterator[ChatGenerationChunk]:
    stream = ChatModelStream()
    try:
        for event in events:
            stream.dispatch(event)
    finally:
        close_source(events)
    yield _generation(stream)


async def _awhole(events: AsyncIterator[Any]) -> AsyncIterator[ChatGenerationChunk]:
    stream = ChatModelStream()
    try:
        async for event in events:
            stream.dispatch(event)
    finally:
        await aclose_source(events)
    yield _generation(stream)


def _generation(stream: ChatModelStream) -> ChatGenerationChunk:
    """The message of a stream that has ended; its producer may leave out the last event."""
    if not stream.done:
        stream.dispatch({"event": "message-finish"})
    message = stream.output_message
    if message is None:
        raise RuntimeError("the events of the inner model end with an error")
    fields = message.model_dump(exclude={"type", "tool_calls", "invalid_tool_calls"})
    calls = [*message.tool_calls, *message.invalid_tool_calls]
    chunks = [
        tool_call_chunk(name=call["name"], args=_json(call["args"]), id=call["id"], index=n)
        for n, call in enumerate(calls)
    ]
    chunk = AIMessageChunk(**fields, tool_call_chunks=chunks, chunk_position="last")
    return ChatGenerationChunk(message=chunk)


def _json(arguments: Any) -> str | None:
    return json.dumps(arguments) if isinstance(arguments, dict) else arguments
