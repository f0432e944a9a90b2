"""A moderation in progress, and the two doors that drive it: judgement knows no threads or loops.

For authors of frameworks: `run(moderator.feed(text), judge)` is all that a stream needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from guardrails_qwen.engines.base import failure
from guardrails_qwen.engines.session import Judged, ReplyJudge
from guardrails_qwen.errors import GuardError
from guardrails_qwen.streaming.events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """Append to the reply, and say what could be judged."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The reply is complete: judge the rest of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncate:
    """Forget all but so many characters of what was fed. The answer is an empty list."""

    characters: int


Ask = Feed | Finish | Truncate
"""What a moderator asks of a `ReplyJudge`."""

Answer = Sequence[Judged] | GuardError
"""What was judged, or why nothing could be."""

Steps = Generator[Ask, Answer, list[Event]]
"""It yields what it asks, is sent the answers, and returns what became of the text."""


def run(steps: Steps, judge: ReplyJudge) -> list[Event]:
    """Drive a moderation with a judge.

    Raises:
        GuardError: Something could not be judged, and the policy says to raise.
    """
    try:
        ask = next(steps)
        while True:
            ask = steps.send(_answer(ask, judge))
    except StopIteration as done:
        return done.value
    finally:
        steps.close()


async def arun(steps: Steps, judge: ReplyJudge) -> list[Event]:
    """`run`, without blocking the event loop, which has its turn between what is asked."""
    try:
        ask = next(steps)
        while True:
            ask = steps.send(await _aanswer(ask, judge))
            await asyncio.sleep(0)  # a judge that has nothing to wait for does not wait
    except StopIteration as done:
        return done.value
    finally:
        steps.close()


def _answer(ask: Ask, judge: ReplyJudge) -> Answer:
    try:
        if isinstance(ask, Truncate):
            judge.truncate(ask.characters)
            return []
        return _checked(judge.feed(ask.text) if isinstance(ask, Feed) else judge.finish())
    except Exception as error:  # noqa: BLE001  whatever a judge raises, nothing was judged
        return failure(error)


async def _aanswer(ask: Ask, judge: ReplyJudge) -> Answer:
    try:
        if isinstance(ask, Truncate):
            await judge.atruncate(ask.characters)
            return []
        judging = judge.afeed(ask.text) if isinstance(ask, Feed) else judge.afinish()
        return _checked(await judging)
    except Exception as error:  # noqa: BLE001  whatever a judge raises, nothing was judged
        return failure(error)


def _checked(answer: Sequence[Judged]) -> Answer:
    if not isinstance(answer, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        return GuardError(f"the judge returned {type(answer).__name__}, not a list of verdicts")
    return answer
