"""One event loop for all callers: threads, other loops, forks, and the end of it all."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from guardrails_qwen import EngineClosed
from guardrails_qwen.engines.loop_thread import LoopThread
from tests.engines.remote import eventually

NAME = "a loop of the tests"


class Resource:
    """Remembers who used it, and when it was closed."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.made_in = os.getpid()
        self.used = 0
        self.log = list[str]()

    async def aclose(self) -> None:
        self.log.append("closed")


class Made:
    """Counts the resources that were made."""

    def __init__(self) -> None:
        self.all = list[Resource]()

    def __call__(self) -> Resource:
        self.all.append(Resource())
        return self.all[-1]


@pytest.fixture
def made() -> Made:
    return Made()


@pytest.fixture
def thread(made: Made) -> Iterator[LoopThread[Resource]]:
    thread = LoopThread(made, name=NAME)
    yield thread
    thread.close()
    assert eventually(lambda: not alive())


def alive() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.endswith(NAME)]


async def use(resource: Resource) -> int:
    assert asyncio.get_running_loop() is resource.loop
    await asyncio.sleep(0)
    resource.used += 1
    return resource.used


async def fail(_: Resource) -> None:
    raise ZeroDivisionError


def test_nothing_starts_before_the_first_work(thread: LoopThread[Resource], made: Made) -> None:
    assert not alive()
    assert thread.run(use) == 1
    assert len(alive()) == 1
    assert len(made.all) == 1


def test_threads_and_loops_share_one_resource(thread: LoopThread[Resource], made: Made) -> None:
    def directly(_: int) -> int:
        return thread.run(use)

    def on_a_loop(_: int) -> int:
        return asyncio.run(thread.arun(use))

    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(directly, range(40)), *pool.map(on_a_loop, range(40))]
    assert sorted(found) == list(range(1, 81))
    assert len(made.all) == 1
    assert len(alive()) == 1


def test_what_work_raises_reaches_its_caller_only(thread: LoopThread[Resource]) -> None:
    with pytest.raises(ZeroDivisionError):
        thread.run(fail)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(thread.arun(fail))
    assert thread.run(use) == 1


def test_a_resource_that_cannot_be_made_is_tried_again() -> None:
    attempts = list[int]()

    def make() -> Resource:
        attempts.append(1)
        if len(attempts) == 1:
            raise ConnectionError
        return Resource()

    thread = LoopThread(make, name=NAME)
    with pytest.raises(ConnectionError):
        thread.run(use)
    assert thread.run(use) == 1
    thread.close()


def test_context_variables_of_the_caller_hold(thread: LoopThread[Resource]) -> None:
    variable = contextvars.ContextVar("variable", default="nobody")

    async def read(_: Resource) -> str:
        return variable.get()

    variable.set("somebody")
    assert thread.run(read) == "somebody"
    assert asyncio.run(thread.arun(read)) == "somebody"


def test_cancelling_the_caller_cancels_the_work(thread: LoopThread[Resource]) -> None:
    begun, log = threading.Event(), list[str]()

    async def wait(_: Resource) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            log.append("cancelled")
            raise

    async def give_up() -> None:
        task = asyncio.create_task(thread.arun(wait))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    assert eventually(lambda: log == ["cancelled"])
    assert thread.run(use) == 1


