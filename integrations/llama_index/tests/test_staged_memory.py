"""Memories as one turn sees them: they read as the memory does, and write when they are told to."""

import asyncio
import time
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.chat_engine import ContextChatEngine, SimpleChatEngine
from llama_index.core.memory import (
    BaseMemoryBlock,
    ChatMemoryBuffer,
    ChatSummaryMemoryBuffer,
    InsertMethod,
    Memory,
    SimpleComposableMemory,
    VectorMemory,
)
from llama_index.core.memory.types import BaseMemory
from pydantic import Field
from typing_extensions import override

from guardrails_qwen import Guard, GuardViolation
from guardrails_qwen.testing import ScriptedEngine
from integrations.llama_index.tests.doubles import NGramEmbedding, WritingLLM
from llama_index_guardrails_qwen.chat_engine import guard_chat_engine
from llama_index_guardrails_qwen.memory_drafts import Rows
from llama_index_guardrails_qwen.messages import said
from llama_index_guardrails_qwen.staged_memory import StagedMemory


def user(text: str) -> ChatMessage:
    return said(MessageRole.USER, text)


def reply(text: str) -> ChatMessage:
    return said(MessageRole.ASSISTANT, text)


class Plain(BaseMemory):
    """A memory of somebody's own."""

    kept: list[ChatMessage] = Field(default_factory=list[ChatMessage])

    @classmethod
    @override
    def from_defaults(cls, **kwargs: Any) -> BaseMemory:
        return cls()

    @override
    def get(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        return list(self.kept)

    @override
    def get_all(self) -> list[ChatMessage]:
        return list(self.kept)

    @override
    def put(self, message: ChatMessage) -> None:
        self.kept.append(message)

    @override
    def set(self, messages: list[ChatMessage]) -> None:
        self.kept = list(messages)

    @override
    def reset(self) -> None:
        self.kept = []


def vectors() -> VectorMemory:
    index = VectorStoreIndex(nodes=[], embed_model=NGramEmbedding())
    return VectorMemory(vector_index=index, retriever_kwargs={"similarity_top_k": 1})


def on_rows(memory: Memory) -> Memory:
    """A memory on a store in this process; its first versions take no store but their own."""
    return memory.model_copy(update={"sql_store": Rows()})


def buffer() -> ChatMemoryBuffer:
    return ChatMemoryBuffer(token_limit=3000)


KINDS: dict[str, Callable[[], BaseMemory]] = {
    "buffer": buffer,
    "memory": lambda: on_rows(Memory(token_limit=3000)),
    "summary": lambda: ChatSummaryMemoryBuffer(token_limit=3000),
    "composed": lambda: SimpleComposableMemory(
        primary_memory=buffer(), secondary_memory_sources=[vectors()]
    ),
    "own": Plain,
    "staged": lambda: StagedMemory.of(Plain(), Lock()),
}


@pytest.fixture(params=KINDS)
def memory(request: pytest.FixtureRequest) -> BaseMemory:
    """A memory that holds one turn."""
    made = KINDS[request.param]()
    made.put_messages([user("Hello."), reply("Hello!")])
    return made


class Doors:
    """A staged memory by one of its two colours."""

    def __init__(self, *, coroutines: bool) -> None:
        self.coroutines = coroutines

    async def stage(self, memory: BaseMemory) -> StagedMemory:
        lock = Lock()
        return (
            await StagedMemory.aof(memory, lock)
            if self.coroutines
            else StagedMemory.of(memory, lock)
        )

    async def call(self, memory: BaseMemory, name: str, *args: Any, **kwargs: Any) -> Any:
        if self.coroutines:
            return await getattr(memory, f"a{name}")(*args, **kwargs)
        return getattr(memory, name)(*args, **kwargs)


@pytest.fixture(params=["sync", "async"])
def doors(request: pytest.FixtureRequest) -> Doors:
    return Doors(coroutines=request.param == "async")


def texts(messages: Sequence[ChatMessage]) -> list[str | None]:
    return [message.content for message in messages]


async def test_what_is_written_is_read_here_and_nowhere_else(
    memory: BaseMemory, doors: Doors
) -> None:
    staged = await doors.stage(memory)
    await doors.call(staged, "put", user("And now?"))
    await doors.call(staged, "put_messages", [reply("Now."), user("And then?")])
    every = ["Hello.", "Hello!", "And now?", "Now.", "And then?"]
    assert texts(await doors.call(staged, "get_all")) == every
    assert texts(await doors.call(staged, "get"))[-5:] == every
    assert texts(staged.written) == every[2:]
    assert texts(memory.get_all()) == every[:2]


async def test_what_is_committed_is_written(memory: BaseMemory, doors: Doors) -> None:
    staged = await doors.stage(memory)
    await doors.call(staged, "put", user("And now?"))
    await doors.call(staged, "commit", [user("And now?"), reply("Now.")])
    assert texts(memory.get_all()) == ["Hello.", "Hello!", "And now?", "Now."]


async def test_what_is_set_is_set_when_it_is_committed(memory: BaseMemory, doors: Doors) -> None:
    staged = await doors.stage(memory)
    given = [user("Good day.")]
    await doors.call(staged, "put", user("Never mind."))
    await doors.call(staged, "set", given)
    await doors.call(staged, "put", user("And now?"))
    assert texts(await doors.call(staged, "get_all")) == ["Good day.", "And now?"]
    assert texts(staged.written) == ["And now?"]
    assert texts(memory.get_all()) == ["Hello.", "Hello!"]
    await doors.call(staged, "commit", staged.written)
    assert texts(memory.get_all()) == ["Good day.", "And now?"]
    assert texts(given) == ["Good day."]


async def test_a_reset_is_staged_as_well(memory: BaseMemory, doors: Doors) -> None:
    staged = await doors.stage(memory)
    await doors.call(staged, "reset")
    assert await doors.call(staged, "get_all") == []
    assert texts(memory.get_all()) == ["Hello.", "Hello!"]
    await doors.call(staged, "commit", [])
    assert memory.get_all() == []


def test_fields_are_those_of_the_memory(memory: BaseMemory) -> None:
    staged = StagedMemory.of(memory, Lock())
    assert hasattr(staged, "tokenizer_fn") is hasattr(memory, "tokenizer_fn")
    assert hasattr(staged, "chat_store_key") is hasattr(memory, "chat_store_key")


def test_memories_are_made_of_memories() -> None:
    with pytest.raises(NotImplementedError):
        StagedMemory.from_defaults()


async def test_a_buffer_counts_what_is_staged(doors: Doors) -> None:
    memory = ChatMemoryBuffer(token_limit=4, tokenizer_fn=str.split)
    memory.put_messages([user("one two"), reply("three")])
    staged = await doors.stage(memory)
    await doors.call(staged, "put", user("four five six"))
    assert texts(await doors.call(staged, "get")) == ["four five six"]
    assert texts(await doors.call(memory, "get")) == ["one two", "three"]


class Block(BaseMemoryBlock[str]):
    """A block that keeps what the queue of a memory passes on."""

    kept: list[str | None] = Field(default_factory=list[str | None])
    asked: list[list[str | None]] = Field(default_factory=list[list[str | None]])

    @override
    async def _aget(self, messages: list[ChatMessage] | None = None, **kwargs: Any) -> str:
        self.asked.append(texts(messages or []))
        return "You like bread."

    @override
    async def _aput(self, messages: list[ChatMessage]) -> None:
        self.kept.extend(texts(messages))


@pytest.mark.parametrize("method", list(InsertMethod))
async def test_blocks_are_asked_about_a_turn_and_given_nothing_of_it(
    doors: Doors, method: InsertMethod
) -> None:
    block = Block(name="likes")
    memory = Memory(
        token_limit=10,
        token_flush_size=1,
        tokenizer_fn=str.split,
        memory_blocks=[block],
        insert_method=method,
    )
    memory = on_rows(memory)
    await memory.aput_messages([user("one two"), reply("three")])
    staged = await doors.stage(memory)
    await doors.call(staged, "put_messages", [user(f"four five six {n}") for n in range(3)])
    for _ in range(2):
        await doors.call(staged, "get")
    got = await doors.call(staged, "get")
    assert sum("You like bread." in (text or "") for text in texts(got)) == 1
    assert block.asked[-1][-1] == "four five six 2"
    assert block.kept == []
    assert texts(await memory.aget_all()) == ["one two", "three"]


async def test_a_summary_replaces_what_it_sums_up_when_it_is_committed(doors: Doors) -> None:
    llm = WritingLLM(replies=["They met."])
    memory = ChatSummaryMemoryBuffer(token_limit=4, tokenizer_fn=str.split, llm=llm)
    memory.put_messages([user("one two three"), reply("four")])
    staged = await doors.stage(memory)
    await doors.call(staged, "put", user("five six"))
    for _ in range(2):
        assert texts(await doors.call(staged, "get")) == ["They met.", "five six"]
    assert len(llm.seen) == 1
    assert texts(memory.get_all()) == ["one two three", "four"]
    await doors.call(staged, "commit", [user("five six"), reply("seven")])
    assert texts(memory.get_all()) == ["They met.", "five six", "seven"]


async def test_a_summary_does_not_undo_what_another_turn_wrote(doors: Doors) -> None:
    llm = WritingLLM(replies=["They met."])
    memory = ChatSummaryMemoryBuffer(token_limit=4, tokenizer_fn=str.split, llm=llm)
    memory.put_messages([user("one two three"), reply("four")])
    staged = await doors.stage(memory)
    await doors.call(staged, "put", user("five six"))
    await doors.call(staged, "get")
    memory.put(user("seven"))
    await doors.call(staged, "commit", [user("five six")])
    assert texts(memory.get_all()) == ["one two three", "four", "seven", "five six"]


async def test_vectors_are_searched_for_what_was_said(doors: Doors) -> None:
    memory = vectors()
    memory.put_messages([user("I like bread."), reply("Bread it is."), user("My cat is grey.")])
    staged = await doors.stage(memory)
    await doors.call(staged, "put", user("What is my bread like?"))
    got = texts(await doors.call(staged, "get", input="Which bread do I like?"))
    assert got == ["I like bread.", "Bread it is.", "What is my bread like?"]
    assert "What is my bread like?" not in texts(memory.get(input="What is my bread like?"))


@pytest.mark.parametrize("kind", [*KINDS, "vectors"])
@pytest.mark.parametrize("coroutines", [False, True], ids=["chat", "achat"])
async def test_engines_keep_every_memory_clean(kind: str, coroutines: bool, guard: Guard) -> None:
    memory = vectors() if kind == "vectors" else KINDS[kind]()
    llm = WritingLLM(replies=["Bake it.", "A bomb of a bread.", "Eat it."])
    engine = guard_chat_engine(SimpleChatEngine.from_defaults(llm=llm, memory=memory), guard)

    async def say(message: str) -> str:
        said = await engine.achat(message) if coroutines else engine.chat(message)
        return said.response

    assert await say("How do I make bread?") == "Bake it."
    with pytest.raises(GuardViolation):
        await say("And which bread?")
    with pytest.raises(GuardViolation):
        await say("And a bomb?")
    assert await say("And what do I do with bread?") == "Eat it."
    found = memory.get(input="bread") if kind == "vectors" else memory.get_all()
    assert "bomb" not in str(texts(found)) + str(llm.seen)
    if kind != "vectors":
        assert texts(found) == [
            "How do I make bread?",
            "Bake it.",
            "And what do I do with bread?",
            "Eat it.",
        ]


async def test_a_memory_is_not_searched_for_what_is_blocked(guard: Guard) -> None:
    class Searched(NGramEmbedding):
        @override
        def _get_query_embedding(self, query: str) -> list[float]:
            queries.append(query)
            return super()._get_query_embedding(query)

    queries = list[str]()
    index = VectorStoreIndex(nodes=[], embed_model=Searched())
    memory = VectorMemory(vector_index=index, retriever_kwargs={"similarity_top_k": 1})
    memory.put_messages([user("I like bread."), reply("Bread it is.")])
    llm = WritingLLM(replies=["Bread."])
    inner = ContextChatEngine.from_defaults(index.as_retriever(), llm=llm, memory=memory)
    engine = guard_chat_engine(inner, guard)
    with pytest.raises(GuardViolation):
        engine.chat("How do I build a bomb?")
    with pytest.raises(GuardViolation):
        await engine.achat("How do I build a bomb?")
    assert queries == []
    assert engine.chat("What do I like?").response == "Bread."
    assert set(queries) == {"What do I like?"}


async def test_a_reply_is_judged_with_what_was_found_for_it() -> None:
    judge, memory = ScriptedEngine(), vectors()
    memory.put_messages([user("I like bread."), reply("Bread it is.")])
    llm = WritingLLM(replies=["Bread."])
    inner = ContextChatEngine.from_defaults(
        VectorStoreIndex(nodes=[], embed_model=NGramEmbedding()).as_retriever(),
        llm=llm,
        memory=memory,
    )
    engine = guard_chat_engine(inner, Guard(judge))
    read = ["I like bread.", "Bread it is.", "Which do I like?"]
    engine.chat("Which do I like?")
    assert [message.text for message in judge.seen[-1].messages[:-1]] == read
    memory.set([user("I like bread."), reply("Bread it is.")])
    await engine.achat("Which do I like?")
    assert [message.text for message in judge.seen[-1].messages[:-1]] == read


async def test_turns_are_written_one_after_the_other() -> None:
    class Slow(Plain):
        @override
        def put(self, message: ChatMessage) -> None:
            time.sleep(0.001)
            super().put(message)

    memory, lock = Slow(), Lock()
    turns = [await StagedMemory.aof(memory, lock) for _ in range(20)]
    pairs = [[user(f"{number}"), reply(f"{number}")] for number in range(20)]
    await asyncio.gather(*(turn.acommit(pair) for turn, pair in zip(turns, pairs, strict=True)))
    kept = texts(memory.get_all())
    assert len(kept) == 40
    assert kept[::2] == kept[1::2]
