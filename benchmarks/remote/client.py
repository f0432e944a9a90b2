"""What verdicts cost the client, against a stub in another process: processor time and memory."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path

from benchmarks.remote.contenders import Contender, Target
from benchmarks.remote.questions import Kind, Question, mixed, questions
from benchmarks.remote.speed import ask, is_wrong
from benchmarks.remote.stub import Stub

AT_ONCE = 32
"""Callers, where several share the processor."""

_DISTINCT = 8
"""Questions whose answers the stub remembers; of eight that are mixed one is unsafe."""


@dataclass(slots=True, kw_only=True)
class Processor:
    """Processor time of this whole process for safe prompts: seconds a request, in each round."""

    alone: list[float] = field(default_factory=list[float])
    """One after another, by the blocking door."""
    at_once: list[float] = field(default_factory=list[float])
    """32 callers on one event loop."""
    wrong: int = 0


@dataclass(slots=True, kw_only=True)
class Held:
    """Rounds of callers who all ask at the same time."""

    callers: int
    lost: int = 0
    """Errors, and verdicts of another severity than the question has."""
    seconds: list[float] = field(default_factory=list[float])
    """For each round."""
    resident: list[float] = field(default_factory=list[float])
    """Memory of this process in MiB: before the first round, and after each. Empty where the
    system does not tell."""
    at_once: int = 0
    """Requests that the server was answering at the same time, at most."""


async def processor(
    target: Target, stub: Stub, names: Sequence[str], total: int, rounds: int
) -> dict[str, Processor]:
    """Each contender asks `total` questions by each door in each round, in turns."""
    asked = list(islice(cycle(list(islice(questions(Kind.SAFE), _DISTINCT))), total))
    contenders = [target.contender(name) for name in names]
    measured = {name: Processor() for name in names}
    for one in contenders:
        await ask(one, asked[:_DISTINCT], 1)  # the stub computes an answer the first time
        await ask(one, asked, AT_ONCE)
        _ask_blocking(one, asked[:_DISTINCT])
    for _ in range(rounds):
        for one in contenders:
            times = measured[one.name]
            stub.seen()
            started = time.process_time()
            times.wrong += _ask_blocking(one, asked)
            times.alone.append((time.process_time() - started) / stub.seen().requests)
            started = time.process_time()
            times.wrong += await ask(one, asked, AT_ONCE)
            times.at_once.append((time.process_time() - started) / stub.seen().requests)
    for one in contenders:
        await one.aclose()
    return measured


async def held(target: Target, stub: Stub, name: str, callers: int, rounds: int) -> Held:
    """So many callers ask one question each at the same time, again and again.

    The engine may have a power of two of requests under way, as 256 where 200 ask.
    """
    asked = list(islice(cycle(list(islice(mixed(), _DISTINCT))), callers))
    contender = replace(target, callers=1 << callers.bit_length()).contender(name)
    await ask(contender, asked[:_DISTINCT], _DISTINCT)
    stub.seen()
    result = Held(callers=callers, resident=_resident())
    for _ in range(rounds):
        started = time.perf_counter()
        result.lost += await ask(contender, asked, callers)
        result.seconds.append(time.perf_counter() - started)
        result.resident += _resident()
    result.at_once = stub.seen().at_once
    await contender.aclose()
    return result


def _ask_blocking(contender: Contender, asked: Sequence[Question]) -> int:
    """How many were wrong."""
    return sum(is_wrong(contender.judge(one.conversation), one) for one in asked)


def _resident() -> list[float]:
    gc.collect()
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return [pages * os.sysconf("SC_PAGE_SIZE") / 2**20]
    return []
