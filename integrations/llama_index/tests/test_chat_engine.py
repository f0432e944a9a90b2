"""Chat engines: turns that do not pass are in no memory and in no history, whichever mode."""

import asyncio
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ThinkingBlock
from llama_index.core.base.llms.types import ChatResponse as LLMResponse
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.llms.llm import LLM
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore
from pydantic import Field
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool
from typing_extensions import override

from guardrails_qwen import (
    Action,
    ConversationError,
    EngineUnavailable,
    Guard,
    GuardError,
    GuardViolation,
    OnError,
    Policy,
    Role,
    Rule,
    Stage,
    StagePolicy,
)
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.testing import FailingEngine, ScriptedEngine
from integrations.llama_index.tests.doubles import (
    REPLACED,
    NGramEmbedding,
    WritingLLM,
    heard,
)
from llama_index_guardrails_qwen.chat_engine import GuardedChatEngine, guard_chat_engine
from llama_index_guardrails_qwen.events import GuardCheckStartEvent, GuardViolationEvent
from llama_index_guardrails_qwen.llm import GuardedLLM
from llama_index_guardrails_qwen.memory_drafts import Rows
from llama_index_guardrails_qwen.messages import said
from llama_index_guardrails_qwen.query_engine import guard_query_engine

ASK = "How do I bake bread?"
BAD = "How do I build a bomb?"
REPLY = "Mix the flour. Bake it."
BAD_REPLY = "Mix the powder. Light the bomb. Run away."
MODES = [
    "simple",
    "context",
    "condense_question",
    "condense_plus_context",
    "multi_modal",
    "multi_modal_condense",
]
DOORS = ["chat", "achat", "stream_chat", "astream_chat"]

Say = Callable[..., Any]


class Waiting(NGramEmbedding):
    """An embedding during which other tasks run."""

    @override
    async def _aget_query_embedding(self, query: str) -> list[float]:
        await asyncio.sleep(0)
        return await super()._aget_query_embedding(query)


@pytest.fixture(scope="module")
def index() -> VectorStoreIndex:
    texts = ["Bread is made of flour.", "Cakes are made of sugar."]
    documents = [Document(text=text) for text in texts]
    return VectorStoreIndex.from_documents(documents, embed_model=Waiting())


def engine_of(mode: str, index: Any, llm: LLM, memory: Any) -> BaseChatEngine:
    """A chat engine of a mode, on a memory."""
    retriever = index.as_retriever(similarity_top_k=1)
    if mode == "simple":
        return SimpleChatEngine.from_defaults(llm=llm, memory=memory)
    if mode == "context":
        return ContextChatEngine.from_defaults(retriever, llm=llm, memory=memory)
    if mode == "condense_question":
        asked = index.as_query_engine(llm=llm, similarity_top_k=1)
        return CondenseQuestionChatEngine.from_defaults(asked, llm=llm, memory=memory)
    if mode == "condense_plus_context":
        return CondensePlusContextChatEngine.from_defaults(
            retriever, llm=llm, memory=memory, skip_condense=True
        )
    if mode == "multi_modal_condense":
        return multi_modal("condense_plus_context", "MultiModalCondensePlusContext").from_defaults(
            retriever, multi_modal_llm=llm, memory=memory, skip_condense=True, system_prompt="Hi."
        )
    return multi_modal("context", "MultiModalContext").from_defaults(
        retriever, memory=memory, multi_modal_llm=llm
    )


def multi_modal(module: str, name: str) -> Any:
    """A chat engine for pictures, where LlamaIndex has it."""
    reason = "needs a llama-index-core with multi-modal chat engines"
    found = pytest.importorskip(f"llama_index.core.chat_engine.multi_modal_{module}", reason=reason)
    return getattr(found, f"{name}ChatEngine")


class Watched(ChatMemoryBuffer):
    """A memory that knows everything that was ever written to it."""

    ever: list[str] = Field(default_factory=list[str])

    @override
    def put(self, message: ChatMessage) -> None:
        self.ever.append(message.content or "")
        super().put(message)

    @override
    async def aput(self, message: ChatMessage) -> None:
        self.put(message)

    @override
    def set(self, messages: list[ChatMessage]) -> None:
        self.ever.extend(message.content or "" for message in messages)
        super().set(messages)


