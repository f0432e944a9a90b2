"""Nobody hears a guarded model's inner model, whatever that calls, and everybody all others."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, cast

import pytest
from llama_index.core import async_utils
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.llm import LLM
from llama_index_instrumentation.dispatcher import instrument_tags
from pydantic import PrivateAttr

from guardrails_qwen import Action, Guard, GuardViolation
from guardrails_qwen.streaming import Streaming
from integrations.llama_index.tests.doubles import REPLACED, WritingLLM, heard
from integrations.llama_index.tests.llm_doors import (
    CHATS,
    DOORS,
    HARMFUL,
    ask,
    assistant,
    text_of,
    user,
)
from llama_index_guardrails_qwen import GuardCheckEndEvent, GuardCheckStartEvent, GuardedLLM
from llama_index_guardrails_qwen.callbacks import chat_callback, completion_callback
from llama_index_guardrails_qwen.unheard import unheard

doors = pytest.mark.parametrize("door", DOORS)


class Completing(CustomLLM):
    """Only completes: LlamaIndex makes the chats of that."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    @completion_callback
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=HARMFUL)

    @completion_callback
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        def written() -> CompletionResponseGen:
            text = ""
            for word in HARMFUL.split(" "):
                text += f"{word} "
                yield CompletionResponse(text=text, delta=f"{word} ")

        return written()


class Asking(WritingLLM):
    """Asks another model, in threads and tasks of its own."""

    other: LLM

    @chat_callback
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(copy_context().run, self.other.chat, messages).result()

    @chat_callback
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        await asyncio.to_thread(self.other.chat, messages)
        cast("Any", async_utils).asyncio_run(self.other.achat(messages))
        return await asyncio.create_task(self.other.achat(messages))

    @chat_callback
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        def written() -> ChatResponseGen:
            yield from self.other.stream_chat(messages)

        return written()

    @chat_callback
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        async def written() -> ChatResponseAsyncGen:
            async for one in await self.other.astream_chat(messages):
                yield one

        return written()


INNER: dict[str, Callable[[], LLM]] = {
    "writing": lambda: WritingLLM(replies=[HARMFUL]),
    "completing": Completing,
    "asking": lambda: Asking(replies=[HARMFUL], other=WritingLLM(replies=[HARMFUL])),
}


@doors
@pytest.mark.parametrize("beside", [False, True], ids=["after", "beside"])
@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
async def test_nobody_hears_the_inner_model(
    door: str, beside: bool, inner: Callable[[], LLM], guarding: Callable[..., Guard]
) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    model = inner()
    model.callback_manager = CallbackManager([debug])
    llm = GuardedLLM(
        inner=model,
        guard=guarding(Action.REPLACE),
        streaming=Streaming(stride=1),
        beside=beside,
    )
    with heard() as (events, spans):
        out = await ask(door, llm)
    assert text_of(out[-1]).endswith(REPLACED)
    told = debug.get_event_pairs(CBEventType.LLM)
    payloads = str([event.payload for pair in told for event in pair])
    assert "bomb" not in f"{events.events!r} {spans.told} {payloads}"
    assert len(told) == 1
    assert {name.split(".")[0] for name in spans.told} == {"GuardedLLM"}
    assert REPLACED in payloads


@doors
async def test_others_are_heard_while_it_writes_and_afterwards(door: str, guard: Guard) -> None:
    other = WritingLLM(replies=["Hello."])
    llm = GuardedLLM(inner=WritingLLM(replies=["Take flour."]), guard=guard)
    with heard() as (events, _):
        await asyncio.gather(*(ask(door, one) for one in [llm, other, llm, other]))
        during = [event.model_dict["class_name"] for event in events.of(LLMChatStartEvent)]
        await ask("achat", other)
        thread = threading.Thread(target=other.chat, args=([user("Hi.")],))
        thread.start()
        thread.join()
        await asyncio.to_thread(other.chat, [user("Hi.")])
    if door in CHATS:
        assert sorted(during) == ["GuardedLLM", "GuardedLLM", "WritingLLM", "WritingLLM"]
    starts = events.of(LLMChatStartEvent)[len(during) :]
    assert {event.model_dict["class_name"] for event in starts} == {"WritingLLM"}


async def test_between_the_steps_of_a_stream_others_are_heard(guard: Guard) -> None:
    other = WritingLLM(replies=["Hello."])
    llm = GuardedLLM(inner=WritingLLM(replies=["Take flour and water."]), guard=guard)
    with heard() as (events, _):
        for _ in llm.stream_chat([user("how?")]):
            other.chat([user("Hi.")])
        async for _ in await llm.astream_chat([user("how?")]):
            other.chat([user("Hi.")])
    assert len(events.of(LLMChatStartEvent)) > 4


