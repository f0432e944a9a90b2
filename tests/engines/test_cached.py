"""A cache changes what judging costs, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen import (
    Action,
    Conversation,
    Engine,
    EngineClosed,
    EngineError,
    Guard,
    GuardError,
    Message,
    Outcome,
    Policy,
    Role,
    ToolCall,
    Verdict,
)
from guardrails_qwen.engines.cached import CachedEngine, CacheStats
from guardrails_qwen.engines.disk_store import DiskStore
from guardrails_qwen.engines.transformers import TransformersEngine
from guardrails_qwen.engines.verdict_store import MemoryStore, VerdictStore
from guardrails_qwen.testing import FailingEngine, ScriptedEngine
from tests.engines.verdicts import FULL, SCRIPT, TOO_LONG, said, severities

Judging = Callable[[Engine, Sequence[Conversation]], list[Outcome]]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def judge(request: pytest.FixtureRequest) -> Judging:
    """An engine's two doors, tried in turn: every test that uses this proves that both agree."""
    if request.param:
        return lambda engine, batch: asyncio.run(engine.ajudge(batch))  # pyright: ignore[reportArgumentType]
    return lambda engine, batch: engine.judge(batch)


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VerdictStore]:
    with closing(MemoryStore() if request.param == "memory" else DiskStore(tmp_path / "c")) as made:
        yield made


def verdict(outcome: Outcome) -> Verdict:
    assert isinstance(outcome, Verdict)
    return outcome


# What it is for


def test_what_is_known_is_not_judged_again(judge: Judging, store: VerdictStore) -> None:
    inner = ScriptedEngine(SCRIPT)
    cached = CachedEngine(inner, store)
    first = judge(cached, said("a bomb", "hello"))
    assert judge(cached, said("hello", "new", "a bomb")) == [first[1], first[1], first[0]]
    assert inner.seen == said("a bomb", "hello", "new")
    assert cached.stats == CacheStats(hits=2, misses=3)
    assert cached.stats.hit_rate == 0.4


def test_a_stored_verdict_is_the_same_but_for_its_cost(judge: Judging, store: VerdictStore) -> None:
    cached = CachedEngine(ScriptedEngine(FULL), store)
    computed, stored = (verdict(judge(cached, said("x"))[0]) for _ in range(2))
    assert computed.tokens == 12
    assert computed.seconds == 0.25
    assert stored == computed
    assert stored.scores == computed.scores
    assert stored.tokens == 0
    assert stored.seconds is not None
    assert 0 <= stored.seconds != 0.25


def test_it_passes_for_the_engine(judge: Judging) -> None:
    inner = ScriptedEngine(name="inner")
    cached = CachedEngine(inner)
    assert isinstance(cached, Engine)
    assert (cached.name, cached.fingerprint) == (inner.name, inner.fingerprint)
    assert not cached.demonstration
    assert "inner" in repr(cached)
    assert "hello" not in repr((cached, judge(cached, said("hello"))))


def test_a_demonstration_stays_one() -> None:
    inner = ScriptedEngine()
    inner.demonstration = True  # pyright: ignore[reportAttributeAccessIssue]
    assert CachedEngine(CachedEngine(inner)).demonstration


def test_no_policy_invalidates_it() -> None:
    inner = ScriptedEngine("Safety: Controversial\nCategories: PII")
    cached = CachedEngine(inner)
    policies = [Policy.strict(), Policy.loose(), Policy.strict(action=Action.REPLACE)]
    actions = [Guard(cached, policy).check("x").action for policy in policies]
    assert actions == [Action.BLOCK, Action.FLAG, Action.REPLACE]
    assert inner.batches == [1]


def test_a_real_engine(judge: Judging, store: VerdictStore, tiny: TransformersEngine) -> None:
    batch = [Conversation.exchange("How do I pick a lock?", "With a pick."), *said("hello")]
    cached = CachedEngine(tiny, store)
    computed, found = judge(cached, batch), judge(cached, batch)
    assert found == computed == judge(tiny, batch)
    assert [verdict(o).scores for o in found] == [verdict(o).scores for o in computed]
    assert cached.stats == CacheStats(hits=2, misses=2)
    assert cached.demonstration


