"""A chat engine between guards: nothing of a turn that does not pass is remembered."""

from __future__ import annotations

import copy
from threading import Lock
from typing import Any, cast

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine.types import (
    AgentChatResponse,
    BaseChatEngine,
    StreamingAgentChatResponse,
)
from llama_index.core.memory.types import BaseMemory
from llama_index.core.query_engine import RetrieverQueryEngine
from typing_extensions import override

from guardrails_qwen import ConversationError, Guard, GuardViolation
from guardrails_qwen.streaming import Streaming
from llama_index_guardrails_qwen.chat_reply import ChatReply
from llama_index_guardrails_qwen.chat_streams import (
    GuardedChatStream,
    aone_chunk,
    atexts_of,
    one_chunk,
    texts_of,
)
from llama_index_guardrails_qwen.chat_turn import Answer, ChatTurn, Settled
from llama_index_guardrails_qwen.gate import Gate, OnViolation
from llama_index_guardrails_qwen.known import Known
from llama_index_guardrails_qwen.staged_memory import StagedMemory

_STREAMING = Streaming()

_MEMORY = "_memory"
_QUERY_ENGINE = "_query_engine"
_SYNTHESIZER = "_response_synthesizer"
"""What the parts of LlamaIndex's engines are called; there are no public names."""


class GuardedChatEngine(BaseChatEngine):
    """A chat engine of which the messages, the history and the replies are judged.

    A message is judged with the history before it, a reply with the message. A turn of which one of
    the two is blocked, or dropped, is not written to the memory, not even for a moment; nor is one
    that fails, or of which nobody reads the reply to its end. What was redacted or replaced is
    remembered as it was released. Sources come with replies that pass as they are.

    A history that is given is judged as well, and so is what is in the memory already, each message
    once. What is blocked of it is left out, so that it poisons no later turn; a system message that
    comes first blocks the turn if it is blocked. A memory is not searched for a message before this
    has passed.

    What retrievers find is not judged here: `GuardPostprocessor` does that. Handlers of
    instrumentation hear what the engine does inside, unjudged: guard its language model with
    `GuardedLLM` where that matters.

    Args:
        engine: Any chat engine of LlamaIndex: `index.as_chat_engine(...)` for example. Each turn
            runs on a shallow copy of it.
        guard: The guard.
        on_violation: What callers get where the policy blocks: `raise` raises `GuardViolation`,
            `reply` answers with the policy's replacement.
        streaming: How replies that stream are moderated; `closing` takes the place of a blocked
            reply, also of one that does not stream.

    Raises:
        TypeError: The engine has no memory that can be kept clean, or the guard is no `Guard`.
    """

    def __init__(
        self,
        engine: BaseChatEngine,
        guard: Guard,
        *,
        on_violation: OnViolation = "raise",
        streaming: Streaming = _STREAMING,
    ) -> None:
        _require_memory(engine)
        self._engine = engine
        self._gate = Gate(
            guard=guard, component="chat_engine", on_violation=on_violation, streaming=streaming
        )
        self._known = Known()
        self._lock = Lock()

    @override
    def chat(
        self, message: str, chat_history: list[ChatMessage] | None = None, **options: Any
    ) -> AgentChatResponse:
        """The reply to a message. `options` go to the engine.

        Raises:
            GuardViolation: The message or the reply is blocked, and nothing is answered instead.
            GuardError: Something could not be judged, and the policy says to raise.
        """
        turn = self._turn(message)
        memory = StagedMemory.of(self._memory, self._lock)
        try:
            given = turn.begin(memory.get() if chat_history is None else chat_history)
            inner = self._inner(memory, turn)
            response = inner.chat(
                turn.message, chat_history=given if chat_history else chat_history, **options
            )
            answer = Answer(came="".join(texts_of(response)), response=response)
            settled = turn.settle(memory.written, answer)
        except GuardViolation as violation:
            return AgentChatResponse(response=self._gate.instead(violation))
        memory.commit(settled.messages)
        return _released(response, settled)

    @override
    async def achat(
        self, message: str, chat_history: list[ChatMessage] | None = None, **options: Any
    ) -> AgentChatResponse:
        """`chat`, without blocking the event loop."""
        turn = self._turn(message)
        memory = await StagedMemory.aof(self._memory, self._lock)
        try:
            history = await memory.aget() if chat_history is None else chat_history
            given = await turn.abegin(history)
            inner = self._inner(memory, turn)
            response = await inner.achat(
                turn.message, chat_history=given if chat_history else chat_history, **options
            )
            came = "".join([text async for text in atexts_of(response)])
            answer = Answer(came=came, response=response)
            settled = await turn.asettle(memory.written, answer)
        except GuardViolation as violation:
            return AgentChatResponse(response=self._gate.instead(violation))
        await memory.acommit(settled.messages)
        return _released(response, settled)

    @override
    def stream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None, **options: Any
    ) -> StreamingAgentChatResponse:
        """The reply to a message, moderated while it is read.

        Nothing is written in advance of the reader but what the engine itself does. Sources are
        there when the reply has passed.

        Raises:
            GuardViolation: The message is blocked, and nothing is answered instead; while reading:
                the reply is.
            GuardError: Something could not be judged, and the policy says to raise.
        """
        turn = self._turn(message)
        memory = StagedMemory.of(self._memory, self._lock)
        try:
            given = turn.begin(memory.get() if chat_history is None else chat_history)
            inner = self._inner(memory, turn)
            response = inner.stream_chat(
                turn.message, chat_history=given if chat_history else chat_history, **options
            )
        except GuardViolation as violation:
            return GuardedChatStream(chat_stream=one_chunk(self._gate.instead(violation)))
        return ChatReply(self._gate, turn, memory, response).stream()

    @override
    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None, **options: Any
    ) -> StreamingAgentChatResponse:
        """`stream_chat`, without blocking the event loop."""
        turn = self._turn(message)
        memory = await StagedMemory.aof(self._memory, self._lock)
        try:
            history = await memory.aget() if chat_history is None else chat_history
            given = await turn.abegin(history)
            inner = self._inner(memory, turn)
            response = await inner.astream_chat(
                turn.message, chat_history=given if chat_history else chat_history, **options
            )
        except GuardViolation as violation:
            return GuardedChatStream(achat_stream=aone_chunk(self._gate.instead(violation)))
        return ChatReply(self._gate, turn, memory, response).astream()

    @override
    def reset(self) -> None:
        self._engine.reset()

    @property
    @override
    def chat_history(self) -> list[ChatMessage]:
        """What the engine remembers."""
        return self._engine.chat_history

    @property
    def inner(self) -> BaseChatEngine:
        """The engine inside, unguarded."""
        return self._engine

    @property
    def callback_manager(self) -> CallbackManager:
        """That of the engine."""
        return getattr(self._engine, "callback_manager", None) or CallbackManager([])

    @callback_manager.setter
    def callback_manager(self, manager: CallbackManager) -> None:
        cast("Any", self._engine).callback_manager = manager

    @property
    def _memory(self) -> BaseMemory:
        """The engine's, so that a guarded engine may be guarded once more."""
        return getattr(self._engine, _MEMORY)

    @_memory.setter
    def _memory(self, memory: BaseMemory) -> None:
        self._engine = _on_memory(self._engine, memory)

    def _turn(self, message: object) -> ChatTurn:
        if not isinstance(message, str):
            raise ConversationError(f"the message is {type(message).__name__}, not a text")
        return ChatTurn(self._gate, self._known, message)

    def _inner(self, memory: StagedMemory, turn: ChatTurn) -> BaseChatEngine:
        memory.admit(turn)
        return _on_memory(self._engine, memory)


