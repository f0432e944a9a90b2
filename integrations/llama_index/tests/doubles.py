"""Models by script, an embedding made of n-grams, and what hears LlamaIndex's instrumentation."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.instrumentation import (
    get_dispatcher,  # pyright: ignore[reportPrivateImportUsage]
)
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool
from pydantic import Field, PrivateAttr
from typing_extensions import override

from llama_index_guardrails_qwen.callbacks import chat_callback, completion_callback

UNSAFE = "Safety: Unsafe\nCategories: Violent"
SCRIPT = {"bomb": UNSAFE}
"""For `ScriptedEngine`: unsafe is what contains "bomb"."""

REPLACED = "This content was removed by the safety policy."

Piece = str | ToolCallBlock | ChatResponse | Exception
"""What a model writes at a time: a text, a call, a chunk of any other form, or an error."""


def call(name: str, call_id: str = "call-1", **arguments: Any) -> ToolCallBlock:
    """A call of a tool."""
    return ToolCallBlock(tool_call_id=call_id, tool_name=name, tool_kwargs=arguments)


class WritingLLM(FunctionCallingLLM):
    """Writes the given replies, one a call, the last one again and again; logs what it is asked.

    Args:
        replies: Each a list of pieces, or a text, which is written word by word.
        calls_tools: Whether it says that it can.
        chats: Whether it says that it is a chat model.
    """

    replies: list[list[Any] | str]
    calls_tools: bool = True
    chats: bool = True
    seen: list[list[ChatMessage]] = Field(default_factory=list[list[ChatMessage]])
    """The messages of each call; of a completion, its prompt as one of a user."""
    log: list[str] = Field(default_factory=list[str])
    """"wrote" for each piece of a stream, and "closed" where one was closed early."""
    asked: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    """The keyword arguments of each call."""
    _state: dict[str, int] = PrivateAttr(default_factory=lambda: {"calls": 0})

    @classmethod
    @override
    def class_name(cls) -> str:
        return "WritingLLM"

    @property
    @override
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            model_name="writing",
            is_chat_model=self.chats,
            is_function_calling_model=self.calls_tools,
        )

    @chat_callback
    @override
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        *_, last = _chunks(self._pieces(messages, kwargs))
        return ChatResponse(message=last.message, raw={"text": last.message.content})

    @chat_callback
    @override
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        await asyncio.sleep(0)
        *_, last = _chunks(self._pieces(messages, kwargs))
        return ChatResponse(message=last.message, raw={"text": last.message.content})

    @chat_callback
    @override
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        pieces = self._pieces(messages, kwargs)

        def written() -> ChatResponseGen:
            with self._logged():
                for chunk in _chunks(pieces):
                    self.log.append("wrote")
                    yield chunk

        return written()

    @chat_callback
    @override
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        pieces = self._pieces(messages, kwargs)

        async def written() -> ChatResponseAsyncGen:
            with self._logged():
                for chunk in _chunks(pieces):
                    await asyncio.sleep(0)
                    self.log.append("wrote")
                    yield chunk

        return written()

    @completion_callback
    @override
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        *_, last = _chunks(self._pieces([_user(prompt)], kwargs))
        return CompletionResponse(text=last.message.content or "")

    @completion_callback
    @override
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        await asyncio.sleep(0)
        *_, last = _chunks(self._pieces([_user(prompt)], kwargs))
        return CompletionResponse(text=last.message.content or "")

    @completion_callback
    @override
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        pieces = self._pieces([_user(prompt)], kwargs)

        def written() -> CompletionResponseGen:
            with self._logged():
                for chunk in _chunks(pieces):
                    self.log.append("wrote")
                    yield _completion(chunk)

        return written()

    @completion_callback
    @override
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        pieces = self._pieces([_user(prompt)], kwargs)

        async def written() -> AsyncGenerator[CompletionResponse, None]:
            with self._logged():
                for chunk in _chunks(pieces):
                    await asyncio.sleep(0)
                    self.log.append("wrote")
                    yield _completion(chunk)

        return written()

    @override
    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        said = [_user(user_msg) if isinstance(user_msg, str) else user_msg] if user_msg else []
        names = [tool.metadata.get_name() for tool in tools]
        return {"messages": [*(chat_history or []), *said], "tools": names, **kwargs}

    @override
    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if error_on_no_tool_call and not calls:
            raise ValueError("no tool was called")
        return [
            ToolSelection(
                tool_id=block.tool_call_id or "",
                tool_name=block.tool_name,
                tool_kwargs=block.tool_kwargs if isinstance(block.tool_kwargs, dict) else {},
            )
            for block in calls
        ]

    def _pieces(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> list[Piece]:
        self.seen.append(list(messages))
        self.asked.append(kwargs)
        reply = self.replies[min(self._state["calls"], len(self.replies) - 1)]
        self._state["calls"] += 1
        return list(_words(reply)) if isinstance(reply, str) else reply

    @contextmanager
    def _logged(self) -> Generator[None, None, None]:
        try:
            yield
        except GeneratorExit:
            self.log.append("closed")
            raise


class NGramEmbedding(BaseEmbedding):
    """Texts as hashed trigrams: what shares words is near."""

    @override
    def _get_text_embedding(self, text: str) -> list[float]:
        counts = [0.0] * 256
        folded = text.lower()
        for start in range(max(len(folded) - 2, 1)):
            digest = hashlib.blake2b(folded[start : start + 3].encode(), digest_size=2).digest()
            counts[int.from_bytes(digest, "big") % 256] += 1.0
        length = sum(count * count for count in counts) ** 0.5 or 1.0
        return [count / length for count in counts]

    @override
    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    @override
    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


class Hearing(BaseEventHandler):
    """Keeps every event."""

    events: list[BaseEvent] = Field(default_factory=list[BaseEvent])

    @classmethod
    @override
    def class_name(cls) -> str:
        return "Hearing"

    @override
    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.events.append(event)

    def of(self, *kinds: type[BaseEvent]) -> list[Any]:
        """The events of some kinds, in order."""
        return [event for event in self.events if isinstance(event, kinds)]


class HearingSpans(SimpleSpanHandler):
    """Keeps what spans are told: arguments, results and errors, as text."""

    told: list[str] = Field(default_factory=list[str])

    @override
    def span_enter(self, id_: str, bound_args: Any, *args: Any, **kwargs: Any) -> None:
        self.told.append(f"{id_} {bound_args.arguments!r}")

    @override
    def span_exit(self, id_: str, bound_args: Any, *args: Any, **kwargs: Any) -> None:
        self.told.append(f"{id_} {kwargs.get('result')!r}")

    @override
    def span_drop(self, id_: str, bound_args: Any, *args: Any, **kwargs: Any) -> None:
        self.told.append(f"{id_} {kwargs.get('err')!r}")


@contextmanager
def heard() -> Generator[tuple[Hearing, HearingSpans], None, None]:
    """All events and spans of LlamaIndex while this lasts."""
    root: Any = get_dispatcher("root")
    events, spans = Hearing(), HearingSpans()
    root.add_event_handler(events)
    root.add_span_handler(spans)
    try:
        yield events, spans
    finally:
        root.event_handlers.remove(events)
        root.span_handlers.remove(spans)


def _user(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


def _words(text: str) -> Generator[str, None, None]:
    first, *others = text.split(" ")
    yield first
    yield from (f" {word}" for word in others)


def _chunks(pieces: Sequence[Piece]) -> Generator[ChatResponse, None, None]:
    """The chunks of a reply, each with all that came before it, as LlamaIndex has them."""
    text, calls = "", list[ToolCallBlock]()
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        if isinstance(piece, ChatResponse):
            yield piece
            continue
        if isinstance(piece, str):
            text += piece
        else:
            calls.append(piece)
        message = ChatMessage(
            role=MessageRole.ASSISTANT, blocks=[*([TextBlock(text=text)] if text else []), *calls]
        )
        delta = piece if isinstance(piece, str) else ""
        yield ChatResponse(message=message, delta=delta, raw={"delta": delta})


def _completion(chunk: ChatResponse) -> CompletionResponse:
    return CompletionResponse(text=chunk.message.content or "", delta=chunk.delta)