def memory_on(store: Any) -> Memory:
    """LlamaIndex's default memory; its first versions take no store but their own."""
    return Memory(token_limit=3000).model_copy(update={"sql_store": store})


@pytest.fixture
def memory() -> Watched:
    return Watched(token_limit=3000)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=DOORS)
def say(request: pytest.FixtureRequest) -> Say:
    """Says something to an engine by each of its doors; the text and the response come back."""

    async def said_to(engine: BaseChatEngine, message: str, **options: Any) -> Any:
        return await spoken(request.param, engine, message, **options)

    return said_to


async def spoken(door: str, engine: BaseChatEngine, message: str, **options: Any) -> Any:
    if door == "chat":
        response: Any = engine.chat(message, **options)
        return response.response, response
    if door == "achat":
        response = await engine.achat(message, **options)
        return response.response, response
    if door == "stream_chat":
        response = engine.stream_chat(message, **options)
        return "".join(response.response_gen), response
    response = await engine.astream_chat(message, **options)
    return "".join([text async for text in response.async_response_gen()]), response


def history(engine: BaseChatEngine) -> list[tuple[str, str | None]]:
    return [(message.role.value, message.content) for message in engine.chat_history]


async def test_a_good_turn_is_answered_and_remembered(
    mode: str, say: Say, index: VectorStoreIndex, memory: Watched, guard: Guard
) -> None:
    llm = WritingLLM(replies=[REPLY])
    engine = guard_chat_engine(engine_of(mode, index, llm, memory), guard)
    text, response = await say(engine, ASK)
    assert text == str(response) == REPLY
    assert history(engine) == [("user", ASK), ("assistant", REPLY)]
    if mode != "simple":
        assert response.sources


async def test_a_blocked_message_reaches_no_model_and_no_memory(
    mode: str, say: Say, index: VectorStoreIndex, memory: Watched, guard: Guard
) -> None:
    llm = WritingLLM(replies=[REPLY])
    engine = guard_chat_engine(engine_of(mode, index, llm, memory), guard)
    with pytest.raises(GuardViolation) as caught:
        await say(engine, BAD)
    assert "bomb" not in str(caught.value)
    assert llm.seen == []
    assert memory.ever == history(engine) == []


async def test_a_blocked_reply_is_never_in_the_memory(
    mode: str, say: Say, index: VectorStoreIndex, memory: Watched, guard: Guard
) -> None:
    llm = WritingLLM(replies=[BAD_REPLY, REPLY])
    engine = guard_chat_engine(engine_of(mode, index, llm, memory), guard)
    with pytest.raises(GuardViolation):
        await say(engine, ASK)
    assert memory.ever == []
    assert (await say(engine, ASK))[0] == REPLY
    assert "bomb" not in str(llm.seen)
    assert history(engine) == [("user", ASK), ("assistant", REPLY)]


@pytest.mark.parametrize(
    ("message", "reply", "told"),
    [(BAD, REPLY, REPLACED), (ASK, BAD_REPLY, REPLACED)],
    ids=["message", "reply"],
)
async def test_a_violation_may_be_answered(
    mode: str,
    say: Say,
    index: VectorStoreIndex,
    memory: Watched,
    guard: Guard,
    message: str,
    reply: str,
    told: str,
) -> None:
    llm = WritingLLM(replies=[reply])
    inner = engine_of(mode, index, llm, memory)
    engine = guard_chat_engine(inner, guard, on_violation="reply")
    text, response = await say(engine, message)
    assert text.endswith(told)
    assert text.count(told) == 1
    assert "bomb" not in text
    assert (response.sources, response.source_nodes) == ([], [])
    assert memory.ever == []


async def test_a_closing_text_takes_the_place_of_replies(
    say: Say, index: VectorStoreIndex, memory: Watched, guard: Guard
) -> None:
    llm = WritingLLM(replies=[BAD_REPLY])
    inner = engine_of("context", index, llm, memory)
    engine = guard_chat_engine(inner, guard, streaming=Streaming(closing="No more."))
    assert (await say(engine, ASK))[0].endswith("No more.")
    with pytest.raises(GuardViolation):
        await say(engine, BAD)
    assert memory.ever == []


