"""What engines that wrap engines share: how members are asked, and what their failures say.

A judgement is a generator of `Ask`s, which is sent the outcomes. It knows neither threads nor event
loops: `driven` and `adriven` do the asking.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.engines.base import Engine, Outcome, crashed, failed, failure
from guardrails_qwen.errors import GuardError, UnreadableVerdict, unavailable
from guardrails_qwen.verdict import Verdict

logger = logging.getLogger("guardrails_qwen")


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a member; answered with one outcome for each conversation, whatever it does."""

    engine: Engine
    conversations: Sequence[Conversation] = field(repr=False)


Steps = Generator[Ask, list[Outcome], list[Outcome]]
"""A judgement in progress."""


def driven(steps: Steps) -> list[Outcome]:
    """Drive a judgement; blocks until done."""
    with closing(steps):
        try:
            ask = next(steps)
            while True:
                ask = steps.send(_asked(ask))
        except StopIteration as finished:
            return finished.value


async def adriven(steps: Steps) -> list[Outcome]:
    """`driven`, without blocking the event loop."""
    with closing(steps):
        try:
            ask = next(steps)
            while True:
                ask = steps.send(await _aasked(ask))
        except StopIteration as finished:
            return finished.value


def _asked(ask: Ask) -> list[Outcome]:
    try:
        return _complete(ask, ask.engine.judge(ask.conversations))
    except Exception as error:  # noqa: BLE001  whatever a member raises, it judged nothing
        return [failure(error)] * len(ask.conversations)


async def _aasked(ask: Ask) -> list[Outcome]:
    try:
        return _complete(ask, await ask.engine.ajudge(ask.conversations))
    except Exception as error:  # noqa: BLE001  whatever a member raises, it judged nothing
        return [failure(error)] * len(ask.conversations)


def _complete(ask: Ask, outcomes: Sequence[object]) -> list[Outcome]:
    """The outcomes of a member. Which belongs to which cannot be told where the number is wrong.

    No `EngineError` stands for either: it is a bug, and a text may have provoked it.
    """
    found = list(outcomes)
    if len(found) != len(ask.conversations):
        raise ValueError(f"{len(found)} outcomes for {len(ask.conversations)} conversations")
    return [
        item
        if isinstance(item, (Verdict, GuardError))
        else failure(TypeError(f"{type(item).__name__} is no outcome"))
        for item in found
    ]


def gravest(errors: Sequence[GuardError]) -> GuardError:
    """The first that no policy waves through; the first of all where there is none."""
    return next((error for error in errors if not unavailable(error)), errors[0])


def timed(outcomes: Sequence[Outcome], started: float) -> list[Outcome]:
    """The outcomes, with the time of the whole call as their cost."""
    seconds = time.perf_counter() - started
    return [
        replace(outcome, seconds=seconds) if isinstance(outcome, Verdict) else outcome
        for outcome in outcomes
    ]


def digest(*parts: object) -> str:
    """16 hexadecimal digits that stand for plain data, in every process."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def any_demonstration(engines: Sequence[Engine]) -> bool:
    """Whether any says that it is a demonstration, which protects nobody."""
    return any(getattr(engine, "demonstration", False) for engine in engines)


class Watch:
    """Logs when a member stops answering and when it answers again, and nothing in between."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._failing = False
        self._lock = threading.Lock()

    def note(self, engine: Engine, outcomes: Sequence[Outcome]) -> None:
        """Look at what became of a call.

        Only an answer, readable or not, tells that an engine is well: an error about a text may
        come from the client.
        """
        errors = [outcome for outcome in outcomes if isinstance(outcome, GuardError)]
        answered = len(errors) < len(outcomes)
        if answered or any(isinstance(error, UnreadableVerdict) for error in errors):
            if self._turned(failing=False):
                logger.info("%s (%s) answers again", self._place, engine.name)
        elif errors and all(map(failed, errors)) and self._turned(failing=True):
            error = errors[0].__cause__ if crashed(errors[0]) else errors[0]
            what = type(error).__name__
            logger.warning("%s (%s) does not answer: %s", self._place, engine.name, what)

    def _turned(self, *, failing: bool) -> bool:
        with self._lock:
            before, self._failing = self._failing, failing
        return before is not failing
