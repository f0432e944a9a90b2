"""A chat model that plays the language model of an agent, by a script."""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import reduce
from typing import Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    message_chunk_to_message,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import Field, SkipValidation
from typing_extensions import override

Reply = list[AIMessageChunk]
Script = Callable[[list[BaseMessage]], Reply]
"""What is written behind the messages."""


class ScriptedModel(BaseChatModel):
    """Writes chunk by chunk what its script says, and records what it is asked.

    Its copies, with tools bound or without, share the record.
    """

    script: SkipValidation[Script]
    sent: SkipValidation[list[list[BaseMessage]]] = Field(default_factory=list[Any])

    @property
    @override
    def _llm_type(self) -> str:
        return "scripted"

    @override
    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        return self.bind(tools=[str(tool) for tool in tools])

    @override
    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        total = reduce(operator.add, self._reply(messages))
        message = AIMessage(**message_chunk_to_message(total).model_dump(exclude={"type"}))
        return ChatResult(generations=[ChatGeneration(message=message)])

    @override
    async def _agenerate(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> ChatResult:
        return self._generate(messages)

    def _reply(self, messages: list[BaseMessage]) -> Reply:
        self.sent.append(list(messages))
        return self.script(messages)


class StreamingModel(ScriptedModel):
    """A `ScriptedModel` that streams, and tells its handlers each token as providers' models do."""

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for piece in self._reply(messages):
            chunk = ChatGenerationChunk(message=piece.model_copy())
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for piece in self._reply(messages):
            chunk = ChatGenerationChunk(message=piece.model_copy())
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


class NativeModel(StreamingModel):
    """A `StreamingModel` of plain text that makes the events of the newest protocol itself."""

    def _stream_chat_model_events(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> Iterator[Any]:
        text = ""
        yield {"event": "message-start", "role": "ai", "id": "native-1"}
        yield {"event": "content-block-start", "index": 0, "content": _block("")}
        for piece in self._reply(messages):
            text += piece.text
            delta = {"type": "text-delta", "text": piece.text}
            yield {"event": "content-block-delta", "index": 0, "delta": delta}
        yield {"event": "content-block-finish", "index": 0, "content": _block(text)}
        yield {"event": "message-finish", "reason": "stop"}

    async def _astream_chat_model_events(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[Any]:
        for event in self._stream_chat_model_events(messages):
            yield event


def _block(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def in_turn(replies: Sequence[Reply], later: Reply) -> Script:
    """One reply a call in the first turn of the user, and `later` in all that come.

    The last reply is repeated. A turn begins with the last message of the user; the first one is
    that which no message of the assistant stands before.
    """

    def script(messages: list[BaseMessage]) -> Reply:
        users = [i for i, message in enumerate(messages) if isinstance(message, HumanMessage)]
        last = users[-1] if users else 0
        if "again" in messages[last].text:
            return later
        calls = sum(isinstance(message, AIMessage) for message in messages[last:])
        return replies[min(calls, len(replies) - 1)]

    return script