async def test_after_an_error_others_are_heard(guard: Guard) -> None:
    llm = GuardedLLM(inner=WritingLLM(replies=[[RuntimeError("no more")]]), guard=guard)
    for door in DOORS:
        with pytest.raises(RuntimeError):
            await ask(door, llm)
    with heard() as (events, _):
        WritingLLM(replies=["Hello."]).chat([user("Hi.")])
    assert len(events.of(LLMChatStartEvent)) == 1


class Delegating(WritingLLM):
    """Leaves its work to a task, which goes on afterwards."""

    other: LLM
    _tasks: list[asyncio.Task[Any]] = PrivateAttr(default_factory=list[Any])
    _written: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)

    @chat_callback
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        queue: asyncio.Queue[ChatResponse | None] = asyncio.Queue()

        async def work() -> None:
            async for one in await self.other.astream_chat(messages):
                queue.put_nowait(one)
            queue.put_nowait(None)
            await self._written.wait()
            await self.other.achat([user("Later.")])

        async def written() -> ChatResponseAsyncGen:
            self._tasks.append(asyncio.create_task(work()))
            while one := await queue.get():
                yield one

        return written()

    async def later(self) -> None:
        self._written.set()
        await asyncio.gather(*self._tasks)


async def test_what_a_model_starts_is_unheard_as_long_as_it_writes(
    guarding: Callable[..., Guard],
) -> None:
    inner = Delegating(replies=[""], other=WritingLLM(replies=[HARMFUL, "Hello."]))
    llm = GuardedLLM(inner=inner, guard=guarding(Action.FLAG))
    with heard() as (events, _):
        await ask("astream_chat", llm)
        assert "WritingLLM" not in str(events.of(LLMChatStartEvent))
        await inner.later()
    assert "Later." in str(events.of(LLMChatStartEvent)[-1])


class Failing(Delegating):
    """Fails when it has started a task."""

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        self._tasks.append(asyncio.create_task(self._work()))
        raise RuntimeError("no more")

    async def _work(self) -> None:
        await self._written.wait()
        await self.other.achat([user("Later.")])


async def test_what_a_model_starts_that_fails_stays_unheard(guard: Guard) -> None:
    inner = Failing(replies=[""], other=WritingLLM(replies=["Hello."]))
    with heard() as (events, _):
        with pytest.raises(RuntimeError):
            await ask("astream_chat", GuardedLLM(inner=inner, guard=guard))
        await inner.later()
    assert "Later." not in str(events.of(LLMChatStartEvent))


class Writing(Delegating):
    """Writes in a task of its own, which goes on when nobody reads any more."""

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        self._tasks.append(asyncio.create_task(self._work()))

        async def written() -> AsyncGenerator[ChatResponse, None]:
            for text in (HARMFUL, HARMFUL * 2):
                yield ChatResponse(message=assistant(text), delta=HARMFUL)

        return written()

    async def _work(self) -> None:
        await self._written.wait()
        await self.other.achat([user("Later.")])


async def test_what_goes_on_behind_a_reply_that_was_blocked_stays_unheard(
    guarding: Callable[..., Guard],
) -> None:
    inner = Writing(replies=[""], other=WritingLLM(replies=["Hello."]))
    policy = guarding(Action.BLOCK)
    with heard() as (events, _):
        with pytest.raises(GuardViolation):
            await ask("astream_chat", GuardedLLM(inner=inner, guard=policy))
        await inner.later()
    assert "Later." not in str(events.of(LLMChatStartEvent))


@doors
async def test_what_guards_inside_decide_is_heard(door: str, guard: Guard) -> None:
    """It is without text, and somebody may count on it."""
    llm = GuardedLLM(inner=WritingLLM(replies=["Hello."]), guard=guard)
    with heard() as (events, spans), unheard():
        await ask(door, llm)
    assert spans.told == []
    assert len(events.of(GuardCheckStartEvent)) == len(events.of(GuardCheckEndEvent)) == 2
    assert len(events.events) == 4


@doors
async def test_tags_and_spans_of_a_call_are_in_the_events_of_its_guard(
    door: str, guard: Guard
) -> None:
    llm = GuardedLLM(inner=WritingLLM(replies=["Hello."]), guard=guard)
    with heard() as (events, _), instrument_tags({"tenant": "a"}):
        await ask(door, llm)
    checks = events.of(GuardCheckStartEvent, GuardCheckEndEvent)
    assert {check.tags["tenant"] for check in checks} == {"a"}
    assert all((check.span_id or "").startswith("GuardedLLM.") for check in checks[:2])