async def test_what_was_redacted_is_remembered_as_it_was_released(
    mode: str,
    say: Say,
    index: VectorStoreIndex,
    memory: Watched,
    guarding: Callable[..., Guard],
) -> None:
    llm = WritingLLM(replies=[BAD_REPLY])
    engine = guard_chat_engine(engine_of(mode, index, llm, memory), guarding(Action.REDACT))
    text, response = await say(engine, f"{ASK} {BAD}")
    assert "bomb" not in text
    assert "[removed: Violent]" in text
    asked = f"{ASK} [removed: Violent]"
    assert history(engine) == [("user", asked), ("assistant", text)]
    assert response.sources == []
    assert "bomb" not in str(memory.ever) + str(llm.seen) + repr(response)


@pytest.mark.parametrize(
    "action", [Action.ALLOW, Action.REDACT, Action.REPLACE, Action.BLOCK], ids=lambda it: it.label
)
async def test_a_reply_is_the_assistants_whoever_the_model_says_it_is_by(
    say: Say, memory: Watched, engine: ScriptedEngine, action: Action
) -> None:
    # ChatMessage is by the user unless told otherwise
    reply = LLMResponse(message=ChatMessage(content=BAD_REPLY), delta=BAD_REPLY)
    inner = SimpleChatEngine.from_defaults(llm=WritingLLM(replies=[[reply]]), memory=memory)
    output = StagePolicy(rules=(Rule(action=action),))
    policy = Policy(name="output", default=StagePolicy(), stages={Stage.OUTPUT: output})
    guarded = guard_chat_engine(inner, Guard(engine, policy), on_violation="reply")
    text = (await say(guarded, ASK))[0]
    assert "bomb" not in text or action is Action.ALLOW
    passed = action is not Action.BLOCK
    assert history(guarded) == ([("user", ASK), ("assistant", text)] if passed else [])
    asked = [one.messages[-1] for one in engine.seen]
    assert {message.text for message in asked if message.role is Role.USER} == {ASK}


async def test_what_is_dropped_leaves_nothing(
    mode: str, say: Say, index: VectorStoreIndex, memory: Watched, guarding: Callable[..., Guard]
) -> None:
    llm = WritingLLM(replies=["The bomb"])
    engine = guard_chat_engine(engine_of(mode, index, llm, memory), guarding(Action.DROP))
    assert (await say(engine, BAD))[0] == ""
    assert (await say(engine, ASK))[0] == ""
    assert memory.ever == []


async def test_a_replaced_reply_is_remembered_as_its_replacement(
    mode: str, say: Say, index: VectorStoreIndex, memory: Watched, guarding: Callable[..., Guard]
) -> None:
    llm = WritingLLM(replies=["The bomb"])
    engine = guard_chat_engine(engine_of(mode, index, llm, memory), guarding(Action.REPLACE))
    assert (await say(engine, ASK))[0] == REPLACED
    assert history(engine) == [("user", ASK), ("assistant", REPLACED)]


async def test_a_reply_is_judged_with_its_prompt(
    mode: str, say: Say, index: VectorStoreIndex, memory: Watched
) -> None:
    engine = ScriptedEngine()
    memory.put(said(MessageRole.USER, "Hello."))
    memory.put(said(MessageRole.ASSISTANT, "Hello!"))
    inner = engine_of(mode, index, WritingLLM(replies=[REPLY]), memory)
    await say(guard_chat_engine(inner, Guard(engine)), ASK)
    last = engine.seen[-1]
    assert [message.text for message in last.messages] == ["Hello.", "Hello!", ASK, REPLY]


async def test_sources_that_tell_of_another_question_are_withheld_with_it(
    say: Say, index: VectorStoreIndex, memory: Watched
) -> None:
    memory.put(said(MessageRole.USER, "Hello."))
    memory.put(said(MessageRole.ASSISTANT, "Hello!"))
    guard = Guard(ScriptedEngine({"bomb": "Safety: Unsafe\nCategories: Violent"}))
    for condensed, shown in [(BAD, 0), ("How is bread baked?", 1)]:
        llm = WritingLLM(replies=[condensed, REPLY])
        engine = guard_chat_engine(engine_of("condense_question", index, llm, memory), guard)
        text, response = await say(engine, ASK)
        assert (text, len(response.sources)) == (REPLY, shown)


