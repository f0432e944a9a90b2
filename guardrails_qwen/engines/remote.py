"""Engines whose model is on a server: their doors, and batches of long texts as single requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.engines.base import Outcome, failure
from guardrails_qwen.engines.closing import Closing
from guardrails_qwen.engines.loop_thread import LoopThread
from guardrails_qwen.engines.request import Request
from guardrails_qwen.engines.slots import caller
from guardrails_qwen.engines.transport import Deadline
from guardrails_qwen.errors import GuardError
from guardrails_qwen.longtext import Window
from guardrails_qwen.verdict import Verdict

_AT_ONCE = 256
"""Requests of a call that are prepared before others are answered."""
_INLINE = 8_000
"""Characters of a conversation that are cut on the event loop itself, in a few milliseconds."""


class Session(Protocol):
    """Connections to a server, and what is known of it. Lives on one event loop."""

    async def judge(
        self, conversations: Sequence[Conversation], deadline: Deadline
    ) -> list[Outcome]:
        """One outcome for each conversation, in order."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


class RemoteEngine(Closing):
    """An engine that asks a server. Any number of threads and event loops may share it.

    Everything that it does runs on one event loop of its own, so that all callers share one pool of
    connections. Leaving a call (a cancelled task, an interrupt) ends its requests.

    Args:
        session: Makes what talks to the server, when the first call comes.
        name: The model, by the name that people know it by.
        fingerprint: The model and how it is asked, exactly.
        deadline: Seconds that a call may take in all, None for any.
    """

    def __init__(
        self,
        session: Callable[[], Session],
        *,
        name: str,
        fingerprint: str,
        deadline: float | None,
    ) -> None:
        require_type("deadline", deadline, (int, float, type(None)))
        if deadline is not None and not deadline > 0:
            raise ValueError(f"deadline is {deadline}: use seconds above 0, or None for no end")
        self._name = name
        self.fingerprint = fingerprint
        self._deadline = deadline
        self._thread = LoopThread(session, name=name)

    @property
    def name(self) -> str:
        """The model, by the name that people know it by."""
        return self._name

    def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """Judge a batch; blocks until done, or until the deadline.

        What keeps a conversation from being judged takes its place.

        Raises:
            EngineClosed: After `close()`.
        """
        return self._thread.run(lambda session: self._judge(session, list(conversations)))

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """`judge`, without blocking the event loop."""
        return await self._thread.arun(lambda session: self._judge(session, list(conversations)))

    def close(self) -> None:
        """Wait for the calls that are under way, then close all connections."""
        self._thread.close()

    async def _judge(self, session: Session, conversations: list[Conversation]) -> list[Outcome]:
        caller.set(object())
        outcomes = await session.judge(conversations, Deadline(self._deadline))
        return [
            replace(one, model=self.name, fingerprint=self.fingerprint)
            if isinstance(one, Verdict)
            else one
            for one in outcomes
        ]


def require_type(name: str, value: object, kind: type | tuple[type, ...]) -> None:
    """Refuse an option of another type where it is given, rather than where it is used.

    Raises:
        TypeError: It is of another type.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join("None" if one is type(None) else one.__name__ for one in kinds)
        raise TypeError(f"{name} is {type(value).__name__}: give {names}")


async def judge_windows(
    conversations: Sequence[Conversation],
    cut: Callable[[Conversation], list[Window]],
    ask: Callable[[Conversation], Awaitable[Verdict]],
) -> list[Outcome]:
    """Outcomes for conversations from those of their windows, all asked at once, equal ones once.

    Args:
        conversations: What to judge.
        cut: The windows of a conversation; what it raises is the outcome.
        ask: The verdict on a window; what it raises is the outcome.
    """
    started = time.perf_counter()
    found = [await cut_aside(cut, conversation) for conversation in conversations]
    every = (window for item in found if not isinstance(item, GuardError) for window in item)
    request = Request[Conversation](found=found, tried=[window.conversation for window in every])
    answers = dict[Conversation, Outcome]()
    left = iter(request.jobs)

    async def work() -> None:
        for question in left:
            answers[question] = await _asked(ask, question)

    await asyncio.gather(*(work() for _ in range(min(len(request.jobs), _AT_ONCE))))
    return request.outcomes([answers[question] for question in request.jobs], started)


async def cut_aside(
    cut: Callable[[Conversation], list[Window]], conversation: Conversation
) -> list[Window] | GuardError:
    """The windows of a conversation, or what keeps it from having any.

    A long one is cut on another thread, so that the event loop goes on.
    """
    long = sum(len(message.text) for message in conversation.messages) > _INLINE
    try:
        return await asyncio.to_thread(cut, conversation) if long else cut(conversation)
    except Exception as error:  # noqa: BLE001  whatever it is, it keeps this one from being judged
        return failure(error)


async def _asked(ask: Callable[[Conversation], Awaitable[Verdict]], one: Conversation) -> Outcome:
    try:
        return await ask(one)
    except Exception as error:  # noqa: BLE001  whatever it is, it keeps this one from being judged
        return failure(error)