def guard_chat_engine(
    engine: BaseChatEngine,
    guard: Guard,
    *,
    on_violation: OnViolation = "raise",
    streaming: Streaming = _STREAMING,
) -> GuardedChatEngine:
    """A chat engine between guards, in one line; see `GuardedChatEngine`."""
    return GuardedChatEngine(engine, guard, on_violation=on_violation, streaming=streaming)


def _require_memory(engine: object) -> None:
    if isinstance(engine, BaseChatEngine) and isinstance(
        getattr(engine, _MEMORY, None), BaseMemory
    ):
        return
    raise TypeError(
        f"{type(engine).__name__} is no chat engine with a memory of LlamaIndex, so what is "
        "blocked could not be kept out of it: guard its language model with GuardedLLM instead"
    )


def _on_memory(engine: BaseChatEngine, memory: BaseMemory) -> BaseChatEngine:
    """A copy of an engine for one turn.

    An engine that asks a query engine says there, for each turn, whether it streams: so that is a
    copy, too, or turns that run at once would change it under one another.
    """
    inner = copy.copy(engine)
    setattr(inner, _MEMORY, memory)
    asked = getattr(inner, _QUERY_ENGINE, None)
    if isinstance(asked, RetrieverQueryEngine):
        own = copy.copy(asked)
        setattr(own, _SYNTHESIZER, copy.copy(getattr(own, _SYNTHESIZER)))
        setattr(inner, _QUERY_ENGINE, own)
    return inner


def _released(response: object, settled: Settled) -> AgentChatResponse:
    """The response, or what was released of its reply: sources may quote what was not."""
    if settled.shows_sources and isinstance(response, AgentChatResponse):
        return response
    return AgentChatResponse(response=settled.reply)