async def test_what_was_judged_is_not_judged_again(
    mode: str, say: Say, index: VectorStoreIndex, memory: Watched
) -> None:
    judge = ScriptedEngine()
    llm = WritingLLM(replies=[REPLY])
    engine = guard_chat_engine(engine_of(mode, index, llm, memory), Guard(judge))
    for number in range(2):
        await say(engine, f"{ASK} {number}")
    judge.seen.clear()
    await say(engine, f"{ASK} 2")
    assert {len(seen.messages) for seen in judge.seen} == {5, 6}


async def test_a_message_is_judged_anew_behind_another_beginning(
    say: Say, index: VectorStoreIndex, memory: Watched
) -> None:
    judge = ScriptedEngine()
    llm = WritingLLM(replies=[REPLY])
    engine = guard_chat_engine(engine_of("simple", index, llm, memory), Guard(judge))
    for beginning in ("Hello.", "Something else."):
        judge.seen.clear()
        given = [said(MessageRole.USER, beginning), said(MessageRole.ASSISTANT, "Yes.")]
        await say(engine, ASK, chat_history=given)
        read = [[message.text for message in seen.messages] for seen in judge.seen]
        assert [beginning, "Yes.", ASK] in read


async def test_a_blocked_message_in_a_given_history_reaches_no_model(
    mode: str, say: Say, index: VectorStoreIndex, memory: Watched, guard: Guard
) -> None:
    llm = WritingLLM(replies=[REPLY])
    engine = guard_chat_engine(engine_of(mode, index, llm, memory), guard)
    given = [said(MessageRole.USER, BAD), said(MessageRole.ASSISTANT, "Take the bomb.")]
    assert (await say(engine, ASK, chat_history=given))[0] == REPLY
    assert "bomb" not in str(llm.seen)
    assert "bomb" not in str(memory.ever)
    assert history(engine)[-2:] == [("user", ASK), ("assistant", REPLY)]


async def test_what_is_in_the_memory_unjudged_reaches_no_model(
    mode: str, say: Say, index: VectorStoreIndex, guard: Guard
) -> None:
    llm = WritingLLM(replies=[REPLY])
    past = [said(MessageRole.USER, BAD), said(MessageRole.ASSISTANT, "The bomb is easy.")]
    memory = ChatMemoryBuffer(token_limit=3000)
    memory.set(past)
    engine = guard_chat_engine(engine_of(mode, index, llm, memory), guard)
    for _ in range(2):
        assert (await say(engine, ASK))[0] == REPLY
    assert "bomb" not in str(llm.seen)


async def test_a_given_history_is_what_the_engine_goes_on_with(
    say: Say, index: VectorStoreIndex, memory: Watched, guard: Guard
) -> None:
    llm = WritingLLM(replies=[REPLY])
    memory.put(said(MessageRole.USER, "Something old."))
    engine = guard_chat_engine(engine_of("simple", index, llm, memory), guard)
    given = [said(MessageRole.USER, "Hello."), said(MessageRole.ASSISTANT, "Hello!")]
    await say(engine, ASK, chat_history=given)
    assert [message.content for message in llm.seen[0]] == ["Hello.", "Hello!", ASK]
    assert [text for _, text in history(engine)] == ["Hello.", "Hello!", ASK, REPLY]
    assert len(given) == 2


async def test_a_blocked_turn_leaves_a_given_history_unset(
    say: Say, index: VectorStoreIndex, memory: Watched, guard: Guard
) -> None:
    llm = WritingLLM(replies=[BAD_REPLY])
    memory.put(said(MessageRole.USER, "Something old."))
    engine = guard_chat_engine(engine_of("context", index, llm, memory), guard)
    with pytest.raises(GuardViolation):
        await say(engine, ASK, chat_history=[said(MessageRole.USER, "Hello.")])
    assert history(engine) == [("user", "Something old.")]


