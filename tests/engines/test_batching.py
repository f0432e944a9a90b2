"""Micro-batching as callers meet it: turns, budgets, overload, cancellation, failures, closing."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails_qwen import (
    EngineClosed,
    EngineError,
    GuardError,
    Severity,
    UnreadableVerdict,
    Verdict,
)
from guardrails_qwen.engines.base import Outcome
from guardrails_qwen.engines.batching import Batcher, Batching
from guardrails_qwen.errors import EngineOverloaded

ROOT = Path(__file__).parents[2]
FOREVER = 3600.0
"""A wait, in seconds, that no test outlives: whoever lingers for it fails by timeout."""


@dataclass(frozen=True)
class Piece:
    """What is judged: a name to trace it by, its size, and whether it makes its batch fail."""

    name: str
    size: int = 1
    bad: bool = False


def pieces(names: str) -> list[Piece]:
    return [Piece(name) for name in names.split()]


def verdict(piece: Piece) -> Verdict:
    """A verdict that says whose it is."""
    return Verdict(severity=Severity.SAFE, model=piece.name)


def names(outcomes: Sequence[Outcome]) -> str:
    return " ".join(
        outcome.model if isinstance(outcome, Verdict) else type(outcome).__name__
        for outcome in outcomes
    )


@dataclass
class Passes:
    """A model that keeps what it was given."""

    error: Callable[[], Exception] = lambda: EngineError("the model failed")
    batches: list[list[Piece]] = field(default_factory=list[list[Piece]])

    def __call__(self, batch: list[Piece]) -> list[Outcome]:
        self.batches.append(batch)
        if any(piece.bad for piece in batch):
            raise self.error()
        return [verdict(piece) for piece in batch]

    @property
    def named(self) -> list[str]:
        return [" ".join(piece.name for piece in batch) for batch in self.batches]


@dataclass
class HeldPasses(Passes):
    """A model whose every pass waits until the test lets it go."""

    started: SimpleQueue[list[Piece]] = field(default_factory=SimpleQueue[list[Piece]])
    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    freed: bool = False

    def __call__(self, batch: list[Piece]) -> list[Outcome]:
        self.started.put(batch)
        if not self.freed:
            self.gate.acquire()
        return super().__call__(batch)

    def begun(self) -> list[Piece]:
        """The batch of the next pass, once it runs."""
        return self.started.get(timeout=60)

    def go(self, passes: int = 1) -> None:
        self.gate.release(passes)

    def free(self) -> None:
        """Hold nothing any more."""
        self.freed = True
        self.go(1000)


def batcher(
    run: Callable[[list[Piece]], list[Outcome]],
    *,
    budget: int = 100,
    wait: float = 0.0,
    capacity: int = 4096,
) -> Batcher[Piece, Verdict]:
    return Batcher(
        run,
        size=lambda piece: piece.size,
        budget=budget,
        settings=Batching(wait=wait, capacity=capacity),
        name="tiny",
    )


def until(condition: Callable[[], object]) -> None:
    """Return once it holds; never, and so by a timeout, where it does not come to hold."""
    tick = threading.Event()
    while not condition():
        tick.wait(0.0005)


Ask = Callable[[Batcher[Piece, Verdict], Sequence[Piece]], list[Outcome]]


@pytest.fixture(params=["judge", "ajudge"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """The two doors, tried in turn."""
    if request.param == "judge":
        return Batcher[Piece, Verdict].judge
    return lambda batcher, items: asyncio.run(batcher.ajudge(items))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Callers in the background."""
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture
def held(pool: ThreadPoolExecutor) -> Iterator[HeldPasses]:
    """Let go before the pool waits for its callers."""
    assert pool
    passes = HeldPasses()
    yield passes
    passes.free()


# Settings


@pytest.mark.parametrize("wait", [-1.0, float("nan"), float("inf"), 1e9])
def test_a_wait_is_a_time_within_reason(wait: float) -> None:
    with pytest.raises(ValueError, match="use seconds from 0 to 3600"):
        Batching(wait=wait)


def test_capacity_and_budget_hold_something() -> None:
    with pytest.raises(ValueError, match="capacity is 0: use at least 1"):
        Batching(capacity=0)
    with pytest.raises(ValueError, match="budget is 0: use at least 1"):
        batcher(Passes(), budget=0)


