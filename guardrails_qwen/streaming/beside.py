"""Judging a prompt while the language model answers it already.

Nothing is shown before the verdict. Where that is faster than the model's first token, judging the
prompt adds nothing to the time until the reader sees something.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from guardrails_qwen.streaming.sources import aclose_quietly, aclosed_after, closed_after

T = TypeVar("T")

_AHEAD = 256
"""Chunks that may wait for their reader."""


async def abeside(judging: Awaitable[object], chunks: AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """The chunks of a source that runs at once, none of them before `judging` is done.

    Where judging raises, the source is cancelled at once, even while it hangs before its first
    chunk, and closed; judging's error is raised when it has ended, so a source that takes its time
    to clean up delays it. A source that fails first does not decide: judging does, and only then
    the source's error is raised. However it ends, cancelled and abandoned included, both have ended
    then. The source runs in one task of its own from its first step to its closing, and at most 256
    chunks ahead of its reader. Nothing begins before the first chunk is asked for.
    """
    arrived: asyncio.Queue[T | _End] = asyncio.Queue()
    room = asyncio.Semaphore(_AHEAD)
    begun = asyncio.Event()
    verdict = asyncio.ensure_future(judging)
    pulling = asyncio.create_task(_pull(chunks, arrived, room, begun))
    pulling.add_done_callback(lambda _: arrived.put_nowait(_END))
    try:
        await verdict  # a cancellation goes on to it
        while not isinstance(chunk := await arrived.get(), _End):
            room.release()
            yield chunk
        await pulling  # raises what the source raised
    finally:
        pulling.cancel()
        await asyncio.gather(pulling, return_exceptions=True)
        if not begun.is_set():  # a response may be open before it is iterated over
            await aclose_quietly([chunks])


def beside(judge: Callable[[], object], chunks: Iterable[T]) -> Iterator[T]:
    """The chunks of a source that runs at once, none of them before `judge` has returned.

    The judge runs on a thread, in a copy of the caller's context; the source on the caller's, which
    nothing can interrupt. So where the judge raises, the source is closed and the error raised at
    the next chunk at the latest, and so long the first chunk waits for the next one as well where
    the verdict comes between them: use `abeside` where that matters. What comes before the verdict
    is kept, however much it is. A source that fails first does not decide. However it ends, the
    judge has returned then.
    """
    with ThreadPoolExecutor(1, "guardrails-beside") as pool:
        verdict = pool.submit(copy_context().run, judge)
        with closed_after(chunks) as parts:
            yield from _behind(verdict, chunks, parts)


class _End:
    """Nothing more arrives."""


_END = _End()


async def _pull(
    chunks: AsyncIterable[T],
    arrived: asyncio.Queue[T | _End],
    room: asyncio.Semaphore,
    begun: asyncio.Event,
) -> None:
    begun.set()
    async with aclosed_after(chunks) as parts:
        source = aiter(chunks)
        parts.insert(0, source)
        await room.acquire()
        async for chunk in source:
            arrived.put_nowait(chunk)
            await room.acquire()


def _behind(verdict: Future[object], chunks: Iterable[T], parts: list[object]) -> Iterator[T]:
    source, waiting, failed = iter(()), list[T](), None
    try:
        source = iter(chunks)
        parts.insert(0, source)
        for chunk in source:
            waiting.append(chunk)
            if verdict.done():
                break
    except Exception as error:  # noqa: BLE001  raised below, unless judging has an error of its own
        failed = error
    verdict.result()
    yield from waiting
    if failed:
        raise failed
    yield from source
