"""The two doors of streams as one interface: what passes through both is proved to agree."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from dataclasses import dataclass
from typing import Any, TypeVar

from guardrails_qwen import Guard
from guardrails_qwen.engines.session import Judged, ReplyJudge
from guardrails_qwen.streaming import (
    Event,
    GuardedStream,
    Redact,
    Release,
    Steps,
    Streaming,
    StreamModerator,
    arun,
    run,
)

T = TypeVar("T")


async def asynchronously(chunks: Iterable[T]) -> AsyncIterator[T]:
    try:
        for chunk in chunks:
            await asyncio.sleep(0)
            yield chunk
    finally:
        if isinstance(chunks, Generator):
            chunks.close()


def told(events: Iterable[Event]) -> str:
    """What a reader gets, closing texts not counted."""
    parts = (
        event.text if isinstance(event, Release) else event.marker
        for event in events
        if isinstance(event, (Release, Redact))
    )
    return "".join(parts)


@dataclass(frozen=True)
class StreamDoors:
    """`feed`, `texts` and friends, or `afeed`, `atexts` and friends."""

    asynchronous: bool

    def run(self, steps: Steps, judge: ReplyJudge) -> list[Event]:
        return self._await(arun(steps, judge)) if self.asynchronous else run(steps, judge)

    def moderate(
        self, moderator: StreamModerator, judge: ReplyJudge, chunks: Iterable[str]
    ) -> list[Event]:
        """All that comes of a reply."""
        events = [e for chunk in chunks for e in self.run(moderator.feed(chunk), judge)]
        return [*events, *self.run(moderator.finish(), judge)]

    def feed(self, stream: GuardedStream, text: str) -> list[Event]:
        return self._await(stream.afeed(text)) if self.asynchronous else stream.feed(text)

    def finish(self, stream: GuardedStream) -> list[Event]:
        return self._await(stream.afinish()) if self.asynchronous else stream.finish()

    def texts(self, stream: GuardedStream, chunks: Iterable[str]) -> list[str]:
        """What a reader gets of a reply; what was read before an error is lost."""
        if not self.asynchronous:
            return list(stream.texts(chunks))

        async def read() -> list[str]:
            return [text async for text in stream.atexts(asynchronously(chunks))]

        return self._await(read())

    def answer(
        self,
        guard: Guard,
        prompt: Any,
        call: Callable[[str], Iterable[str]],
        *,
        beside: bool,
        settings: Streaming | None = None,
    ) -> list[str]:
        settings = settings or Streaming()
        if not self.asynchronous:
            return list(guard.answer(prompt, call, beside=beside, settings=settings))

        async def read() -> list[str]:
            answer = guard.aanswer(
                prompt, lambda text: asynchronously(call(text)), beside=beside, settings=settings
            )
            return [text async for text in answer]

        return self._await(read())

    def judged(self, judge: ReplyJudge, chunks: Iterable[str]) -> Iterator[Sequence[Judged]]:
        """What a judge says of chunks, and at the end."""
        for chunk in chunks:
            feeding = judge.afeed(chunk) if self.asynchronous else None
            yield self._await(feeding) if feeding else judge.feed(chunk)
        yield self._await(judge.afinish()) if self.asynchronous else judge.finish()

    def _await(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(what)