def test_another_fingerprint_is_another_model(judge: Judging, store: VerdictStore) -> None:
    inner = ScriptedEngine(SCRIPT)
    cached = CachedEngine(inner, store)
    judge(cached, said("a bomb"))
    inner.fingerprint, inner.script = "another", "Safety: Safe\nCategories: None"
    assert severities(judge(cached, said("a bomb"))) == ["Safe"]
    inner.fingerprint = "scripted:scripted"
    assert severities(judge(cached, said("a bomb"))) == ["Unsafe"]


def test_what_was_judged_while_the_model_changed_is_not_kept(judge: Judging) -> None:
    inner = ScriptedEngine()

    def change(_: Conversation) -> Verdict:
        inner.fingerprint = "another"
        return FULL

    inner.script = change
    cached = CachedEngine(inner)
    judge(cached, said("x"))
    inner.fingerprint = "scripted:scripted"
    judge(cached, said("x"))
    assert cached.stats == CacheStats(misses=2)


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(ScriptedEngine(TOO_LONG), id="of a conversation"),
        pytest.param(FailingEngine(), id="of an engine"),
    ],
)
def test_errors_are_not_kept(judge: Judging, engine: Engine) -> None:
    cached = CachedEngine(engine)
    for _ in range(2):
        try:
            assert severities(judge(cached, said("x"))) == ["TextTooLong"]
        except EngineError:
            assert isinstance(engine, FailingEngine)
    assert cached.stats == CacheStats(misses=2)


def test_an_engine_that_miscounts_is_found_out(judge: Judging) -> None:
    class Short(ScriptedEngine):
        def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
            return super().judge(conversations)[1:]

    cached = CachedEngine(Short())
    for _ in range(2):
        with pytest.raises(EngineError, match="1 outcomes for 2"):
            judge(cached, said("x", "y"))


def test_duplicates_in_a_batch_are_judged_once_and_paid_once(judge: Judging) -> None:
    inner = ScriptedEngine(SCRIPT)
    cached = CachedEngine(inner)
    outcomes = judge(cached, said("cake", "long", "cake", "long", "cake"))
    assert severities(outcomes) == ["Safe", "TextTooLong", "Safe", "TextTooLong", "Safe"]
    assert [o.tokens for o in outcomes if isinstance(o, Verdict)] == [7, 0, 0]
    assert inner.seen == said("cake", "long")
    assert cached.stats == CacheStats(misses=2, shared=3)


def test_nothing_asked_is_nothing_done(judge: Judging) -> None:
    cached = CachedEngine(FailingEngine())
    assert judge(cached, []) == []
    assert cached.stats == CacheStats()
    assert cached.stats.hit_rate == 0.0


batches = st.lists(
    st.lists(st.sampled_from(["a bomb", "hello", "too long", "a cake"]), max_size=6), max_size=6
)


@given(batches=batches, size=st.integers(1, 4), waits=st.booleans())
def test_outcomes_are_those_of_the_bare_engine(
    batches: list[list[str]], size: int, waits: bool
) -> None:
    bare, inner = ScriptedEngine(SCRIPT), ScriptedEngine(SCRIPT)
    cached = CachedEngine(inner, MemoryStore(max_entries=size))

    async def drive() -> None:
        for texts in batches:
            batch = said(*texts)
            outcomes = await cached.ajudge(batch) if waits else cached.judge(batch)
            assert outcomes == bare.judge(batch)

    asyncio.run(drive())
    stats = cached.stats
    assert stats.misses == len(inner.seen)
    assert stats.hits + stats.misses + stats.shared == len(bare.seen)


# What two conversations have to have in common


CALL = ToolCall(name="f", arguments='{"a": 1}', id="1")


def message(text: str = "", role: Role = Role.ASSISTANT, **more: Any) -> Message:
    return Message(role=role, text=text, **more)