def test_by_default_a_request_waits_two_milliseconds() -> None:
    assert Batching() == Batching(wait=0.002, capacity=4096)


# Answers


def test_nothing_asked_is_nothing_run(ask: Ask) -> None:
    passes = Passes()
    assert ask(batcher(passes), []) == []
    assert passes.batches == []


def test_outcomes_keep_the_order_over_several_batches(ask: Ask) -> None:
    passes = Passes()
    asked = [Piece(str(i), size=1 + i % 5) for i in range(50)]
    assert ask(batcher(passes, budget=7), asked) == [verdict(piece) for piece in asked]
    assert [piece for batch in passes.batches for piece in batch] == asked


def test_one_that_is_larger_than_the_budget_runs_alone(ask: Ask) -> None:
    passes = Passes()
    asked = [Piece("a", 3), Piece("b", 11), Piece("c", 3), Piece("d", 7)]
    assert names(ask(batcher(passes, budget=10), asked)) == "a b c d"
    assert passes.named == ["a", "b", "c d"]


# Sharing


def test_what_comes_during_a_pass_shares_the_next(
    ask: Ask, held: HeldPasses, pool: ThreadPoolExecutor
) -> None:
    shared = batcher(held)
    first = pool.submit(ask, shared, pieces("a"))
    held.begun()
    others = [pool.submit(ask, shared, pieces(name)) for name in ("b", "c", "d")]
    until(lambda: shared.waiting == 3)
    held.free()
    assert [names(asked.result()) for asked in (first, *others)] == ["a", "b", "c", "d"]
    assert [len(batch) for batch in held.batches] == [1, 3]


def test_a_single_one_does_not_wait_for_a_bulk(
    ask: Ask, held: HeldPasses, pool: ThreadPoolExecutor
) -> None:
    shared = batcher(held, budget=4, capacity=20_000)
    bulk = pool.submit(ask, shared, [Piece(str(i)) for i in range(10_000)])
    held.begun()
    single = pool.submit(ask, shared, pieces("single"))
    until(lambda: shared.waiting == 9_997)
    held.go()
    assert Piece("single") in held.begun()
    held.go()
    assert names(single.result()) == "single"
    assert not bulk.done()
    held.free()
    assert names(bulk.result()).split() == [str(i) for i in range(10_000)]


def test_callers_take_turns(held: HeldPasses, pool: ThreadPoolExecutor) -> None:
    shared = batcher(held, budget=4)
    asked = [pool.submit(shared.judge, pieces("x"))]
    held.begun()
    for i, caller in enumerate(("a1 a2 a3 a4 a5", "b1 b2", "c1 c2 c3"), start=1):
        asked.append(pool.submit(shared.judge, pieces(caller)))
        until(lambda i=i: shared.waiting == (5, 7, 10)[i - 1])
    held.free()
    assert [names(each.result()) for each in asked][1:] == ["a1 a2 a3 a4 a5", "b1 b2", "c1 c2 c3"]
    assert held.named == ["x", "a1 b1 c1 a2", "b2 c2 a3 c3", "a4 a5"]


# Waiting for others


def test_a_lone_caller_never_waits_for_others(ask: Ask) -> None:
    alone = batcher(Passes(), wait=FOREVER)
    for name in ("a", "b", "c"):
        assert names(ask(alone, pieces(name))) == name
    assert names(ask(alone, pieces("d e"))) == "d e"
    assert names(ask(alone, pieces("f"))) == "f"


def share(held: HeldPasses, shared: Batcher[Piece, Verdict], pool: ThreadPoolExecutor) -> None:
    """Run a batch of several callers, after which there is reason to wait for more."""
    asked = [pool.submit(shared.judge, pieces("x"))]
    held.begun()
    asked += [pool.submit(shared.judge, pieces("y")), pool.submit(shared.judge, pieces("z"))]
    until(lambda: shared.waiting == 2)
    held.free()
    assert [names(each.result()) for each in asked] == ["x", "y", "z"]


def test_where_callers_meet_they_wait_until_the_budget_is_full(
    ask: Ask, held: HeldPasses, pool: ThreadPoolExecutor
) -> None:
    shared = batcher(held, wait=FOREVER, budget=3)
    share(held, shared, pool)
    first = pool.submit(ask, shared, [Piece("a")])
    until(lambda: shared.waiting == 1)
    second = pool.submit(ask, shared, [Piece("b", size=2)])
    assert [names(first.result()), names(second.result())] == ["a", "b"]
    assert held.named[-1] == "a b"


