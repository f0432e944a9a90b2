"""Replies of chat engines while they stream: what is read, and what ends when nobody reads on."""

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, repeat
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.chat_engine.types import (
    AgentChatResponse,
    BaseChatEngine,
    StreamingAgentChatResponse,
)
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.memory.types import BaseMemory
from typing_extensions import override

from guardrails_qwen import Conversation, Guard, GuardViolation, Policy
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine
from integrations.llama_index.tests.doubles import REPLACED, SCRIPT, WritingLLM
from llama_index_guardrails_qwen.chat_engine import guard_chat_engine
from llama_index_guardrails_qwen.gate import OnViolation
from llama_index_guardrails_qwen.llm import GuardedLLM
from llama_index_guardrails_qwen.messages import said

ASK = "How do I bake bread?"
REPLY = "Mix the flour. Bake it."
BAD_REPLY = "Light the bomb and run away."


@pytest.fixture(params=["sync", "async"])
def reads(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Reads a reply to a message, as a list of texts."""

    async def read(engine: BaseChatEngine, message: str = ASK) -> list[str]:
        if request.param == "sync":
            return list(engine.stream_chat(message).response_gen)
        response = await engine.astream_chat(message)
        return [text async for text in response.async_response_gen()]

    return read


@pytest.fixture
def judge() -> ScriptedStreamEngine:
    return ScriptedStreamEngine(SCRIPT)


@pytest.fixture
def guard(judge: ScriptedStreamEngine) -> Guard:
    return Guard(judge, Policy.strict())


@pytest.fixture
def memory() -> ChatMemoryBuffer:
    return ChatMemoryBuffer(token_limit=3000)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No thread is left at the end of a test."""
    before = set(threading.enumerate())
    yield
    left = [
        thread for thread in set(threading.enumerate()) - before if "asyncio" not in str(thread)
    ]
    for thread in left:
        thread.join(5)
    assert [thread for thread in left if thread.is_alive()] == []


def chatting(llm: WritingLLM, memory: BaseMemory) -> BaseChatEngine:
    return SimpleChatEngine.from_defaults(llm=llm, memory=memory)


class WaitingLLM(WritingLLM):
    """Writes the second half of a reply when it may."""

    halves: tuple[str, str]

    @override
    def _pieces(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Any:
        self.seen.append(list(messages))
        return self._halves()

    def may_go_on(self) -> None:
        _GATES[id(self)].set()

    def _halves(self) -> Iterable[str]:
        _GATES[id(self)] = gate = threading.Event()
        yield self.halves[0]
        if not gate.wait(10):
            self.log.append("gave up")
        yield self.halves[1]


class EndlessLLM(WritingLLM):
    """Begins with a reply, and goes on until it is closed."""

    @override
    def _pieces(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Any:
        return chain(super()._pieces(messages, kwargs), repeat("on and "))


_GATES: dict[int, threading.Event] = {}


async def test_texts_are_released_while_the_model_writes(
    guard: Guard, memory: ChatMemoryBuffer
) -> None:
    llm = WaitingLLM(replies=[], halves=("Mix the flour and then ", "bake it."))
    response = guard_chat_engine(chatting(llm, memory), guard).stream_chat(ASK)
    read = response.response_gen
    first = next(read)
    assert first.startswith("Mix")
    llm.may_go_on()
    assert first + "".join(read) == "Mix the flour and then bake it."


async def test_a_blocked_reply_ends_the_model(
    reads: Callable[..., Any], guard: Guard, memory: ChatMemoryBuffer
) -> None:
    llm = EndlessLLM(replies=["Light the bomb, go "])
    with pytest.raises(GuardViolation) as caught:
        await reads(guard_chat_engine(chatting(llm, memory), guard))
    assert "bomb" not in str(caught.value)
    assert memory.get_all() == []


async def test_a_blocked_reply_is_closed_with_a_text(
    reads: Callable[..., Any], guard: Guard, memory: ChatMemoryBuffer
) -> None:
    llm = EndlessLLM(replies=["Mix it well. Then light the bomb and "])
    engine = guard_chat_engine(chatting(llm, memory), guard, on_violation="reply")
    text = "".join(await reads(engine))
    assert text.endswith(f" {REPLACED}")
    assert "bomb" not in text
    assert memory.get_all() == []


def test_a_reader_who_leaves_ends_the_engines_thread(
    guard: Guard, memory: ChatMemoryBuffer
) -> None:
    llm = EndlessLLM(replies=[REPLY])
    response = guard_chat_engine(chatting(llm, memory), guard).stream_chat(ASK)
    with closing(response.response_gen) as read:
        assert next(read)
    assert memory.get_all() == []
    assert response.is_done is False


def test_a_reader_who_leaves_does_not_wait_for_the_model(
    guard: Guard, memory: ChatMemoryBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    before = set(threading.enumerate())
    llm = WaitingLLM(replies=[], halves=("Mix the flour and then ", "bake it."))
    response = guard_chat_engine(chatting(llm, memory), guard).stream_chat(ASK)
    with closing(response.response_gen) as read:
        assert next(read)
    assert llm.log == ["wrote"], "the model has gone on before its reader was let go"
    llm.may_go_on()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert llm.log == ["wrote", "wrote", "closed"]
    assert memory.get_all() == []
    assert caplog.messages == []


def test_a_guarded_model_is_closed_when_the_reader_leaves(
    guard: Guard, memory: ChatMemoryBuffer
) -> None:
    before = set(threading.enumerate())
    llm = EndlessLLM(replies=[REPLY])
    inner = SimpleChatEngine.from_defaults(llm=GuardedLLM(inner=llm, guard=guard), memory=memory)
    with closing(guard_chat_engine(inner, guard).stream_chat(ASK).response_gen) as read:
        assert next(read)
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert llm.log[-1] == "closed"


@pytest.mark.parametrize("on_violation", ["raise", "reply"])
def test_a_blocked_reply_does_not_wait_for_the_model(
    on_violation: OnViolation, guard: Guard, memory: ChatMemoryBuffer
) -> None:
    llm = WaitingLLM(replies=[], halves=("Light the bomb and then run far ", "away."))
    engine = guard_chat_engine(chatting(llm, memory), guard, on_violation=on_violation)
    read = engine.stream_chat(ASK).response_gen
    if on_violation == "raise":
        with pytest.raises(GuardViolation):
            list(read)
    else:
        assert "".join(read) == f"Light the {REPLACED}"
    assert llm.log == ["wrote"], "the model has gone on before its reader was told"
    llm.may_go_on()


async def test_a_coroutine_that_leaves_ends_the_engines_task(
    guard: Guard, memory: ChatMemoryBuffer
) -> None:
    llm = EndlessLLM(replies=[REPLY])
    response = await guard_chat_engine(chatting(llm, memory), guard).astream_chat(ASK)
    read = response.async_response_gen()
    assert await anext(read)
    await read.aclose()
    assert memory.get_all() == []
    assert len(asyncio.all_tasks()) == 1


async def test_a_reader_who_is_cancelled_ends_the_engines_task(memory: ChatMemoryBuffer) -> None:
    class Hanging(WritingLLM):
        @override
        async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
            async def written() -> Any:
                try:
                    yield ChatResponse(message=said(MessageRole.ASSISTANT, "a "), delta="a ")
                    yield ChatResponse(message=said(MessageRole.ASSISTANT, "a b "), delta="b ")
                    yield ChatResponse(message=said(MessageRole.ASSISTANT, "a b c"), delta="c")
                    reached.set()
                    await asyncio.Event().wait()
                finally:
                    self.log.append("closed")

            return written()

    reached = asyncio.Event()
    llm = Hanging(replies=[])
    engine = guard_chat_engine(chatting(llm, memory), Guard(ScriptedStreamEngine()))

    async def read() -> None:
        async for _ in (await engine.astream_chat(ASK)).async_response_gen():
            pass

    reading = asyncio.create_task(read())
    await reached.wait()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert reading.cancelled()
    assert llm.log == ["closed"]
    assert len(asyncio.all_tasks()) == 1
    assert memory.get_all() == []


async def test_a_reply_that_nobody_reads_is_not_remembered(
    guard: Guard, memory: ChatMemoryBuffer
) -> None:
    llm = WritingLLM(replies=[REPLY])
    engine = guard_chat_engine(chatting(llm, memory), guard)
    engine.stream_chat(ASK)
    await engine.astream_chat(ASK)
    for _ in range(50):
        await asyncio.sleep(0)
    assert memory.get_all() == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_what_a_model_fails_of_is_raised_where_it_is_read(
    reads: Callable[..., Any], guard: Guard, memory: ChatMemoryBuffer
) -> None:
    # LlamaIndex's thread tells `threading.excepthook` what fails before anybody reads
    llm = WritingLLM(replies=[["Mix ", "the ", RuntimeError("no more tokens")]])
    engine = guard_chat_engine(chatting(llm, memory), guard)
    with pytest.raises(RuntimeError, match="no more tokens"):
        await reads(engine)
    assert memory.get_all() == []


def test_a_model_that_fails_while_it_is_read_tells_nobody_else(
    guard: Guard, memory: ChatMemoryBuffer
) -> None:
    class Failing(WaitingLLM):
        @override
        def _halves(self) -> Iterable[Any]:
            yield from super()._halves()
            yield RuntimeError("no more tokens")

    llm = Failing(replies=[], halves=("Mix the flour and then ", "bake "))
    response = guard_chat_engine(chatting(llm, memory), guard).stream_chat(ASK)
    read = response.response_gen
    next(read)
    llm.may_go_on()
    with pytest.raises(RuntimeError, match="no more tokens"):
        list(read)
    assert memory.get_all() == []


async def test_a_reply_without_text_is_empty(
    reads: Callable[..., Any], guard: Guard, memory: ChatMemoryBuffer
) -> None:
    llm = WritingLLM(replies=[[]])
    assert await reads(chatting(llm, memory)) == [""], "LlamaIndex's own engines tell one text"
    assert await reads(guard_chat_engine(chatting(llm, memory), guard)) == [""]


def test_str_reads_the_reply(guard: Guard, memory: ChatMemoryBuffer) -> None:
    engine = guard_chat_engine(chatting(WritingLLM(replies=[REPLY]), memory), guard)
    response = engine.stream_chat(ASK)
    assert isinstance(response, StreamingAgentChatResponse)
    assert str(response) == str(response) == response.response == REPLY
    assert [message.content for message in memory.get_all()] == [ASK, REPLY]


async def test_replies_can_be_printed(
    guard: Guard, memory: ChatMemoryBuffer, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = guard_chat_engine(chatting(WritingLLM(replies=[REPLY]), memory), guard)
    engine.stream_chat(ASK).print_response_stream()
    await (await engine.astream_chat(ASK)).aprint_response_stream()
    assert capsys.readouterr().out == REPLY * 2


async def test_chunks_can_be_read_as_well(guard: Guard, memory: ChatMemoryBuffer) -> None:
    engine = guard_chat_engine(chatting(WritingLLM(replies=[REPLY]), memory), guard)
    chunks = list(engine.stream_chat(ASK).chat_stream or [])
    assert "".join(chunk.delta or "" for chunk in chunks) == chunks[-1].message.content == REPLY
    stream = (await engine.astream_chat(ASK)).achat_stream
    assert stream is not None
    assert [chunk async for chunk in stream][-1].message.content == REPLY


async def test_each_colour_is_read_as_what_it_is(guard: Guard, memory: ChatMemoryBuffer) -> None:
    engine = guard_chat_engine(chatting(WritingLLM(replies=[REPLY]), memory), guard)
    response = engine.stream_chat(ASK)
    with pytest.raises(ValueError, match="synchronous"):
        await anext(response.async_response_gen())
    later = await engine.astream_chat(ASK)
    with pytest.raises(ValueError, match="asynchronous"):
        next(later.response_gen)
    assert str(response) == REPLY
    assert [text async for text in later.async_response_gen()]


async def test_async_doors_only_await(memory: ChatMemoryBuffer) -> None:
    class Awaited(ScriptedEngine):
        @override
        def judge(self, conversations: Sequence[Conversation]) -> Any:
            raise AssertionError("a synchronous check in a coroutine")

        @override
        async def ajudge(self, conversations: Sequence[Conversation]) -> Any:
            asked.set()
            await answered.wait()
            return ScriptedEngine.judge(self, conversations)

    asked, answered = asyncio.Event(), asyncio.Event()

    async def answer() -> None:
        await asked.wait()
        answered.set()

    engine = guard_chat_engine(chatting(WritingLLM(replies=[REPLY]), memory), Guard(Awaited()))
    answering = asyncio.create_task(answer())
    assert (await engine.achat(ASK)).response == REPLY
    response = await engine.astream_chat(ASK)
    assert "".join([text async for text in response.async_response_gen()]) == REPLY
    await answering


class Own(BaseChatEngine):
    """An engine of somebody's own, which answers in a way that LlamaIndex's do not."""

    def __init__(self, memory: BaseMemory, answer: Callable[[], Any]) -> None:
        self._memory = memory
        self._answer = answer

    @override
    def reset(self) -> None:
        self._memory.reset()

    @override
    def chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> Any:
        self._memory.put(said(MessageRole.USER, message))
        self._memory.put(said(MessageRole.TOOL, "A tool was asked."))
        return self._answer()

    @override
    def stream_chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> Any:
        return self.chat(message)

    @override
    async def achat(self, message: str, chat_history: list[ChatMessage] | None = None) -> Any:
        return self.chat(message)

    @override
    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> Any:
        return self.chat(message)

    @property
    @override
    def chat_history(self) -> list[ChatMessage]:
        return self._memory.get_all()


def streamed() -> StreamingAgentChatResponse:
    """A reply that no thread writes."""
    chunk = ChatResponse(message=said(MessageRole.ASSISTANT, REPLY), delta=REPLY)
    return StreamingAgentChatResponse(chat_stream=iter([chunk]), is_writing_to_memory=False)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("answer", [lambda: AgentChatResponse(REPLY), streamed])
@pytest.mark.parametrize("door", ["chat", "stream_chat"])
def test_engines_of_your_own_may_answer_as_they_like(
    door: str, answer: Callable[[], Any], guard: Guard, memory: ChatMemoryBuffer
) -> None:
    engine = guard_chat_engine(Own(memory, answer), guard)
    assert str(getattr(engine, door)(ASK)) == REPLY


async def test_an_engine_that_remembers_nothing_is_judged(
    guard: Guard, memory: ChatMemoryBuffer
) -> None:
    class Forgetful(Own):
        @override
        def chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> Any:
            return self._answer()

    engine = guard_chat_engine(Forgetful(memory, partial(AgentChatResponse, REPLY)), guard)
    assert engine.chat(ASK).response == REPLY
    assert str(engine.stream_chat(ASK)) == REPLY
    engine = guard_chat_engine(Forgetful(memory, partial(AgentChatResponse, BAD_REPLY)), guard)
    with pytest.raises(GuardViolation):
        engine.chat(ASK)
    with pytest.raises(GuardViolation):
        await engine.achat(ASK)
    with pytest.raises(GuardViolation):
        str(engine.stream_chat(ASK))
    assert memory.get_all() == []


def test_what_else_an_engine_writes_is_judged(guard: Guard, memory: ChatMemoryBuffer) -> None:
    class Bad(Own):
        @override
        def chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> Any:
            self._memory.put(said(MessageRole.TOOL, "A bomb was found."))
            return self._answer()

    engine = guard_chat_engine(Bad(memory, lambda: AgentChatResponse(REPLY)), guard)
    with pytest.raises(GuardViolation):
        engine.chat(ASK)
    with pytest.raises(GuardViolation):
        list(engine.stream_chat(ASK).response_gen)
    assert memory.get_all() == []


def test_what_is_no_response_is_refused(guard: Guard, memory: ChatMemoryBuffer) -> None:
    engine = guard_chat_engine(Own(memory, lambda: "bread"), guard)
    with pytest.raises(TypeError, match="str"):
        engine.chat(ASK)
