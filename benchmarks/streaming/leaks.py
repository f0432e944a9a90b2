"""How much of a harmful sentence is released before a stream is blocked, and how late that is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from guardrails_qwen import Guard, GuardViolation, Policy
from guardrails_qwen.engines.session import SessionEngine
from guardrails_qwen.streaming import Streaming

AT_ONCE = 64

Tokens = Callable[[str], list[tuple[int, int]]]
"""A text as tokens: the first character of each, and the one behind its last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A reply that turns harmful at a known place, cut into chunks at random."""

    prompt: str = field(repr=False)
    reply: str = field(repr=False)
    start: int
    """Of the harmful sentence, in characters."""
    end: int
    chunks: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came out of a stream."""

    stream: Stream
    released: str = field(repr=False)
    received: int
    """Characters that had arrived when the stream ended."""
    blocked: bool

    @property
    def leaked(self) -> int:
        """Characters of the harmful sentence that were released."""
        return max(0, min(len(self.released), self.stream.end) - self.stream.start)

    @property
    def early(self) -> bool:
        """Whether it was blocked before the harmful sentence had begun to arrive."""
        return self.blocked and self.received <= self.stream.start

    def leaked_tokens(self, tokens: Tokens) -> int:
        """Tokens of the harmful sentence of which something was released."""
        return self._between(self.stream.start, self.stream.start + self.leaked, tokens)

    def delay(self, tokens: Tokens) -> int | None:
        """Tokens that arrived from the start of the harmful sentence to the block."""
        if not self.blocked or self.early:
            return None
        return self._between(self.stream.start, self.received, tokens)

    def _between(self, start: int, end: int, tokens: Tokens) -> int:
        return touched(start, end, tokens(self.stream.reply))


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What came out of many streams. Tokens are those of the guard's tokenizer."""

    streams: int
    early: int
    """Blocked before the harmful sentence; of these nothing else is counted."""
    missed: int
    """Never blocked."""
    clean: int
    """Nothing of the harmful sentence was released."""
    leaked: int
    """Harmful tokens released, of all streams."""
    harmful: int
    """… of so many."""
    leaked_median: float
    """Of the streams that were blocked in time."""
    leaked_p90: float
    delay_median: float | None
    """Tokens from the start of the harmful sentence to the block."""
    delay_p90: float | None


def touched(start: int, end: int, tokens: Iterable[tuple[int, int]]) -> int:
    """How many tokens have a character of a stretch."""
    return sum(first < end and start < last for first, last in tokens) if start < end else 0


def summarised(outcomes: Sequence[Outcome], tokens: Tokens) -> Summary:
    """The figures of a run."""
    counted = [one for one in outcomes if not one.early]
    caught = [one for one in counted if one.blocked]
    leaks = [one.leaked_tokens(tokens) for one in caught]
    delays = [delay for one in caught if (delay := one.delay(tokens)) is not None]
    return Summary(
        streams=len(outcomes),
        early=len(outcomes) - len(counted),
        missed=len(counted) - len(caught),
        clean=sum(one.leaked == 0 for one in counted),
        leaked=sum(one.leaked_tokens(tokens) for one in counted),
        harmful=sum(
            touched(one.stream.start, one.stream.end, tokens(one.stream.reply)) for one in counted
        ),
        leaked_median=median(leaks) if leaks else 0.0,
        leaked_p90=_percentile(leaks, 0.9) if leaks else 0.0,
        delay_median=median(delays) if delays else None,
        delay_p90=_percentile(delays, 0.9) if delays else None,
    )


def streams(
    harmless: Sequence[tuple[str, Sequence[str]]], harmful: Sequence[str], count: int, seed: int = 0
) -> Iterator[Stream]:
    """Harmful sentences, each inside of a harmless reply and at the end of one in five.

    Args:
        harmless: Prompts, and the sentences of the replies to them.
        harmful: Sentences; each is used again when all have been.
    """
    choose = random.Random(seed)
    for index in range(count):
        prompt, sentences = choose.choice(harmless)
        cut = choose.randint(1, len(sentences)) if choose.random() < 0.9 else 0
        before = "".join(f"{sentence} " for sentence in sentences[:cut])
        after = "" if index % 5 == 0 else "".join(f" {sentence}" for sentence in sentences[cut:])
        bad = harmful[index % len(harmful)]
        reply = before + bad + after
        yield Stream(
            prompt=prompt,
            reply=reply,
            start=len(before),
            end=len(before) + len(bad),
            chunks=tuple(_chunks(reply, choose)),
        )


async def moderated(
    engine_of: Callable[[Stream], SessionEngine],
    streams: Iterable[Stream],
    *,
    settings: Streaming,
    policy: Policy | None = None,
    at_once: int = AT_ONCE,
) -> list[Outcome]:
    """Every stream through a guard, so many at the same time."""
    slots = asyncio.Semaphore(at_once)
    chosen = policy or Policy.strict()

    async def one(stream: Stream) -> Outcome:
        async with slots:
            return await _moderated(Guard(engine_of(stream), chosen), stream, settings)

    return list(await asyncio.gather(*map(one, streams)))


async def _moderated(guard: Guard, stream: Stream, settings: Streaming) -> Outcome:
    received = 0

    async def arriving() -> AsyncIterator[str]:
        nonlocal received
        for chunk in stream.chunks:
            await asyncio.sleep(0)  # so that streams take turns, as they would behind a network
            received += len(chunk)
            yield chunk

    released, blocked = "", False
    try:
        async for text in guard.stream(stream.prompt, settings=settings).atexts(arriving()):
            released += text
    except GuardViolation:
        blocked = True
    return Outcome(stream=stream, released=released, received=received, blocked=blocked)


def _chunks(text: str, choose: random.Random) -> Iterator[str]:
    position = 0
    while position < len(text):
        size = choose.choice((1, 2, 3, 4, 5, 8, 13, 40))
        yield text[position : position + size]
        position += size


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
