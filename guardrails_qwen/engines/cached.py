"""An engine that judges nothing twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import guardrails_qwen
from guardrails_qwen.conversation import Conversation, Message
from guardrails_qwen.engines.base import Engine, Outcome
from guardrails_qwen.engines.closing import Closing
from guardrails_qwen.engines.single_flight import Flight, Flights, awaited, waited
from guardrails_qwen.engines.verdict_store import MemoryStore, VerdictStore
from guardrails_qwen.errors import EngineClosed, EngineError
from guardrails_qwen.verdict import Verdict

logger = logging.getLogger("guardrails_qwen")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """How conversations came by their outcomes, and how often the store failed."""

    hits: int = 0
    """Answered from the store."""
    misses: int = 0
    """Handed to the engine."""
    shared: int = 0
    """Answered by what the engine said to an equal conversation at the same time: in the same
    batch, or of another caller."""
    errors: int = 0
    """Failures of the store."""

    @property
    def hit_rate(self) -> float:
        """The share of conversations that cost no computation, in 0 … 1; 0 where none was asked."""
        free = self.hits + self.shared
        return free / (free + self.misses) if free else 0.0

    def __add__(self, other: CacheStats) -> CacheStats:
        return CacheStats(
            hits=self.hits + other.hits,
            misses=self.misses + other.misses,
            shared=self.shared + other.shared,
            errors=self.errors + other.errors,
        )


@dataclass(frozen=True, slots=True)
class _Read:
    """Look keys up; answered with the verdicts found."""

    keys: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Write:
    """Keep verdicts; answered with nothing of interest."""

    verdicts: Mapping[str, Verdict]


@dataclass(frozen=True, slots=True)
class _Judge:
    """Ask the engine; answered with its outcomes."""

    conversations: Sequence[Conversation]


@dataclass(frozen=True, slots=True)
class _Wait:
    """Wait for other callers; answered with what has landed in time."""

    flights: Mapping[str, Flight]


_Step = _Read | _Write | _Judge | _Wait
_Steps = Generator[_Step, Any, list[Outcome]]
"""A judgement in progress: it yields what has to be done and is sent the answer. It knows neither
threads nor event loops; the doors drive it."""


_REST = 5.0
"""Seconds that a slow store is left alone for after it failed."""


class CachedEngine(Closing):
    """An engine that keeps verdicts, and computes equal conversations at equal times once.

    It holds verdicts, not decisions, so it outlives any change of policy. Errors are never kept.
    The key is the engine's fingerprint, read at every call, and all that a model is given of the
    conversation. A verdict from the store is the one that was put there, except for its cost: no
    `tokens`, and as `seconds` the time that finding it took.

    A store that fails never fails a judgement: what it does not find is computed.

    Args:
        engine: Who judges what is not known.
        store: Where verdicts are kept; a `MemoryStore` by default.
        patience: How long a call waits for another that is judging the same, in seconds. Then it
            judges for itself, so that a caller that hangs takes nobody with it.
    """

    def __init__(
        self, engine: Engine, store: VerdictStore | None = None, *, patience: float = 60.0
    ) -> None:
        if not patience >= 0:
            raise ValueError(f"patience is {patience}: use 0 seconds or more")
        self.engine = engine
        self.store: VerdictStore = MemoryStore() if store is None else store
        self._patience = patience
        self._stats = CacheStats()
        self._closed = False
        self._rested = 0.0
        self._restart()
        _cached.add(self)

    def _restart(self) -> None:
        self._flights = Flights()
        self._lock = threading.Lock()
        # Not the loop's own executor: its threads may all be waiting for a task of that loop.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="guardrails-qwen-cache")

    def __repr__(self) -> str:
        return f"CachedEngine({self.engine!r}, {self.store!r})"

    @property
    def name(self) -> str:
        """The model, by the name that people know it by."""
        return self.engine.name

    @property
    def fingerprint(self) -> str:
        """The model, exactly, as of now."""
        return self.engine.fingerprint

    @property
    def demonstration(self) -> bool:
        """Whether the engine says that it is a demonstration, which protects nobody."""
        return bool(getattr(self.engine, "demonstration", False))

    @property
    def stats(self) -> CacheStats:
        """All calls so far."""
        return self._stats

    def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """Judge a batch; blocks until done.

        Raises:
            EngineClosed: After `close()`.
            Exception: What the engine raises; other callers are spared it.
        """
        with closing(self._steps(conversations)) as steps:
            try:
                step = next(steps)
                while True:
                    step = steps.send(self._done(step))
            except StopIteration as finished:
                return finished.value

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """`judge`, without blocking the event loop."""
        with closing(self._steps(conversations)) as steps:
            try:
                step = next(steps)
                while True:
                    step = steps.send(await self._adone(step))
            except StopIteration as finished:
                return finished.value

    def close(self) -> None:
        """Close the engine and the store. Later calls raise `EngineClosed`."""
        self._let_go()
        close = getattr(self.engine, "close", None)
        if close is not None:
            close()

    async def aclose(self) -> None:
        """`close`, through the engine's `aclose` where it has one."""
        aclose = getattr(self.engine, "aclose", None)
        if aclose is None:
            return self.close()
        self._let_go()
        return await aclose()

    def _let_go(self) -> None:
        with self._lock:
            already, self._closed = self._closed, True
        if already:
            return
        if self.store.blocking:
            self._worker.submit(self.store.close)  # a connection belongs to its thread
        self._worker.shutdown(wait=False)
        self.store.close()

    def _steps(self, conversations: Sequence[Conversation]) -> _Steps:
        """Whatever nobody else has in hand is computed, then what others have is waited for.

        In this order no two callers can wait for each other: who waits has nothing in hand. Who is
        let down, because the other failed or was cancelled, takes over, and all who wait with it
        wait once more; who is let down twice waits no longer, so that the many callers of an
        engine that is slow to fail do not fail one after another.
        """
        if self._closed:
            raise EngineClosed("the engine is closed")
        batch = _Batch(conversations, self.fingerprint)
        rounds = 2
        while wanted := batch.unanswered():
            mine, others = self._flights.claim(wanted, wait=rounds > 0)
            yield from self._lead(batch, [key for key in wanted if key not in others], mine)
            landed: dict[str, Verdict | None] = (yield _Wait(others)) if others else {}
            self._answer(batch, {key: verdict for key, verdict in landed.items() if verdict})
            rounds = rounds - 1 if len(landed) == len(others) else 0
        return batch.results()

    def _lead(
        self, batch: _Batch, keys: Sequence[str], claims: dict[str, Flight]
    ) -> Generator[_Step, Any, None]:
        """Find out about keys; of the claims among them, others learn what can be told."""
        known: dict[str, Verdict] = {}
        try:
            known = (yield _Read(keys)) if keys else {}
            batch.answer_known(known)
            self._count(hits=batch.times(known))
            self._flights.land(claims, known)
            if missing := [key for key in keys if key not in known]:
                self._count(misses=len(missing), shared=batch.times(missing) - len(missing))
                asked = [batch.conversations[key] for key in missing]
                outcomes = _complete(asked, (yield _Judge(asked)))
                batch.answer_computed(dict(zip(missing, outcomes, strict=True)))
                known = self._shareable(batch, missing)
                if known:
                    yield _Write(known)
        finally:
            self._flights.land(claims, known)
            self._flights.land(claims, dict.fromkeys(claims))

    def _answer(self, batch: _Batch, verdicts: Mapping[str, Verdict]) -> None:
        batch.answer_known(verdicts)
        self._count(shared=batch.times(verdicts))

    def _shareable(self, batch: _Batch, keys: Iterable[str]) -> dict[str, Verdict]:
        """The verdicts among outcomes, unless they may be another model's than the key says."""
        if self.fingerprint != batch.fingerprint:
            return {}
        outcomes = ((key, batch.outcomes[key]) for key in keys)
        return {key: outcome for key, outcome in outcomes if isinstance(outcome, Verdict)}

    def _done(self, step: _Step) -> object:
        if isinstance(step, _Judge):
            return self.engine.judge(step.conversations)
        if isinstance(step, _Wait):
            return waited(step.flights, self._patience)
        return self._stored(step)

    async def _adone(self, step: _Step) -> object:
        if isinstance(step, _Judge):
            return await self.engine.ajudge(step.conversations)
        if isinstance(step, _Wait):
            return await awaited(step.flights, self._patience)
        if not self.store.blocking:
            return self._stored(step)
        loop = asyncio.get_running_loop()
        try:
            storing = loop.run_in_executor(self._worker, self._stored, step)
        except RuntimeError as error:  # closed meanwhile, which is for the engine to say
            self._failed(error)
            return {}
        return await storing

    def _stored(self, step: _Read | _Write) -> dict[str, Verdict]:
        """Read or write; a store that fails is left alone for the rest: failing takes time."""
        found: dict[str, Verdict] = {}
        if time.monotonic() < self._rested:
            return found
        try:
            if isinstance(step, _Write):
                for key, verdict in step.verdicts.items():
                    self.store.put(key, verdict)
            else:
                for key in step.keys:
                    verdict = self.store.get(key)
                    if isinstance(verdict, Verdict):
                        found[key] = verdict
        except Exception as error:  # noqa: BLE001  no failure of a cache may fail a judgement
            self._failed(error)
            if self.store.blocking:  # its failures take time, one caller after another
                self._rested = time.monotonic() + _REST
        return found

    def _failed(self, error: Exception) -> None:
        with self._lock:
            first = not self._stats.errors
            self._stats += CacheStats(errors=1)
        if first:
            logger.warning(
                "the verdict cache failed (%s): judging goes on without; more is only counted",
                type(error).__name__,
            )

    def _count(self, **more: int) -> None:
        with self._lock:
            self._stats += CacheStats(**more)