DIFFERENT = [
    [message("ab")],
    [message("a"), message("b")],
    [message("b"), message("a")],
    [message("a b")],
    [message("ab ")],
    [message("AB")],
    [message("ab", Role.USER)],
    [message("ab", Role.SYSTEM)],
    [message("ab", name="n")],
    [message("b", name="a")],
    [message("n: ab")],
    [message('ab", null, []]')],
    [message("ab", tool_calls=(CALL,))],
    [message("ab", tool_calls=(CALL, CALL))],
    [message("ab", tool_calls=(ToolCall(name="f", arguments='{"a":1}'),))],
    [message("ab", tool_calls=(ToolCall(name="g", arguments='{"a": 1}'),))],
    [message('ab\nf({"a": 1})')],
    [message("ab", images=("https://x/a",))],
    [message("ab", images=("https://x/b",))],
    [message("ab", images=("https://x/a", "https://x/b"))],
    [message("e\u0301")],
    [message("\u00e9")],
]


class Sighted(ScriptedEngine):
    """A double that judges images too."""

    def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        self.seen.extend(conversations)
        return [FULL for _ in conversations]


def test_what_a_model_may_tell_apart_is_kept_apart(judge: Judging) -> None:
    inner = Sighted()
    conversations = [Conversation(tuple(messages)) for messages in DIFFERENT]
    judge(CachedEngine(inner), conversations)
    assert inner.seen == conversations


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
calls = st.builds(ToolCall, name=texts, arguments=texts)
messages = st.builds(
    Message,
    role=st.sampled_from(Role),
    text=texts,
    name=st.none() | texts,
    tool_calls=st.lists(calls, max_size=2).map(tuple),
    images=st.lists(st.sampled_from(["https://x/a", "https://x/b"]), max_size=2).map(tuple),
)
conversations = st.lists(messages, min_size=1, max_size=3).map(tuple).map(Conversation)


@given(conversations, conversations)
def test_only_equal_conversations_share_a_verdict(one: Conversation, other: Conversation) -> None:
    cached = CachedEngine(Sighted())
    cached.judge([one, other])
    assert cached.stats.shared == (1 if one == other else 0)


def test_the_ids_of_tool_calls_do_not_matter(judge: Judging) -> None:
    inner = ScriptedEngine()
    judge(
        CachedEngine(inner),
        [
            Conversation((message(tool_calls=(ToolCall(name="f", id=identifier),)),))
            for identifier in ("1", "2", None)
        ],
    )
    assert len(inner.seen) == 1


# Simultaneous equal requests


class GatedEngine(ScriptedEngine):
    """An engine that judges only once it is let, and counts who asked."""

    def __init__(self, script: Any = None) -> None:
        super().__init__(script)
        self.gate = threading.Event()
        self.asked = 0
        self.cancelled = 0

    def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        self.asked += 1
        assert self.gate.wait(60)
        return super().judge(conversations)

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        self.asked += 1
        try:
            await until(self.gate.is_set)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return ScriptedEngine.judge(self, conversations)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  what is waited for may come from another thread
        await asyncio.sleep(0.001)


def test_fifty_threads_and_fifty_tasks_cost_one_computation() -> None:
    inner = GatedEngine(SCRIPT)
    cached = CachedEngine(inner)
    batch = said("a bomb")

    async def fifty() -> list[list[Outcome]]:
        tasks = [asyncio.create_task(cached.ajudge(batch)) for _ in range(25)]
        await asyncio.sleep(0.05)
        inner.gate.set()
        return await asyncio.gather(*tasks)

    with ThreadPoolExecutor(52) as pool:
        threads = [pool.submit(cached.judge, batch) for _ in range(50)]
        loops = [pool.submit(asyncio.run, fifty()) for _ in range(2)]
        results = [t.result(60) for t in threads] + [r for loop in loops for r in loop.result(60)]
    assert len(results) == 100
    assert all(severities(result) == ["Unsafe"] for result in results)
    assert inner.seen == batch
    stats = cached.stats
    assert (stats.misses, stats.hits + stats.shared) == (1, 99)
    assert sum(verdict(result[0]).tokens is None for result in results) == 1