def test_one_who_gave_up_fills_no_budget(held: HeldPasses, pool: ThreadPoolExecutor) -> None:
    shared = batcher(held, wait=FOREVER, budget=3)
    share(held, shared, pool)

    async def callers() -> list[list[Outcome]]:
        gives_up = asyncio.create_task(shared.ajudge([Piece("a", size=2)]))
        await asyncio.sleep(0)
        gives_up.cancel()
        await asyncio.wait([gives_up])
        asked = [asyncio.create_task(shared.ajudge([Piece("b")]))]
        await asyncio.sleep(0)
        asked.append(asyncio.create_task(shared.ajudge([Piece("c", size=2)])))
        return await asyncio.gather(*asked)

    assert [names(outcomes) for outcomes in asyncio.run(callers())] == ["b", "c"]
    assert held.named[-1] == "b c"


def test_nobody_waits_longer_than_asked_for(
    ask: Ask, held: HeldPasses, pool: ThreadPoolExecutor
) -> None:
    shared = batcher(held, wait=0.001)
    share(held, shared, pool)
    assert names(ask(shared, pieces("a"))) == "a"


def test_closing_waits_for_no_others(ask: Ask, held: HeldPasses, pool: ThreadPoolExecutor) -> None:
    shared = batcher(held, wait=FOREVER)
    share(held, shared, pool)
    last = pool.submit(ask, shared, pieces("a"))
    until(lambda: shared.waiting == 1)
    shared.close()
    assert names(last.result()) == "a"


# Overload


def test_beyond_capacity_a_request_is_refused_whole_and_told_what_to_do(
    ask: Ask, held: HeldPasses, pool: ThreadPoolExecutor
) -> None:
    shared = batcher(held, capacity=3)
    asked = [pool.submit(ask, shared, pieces("a"))]
    held.begun()
    asked.append(pool.submit(ask, shared, pieces("b c")))
    until(lambda: shared.waiting == 2)
    with pytest.raises(EngineOverloaded) as caught:
        ask(shared, pieces("d e"))
    assert str(caught.value) == (
        "2 conversations wait for tiny, and with 2 more they would pass the capacity of 3: "
        "retry later, raise it, or add an engine"
    )
    assert shared.waiting == 2
    asked.append(pool.submit(ask, shared, pieces("f")))
    until(lambda: shared.waiting == 3)
    held.free()
    assert [names(each.result()) for each in asked] == ["a", "b c", "f"]
    assert held.named == ["a", "b f c"]
    assert names(ask(shared, pieces("d e"))) == "d e"


def test_a_request_that_finds_none_waiting_may_have_any_number(
    ask: Ask, held: HeldPasses, pool: ThreadPoolExecutor
) -> None:
    shared = batcher(held, capacity=1)
    running = pool.submit(ask, shared, pieces("a"))
    held.begun()
    bulk = pool.submit(ask, shared, pieces("b c d e"))
    until(lambda: shared.waiting == 4)
    held.free()
    assert [names(running.result()), names(bulk.result())] == ["a", "b c d e"]
    assert shared.waiting == 0


# Giving up


async def test_a_cancelled_task_takes_along_what_has_not_started(held: HeldPasses) -> None:
    shared = batcher(held, capacity=2)
    running = asyncio.create_task(shared.ajudge(pieces("a")))
    await asyncio.to_thread(held.begun)
    waiting = asyncio.create_task(shared.ajudge(pieces("b c")))
    await asyncio.sleep(0)
    assert shared.waiting == 2
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert shared.waiting == 0
    later = asyncio.create_task(shared.ajudge(pieces("d e")))
    await asyncio.sleep(0)
    held.free()
    assert [names(await running), names(await later)] == ["a", "d e"]
    assert held.named == ["a", "d e"]


async def test_what_a_cancelled_task_has_running_is_finished_and_dropped(
    held: HeldPasses, caplog: pytest.LogCaptureFixture
) -> None:
    shared = batcher(held, budget=2)
    bulk = asyncio.create_task(shared.ajudge(pieces("a b c d")))
    await asyncio.to_thread(held.begun)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(bulk, 0.001)
    held.free()
    assert names(await shared.ajudge(pieces("e"))) == "e"
    assert held.named == ["a b", "e"]
    assert caplog.records == []