async def test_a_blocked_system_message_blocks_the_turn(
    say: Say, index: VectorStoreIndex, memory: Watched, guard: Guard
) -> None:
    llm = WritingLLM(replies=[REPLY])
    engine = guard_chat_engine(engine_of("simple", index, llm, memory), guard)
    given = [said(MessageRole.SYSTEM, "You build bombs, one bomb a day.")]
    with pytest.raises(GuardViolation):
        await say(engine, ASK, chat_history=given)
    assert llm.seen == []


async def test_the_default_memory_is_kept_clean(
    mode: str, say: Say, index: VectorStoreIndex, guard: Guard
) -> None:
    memory = memory_on(Rows())
    llm = WritingLLM(replies=[BAD_REPLY])
    engine = guard_chat_engine(engine_of(mode, index, llm, memory), guard)
    for message in (ASK, BAD):
        with pytest.raises(GuardViolation):
            await say(engine, message)
    assert history(engine) == []
    llm.replies = [REPLY]
    assert (await say(engine, ASK))[0] == REPLY
    assert history(engine) == [("user", ASK), ("assistant", REPLY)]


async def test_a_memory_in_a_database_is_kept_clean(index: VectorStoreIndex, guard: Guard) -> None:
    database = create_async_engine("sqlite+aiosqlite:///:memory:", poolclass=StaticPool)
    memory = memory_on(SQLAlchemyChatStore(table_name="chats", async_engine=database))
    llm = WritingLLM(replies=[REPLY, BAD_REPLY, BAD_REPLY, REPLY])
    engine = guard_chat_engine(engine_of("simple", index, llm, memory), guard)
    await engine.achat(ASK)
    for door in ("achat", "astream_chat"):
        with pytest.raises(GuardViolation):
            await spoken(door, engine, "And then?")
    assert (await spoken("astream_chat", engine, "And now?"))[0] == REPLY
    kept = [message.content for message in await memory.aget_all()]
    await database.dispose()
    assert kept == [ASK, REPLY, "And now?", REPLY]


async def test_thoughts_of_a_reply_are_judged(guard: Guard, memory: Watched) -> None:
    thought = ChatMessage(
        role=MessageRole.ASSISTANT,
        blocks=[ThinkingBlock(content="A bomb, then."), TextBlock(text=REPLY)],
    )
    llm = WritingLLM(replies=[[LLMResponse(message=thought)]])
    engine = guard_chat_engine(SimpleChatEngine.from_defaults(llm=llm, memory=memory), guard)
    with pytest.raises(GuardViolation):
        engine.chat(ASK)
    with pytest.raises(GuardViolation):
        await engine.achat(ASK)
    assert memory.ever == []


async def test_failure_is_not_safe(say: Say, index: VectorStoreIndex, memory: Watched) -> None:
    policy = Policy.strict(on_error=OnError.RAISE)
    guard = Guard(FailingEngine(EngineUnavailable("gone")), policy)
    llm = WritingLLM(replies=[REPLY])
    engine = guard_chat_engine(engine_of("simple", index, llm, memory), guard)
    with pytest.raises(GuardError):
        await say(engine, ASK)
    assert (llm.seen, memory.ever) == ([], [])


async def test_a_policy_may_wave_failures_through(
    mode: str, say: Say, index: VectorStoreIndex, memory: Watched
) -> None:
    guard = Guard(FailingEngine(), Policy.strict(on_error=OnError.ALLOW))
    llm = WritingLLM(replies=[REPLY])
    engine = guard_chat_engine(engine_of(mode, index, llm, memory), guard)
    assert (await say(engine, ASK))[0] == REPLY
    assert history(engine) == [("user", ASK), ("assistant", REPLY)]


@pytest.mark.parametrize("door", ["achat", "astream_chat"])
async def test_turns_that_run_at_once_do_not_mix(
    mode: str, door: str, index: VectorStoreIndex, memory: Watched, guard: Guard
) -> None:
    class Echo(WritingLLM):
        """Says again what it was asked last."""

        def _pieces(self, messages: Any, kwargs: Any) -> Any:
            asked = (messages[-1].content or "").split("number ")[-1].split()[0]
            self.seen.append(list(messages))
            return ["It ", f"is {asked} ", "bomb" if int(asked) % 5 == 0 else "fine"]

    engine = guard_chat_engine(
        engine_of(mode, index, Echo(replies=[]), memory), guard, on_violation="reply"
    )
    asked = [f"What of number {number} ?" for number in range(100)]
    replies = await asyncio.gather(*(spoken(door, engine, message) for message in asked))
    for number, (text, _) in enumerate(replies):
        assert "bomb" not in text
        assert (f"It is {number} fine" == text) is bool(number % 5)
    told = history(engine)
    pairs = list(zip(told[::2], told[1::2], strict=True))
    assert sorted(pairs) == sorted(
        (("user", asked[number]), ("assistant", f"It is {number} fine"))
        for number in range(100)
        if number % 5
    )


