"""What a token costs: by contender and length, alone and among others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.streaming.contenders import LENIENT, PROMPT, Contender, Ours, joined
from guardrails_qwen import Guard
from guardrails_qwen.engines.session import SessionEngine
from guardrails_qwen.streaming import Streaming

POINTS = 5
"""Lengths at which the cost of a token is measured, on the way to the length of a reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of a contender, for replies of one length. Work only: nobody waits for a model here."""

    first: float
    """Seconds until something is released."""
    waits: int
    """Tokens that must have arrived by then."""
    token: float
    """Seconds for a token, on average over the reply."""
    points: Sequence[float]
    """… at each of the positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatness:
    """What a token costs early and late in a reply, in seconds."""

    fed: int
    """Tokens that arrive together."""
    early: float
    late: float
    ratio: float
    """The median of the ratios, each of one stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Tokens a second of the same streams one after another and at once, round by round."""

    streams: int
    fed: int
    in_turn: Sequence[float]
    at_once: Sequence[float]

    @property
    def ratio(self) -> float:
        return median(b / a for a, b in zip(self.in_turn, self.at_once, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced:
    """Streams that arrive as a model writes them."""

    streams: int
    rate: float
    """Tokens a second of each."""
    fed: int
    delays: Sequence[float]
    """Seconds from the arrival of a chunk to its verdicts, sorted."""
    late: int
    """Chunks whose verdicts came after the next chunk."""


def costs(
    contenders: Sequence[Contender], pieces: Sequence[str], length: int, rounds: int
) -> dict[str, Cost]:
    """The contenders in turns: medians of the rounds."""
    places = positions(length)
    firsts = {one.name: list[tuple[float, int]]() for one in contenders}
    points = {one.name: list[list[float]]() for one in contenders}
    for _ in range(rounds):
        for one in contenders:
            firsts[one.name].append(one.first(pieces[:length]))
            points[one.name].append(one.at(pieces, places))
    return {
        name: Cost(
            first=median(seconds for seconds, _ in firsts[name]),
            waits=firsts[name][0][1],
            token=integrated(medians := [median(column) for column in zip(*rows, strict=True)]),
            points=medians,
        )
        for name, rows in points.items()
    }


def positions(length: int, first: int = 32) -> list[int]:
    """Where a token is measured: evenly from the first to the last."""
    return [first + i * (length - first) // (POINTS - 1) for i in range(POINTS)]


def integrated(values: Sequence[float]) -> float:
    """The mean over evenly spaced points by Simpson's rule.

    It is exact for what grows at most with the cube of the length; a forward pass over all tokens
    grows with its square.
    """
    inner = sum((4 if i % 2 else 2) * value for i, value in enumerate(values[1:-1], start=1))
    return (values[0] + inner + values[-1]) / (3 * (len(values) - 1))


def flatness(
    engine: SessionEngine,
    pieces: Sequence[str],
    *,
    places: tuple[int, int],
    fed: int,
    rounds: int,
) -> Flatness:
    """A token's cost before each of two places; both are measured in every stream."""
    ours = Ours(engine, run=64, fed=fed)
    pairs = [ours.at(pieces, places) for _ in range(rounds)]
    return Flatness(
        fed=fed,
        early=median(early for early, _ in pairs),
        late=median(late for _, late in pairs),
        ratio=median(late / early for early, late in pairs),
    )


async def together(
    engine: SessionEngine, replies: Sequence[Sequence[str]], *, fed: int, rounds: int
) -> Together:
    """The same replies one after another, then at once; and again."""
    guard = Guard(engine, LENIENT)
    tokens = sum(map(len, replies))
    in_turn, at_once = list[float](), list[float]()
    for _ in range(rounds):
        started = time.perf_counter()
        for reply in replies:
            await _fed(guard, reply, fed)
        in_turn.append(tokens / (time.perf_counter() - started))
        started = time.perf_counter()
        await asyncio.gather(*(_fed(guard, reply, fed) for reply in replies))
        at_once.append(tokens / (time.perf_counter() - started))
    return Together(streams=len(replies), fed=fed, in_turn=in_turn, at_once=at_once)


async def paced(
    engine: SessionEngine,
    replies: Sequence[Sequence[str]],
    *,
    rate: float,
    fed: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Paced:
    """All replies at once, each in chunks that arrive at the given rate."""
    guard = Guard(engine, LENIENT)
    pause = fed / rate
    delays = list[float]()

    async def one(index: int) -> None:
        stream = guard.stream(PROMPT, settings=Streaming())
        begin = clock() + pause * index / len(replies)  # models are not in step
        try:
            for number, chunk in enumerate(joined(replies[index], fed)):
                arrives = begin + number * pause
                await asyncio.sleep(max(0.0, arrives - clock()))
                await stream.afeed(chunk)
                delays.append(clock() - arrives)
        finally:
            await stream.aclose()

    await asyncio.gather(*map(one, range(len(replies))))
    return Paced(
        streams=len(replies),
        rate=rate,
        fed=fed,
        delays=sorted(delays),
        late=sum(delay > pause for delay in delays),
    )


async def _fed(guard: Guard, reply: Sequence[str], fed: int) -> None:
    stream = guard.stream(PROMPT, settings=Streaming())
    try:
        for chunk in joined(reply, fed):
            await stream.afeed(chunk)
        await stream.afinish()
    finally:
        await stream.aclose()