@pytest.mark.skipif(sys.platform == "win32", reason="no signal can be sent to a thread there")
def test_an_interrupted_thread_takes_along_what_has_not_started(
    held: HeldPasses, pool: ThreadPoolExecutor
) -> None:
    class Interrupt(BaseException):
        """What Ctrl+C raises in the middle of anything."""

    def interrupt(*_: object) -> None:
        raise Interrupt

    shared = batcher(held)
    running = pool.submit(shared.judge, pieces("a"))
    held.begun()

    def send() -> None:
        until(lambda: shared.waiting == 1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        sent = pool.submit(send)
        with pytest.raises(Interrupt):
            shared.judge(pieces("b"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    sent.result()
    assert shared.waiting == 0
    held.free()
    assert names(running.result()) == "a"
    assert held.named == ["a"]


def test_an_answer_for_a_loop_that_closed_meanwhile_is_dropped_in_silence(
    held: HeldPasses, caplog: pytest.LogCaptureFixture
) -> None:
    shared = batcher(held)

    async def give_up() -> None:
        task = asyncio.create_task(shared.ajudge(pieces("a")))
        await asyncio.to_thread(held.begun)
        task.cancel()

    asyncio.run(give_up())
    held.free()
    assert names(shared.judge(pieces("b"))) == "b"
    assert caplog.records == []


def test_a_loop_that_is_torn_down_under_a_waiting_task_harms_nobody_else(
    held: HeldPasses, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    shared = batcher(held)
    running = pool.submit(shared.judge, pieces("a"))
    held.begun()
    complaints = list[str]()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
    task = loop.create_task(shared.ajudge(pieces("b")))
    loop.run_until_complete(asyncio.sleep(0))
    assert shared.waiting == 1
    loop.close()
    held.free()
    assert names(running.result()) == "a"
    assert names(shared.judge(pieces("c"))) == "c"
    assert shared.waiting == 0
    del task
    gc.collect()
    assert complaints == ["Task was destroyed but it is pending!"]  # asyncio's own, and no other
    assert caplog.records == []


# Failures


@pytest.mark.parametrize("culprit", range(7))
@pytest.mark.parametrize(
    "error",
    [EngineError("the model failed"), UnreadableVerdict(""), ValueError("text"), MemoryError()],
    ids=lambda error: type(error).__name__,
)
def test_one_bad_item_never_fails_its_neighbours(ask: Ask, error: Exception, culprit: int) -> None:
    asked = [Piece(str(i), bad=i == culprit) for i in range(7)]
    outcomes = ask(batcher(Passes(error=lambda: error)), asked)
    failed = outcomes.pop(culprit)
    assert outcomes == [verdict(piece) for piece in asked if not piece.bad]
    if isinstance(error, GuardError):
        assert failed is error
    else:
        assert type(failed) is GuardError
        assert str(failed) == f"the engine failed: {type(error).__name__}"
        assert failed.__cause__ is error


def test_two_callers_in_a_batch_that_fails_get_each_their_own(
    ask: Ask, held: HeldPasses, pool: ThreadPoolExecutor
) -> None:
    shared = batcher(held)
    first = pool.submit(ask, shared, pieces("x"))
    held.begun()
    bad = pool.submit(ask, shared, [Piece("a"), Piece("b", bad=True), Piece("c")])
    good = pool.submit(ask, shared, pieces("d e"))
    until(lambda: shared.waiting == 5)
    held.free()
    assert names(first.result()) == "x"
    assert names(bad.result()) == "a EngineError c"
    assert names(good.result()) == "d e"


def test_an_engine_that_is_closed_is_not_asked_again(ask: Ask) -> None:
    passes = Passes(error=lambda: EngineClosed("the engine is closed"))
    outcomes = ask(batcher(passes), [Piece("a"), Piece("b", bad=True), Piece("c")])
    assert names(outcomes) == "EngineClosed EngineClosed EngineClosed"
    assert len({id(outcome) for outcome in outcomes}) == 3
    assert passes.named == ["a b c"]


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_wrong_number_of_outcomes_is_an_error_and_never_a_shifted_verdict(
    ask: Ask, count: int
) -> None:
    def run(batch: list[Piece]) -> list[Outcome]:
        return [verdict(Piece("whose?"))] * (count if len(batch) == 3 else 0)

    outcomes = ask(batcher(run), pieces("a b c"))
    assert names(outcomes) == "EngineError EngineError EngineError"
    assert str(outcomes[0]) == "the engine returned 0 outcomes for 1 items"


@pytest.mark.parametrize("budget", [2, 3], ids=["half a request runs", "all of one runs"])
def test_when_the_worker_ends_nobody_waits_forever(
    ask: Ask, budget: int, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go = threading.Event(), threading.Event()

    def run(_: list[Piece]) -> list[Outcome]:
        begun.set()
        go.wait()
        raise SystemExit

    shared = batcher(run, budget=budget)
    asked = [pool.submit(ask, shared, pieces("a b c"))]
    begun.wait()
    asked += [pool.submit(ask, shared, pieces(name)) for name in ("d", "e")]
    until(lambda: shared.waiting == 5 - budget)
    go.set()
    errors = [each.exception() for each in asked]
    with pytest.raises(EngineError) as later:
        ask(shared, pieces("f"))
    for error in (*errors, later.value):
        assert str(error) == "the worker of tiny ended (SystemExit): load the engine anew"
        assert isinstance(error, EngineError)
        assert isinstance(error.__cause__, SystemExit)
    assert len({id(error) for error in errors}) == 3
    assert shared.waiting == 0
    assert [record.getMessage() for record in caplog.records] == [
        "the worker of tiny ended: SystemExit"
    ]
    shared.close()


def test_where_no_thread_can_be_started_the_caller_is_told(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        if thread.name == "guardrails-qwen tiny":
            raise RuntimeError("can't start new thread")
        original(thread)

    original = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    shared = batcher(Passes())
    with pytest.raises(EngineError, match="no thread could be started"):
        ask(shared, pieces("a"))
    assert shared.waiting == 0
    monkeypatch.undo()
    assert names(ask(shared, pieces("b"))) == "b"


# Closing


def test_closing_answers_those_who_wait_and_refuses_those_who_come(
    ask: Ask, held: HeldPasses, pool: ThreadPoolExecutor
) -> None:
    shared = batcher(held, budget=1)
    asked = [pool.submit(ask, shared, pieces("a"))]
    held.begun()
    asked.append(pool.submit(ask, shared, pieces("b c")))
    until(lambda: shared.waiting == 2)
    closing = [pool.submit(shared.close) for _ in range(3)]
    until(lambda: repr(shared) == "Batcher('tiny', closed)")
    with pytest.raises(EngineClosed, match="the engine is closed"):
        ask(shared, pieces("d"))
    assert not any(each.done() for each in closing)
    held.free()
    for each in closing:
        each.result()
    assert held.named == ["a", "b", "c"]
    assert [names(each.result()) for each in asked] == ["a", "b c"]
    shared.close()


def test_what_was_never_asked_is_closed_at_once(ask: Ask) -> None:
    unused = batcher(Passes())
    unused.close()
    with pytest.raises(EngineClosed):
        ask(unused, pieces("a"))


def test_a_pass_may_close_what_runs_it(ask: Ask) -> None:
    def run(batch: list[Piece]) -> list[Outcome]:
        shared.close()
        return [verdict(piece) for piece in batch]

    shared = batcher(run, budget=1)
    assert names(ask(shared, pieces("a b"))) == "a b"
    shared.close()
    with pytest.raises(EngineClosed):
        ask(shared, pieces("c"))


def test_what_is_let_go_without_closing_goes(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guardrails_qwen.engines.batching._IDLE", 0.0)
    unclosed = batcher(Passes())
    assert names(ask(unclosed, pieces("a"))) == "a"
    assert names(ask(unclosed, pieces("b"))) == "b"
    reference = weakref.ref(unclosed)
    del unclosed
    until(lambda: gc.collect() >= 0 and reference() is None)


# Processes

SCRIPT = """
import atexit, os, sys, threading
from guardrails_qwen import Severity, Verdict
from guardrails_qwen.engines.batching import Batcher

begun, go = threading.Event(), threading.Event()

def run(batch):
    if "hold" in batch:
        begun.set()
        go.wait()
        print("finished", flush=True)
    return [Verdict(severity=Severity.SAFE, model=item) for item in batch]

batcher = Batcher(run, size=len, budget=9, name="tiny")
print(batcher.judge(["parent"])[0].model, flush=True)
"""


def script(rest: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT + rest],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
def test_a_forked_child_starts_afresh_whatever_its_parent_was_doing() -> None:
    assert script("""
threading.Thread(target=batcher.judge, args=[["hold"]]).start()
begun.wait()
threading.Thread(target=batcher.judge, args=[["waits"]]).start()
while batcher.waiting != 1: pass
child = os.fork()
if not child:
    print(batcher.waiting, batcher.judge(["child"])[0].model, flush=True)
    batcher.close()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
go.set()
""").split() == ["parent", "0", "child", "7", "finished"]


def test_the_exit_of_the_interpreter_lets_a_pass_finish_and_does_not_hang() -> None:
    assert script("""
threading.Thread(target=batcher.judge, args=[["hold"]], daemon=True).start()
begun.wait()
atexit.register(go.set)
""").split() == ["parent", "finished"]


# Laws


def test_five_hundred_callers_share_passes() -> None:
    passes = Passes()
    shared = batcher(passes, budget=64, wait=0.002)
    at_once = threading.Barrier(251)

    def call(i: int) -> str:
        at_once.wait()
        return names(shared.judge(pieces(f"thread{i}")))

    async def tasks() -> list[list[Outcome]]:
        await asyncio.to_thread(at_once.wait)
        return await asyncio.gather(*(shared.ajudge(pieces(f"task{i}")) for i in range(250)))

    with ThreadPoolExecutor(250) as pool:
        threads = [pool.submit(call, i) for i in range(250)]
        answers = asyncio.run(tasks())
        assert [each.result() for each in threads] == [f"thread{i}" for i in range(250)]
    assert [names(answer) for answer in answers] == [f"task{i}" for i in range(250)]
    run = [piece.name for batch in passes.batches for piece in batch]
    assert len(run) == len(set(run)) == 500
    assert max(len(batch) for batch in passes.batches) <= 64
    assert shared.waiting == 0
    shared.close()


@dataclass
class Model:
    """What the batcher should do, written as plainly as possible."""

    budget: int
    capacity: int
    waiting: list[tuple[int, list[Piece]]] = field(default_factory=list[tuple[int, list[Piece]]])
    bulks: set[int] = field(default_factory=set[int])

    @property
    def count(self) -> int:
        return sum(len(items) for _, items in self.waiting)

    @property
    def counted(self) -> int:
        most = (self.capacity + 1) // 2
        return sum(
            min(len(items), most) if caller in self.bulks else len(items)
            for caller, items in self.waiting
        )

    def ask(self, caller: int, items: list[Piece]) -> bool:
        """Whether the request is accepted."""
        if self.waiting and self.counted + len(items) > self.capacity:
            return False
        if len(items) > self.capacity:
            self.bulks.add(caller)
        self.waiting.append((caller, list(items)))
        return True

    def cancel(self, caller: int) -> None:
        self.waiting = [(who, items) for who, items in self.waiting if who != caller]

    def batch(self) -> list[Piece]:
        taken = list[Piece]()
        while self.waiting:
            caller, items = self.waiting[0]
            if taken and sum(piece.size for piece in taken) + items[0].size > self.budget:
                break
            taken.append(items[0])
            rest = [(caller, items[1:])] if items[1:] else []
            self.waiting = self.waiting[1:] + rest
        return taken


Step = list[int] | int | None
"""A request with items of these sizes, the cancellation of a request, or the end of a pass."""

steps = st.lists(
    st.one_of(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 15), st.none()),
    max_size=40,
)


@settings(max_examples=150)
@given(steps=steps, budget=st.integers(1, 8), capacity=st.integers(1, 12))
def test_it_does_what_a_plain_model_of_it_does(
    steps: list[Step], budget: int, capacity: int
) -> None:
    held = HeldPasses()
    shared = batcher(held, budget=budget, capacity=capacity)
    asyncio.run(follow(steps, held, shared, Model(budget, capacity)))
    shared.close()


async def follow(
    steps: list[Step], held: HeldPasses, shared: Batcher[Piece, Verdict], model: Model
) -> None:
    """Take each step with the batcher and with the model, and compare."""
    asked = dict[int, tuple[list[Piece], asyncio.Task[list[Outcome]]]]()
    refused, cancelled = set[int](), set[int]()
    running = False
    for i, step in enumerate(steps):
        if isinstance(step, list):
            items = [Piece(f"{i}.{j}", size) for j, size in enumerate(step)]
            asked[i] = items, asyncio.create_task(shared.ajudge(items))
            refused |= set() if model.ask(i, items) else {i}
            await asyncio.sleep(0)
        elif step is None and running:
            held.go()
            running = False
        elif step in asked and not asked[step][1].done():
            model.cancel(step)
            cancelled.add(step)
            asked[step][1].cancel()
            await asyncio.wait([asked[step][1]])
        if not running and model.waiting:
            assert await asyncio.to_thread(held.begun) == model.batch()
            running = True
        assert shared.waiting == model.count
    held.free()
    for caller, (items, task) in asked.items():
        if caller in refused:
            with pytest.raises(EngineOverloaded):
                await task
        elif caller in cancelled:
            with suppress(asyncio.CancelledError):  # it may have been answered just before
                assert await task == [verdict(piece) for piece in items]
        else:
            assert await task == [verdict(piece) for piece in items]
    assert shared.waiting == 0


@dataclass(frozen=True)
class Caller:
    """One who asks, through which door, and after how many passes they give up."""

    items: tuple[Piece, ...]
    task: bool
    gives_up: int | None


@st.composite
def crowds(draw: st.DrawFn) -> list[Caller]:
    crowd = list[Caller]()
    for i in range(draw(st.integers(0, 12))):
        items = [
            Piece(f"{i}.{j}", size, bad=draw(st.integers(0, 6)) == 6)
            for j, size in enumerate(draw(st.lists(st.integers(1, 5), max_size=8)))
        ]
        task = draw(st.booleans())
        gives_up = draw(st.none() | st.integers(0, 6)) if task else None
        crowd.append(Caller(tuple(items), task, gives_up))
    return crowd


@settings(max_examples=100)
@given(callers=crowds(), budget=st.integers(1, 12), wait=st.sampled_from([0.0, 0.0005]))
def test_threads_and_tasks_that_fail_and_give_up_get_their_own_or_nothing(
    callers: list[Caller], budget: int, wait: float
) -> None:
    passes = Passes()
    shared = batcher(run := Interrupting(passes), budget=budget, wait=wait)
    answers = asyncio.run(everybody(callers, shared, run))
    shared.close()
    for caller, answer in zip(callers, answers, strict=True):
        if answer is None:
            assert caller.gives_up is not None
        else:
            expected = ["EngineError" if piece.bad else piece.name for piece in caller.items]
            assert names(answer).split() == expected
    for batch in passes.batches:
        assert len(batch) == 1 or sum(piece.size for piece in batch) <= budget
    judged = [p.name for batch in passes.batches if not any(p.bad for p in batch) for p in batch]
    assert len(judged) == len(set(judged))
    assert shared.waiting == 0


@dataclass
class Interrupting:
    """A model during whose passes callers give up."""

    passes: Passes
    give_up: Callable[[int], None] = lambda _: None

    def __call__(self, batch: list[Piece]) -> list[Outcome]:
        self.give_up(len(self.passes.batches))
        return self.passes(batch)


async def everybody(
    callers: list[Caller], shared: Batcher[Piece, Verdict], run: Interrupting
) -> list[list[Outcome] | None]:
    """What each caller gets, all at once; nothing for one who gave up."""
    loop = asyncio.get_running_loop()
    asked = [
        asyncio.ensure_future(
            shared.ajudge(caller.items)
            if caller.task
            else asyncio.to_thread(shared.judge, caller.items)
        )
        for caller in callers
    ]

    def give_up(count: int) -> None:
        for caller, each in zip(callers, asked, strict=True):
            if caller.gives_up == count:
                loop.call_soon_threadsafe(each.cancel)

    run.give_up = give_up
    got = await asyncio.gather(*asked, return_exceptions=True)
    return [each if isinstance(each, list) else gone(each) for each in got]


def gone(error: BaseException) -> None:
    assert isinstance(error, asyncio.CancelledError)