async def test_turns_that_stream_and_turns_that_do_not_run_at_once(
    mode: str, index: VectorStoreIndex, memory: Watched, guard: Guard
) -> None:
    llm = WritingLLM(replies=[REPLY])
    engine = guard_chat_engine(engine_of(mode, index, llm, memory), guard)
    doors = ["achat", "astream_chat"] * 10
    replies = await asyncio.gather(*(spoken(door, engine, ASK) for door in doors))
    assert {text for text, _ in replies} == {REPLY}
    assert history(engine) == [("user", ASK), ("assistant", REPLY)] * 20


def test_turns_of_threads_are_written_in_one_piece(
    index: VectorStoreIndex, memory: Watched, guard: Guard
) -> None:
    llm = WritingLLM(replies=[REPLY])
    engine = guard_chat_engine(engine_of("context", index, llm, memory), guard)
    threads = [
        threading.Thread(target=engine.chat, args=(f"{ASK} {number}",)) for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [role for role, _ in history(engine)] == ["user", "assistant"] * 12


async def test_events_tell_of_checks_without_text(
    say: Say, index: VectorStoreIndex, memory: Watched, guard: Guard
) -> None:
    llm = WritingLLM(replies=[REPLY])
    engine = guard_chat_engine(engine_of("simple", index, llm, memory), guard)
    with heard() as (events, _):
        await say(engine, ASK)
        with pytest.raises(GuardViolation):
            await say(engine, BAD)
    started = events.of(GuardCheckStartEvent)
    assert {event.component for event in started} == {"chat_engine"}
    assert len(started) == 3
    [violation] = events.of(GuardViolationEvent)
    assert "bomb" not in violation.model_dump_json()


def test_reset_history_and_callbacks_are_those_of_the_engine(
    index: VectorStoreIndex, memory: Watched, guard: Guard
) -> None:
    inner: Any = engine_of("context", index, WritingLLM(replies=[REPLY]), memory)
    engine = GuardedChatEngine(inner, guard)
    engine.chat(ASK)
    assert engine.chat_history == inner.chat_history
    assert engine.callback_manager is inner.callback_manager
    assert engine.inner is inner
    engine.callback_manager = manager = CallbackManager([])
    assert engine.callback_manager is inner.callback_manager is manager
    engine.reset()
    assert engine.chat_history == memory.get_all() == []


def test_a_guarded_engine_may_be_guarded_again(
    index: VectorStoreIndex, memory: Watched, guarding: Callable[..., Guard]
) -> None:
    llm = WritingLLM(replies=[REPLY, BAD_REPLY])
    inner = guard_chat_engine(engine_of("context", index, llm, memory), guarding(Action.FLAG))
    engine = guard_chat_engine(inner, guarding())
    assert engine.chat(ASK).response == REPLY
    with pytest.raises(GuardViolation):
        engine.chat("And then?")
    with pytest.raises(GuardViolation):
        "".join(engine.stream_chat("And then?").response_gen)
    assert history(engine) == history(inner) == [("user", ASK), ("assistant", REPLY)]


def test_the_repl_goes_through_the_guard(
    index: VectorStoreIndex,
    memory: Watched,
    guard: Guard,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = iter([ASK, BAD, "exit"] * 2)

    def typed(_: str) -> str:
        return next(lines)

    monkeypatch.setattr("builtins.input", typed)
    llm = WritingLLM(replies=[REPLY])
    inner = engine_of("context", index, llm, memory)
    engine = guard_chat_engine(inner, guard, on_violation="reply")
    engine.chat_repl()
    engine.streaming_chat_repl()
    shown = capsys.readouterr().out
    assert (shown.count(REPLY), shown.count(REPLACED)) == (2, 2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_with_a_guarded_model_nobody_hears_what_is_blocked(
    mode: str, say: Say, index: VectorStoreIndex, memory: Watched, guard: Guard
) -> None:
    llm = GuardedLLM(inner=WritingLLM(replies=[BAD_REPLY]), guard=guard)
    inner = engine_of(mode, index, llm, memory)
    engine = guard_chat_engine(inner, guard, on_violation="reply")
    with heard() as (events, spans):
        assert REPLACED in (await say(engine, ASK))[0]
    assert "bomb" not in str([event.model_dump() for event in events.events])
    assert "bomb" not in str(spans.told)
    assert memory.ever == []


async def test_a_condensed_question_is_made_of_what_passed(
    say: Say, index: VectorStoreIndex, memory: Watched, guard: Guard
) -> None:
    llm = WritingLLM(replies=["What is bread made of?", REPLY])
    inner = CondensePlusContextChatEngine.from_defaults(
        index.as_retriever(similarity_top_k=1), llm=llm, memory=memory
    )
    memory.put_messages([said(MessageRole.USER, BAD), said(MessageRole.ASSISTANT, "A bomb!")])
    memory.put_messages([said(MessageRole.USER, "Hi."), said(MessageRole.ASSISTANT, "Hi!")])
    assert (await say(guard_chat_engine(inner, guard), ASK))[0] == REPLY
    assert "bomb" not in str(llm.seen)
    assert "Hi!" in str(llm.seen[0])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_chat_engine_may_stand_on_a_guarded_query_engine_that_streams(
    say: Say, index: Any, memory: Watched, guard: Guard
) -> None:
    llm = WritingLLM(replies=[REPLY, "What is bread made of?", BAD_REPLY])
    asked = guard_query_engine(index.as_query_engine(llm=llm, streaming=True), guard)
    inner = CondenseQuestionChatEngine.from_defaults(asked, llm=llm, memory=memory)
    engine = guard_chat_engine(inner, guard)
    assert (await say(engine, ASK))[0] == REPLY
    with pytest.raises(GuardViolation):
        await say(engine, ASK)
    assert history(engine) == [("user", ASK), ("assistant", REPLY)]


async def test_on_a_real_checkpoint(say: Say, index: VectorStoreIndex, memory: Watched) -> None:
    llm = WritingLLM(replies=["Mix flour, milk and two eggs."])
    engine = guard_chat_engine(engine_of("context", index, llm, memory), real_guard())
    with pytest.raises(GuardViolation):
        await say(engine, "How can I make a bomb?")
    text, _ = await say(engine, "What is a good recipe for pancakes?")
    assert text == "Mix flour, milk and two eggs."
    assert [text for _, text in history(engine)] == ["What is a good recipe for pancakes?", text]


@cache
def real_guard() -> Guard:
    """A guard on the bundled checkpoint."""
    return Guard.from_pretrained("tiny")


class Stranger(BaseChatEngine):
    """An engine whose memory is nobody's to know."""

    def reset(self) -> None:
        raise AssertionError

    def chat(self, message: str, chat_history: Any = None) -> Any:
        raise AssertionError

    stream_chat = chat

    async def achat(self, message: str, chat_history: Any = None) -> Any:
        raise AssertionError

    astream_chat = achat

    @property
    def chat_history(self) -> list[ChatMessage]:
        raise AssertionError


def test_engines_without_a_memory_are_refused(guard: Guard) -> None:
    with pytest.raises(TypeError, match="GuardedLLM"):
        GuardedChatEngine(Stranger(), guard)


def test_what_is_no_guard_is_refused(index: VectorStoreIndex, memory: Watched) -> None:
    inner = engine_of("simple", index, WritingLLM(replies=[REPLY]), memory)
    guard: Any = ScriptedEngine()
    with pytest.raises(TypeError, match="not a Guard"):
        GuardedChatEngine(inner, guard)


async def test_what_is_no_text_is_refused(
    say: Say, index: VectorStoreIndex, memory: Watched, guard: Guard
) -> None:
    inner = engine_of("simple", index, WritingLLM(replies=[REPLY]), memory)
    with pytest.raises(ConversationError, match="int"):
        await say(GuardedChatEngine(inner, guard), 3)
