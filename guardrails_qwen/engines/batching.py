"""Micro-batching: concurrent callers, threads and tasks alike, share forward passes."""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from guardrails_qwen.engines.base import failure
from guardrails_qwen.errors import EngineClosed, EngineError, EngineOverloaded, GuardError

logger = logging.getLogger("guardrails_qwen")

Item = TypeVar("Item")
Answer = TypeVar("Answer")
"""What becomes of an item, if nothing goes wrong: a verdict, mostly."""

_IDLE = 30.0
"""Seconds without requests after which the worker ends; the next request starts another. A worker
that stayed would keep an engine alive that was let go without `close()`."""

_PATIENCE = 10.0
"""Seconds that the interpreter's exit waits for a batch that runs. A thread that is still in native
code when the interpreter goes takes the whole process down with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How concurrent callers share forward passes."""

    wait: float = 0.002
    """Seconds that a request waits at most for others to join; 0 to 3,600. A lone caller, behind
    whom no other came last time, never waits."""
    capacity: int = 4096
    """Conversations that may wait at once; what goes beyond raises `EngineOverloaded`. A request
    that finds none waiting may have any number, and counts as half the capacity if it has more."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.wait) and 0 <= self.wait <= 3600):
            raise ValueError(f"wait is {self.wait}: use seconds from 0 to 3600, 0.002 for 2 ms")
        if self.capacity < 1:
            raise ValueError(f"capacity is {self.capacity}: use at least 1")


class Batcher(Generic[Item, Answer]):
    """Gathers the items of all callers into batches and runs them on one thread, batch by batch.

    Callers take turns, one item each, so that a bulk of thousands does not starve a single one. A
    batch that fails is halved and run again until the item at fault is alone: its outcome is the
    error, and its neighbours get theirs. A caller that gives up (a cancelled task, an interrupt)
    takes what has not started with it, and what has is finished and dropped.

    Safe to use from any number of threads and event loops. In a forked child it starts afresh.

    Args:
        run: Judges a batch: one answer or error for each item, in order. Anything that it raises,
            or a wrong number of outcomes, counts as the failure of that batch.
        size: What an item takes of the budget, in tokens for example; at least 1.
        budget: What a batch holds at most; a larger item runs alone.
        settings: How long requests wait for one another, and how many may.
        name: The model's, for messages and for the thread.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], list[Answer | GuardError]],
        *,
        size: Callable[[Item], int],
        budget: int,
        settings: Batching = Batching(),
        name: str,
    ) -> None:
        if budget < 1:
            raise ValueError(f"budget is {budget}: use at least 1")
        self._run = run
        self._size = size
        self._budget = budget
        self._settings = settings
        self._name = name
        self._closed = False
        self._broken: BaseException | None = None
        self._restart()
        _batchers.add(self)

    def _restart(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._queue = _Queue[Item, Answer]()
        self._worker: threading.Thread | None = None
        self._shared = False
        self._free = 0.0

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.waiting} waiting"
        return f"Batcher({self._name!r}, {state})"

    @property
    def waiting(self) -> int:
        """How many items wait; those that run now are not among them."""
        with self._changed:
            return self._queue.waiting

    def judge(
        self, items: Sequence[Item], *, conversations: int | None = None
    ) -> list[Answer | GuardError]:
        """One outcome for each item, in order; blocks until all are there.

        Args:
            items: What to run.
            conversations: How many they stand for, where a long one became many items: that is
                what counts towards the capacity. By default each item is one.

        Raises:
            EngineOverloaded: Too many wait already.
            EngineClosed: After `close()`.
            EngineError: The worker ended, or could not start.
        """
        with self._asked(items, conversations) as answer:
            return answer.result()

    async def ajudge(
        self, items: Sequence[Item], *, conversations: int | None = None
    ) -> list[Answer | GuardError]:
        """As `judge`, without blocking the event loop."""
        with self._asked(items, conversations) as answer:
            await _done(answer)
            return answer.result()

    def close(self) -> None:
        """Refuse new requests and wait until those that are there are answered."""
        worker = self._refuse_all()
        if worker and worker is not threading.current_thread():
            worker.join()

    def _quit(self) -> None:
        """Refuse new requests, give up those that wait, await what runs: for a while only."""
        worker = self._refuse_all()
        with self._changed:
            lost = self._queue.clear()
        _fail(lost, lambda: EngineClosed("the interpreter exits"))
        if worker and worker is not threading.current_thread():
            worker.join(_PATIENCE)

    def _refuse_all(self) -> threading.Thread | None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return self._worker

    # A caller's side

    @contextmanager
    def _asked(
        self, items: Sequence[Item], conversations: int | None
    ) -> Generator[Future[list[Answer | GuardError]]]:
        """The answer to come; whoever leaves before it is there withdraws what has not started."""
        request = _Request[Item, Answer](
            items=list(items),
            sizes=[self._size(item) for item in items],
            weight=min(len(items), conversations or len(items)),
        )
        if not request.items:
            request.answer.set_result([])
        try:
            if request.items:
                self._enter(request)
            yield request.answer
        finally:
            if not request.answer.done():
                with self._changed:
                    self._queue.leave(request)

    def _enter(self, request: _Request[Item, Answer]) -> None:
        with self._changed:
            self._admit(request.weight)
            self._start()
            self._queue.enter(request)
            if self._queue.requests == 1 or self._queue.load >= self._budget:
                self._changed.notify()

    def _admit(self, new: int) -> None:
        if self._broken:
            raise self._gone()
        if self._closed:
            raise EngineClosed("the engine is closed")
        waiting, capacity = self._queue.waiting, self._settings.capacity
        if waiting and waiting + new > capacity:
            waiting = self._queue.conversations(capacity)
        if waiting and waiting + new > capacity:
            raise EngineOverloaded(
                f"{waiting} conversations wait for {self._name}, and with {new} more they would "
                f"pass the capacity of {capacity}: retry later, raise it, or add an engine"
            )

    def _start(self) -> None:
        if self._worker:
            return
        self._worker = threading.Thread(
            target=self._work, name=f"guardrails-qwen {self._name}", daemon=True
        )
        try:
            self._worker.start()
        except BaseException as error:
            self._worker = None  # should it have started after all, it sees that it is not wanted
            if isinstance(error, RuntimeError):
                raise EngineError("no thread could be started to run the model") from error
            raise

    # The worker's side

    def _work(self) -> None:
        batch: list[_Turn[Item, Answer]] = []
        try:
            while batch := self._next():
                self._answer(batch)
                batch.clear()  # an idle worker keeps no text
        except BaseException as error:  # noqa: BLE001 (whatever ends it, nobody waits forever)
            self._break(error, batch)

    def _next(self) -> list[_Turn[Item, Answer]]:
        """The next batch, once there is one; an empty one ends the worker."""
        with self._changed:
            if self._worker is not threading.current_thread():
                return []
            self._free = time.monotonic()
            self._changed.wait_for(lambda: self._queue.requests or self._closed, _IDLE)
            self._linger()
            batch = self._queue.take(self._budget)
            self._shared = len({id(request) for request, _ in batch}) > 1
            if not batch:
                self._worker = None
            return batch

    def _linger(self) -> None:
        """Wait for others to join, where the last batch shows that there are others.

        They get their answers at once and ask again at once: so the time counts from then.
        """
        if self._shared and 0 < self._queue.load < self._budget:
            until = max(self._queue.oldest, self._free) + self._settings.wait
            self._changed.wait_for(
                lambda: self._queue.load >= self._budget or self._closed,
                until - time.monotonic(),
            )

    def _answer(self, batch: list[_Turn[Item, Answer]]) -> None:
        outcomes = self._judged([item for _, item in batch])
        for (request, _), outcome in zip(batch, outcomes, strict=True):
            request.receive(outcome)

    def _judged(self, items: list[Item]) -> list[Answer | GuardError]:
        """One outcome for each item; a batch that fails is halved until the culprit is alone."""
        try:
            return _complete(self._run(items), len(items))
        except EngineClosed as error:
            return [EngineClosed(*error.args) for _ in items]
        except Exception as error:  # noqa: BLE001 (a bug too spares the neighbours)
            if len(items) == 1:
                return [failure(error)]
        middle = len(items) // 2
        return [*self._judged(items[:middle]), *self._judged(items[middle:])]

    def _break(self, error: BaseException, batch: list[_Turn[Item, Answer]]) -> None:
        logger.error("the worker of %s ended: %s", self._name, type(error).__name__)
        with self._changed:
            self._broken = error
            self._worker = None
            lost = [*(request for request, _ in batch), *self._queue.clear()]
        _fail(lost, self._gone)

    def _gone(self) -> EngineError:
        reason = type(self._broken).__name__
        error = EngineError(f"the worker of {self._name} ended ({reason}): load the engine anew")
        error.__cause__ = self._broken
        return error


