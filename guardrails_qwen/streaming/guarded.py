"""A reply that is moderated while it is written: a moderator and a judge together."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from guardrails_qwen.conversation import Conversation, ConversationLike, Role
from guardrails_qwen.decision import Decision, log
from guardrails_qwen.engines.closing import Closing
from guardrails_qwen.engines.session import ReplyJudge
from guardrails_qwen.errors import ConversationError, GuardError, GuardViolation
from guardrails_qwen.rules import Stage
from guardrails_qwen.streaming.events import Block, Event, Redact, Release
from guardrails_qwen.streaming.judges import RepeatedJudge, judge_for
from guardrails_qwen.streaming.moderator import StreamModerator
from guardrails_qwen.streaming.settings import Streaming
from guardrails_qwen.streaming.sources import (
    aclose_quietly,
    aclosed_after,
    close_quietly,
    closed_after,
)
from guardrails_qwen.streaming.steps import Steps, arun, run

if TYPE_CHECKING:
    from guardrails_qwen.guard import Guard

logger = logging.getLogger("guardrails_qwen")


class GuardedStream(Closing):
    r"""Judges a reply while it is written, and says what of it may be read.

    `Guard.stream` makes them, one for each reply. Close it, or let `texts` do so.

    >>> from guardrails_qwen import Guard
    >>> from guardrails_qwen.testing import ScriptedStreamEngine
    >>> guard = Guard(ScriptedStreamEngine())
    >>> "".join(guard.stream("How do I bake bread?").texts(["Mix flo", "ur and wa", "ter."]))
    'Mix flour and water.'
    """

    def __init__(self, moderator: StreamModerator, judge: ReplyJudge) -> None:
        self.moderator = moderator
        self._judge = judge
        self._started: float | None = None
        self._decision: Decision | None = None
        self._error: GuardError | None = None

    @property
    def decision(self) -> Decision | None:
        """What was decided about the reply; None until its end. See `StreamModerator.decision`."""
        return self._decision

    @property
    def over(self) -> bool:
        """Whether nothing more will be released."""
        return self.moderator.over

    def feed(self, text: str) -> list[Event]:
        """More of the reply; what became of it.

        Raises:
            ValueError: The reply is complete already.
            GuardError: It cannot be judged, and the policy says to raise; all later calls raise the
                same.
        """
        return self._run(self.moderator.feed(text))

    async def afeed(self, text: str) -> list[Event]:
        """`feed`, without blocking the event loop."""
        return await self._arun(self.moderator.feed(text))

    def finish(self) -> list[Event]:
        """The reply is complete; what becomes of the rest.

        Raises:
            GuardError: It cannot be judged, and the policy says to raise.
        """
        return self._run(self.moderator.finish())

    async def afinish(self) -> list[Event]:
        """`finish`, without blocking the event loop."""
        return await self._arun(self.moderator.finish())

    def close(self) -> None:
        """Release nothing more, also of what is being judged now, and let go of everything."""
        self.moderator.close()
        self._judge.close()

    async def aclose(self) -> None:
        """The same; never waits."""
        self.close()

    def texts(self, chunks: Iterable[str]) -> Iterator[str]:
        """What may be read of a reply, while it comes.

        However it ends, the source is closed, and so is this: at its end, when the reply is
        blocked (before anything else happens, so that the language model stops), when the source
        fails (what waits is not released then), or when nobody reads on. What closing the source
        raises is raised at the end of a complete reply; else it is logged, by its type.

        Raises:
            GuardViolation: The reply is blocked, and there is no closing text.
            GuardError: It cannot be judged, and the policy says to raise.
        """
        with closed_after(chunks) as parts, self:
            source = iter(chunks)
            parts.insert(0, source)
            for chunk in source:
                events = self.feed(chunk)
                if self.over:
                    close_quietly(parts)
                yield from readable(events)
                if self.over:
                    return
            yield from readable(self.finish())

    async def atexts(self, chunks: AsyncIterable[str]) -> AsyncGenerator[str, None]:
        """`texts`, without blocking the event loop; also when its task is cancelled."""
        async with aclosed_after(chunks) as parts, self:
            source = aiter(chunks)
            parts.insert(0, source)
            async for chunk in source:
                events = await self.afeed(chunk)
                if self.over:
                    await aclose_quietly(parts)
                for text in readable(events):
                    yield text
                if self.over:
                    return
            for text in readable(await self.afinish()):
                yield text

    def _run(self, steps: Steps) -> list[Event]:
        self._start()
        try:
            events = run(steps, self._judge)
        except GuardError as error:
            self._failed(error)
            raise
        return self._noted(events)

    async def _arun(self, steps: Steps) -> list[Event]:
        self._start()
        try:
            events = await arun(steps, self._judge)
        except GuardError as error:
            self._failed(error)
            raise
        return self._noted(events)

    def _start(self) -> None:
        self._started = time.perf_counter() if self._started is None else self._started

    def _failed(self, error: GuardError) -> None:
        if self._error is None:
            logger.warning("not judged: %s: %s", type(error).__name__, error)
            self._judge.close()
        self._error = error

    def _noted(self, events: list[Event]) -> list[Event]:
        """The events; at the end the decision is logged, and the judge let go."""
        if self._decision is None and self.moderator.decision and self._started is not None:
            seconds = time.perf_counter() - self._started
            self._decision = replace(self.moderator.decision, seconds=seconds)
            log(self._decision)
            self._judge.close()
        return events


def guarded_stream(
    guard: Guard, prompt: ConversationLike | None, *, stage: Stage, settings: Streaming
) -> GuardedStream:
    """See `Guard.stream`."""
    conversation = None if prompt is None else prompt_of(prompt)
    judge = judge_for(guard.engine, conversation, settings)
    per_token = not isinstance(judge, RepeatedJudge)
    moderator = StreamModerator(guard.policy, settings, stage=stage, per_token=per_token)
    return GuardedStream(moderator, judge)


def prompt_of(value: ConversationLike) -> Conversation:
    """What a reply is an answer to.

    Raises:
        ConversationError: The value is no conversation, or its last message is the assistant's.
    """
    conversation = Conversation.of(value)
    if conversation.last.role is Role.ASSISTANT:
        raise ConversationError(
            "the last message of a prompt is the assistant's: leave the reply out, it is streamed"
        )
    return conversation


def readable(events: Iterable[Event]) -> Iterator[str]:
    """What the reader gets of events.

    Raises:
        GuardViolation: The reply is blocked, and there is no closing text.
    """
    for event in events:
        if isinstance(event, Release):
            yield event.text
        elif isinstance(event, Redact):
            yield event.marker
        elif isinstance(event, Block):
            if event.closing is None:
                raise GuardViolation(event.decision)
            if event.closing:
                yield event.closing
