"""An event loop on a thread of its own, for work that threads and other event loops wait for."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet, finalize

from guardrails_qwen.errors import EngineClosed

THREAD = "guardrails-qwen"
"""What the names of all threads with a loop begin with."""

_PATIENCE = 5.0
"""Seconds that the interpreter's exit, or a collected owner, waits for the resource to close."""


class Resource(Protocol):
    """What lives on the loop: connections, for example."""

    async def aclose(self) -> None:
        """Let go of everything."""
        ...


ResourceT = TypeVar("ResourceT", bound=Resource)
Result = TypeVar("Result")


class LoopThread(Generic[ResourceT]):
    """A resource that belongs to one event loop, within reach of every thread and every loop.

    Connections of an asynchronous client are bound to the loop that opened them. Here that loop is
    always the same one, so that both doors of an engine, any number of threads, and event loops
    that come and go share one pool. Context variables of the caller hold in its work.

    The thread starts with the first work and ends with `close()`, with its owner, or with the
    interpreter. A forked child starts afresh.

    Args:
        make: Makes the resource; called on the loop, once. It must not refer to whoever owns this
            object, which would never be collected.
        name: For the thread, behind `guardrails-qwen`.
    """

    def __init__(self, make: Callable[[], ResourceT], *, name: str) -> None:
        self._make = make
        self._name = f"{THREAD} {name}"
        self._closed = False
        self._restart()
        _threads.add(self)

    def _restart(self) -> None:
        self._lock = threading.Lock()
        self._running: _Running[ResourceT] | None = None
        self._finalizer: finalize[Any, Any] | None = None

    def _forget(self) -> None:
        """In a forked child, which has the parent's loop, connections included, but no thread."""
        if self._finalizer is not None:
            self._finalizer.detach()
            _abandoned.append(self._running)
        self._restart()

    def run(self, work: Callable[[ResourceT], Coroutine[Any, Any, Result]]) -> Result:
        """Do work on the loop and wait for it; an interrupt cancels it.

        Raises:
            EngineClosed: After `close()`.
        """
        future = self._submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def arun(self, work: Callable[[ResourceT], Coroutine[Any, Any, Result]]) -> Result:
        """`run`, without blocking the caller's loop; cancelling the caller cancels the work."""
        return await asyncio.wrap_future(self._submit(work))

    def close(self) -> None:
        """Wait for the work that is under way, then close the resource and end the thread."""
        with self._lock:
            self._closed = True
            running, self._running = self._running, None
        if running is not None:
            running.end(None)

    def _submit(self, work: Callable[[ResourceT], Coroutine[Any, Any, Result]]) -> Future[Result]:
        with self._lock:
            if self._closed:
                raise EngineClosed("the engine is closed")
            if self._running is None:
                self._running = _Running(self._make, self._name)
                self._finalizer = finalize(self, self._running.end, _PATIENCE)
            return self._running.submit(work)


class _Running(Generic[ResourceT]):
    """A loop that runs, with its resource. It knows nothing of who uses it."""

    def __init__(self, make: Callable[[], ResourceT], name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._make = make
        self._resource: ResourceT | None = None
        self._ending = False
        self._works = set[asyncio.Task[Any] | None]()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[ResourceT], Coroutine[Any, Any, Result]]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(self._work(work), self._loop)

    def end(self, patience: float | None) -> None:
        """Finish, at most for so many seconds; without effect when it has ended already."""
        if self._ending:
            return
        self._ending = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:  # which may be who collects an owner
            self._thread.join(patience)

    async def _work(self, work: Callable[[ResourceT], Coroutine[Any, Any, Result]]) -> Result:
        task = asyncio.current_task()
        self._works.add(task)
        try:
            if self._resource is None:
                self._resource = self._make()
            return await work(self._resource)
        finally:
            self._works.discard(task)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._finish())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    async def _finish(self) -> None:
        """Let callers have what they wait for; nobody waits for what else there is."""
        while works := [task for task in self._works if task]:
            await asyncio.wait(works)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._resource is not None:
            await self._resource.aclose()


_threads: WeakSet[LoopThread[Any]] = WeakSet()
_abandoned: list[object] = []
"""Loops of a parent process: to collect them would close what the parent still uses."""


def _after_fork() -> None:
    for thread in list(_threads):
        thread._forget()  # pyright: ignore[reportPrivateUsage]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