@dataclass(slots=True, eq=False, kw_only=True)
class _Request(Generic[Item, Answer]):
    """One call: its items, which start in order and are answered in order."""

    items: list[Item]
    sizes: list[int]
    weight: int
    """Conversations."""
    arrived: float = field(default_factory=time.monotonic)
    started: int = 0
    outcomes: list[Answer | GuardError] = field(default_factory=list[Answer | GuardError])
    answer: Future[list[Answer | GuardError]] = field(
        default_factory=Future[list[Answer | GuardError]]
    )

    @property
    def left(self) -> int:
        """Conversations that have not started, rounded up."""
        return -(-self.weight * (len(self.items) - self.started) // len(self.items))

    def receive(self, outcome: Answer | GuardError) -> None:
        self.outcomes.append(outcome)
        if len(self.outcomes) == len(self.items):
            self.answer.set_result(self.outcomes)


_Turn = tuple[_Request[Item, Answer], Item]
"""One item in a batch, and whose it is."""


class _Queue(Generic[Item, Answer]):
    """Requests with items that wait, served in turns. It knows no threads."""

    def __init__(self) -> None:
        self._turns = OrderedDict[_Request[Item, Answer], None]()
        self.waiting = 0
        """Items."""
        self.load = 0
        """Their sizes together."""

    @property
    def requests(self) -> int:
        return len(self._turns)

    @property
    def oldest(self) -> float:
        """When the request arrived that has waited longest."""
        return min(request.arrived for request in self._turns)

    def conversations(self, capacity: int) -> int:
        """How many wait, where a request of more than the capacity counts as half of it at most."""
        half = (capacity + 1) // 2
        return sum(
            min(request.left, half) if request.weight > capacity else request.left
            for request in self._turns
        )

    def enter(self, request: _Request[Item, Answer]) -> None:
        self._turns[request] = None
        self.waiting += len(request.items)
        self.load += sum(request.sizes)

    def leave(self, request: _Request[Item, Answer]) -> None:
        """Forget what has not started of a request, if anything."""
        if request in self._turns:
            del self._turns[request]
            self.waiting -= len(request.items) - request.started
            self.load -= sum(request.sizes[request.started :])

    def take(self, budget: int) -> list[_Turn[Item, Answer]]:
        """The next items, one of each request in turn, until the budget is full."""
        batch: list[_Turn[Item, Answer]] = []
        room = budget
        while self._turns:
            request = next(iter(self._turns))
            size = request.sizes[request.started]
            if batch and size > room:
                break
            batch.append((request, request.items[request.started]))
            room -= size
            self.load -= size
            self.waiting -= 1
            request.started += 1
            self._turns.move_to_end(request)
            if request.started == len(request.items):
                del self._turns[request]
        return batch

    def clear(self) -> list[_Request[Item, Answer]]:
        """Forget all; who they were."""
        lost = list(self._turns)
        for request in lost:
            self.leave(request)
        return lost


async def _done(answer: Future[Any]) -> None:
    """Return once the answer is there, whatever it is."""
    loop = asyncio.get_running_loop()
    there = asyncio.Event()

    def tell(_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(there.set)

    answer.add_done_callback(tell)
    await there.wait()


def _complete(outcomes: list[Answer | GuardError], expected: int) -> list[Answer | GuardError]:
    if len(outcomes) != expected:
        raise EngineError(f"the engine returned {len(outcomes)} outcomes for {expected} items")
    return outcomes


def _fail(requests: Sequence[_Request[Any, Any]], error: Callable[[], EngineError]) -> None:
    """Answer with an error, one for each, since whoever raises it adds a traceback to it."""
    for request in requests:
        if not request.answer.done():
            request.answer.set_exception(error())


_batchers: WeakSet[Batcher[Any, Any]] = WeakSet()


def _exit() -> None:
    for batcher in list(_batchers):
        batcher._quit()  # pyright: ignore[reportPrivateUsage]


def _after_fork() -> None:
    """Forget the parent's requests, its worker, and locks that it may have held."""
    for batcher in list(_batchers):
        batcher._restart()  # pyright: ignore[reportPrivateUsage]


atexit.register(_exit)
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