async def test_batches_that_overlap_crosswise_end() -> None:
    inner = GatedEngine()
    cached = CachedEngine(inner)
    tasks = [
        asyncio.create_task(cached.ajudge(said(*texts)))
        for texts in (("a", "b"), ("c", "b"), ("c", "a", "d"), ("d", "b"))
    ]
    await asyncio.sleep(0)
    inner.gate.set()
    assert [len(outcomes) for outcomes in await asyncio.gather(*tasks)] == [2, 2, 3, 2]
    assert inner.seen == said("a", "b", "c", "d")
    assert cached.stats == CacheStats(misses=4, shared=5)


async def test_who_waits_takes_over_from_a_leader_that_is_cancelled() -> None:
    inner = GatedEngine(SCRIPT)
    cached = CachedEngine(inner)
    leader, *others = [asyncio.create_task(cached.ajudge(said("a bomb"))) for _ in range(20)]
    await asyncio.sleep(0)
    leader.cancel()
    await until(lambda: (inner.cancelled, inner.asked) == (1, 2))
    inner.gate.set()
    assert {str(severities(result)) for result in await asyncio.gather(*others)} == {"['Unsafe']"}
    assert leader.cancelled()
    assert len(inner.seen) == 1
    assert cached.stats == CacheStats(misses=2, shared=18)


async def test_a_waiter_that_is_cancelled_disturbs_nobody() -> None:
    inner = GatedEngine(SCRIPT)
    cached = CachedEngine(inner)
    leader, waiter, other = [
        asyncio.create_task(cached.ajudge(said("a bomb", "cake"))) for _ in range(3)
    ]
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    inner.gate.set()
    assert await leader == await other
    assert inner.cancelled == 0
    assert inner.batches == [2]


async def test_who_waits_is_not_failed_by_a_leader_that_fails() -> None:
    inner = GatedEngine()
    failures = iter([EngineError("gone")])

    def once(_: Conversation) -> Verdict:
        for failure in failures:
            raise failure
        return FULL

    inner.script = once
    cached = CachedEngine(inner)
    tasks = [asyncio.create_task(cached.ajudge(said("x"))) for _ in range(10)]
    await asyncio.sleep(0)
    inner.gate.set()
    first, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, EngineError)
    assert others == [[FULL_BY_SCRIPT]] * 9
    stats = cached.stats
    assert (stats.misses, stats.hits + stats.shared) == (2, 8)


FULL_BY_SCRIPT = Verdict.from_dict(
    {**FULL.to_dict(), "model": "scripted", "fingerprint": "scripted:scripted"}
)


async def test_an_engine_that_always_fails_fails_all_and_not_one_after_another() -> None:
    class Slow(ScriptedEngine):
        rounds = 0
        running = 0

        async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
            if not self.running:
                self.rounds += 1
            self.running += 1
            await asyncio.sleep(0.01)
            self.running -= 1
            raise EngineError("gone")

    inner = Slow()
    cached = CachedEngine(inner)
    results = await asyncio.gather(
        *(cached.ajudge(said("x")) for _ in range(20)), return_exceptions=True
    )
    assert all(isinstance(result, EngineError) for result in results)
    assert inner.rounds <= 3
    assert cached.stats == CacheStats(misses=20)


async def test_an_error_of_a_conversation_is_found_by_each_caller() -> None:
    inner = GatedEngine(SCRIPT)
    cached = CachedEngine(inner)
    tasks = [asyncio.create_task(cached.ajudge(said("long", "cake"))) for _ in range(3)]
    await asyncio.sleep(0)
    inner.gate.set()
    for outcomes in await asyncio.gather(*tasks):
        assert severities(outcomes) == ["TextTooLong", "Safe"]
    assert inner.seen.count(said("cake")[0]) == 1
    assert inner.seen.count(said("long")[0]) == 3