class _Batch:
    """Conversations by key, and what is known of them so far."""

    def __init__(self, conversations: Sequence[Conversation], fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.outcomes: dict[str, Outcome] = {}
        self._started = time.perf_counter()
        self._keys = [_key(conversation, fingerprint) for conversation in conversations]
        self.conversations = dict(zip(self._keys, conversations, strict=True))
        self._times = Counter(self._keys)

    def unanswered(self) -> list[str]:
        return [key for key in self.conversations if key not in self.outcomes]

    def times(self, keys: Iterable[str]) -> int:
        """How many conversations have these keys."""
        return sum(self._times[key] for key in keys)

    def answer_computed(self, outcomes: Mapping[str, Outcome]) -> None:
        self.outcomes.update(outcomes)

    def answer_known(self, verdicts: Mapping[str, Verdict]) -> None:
        seconds = time.perf_counter() - self._started
        for key, verdict in verdicts.items():
            self.outcomes[key] = replace(verdict, tokens=0, seconds=seconds)

    def results(self) -> list[Outcome]:
        """One outcome for each conversation; what was computed once is paid for once."""
        paid: set[str] = set()
        results: list[Outcome] = []
        for key in self._keys:
            outcome = self.outcomes[key]
            if isinstance(outcome, Verdict) and key in paid:
                outcome = replace(outcome, tokens=0)
            results.append(outcome)
            paid.add(key)
        return results


def _complete(asked: Sequence[Conversation], outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    if len(outcomes) != len(asked):
        raise EngineError(
            f"the engine returned {len(outcomes)} outcomes for {len(asked)} conversations"
        )
    return outcomes


def _key(conversation: Conversation, fingerprint: str) -> str:
    """A digest of all that decides a verdict: nobody can read a text in it.

    The release is part of it, because another may render a prompt differently, and a store may
    outlive it. The ids of tool calls are not: no model reads them.
    """
    messages = [_read_by_a_model(message) for message in conversation.messages]
    plain = [guardrails_qwen.__version__, fingerprint, messages]
    return hashlib.sha256(json.dumps(plain, ensure_ascii=False).encode()).hexdigest()


def _read_by_a_model(message: Message) -> list[Any]:
    calls = [[call.name, call.arguments] for call in message.tool_calls]
    return [message.role.value, message.name, message.text, calls, message.images]


_cached: WeakSet[CachedEngine] = WeakSet()


def _after_fork() -> None:
    """Forget the parent's claims, its thread, and a lock that it may have held."""
    for engine in list(_cached):
        engine._restart()  # pyright: ignore[reportPrivateUsage]


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