class TestClosing:
    """The end: callers get what they wait for, and nothing stays."""

    def test_it_waits_for_work_and_refuses_more(self, made: Made) -> None:
        thread, begun, go_on = LoopThread(made, name=NAME), threading.Event(), threading.Event()

        async def work(_: Resource) -> str:
            begun.set()
            await asyncio.to_thread(go_on.wait)
            return "done"

        with ThreadPoolExecutor(2) as pool:
            working = pool.submit(thread.run, work)
            begun.wait()
            closing = pool.submit(thread.close)
            assert eventually(lambda: _refuses(thread))
            assert not closing.done()
            assert made.all[0].log == []
            go_on.set()
            assert working.result() == "done"
            closing.result()
        assert made.all[0].log == ["closed"]
        assert not alive()

    def test_what_nobody_waits_for_is_cancelled(self, made: Made) -> None:
        thread = LoopThread(made, name=NAME)
        tasks = list[asyncio.Task[None]]()

        async def leave_behind(_: Resource) -> None:
            tasks.append(asyncio.ensure_future(asyncio.sleep(3600)))

        thread.run(leave_behind)
        thread.close()
        assert tasks[0].cancelled()
        assert made.all[0].log == ["closed"]

    def test_closing_again_or_unused_does_nothing(self, made: Made) -> None:
        thread = LoopThread(made, name=NAME)
        thread.close()
        thread.close()
        with pytest.raises(EngineClosed):
            thread.run(use)
        with pytest.raises(EngineClosed):
            asyncio.run(thread.arun(use))
        assert made.all == []

    def test_many_who_come_while_it_closes_get_an_answer_or_a_refusal(self, made: Made) -> None:
        for _ in range(20):
            _come_while_it_closes(LoopThread(made, name=NAME))
        assert not alive()

    def test_an_owner_that_is_collected_takes_its_thread_along(self, made: Made) -> None:
        thread = LoopThread(made, name=NAME)
        thread.run(use)
        gone = weakref.ref(thread)
        del thread
        gc.collect()
        assert gone() is None
        assert eventually(lambda: not alive())
        assert made.all[0].log == ["closed"]

    def test_an_owner_may_be_collected_on_its_own_thread(
        self, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As when a caller gives up an engine while its work goes on, which holds it last."""
        complaints = list[str]()

        def complain(*_: object) -> None:
            complaints.append("an exception that nobody caught")

        monkeypatch.setattr(sys, "excepthook", complain)
        monkeypatch.setattr(sys, "unraisablehook", complain)
        holder, begun = [LoopThread(made, name=NAME)], threading.Event()

        async def let_go(_: Resource) -> None:
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.2)  # until the caller has let go of it
                holder.clear()
                gc.collect()

        async def give_up() -> None:
            task = asyncio.create_task(holder[0].arun(let_go))
            await asyncio.to_thread(begun.wait)
            task.cancel()
            await asyncio.wait([task])

        asyncio.run(give_up())
        assert eventually(lambda: not alive())
        assert complaints == []
        assert made.all[0].log == ["closed"]


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
class TestForking:
    """A child starts afresh, and the parent does not notice."""

    def test_each_has_its_own_resource(self, thread: LoopThread[Resource], made: Made) -> None:
        thread.run(use)
        told = _in_a_child(lambda: f"{thread.run(use)} {len(made.all)}")
        assert told == "1 2"
        assert thread.run(use) == 2
        assert made.all[0].log == []

    def test_a_child_closes_only_its_own(self, thread: LoopThread[Resource], made: Made) -> None:
        thread.run(use)

        def close() -> str:
            thread.run(use)
            thread.close()
            return f"{made.all[0].log} {made.all[1].log}"

        assert _in_a_child(close) == "[] ['closed']"
        assert thread.run(use) == 2

    def test_a_fork_in_the_middle_of_work(self, thread: LoopThread[Resource]) -> None:
        begun, go_on = threading.Event(), threading.Event()

        async def work(_: Resource) -> str:
            begun.set()
            await asyncio.to_thread(go_on.wait)
            return "done"

        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(thread.run, work)
            begun.wait()
            assert _in_a_child(lambda: str(thread.run(use))) == "1"
            go_on.set()
            assert working.result() == "done"

    def test_closed_before_is_closed_in_the_child(self, thread: LoopThread[Resource]) -> None:
        thread.close()
        assert _in_a_child(lambda: str(_refuses(thread))) == "True"


def _come_while_it_closes(thread: LoopThread[Resource]) -> None:
    start = threading.Barrier(9)

    def come() -> bool:
        start.wait()
        return _refuses(thread)

    def close() -> None:
        start.wait()
        thread.close()

    with ThreadPoolExecutor(9) as pool:
        coming = [pool.submit(come) for _ in range(8)]
        pool.submit(close).result(timeout=30)
        for one in coming:
            one.result(timeout=30)
    assert _refuses(thread)


def _refuses(thread: LoopThread[Resource]) -> bool:
    try:
        thread.run(use)
    except EngineClosed:
        return True
    return False


def _in_a_child(work: Callable[[], str]) -> str:
    """What work says that is done in a forked child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, work().encode())
        except BaseException as error:  # noqa: BLE001  a child must not go on with the tests
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        said = told.read()
    os.waitpid(pid, 0)
    return said