async def test_a_blocking_call_on_the_loop_of_its_leader_does_not_hang() -> None:
    inner = GatedEngine(SCRIPT)
    cached = CachedEngine(inner)
    leader = asyncio.create_task(cached.ajudge(said("a bomb")))
    await until(lambda: inner.asked == 1)
    inner.gate.set()
    assert severities(cached.judge(said("a bomb"))) == ["Unsafe"]
    assert severities(await leader) == ["Unsafe"]


async def test_patience_ends() -> None:
    inner = GatedEngine(SCRIPT)
    cached = CachedEngine(inner, patience=0.01)
    hanging = asyncio.create_task(cached.ajudge(said("a bomb")))
    await asyncio.sleep(0)
    impatient = asyncio.create_task(cached.ajudge(said("a bomb")))
    await until(lambda: inner.asked == 2)
    inner.gate.set()
    assert await hanging == await impatient
    assert cached.stats == CacheStats(misses=2)


async def test_waiting_does_not_block_the_loop() -> None:
    inner = GatedEngine(SCRIPT)
    cached = CachedEngine(inner)
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(cached.judge, said("a bomb"))
        await until(lambda: inner.asked == 1)
        waiter = asyncio.create_task(cached.ajudge(said("a bomb")))
        for _ in range(10):
            await asyncio.sleep(0)
        inner.gate.set()  # by the loop that waits
        assert severities(await waiter) == severities(leader.result(60)) == ["Unsafe"]
    assert cached.stats == CacheStats(misses=1, shared=1)


async def test_a_store_that_blocks_is_kept_off_the_loop() -> None:
    class Blocking(MemoryStore):
        blocking = True

        def __init__(self) -> None:
            super().__init__()
            self.threads: set[str] = set()

        def get(self, key: str) -> Verdict | None:
            self.threads.add(threading.current_thread().name)
            return super().get(key)

        def put(self, key: str, verdict: Verdict) -> None:
            self.threads.add(threading.current_thread().name)
            super().put(key, verdict)

    store = Blocking()
    async with CachedEngine(ScriptedEngine(), store) as cached:
        for _ in range(2):
            await cached.ajudge(said("x"))
        assert cached.stats == CacheStats(hits=1, misses=1)
    assert store.threads
    assert threading.current_thread().name not in store.threads


# A store that fails


@dataclass
class BrokenStore:
    """A store whose disk is full, or gone."""

    fails_at: str
    blocking: bool = False
    gets: int = 0
    holds: Any = None

    def get(self, key: str) -> Verdict | None:
        self.gets += 1
        if self.fails_at == "get":
            raise sqlite3.OperationalError(f"locked: {key}")
        return self.holds

    def put(self, key: str, verdict: Verdict) -> None:
        raise OSError("disk full")

    def close(self) -> None: ...


BROKEN = [
    pytest.param("get", False, 4, 2, id="reading"),
    pytest.param("put", False, 2, 4, id="writing"),
    pytest.param("get", True, 1, 1, id="reading slowly, and left alone for a while"),
    pytest.param("put", True, 1, 2, id="writing slowly, and left alone for a while"),
]


