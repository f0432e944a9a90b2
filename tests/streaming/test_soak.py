"""Thousands of sessions, most of which end badly, leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import AsyncGeneratorType, CoroutineType, GeneratorType

import pytest

from guardrails_qwen import Conversation, Guard, GuardError, Policy
from guardrails_qwen.engines.session_limits import Sessions
from guardrails_qwen.engines.stream import StreamEngine
from guardrails_qwen.errors import ConversationError, EngineClosed, EngineOverloaded
from guardrails_qwen.rules import Action, OnError
from tests.engines import stream_shaped

SESSIONS = 2000
AT_ONCE = 48
MOST = 40
"""Open sessions that the engine allows: fewer than want to be, so that some are refused."""

ASK = "What is new at the harbour? 港口有什么新闻?"
REPLY = "The ferry leaves at noon, 中午开船。 Nobody waits for it 🚢 but the cat.\n\n"

LENIENT = Policy.strict(action=Action.FLAG, on_error=OnError.RAISE)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:  # pyright: ignore[reportUnusedFunction]
    """What is logged is kept by the test runner, and would count as memory."""
    caplog.set_level(logging.CRITICAL, logger="guardrails_qwen")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamEngine]:
    folder = stream_shaped.save(tmp_path_factory.mktemp("soak"))
    with StreamEngine.from_pretrained(
        folder, device="cpu", dtype="float32", sessions=Sessions(most=MOST)
    ) as engine:
        yield engine


def test_threads_leave_nothing(engine: StreamEngine) -> None:
    _by_threads(engine, 200, seed=0)  # until everything that is kept is there
    with _nothing_left(engine):
        ends = _by_threads(engine, SESSIONS // 2, seed=1)
    assert sum(ends[name] for name in _THREADS) == SESSIONS // 2
    assert min(ends[name] for name in ["refused", *_THREADS]) > 50


async def test_tasks_leave_nothing(engine: StreamEngine) -> None:
    await _by_tasks(engine, 200, seed=2)
    with _nothing_left(engine):
        ends = await _by_tasks(engine, SESSIONS // 2, seed=3)
        assert asyncio.all_tasks() == {asyncio.current_task()}
    assert sum(ends[name] for name in _TASKS) == SESSIONS // 2
    assert min(ends[name] for name in ["refused", *_TASKS]) > 50


def test_a_closed_engine_has_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    stream_shaped.save(tmp_path)
    engine = StreamEngine.from_pretrained(tmp_path, device="cpu", dtype="float32")
    session = engine.open(Conversation.of(ASK))
    session.feed(REPLY)
    engine.close()
    with pytest.raises(GuardError):
        session.feed(REPLY)
    session.close()
    assert set(threading.enumerate()) <= before
    assert engine.open_sessions == engine.session_memory == 0


@contextlib.contextmanager
def _nothing_left(engine: StreamEngine) -> Generator[None]:
    """No session, byte, thread or generator more than before, and about as much memory."""
    gc.collect()
    threads, suspended = set(threading.enumerate()), _suspended()
    tracemalloc.start()
    memory = tracemalloc.get_traced_memory()[0]
    try:
        yield
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - memory
    finally:
        tracemalloc.stop()
    assert engine.open_sessions == 0
    assert engine.session_memory == 0
    assert set(threading.enumerate()) <= threads
    assert _suspended() - suspended == Counter()
    assert grown < 1_000_000, f"{grown:,} bytes more than before"


def _suspended() -> Counter[str]:
    """Generators and coroutines of the package that are alive, by name."""
    kinds = {GeneratorType, AsyncGeneratorType, CoroutineType}
    return Counter(
        one.__qualname__
        for one in gc.get_objects()
        if type(one) in kinds and "guardrails_qwen" in _file(one)
    )


def _file(suspended: object) -> str:
    codes = (getattr(suspended, name, None) for name in ("gi_code", "ag_code", "cr_code"))
    return next((code.co_filename for code in codes if code is not None), "")


def _chunks(choose: random.Random) -> Iterator[str]:
    left = REPLY * choose.randint(1, 3)
    while left:
        size = choose.randint(0, 25)
        yield left[:size]
        left = left[size:]


# What becomes of a session whose caller is a thread.


def _finished(engine: StreamEngine, choose: random.Random) -> None:
    with contextlib.closing(engine.open(Conversation.of(ASK))) as session:
        for chunk in _chunks(choose):
            session.feed(chunk)
        session.finish()


def _forgotten(engine: StreamEngine, choose: random.Random) -> None:
    """Nobody closes it, and nobody has it any more."""
    session = engine.open(None)
    for chunk in _chunks(choose):
        session.feed(chunk)


def _forked(engine: StreamEngine, choose: random.Random) -> None:
    with contextlib.closing(engine.open(Conversation.of(ASK))) as session:
        session.feed(REPLY)
        with contextlib.closing(session.fork()) as fork:
            session.truncate(choose.randint(0, len(REPLY)))
            fork.feed(REPLY)
            session.feed(REPLY)


def _closed_early(engine: StreamEngine, choose: random.Random) -> None:
    session = engine.open(Conversation.of(ASK))
    session.feed(next(_chunks(choose)))
    session.close()
    session.close()
    with pytest.raises(EngineClosed):
        session.feed(REPLY)


def _broken(engine: StreamEngine, choose: random.Random) -> None:
    """A text that cannot be judged ends it."""
    with contextlib.closing(engine.open(Conversation.of(ASK))) as session:
        session.feed(REPLY)
        with pytest.raises(ConversationError):
            session.feed("x\ud800y")


def _left(engine: StreamEngine, choose: random.Random) -> None:
    """A reader who goes away in the middle, and closes nothing."""
    texts = Guard(engine, LENIENT).stream(ASK).texts(_chunks(choose))
    next(texts, None)


def _source_fails(engine: StreamEngine, choose: random.Random) -> None:
    def failing() -> Iterator[str]:
        yield from _chunks(choose)
        raise OSError("the model is gone")

    with contextlib.suppress(OSError):
        for _ in Guard(engine, LENIENT).stream(ASK).texts(failing()):
            pass


_THREADS: dict[str, Callable[[StreamEngine, random.Random], None]] = {
    "finished": _finished,
    "forgotten": _forgotten,
    "forked": _forked,
    "closed early": _closed_early,
    "broken": _broken,
    "left": _left,
    "source fails": _source_fails,
}


def _by_threads(engine: StreamEngine, count: int, seed: int) -> Counter[str]:
    refused = list[int]()

    def one(index: int) -> str:
        choose = random.Random(10_000 * seed + index)
        name = choose.choice(list(_THREADS))
        while True:
            try:
                _THREADS[name](engine, choose)
            except EngineOverloaded:
                refused.append(index)
                time.sleep(0.01)
            else:
                return name

    with ThreadPoolExecutor(AT_ONCE) as pool:
        ends = Counter(pool.map(one, range(count)))
    return ends + Counter({"refused": len(refused)})


# What becomes of a session whose caller is a task.


async def _afinished(engine: StreamEngine, choose: random.Random) -> None:
    with contextlib.closing(await engine.aopen(Conversation.of(ASK))) as session:
        for chunk in _chunks(choose):
            await session.afeed(chunk)
        await session.afinish()


async def _acancelled(engine: StreamEngine, choose: random.Random) -> None:
    """Cancelled wherever it is."""
    task = asyncio.create_task(_aforgotten(engine, choose))
    await asyncio.sleep(choose.choice((0, 0.001, 0.01)))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _aforgotten(engine: StreamEngine, choose: random.Random) -> None:
    session = await engine.aopen(None)
    for chunk in _chunks(choose):
        await session.afeed(chunk)


async def _abroken(engine: StreamEngine, choose: random.Random) -> None:
    session = await engine.aopen(Conversation.of(ASK))
    with contextlib.closing(session), pytest.raises(ConversationError):
        await session.afeed("\udc00")


async def _aleft(engine: StreamEngine, choose: random.Random) -> None:
    """A reader who goes away in the middle, and says so."""
    texts = Guard(engine, LENIENT).stream(ASK).atexts(_aread(choose))
    async with contextlib.aclosing(texts):
        await anext(texts, None)


async def _acut_short(engine: StreamEngine, choose: random.Random) -> None:
    """A reader who is cancelled."""

    async def reading() -> None:
        async for _ in Guard(engine, LENIENT).stream(ASK).atexts(_aread(choose)):
            pass

    task = asyncio.create_task(reading())
    await asyncio.sleep(choose.choice((0, 0.002, 0.01)))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _aread(choose: random.Random) -> AsyncIterator[str]:
    for chunk in _chunks(choose):
        await asyncio.sleep(0)
        yield chunk


_TASKS: dict[str, Callable[[StreamEngine, random.Random], Coroutine[object, object, None]]] = {
    "finished": _afinished,
    "cancelled": _acancelled,
    "forgotten": _aforgotten,
    "broken": _abroken,
    "left": _aleft,
    "cut short": _acut_short,
}


async def _by_tasks(engine: StreamEngine, count: int, seed: int) -> Counter[str]:
    slots = asyncio.Semaphore(AT_ONCE)
    refused = list[int]()

    async def one(index: int) -> str:
        choose = random.Random(10_000 * seed + index)
        name = choose.choice(list(_TASKS))
        async with slots:
            while True:
                try:
                    await _TASKS[name](engine, choose)
                except EngineOverloaded:
                    refused.append(index)
                    await asyncio.sleep(0.01)
                else:
                    return name

    ends = Counter(await asyncio.gather(*map(one, range(count))))
    return ends + Counter({"refused": len(refused)})
