"""Replies of chat engines that stream: what the engine's own threads and tasks write is read here.

LlamaIndex writes a reply that streams on a thread, or in a task, of the engine's, which begins
before anybody has the response.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from queue import Queue
from threading import Event, Thread
from typing import Any, cast

from llama_index.core.base.llms.types import ChatResponse, MessageRole
from llama_index.core.chat_engine.types import AgentChatResponse, StreamingAgentChatResponse
from llama_index.core.types import Thread as ContextThread
from typing_extensions import override

from guardrails_qwen.streaming import aclose_quietly, aclose_source, close_quietly, close_source
from llama_index_guardrails_qwen.messages import said

_HOOK = "_invoke_excepthook"
"""What a thread of CPython calls with what ended it; there is no public name."""

_END: Any = object()
"""Nothing more is written."""


@dataclass
class GuardedChatStream(StreamingAgentChatResponse):
    """A reply that is moderated while it is read.

    It is read once, by one reader; `str` reads a synchronous one to its end. What the reader leaves
    unread is not written any more, and such a turn leaves nothing in the memory.
    """

    is_writing_to_memory: bool = False

    @override
    def __str__(self) -> str:
        if self.chat_stream is not None and not self.is_done:
            for _ in self.response_gen:
                pass
        return self.response

    @property
    @override
    def response_gen(self) -> Generator[str, None, None]:
        """The reply, as it may be read; an empty one is one empty text, as in LlamaIndex.

        Raises:
            GuardViolation: The reply is blocked.
            GuardError: It could not be judged, and the policy says to raise.
        """
        if self.chat_stream is None:
            raise ValueError("the reply is asynchronous: read async_response_gen()")
        return self._read(self.chat_stream)

    @override
    async def async_response_gen(self) -> AsyncGenerator[str, None]:
        """`response_gen` of an asynchronous reply."""
        if self.achat_stream is None:
            raise ValueError("the reply is synchronous: read response_gen")
        told = False
        try:
            async for chunk in self.achat_stream:
                told = True
                yield self._told(chunk)
        finally:
            await aclose_source(self.achat_stream)
        self._ended()
        if not told:
            yield ""

    def _read(self, stream: Generator[ChatResponse, None, None]) -> Generator[str, None, None]:
        told = False
        try:
            for chunk in stream:
                told = True
                yield self._told(chunk)
        finally:
            close_source(stream)
        self._ended()
        if not told:
            yield ""

    def _told(self, chunk: ChatResponse) -> str:
        delta = chunk.delta or ""
        self.unformatted_response += delta
        return delta

    def _ended(self) -> None:
        self.response = self.unformatted_response.strip()
        self.is_function = False
        self.is_done = True


def one_chunk(text: str) -> Generator[ChatResponse, None, None]:
    """A reply that is known already."""
    yield ChatResponse(message=said(MessageRole.ASSISTANT, text), delta=text)


async def aone_chunk(text: str) -> AsyncGenerator[ChatResponse, None]:
    """The same."""
    yield ChatResponse(message=said(MessageRole.ASSISTANT, text), delta=text)


def texts_of(response: object) -> Generator[str, None, None]:
    """What the engine writes, while it does. Its thread has ended when all of that was read.

    Where this is closed early, the thread ends at the next text that it gets. Nobody waits for
    that: a language model may take as long as it likes.

    Raises:
        Exception: Whatever ended the engine's thread.
    """
    if not isinstance(response, StreamingAgentChatResponse):
        yield _whole(response)
        return
    thread = response.write_response_to_history_thread
    if thread is None:
        yield from _polled(response)
        return
    stopped, queue = _stoppable(response), _queue(response)
    _tell_end(response, thread)
    try:
        while (text := queue.get()) is not _END:
            yield text
    finally:
        stopped.set()
    _require_complete(response)


async def atexts_of(response: object) -> AsyncGenerator[str, None]:
    """`texts_of` for the task of an asynchronous engine, which is cancelled."""
    if not isinstance(response, StreamingAgentChatResponse):
        yield _whole(response)
        return
    task: asyncio.Task[None] | None = cast("Any", response).awrite_response_to_history_task
    if task is None:
        async for text in response.async_response_gen():
            yield text
        return
    response._ensure_async_setup()  # pyright: ignore[reportPrivateUsage]  or the task does, later
    queue: asyncio.Queue[Any] = cast("Any", response).aqueue
    task.add_done_callback(lambda _: queue.put_nowait(_END))
    try:
        while (text := await queue.get()) is not _END:
            yield text
        _require_complete(response)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await aclose_quietly([response.achat_stream])


def _queue(response: StreamingAgentChatResponse) -> Queue[Any]:
    return cast("Any", response).queue


def _whole(response: object) -> str:
    if isinstance(response, AgentChatResponse):
        return response.response
    raise TypeError(f"a chat engine answered with {type(response).__name__}, not a chat response")


def _polled(response: StreamingAgentChatResponse) -> Generator[str, None, None]:
    """What is written on no thread that is known: by a guarded engine, say."""
    stopped = _stoppable(response)
    try:
        yield from response.response_gen
    finally:
        stopped.set()


def _stoppable(response: StreamingAgentChatResponse) -> Event:
    """An event that ends the engine's thread.

    It ends by `SystemExit`, which `threading` ignores: nobody is to read on the console that a
    reader left, or what a language model failed of, which the reader is told.
    """
    stopped, queue = Event(), _queue(response)
    put = queue.put_nowait

    def put_nowait(item: Any) -> None:
        if stopped.is_set() or response.exception is not None:
            raise SystemExit
        put(item)

    queue.put_nowait = put_nowait
    return stopped


def _tell_end(response: StreamingAgentChatResponse, thread: Thread) -> None:
    """Have the end of the engine's thread said in its queue, once its stream is closed.

    A thread of ours does both, with the reader's context: who reads may have left by then, and a
    stream cannot be closed before the engine's thread has let go of it. Hooks are not told how that
    one ended, as far as the interpreter has that seam.
    """
    put = _queue(response).put

    def tell() -> None:
        thread.join()
        close_quietly([response.chat_stream])
        put(_END)

    setattr(thread, _HOOK, lambda *_: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    ContextThread(target=tell, name="guardrails-chat", daemon=True).start()


def _require_complete(response: StreamingAgentChatResponse) -> None:
    """See that the engine has written all that it would."""
    if response.exception is not None:
        raise response.exception
    if not response.is_done:
        raise RuntimeError("the chat engine ended before its reply was complete")