@pytest.mark.parametrize(("fails_at", "blocking", "errors", "gets"), BROKEN)
def test_a_store_that_fails_fails_no_judgement(
    judge: Judging,
    fails_at: str,
    blocking: bool,
    errors: int,
    gets: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = BrokenStore(fails_at, blocking)
    cached = CachedEngine(ScriptedEngine(SCRIPT), store)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert severities(judge(cached, said("a bomb", "hello"))) == ["Unsafe", "Safe"]
    assert cached.stats == CacheStats(misses=4, errors=errors)
    assert store.gets == gets  # no second try within a batch
    assert len(caplog.records) == 1
    assert "bomb" not in caplog.text
    cached.close()


@pytest.mark.parametrize(
    "holds",
    [0, "Safe", FULL.to_dict(), Verdict],
    ids=["number", "text", "dict", "class"],
)
def test_what_is_no_verdict_is_not_taken_for_one(judge: Judging, holds: object) -> None:
    cached = CachedEngine(ScriptedEngine(SCRIPT), BrokenStore("put", holds=holds))
    assert severities(judge(cached, said("a bomb"))) == ["Unsafe"]


async def test_closing_takes_no_judgement_from_who_has_it() -> None:
    inner = GatedEngine(SCRIPT)
    cached = CachedEngine(inner, BrokenStore("put", blocking=True))
    judging = asyncio.create_task(cached.ajudge(said("a bomb")))
    await until(lambda: inner.asked == 1)
    cached.close()
    inner.gate.set()
    assert severities(await judging) == ["Unsafe"]


def test_a_locked_database_fails_no_judgement(tmp_path: Path, judge: Judging) -> None:
    with CachedEngine(ScriptedEngine(SCRIPT), DiskStore(tmp_path / "c")) as cached:
        with closing(sqlite3.connect(tmp_path / "c" / "cache.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            outcomes = judge(cached, said("a bomb", "hello"))
        assert severities(outcomes) == ["Unsafe", "Safe"]
        assert cached.stats == CacheStats(misses=2, errors=1)


def test_a_database_that_breaks_later_fails_no_judgement(tmp_path: Path, judge: Judging) -> None:
    with CachedEngine(ScriptedEngine(SCRIPT), DiskStore(tmp_path / "c")) as cached:
        _drop(tmp_path / "c")
        assert severities(judge(cached, said("a bomb"))) == ["Unsafe"]
        assert cached.stats.errors == 1


def _drop(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "cache.db")) as database:
        database.execute("DROP TABLE Cache")


# The end


class Closable(ScriptedEngine):
    closed = ""

    def close(self) -> None:
        self.closed += "close "


class AsyncClosable(Closable):
    async def aclose(self) -> None:
        self.closed += "aclose "


def test_closing_closes_the_engine_and_the_store(judge: Judging, store: VerdictStore) -> None:
    inner = Closable()
    with CachedEngine(inner, store) as cached:
        judge(cached, said("x"))
    assert inner.closed == "close "
    cached.close()
    with pytest.raises(EngineClosed):
        judge(cached, said("x"))


@pytest.mark.parametrize(
    ("inner", "closed"),
    [
        pytest.param(Closable(), "close ", id="with close"),
        pytest.param(AsyncClosable(), "aclose ", id="with aclose"),
        pytest.param(ScriptedEngine(), None, id="with neither"),
    ],
)
async def test_closing_asynchronously(inner: ScriptedEngine, closed: str | None) -> None:
    async with CachedEngine(inner) as cached:
        await cached.ajudge(said("x"))
    assert getattr(inner, "closed", None) == closed
    with pytest.raises(EngineClosed):
        await cached.ajudge(said("x"))


@pytest.mark.parametrize("patience", [-1.0, float("nan")])
def test_patience_is_a_time(patience: float) -> None:
    with pytest.raises(ValueError, match="patience"):
        CachedEngine(ScriptedEngine(), patience=patience)


def test_two_doors_and_two_stores_agree(tmp_path: Path) -> None:
    texts = ["a bomb", "hello", "too long", "a bomb"]
    outcomes: list[list[Outcome]] = []
    for store in (MemoryStore(), DiskStore(tmp_path / "c")):
        with CachedEngine(ScriptedEngine(SCRIPT), store) as cached:
            outcomes += [cached.judge(said(*texts)), asyncio.run(cached.ajudge(said(*texts)))]
            assert cached.stats == CacheStats(hits=3, misses=4, shared=1)
    assert all(found == outcomes[0] for found in outcomes)
    assert isinstance(outcomes[0][2], GuardError)


_FORK = """
import asyncio, os, sys
from guardrails_qwen import Conversation
from guardrails_qwen.engines.cached import CachedEngine
from guardrails_qwen.engines.disk_store import DiskStore
from guardrails_qwen.testing import ScriptedEngine

cached = CachedEngine(ScriptedEngine(), DiskStore(sys.argv[1]))
asyncio.run(cached.ajudge([Conversation.of("before")]))
child = os.fork()
if child == 0:
    asyncio.run(asyncio.wait_for(cached.ajudge([Conversation.of("after")]), 30))
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FORK, str(tmp_path / "c")]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
