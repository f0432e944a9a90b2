"""One reply, judged token by token while it grows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import finalize

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.engines.batching import Batcher
from guardrails_qwen.engines.session_limits import Ledger
from guardrails_qwen.engines.stream_passes import Passing, Read, Slot
from guardrails_qwen.engines.stream_reply import Reply, Run
from guardrails_qwen.engines.stream_requests import Model
from guardrails_qwen.errors import EngineClosed, EngineOverloaded, GuardError, TextTooLong
from guardrails_qwen.token_verdict import TokenVerdict
from guardrails_qwen.verdict import Verdict

_INLINE = 2_000
"""Characters that are tokenised on the event loop itself, in a few milliseconds."""
_A_TOKEN = 4
"""Characters, about: a token's verdict costs as much as tokenising these."""

_Result = TypeVar("_Result")

_STEP = 128
"""Positions by which a cache grows at least; beyond that it doubles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionParts:
    """What the sessions of an engine share."""

    model: Model
    batcher: Batcher[Passing, Read]
    ledger: Ledger
    bytes_a_token: int


class StreamSession:
    """A reply that grows, judged token by token behind its prompt; `StreamEngine.open` makes it.

    Only new tokens are run: everything before them stays in the session's cache. Sessions of one
    engine share forward passes, whoever feeds them.

    It keeps the text, its tokens, and the keys and values of the last context: only these last
    count towards the memory of all sessions.

    A session has one caller at a time. A call that fails, or is cancelled, ends it: what was lost
    cannot be told, so nothing may follow as if it had been judged.
    """

    def __init__(
        self, parts: SessionParts, reply: Reply, slot: Slot, prompt: Verdict | None = None
    ) -> None:
        self._parts = parts
        self._reply = reply
        self._slot = slot
        self.prompt = prompt
        """What the model thinks of the prompt; None where there is none."""
        self._lock = threading.Lock()
        self._broken = False
        parts.ledger.enter(id(slot), slot.room * parts.bytes_a_token)
        self._left = finalize(self, _leave, parts.ledger, slot)
        self._left.atexit = False

    def __repr__(self) -> str:
        state = "closed" if self._slot.freed else f"{self._slot.room} positions"
        return f"StreamSession({self._parts.model.name!r}, {state})"

    def feed(self, text: str) -> list[TokenVerdict]:
        """Append to the reply; the verdicts on tokens that no continuation can change any more.

        Raises:
            EngineClosed: The session or its engine is closed.
            EngineOverloaded: Too many wait already.
            TextTooLong: The reply is longer than the model's context, and the engine refuses that;
                or no memory is left for it.
            GuardError: The model failed.
            RuntimeError: Another call is on its way.
        """
        with self._turn():
            return self._judge(self._reply.feed(text))

    async def afeed(self, text: str) -> list[TokenVerdict]:
        """`feed`, without blocking the event loop."""
        with self._turn():
            size = self._reply.held + len(text)
            return await self._ajudge(await _inline_or_not(size, self._reply.feed, text))

    def finish(self) -> list[TokenVerdict]:
        """The reply is complete: the verdicts on the rest of its tokens. Raises as `feed` does."""
        with self._turn():
            return self._judge(self._reply.finish())

    async def afinish(self) -> list[TokenVerdict]:
        """`finish`, without blocking the event loop."""
        with self._turn():
            size = self._reply.held
            return await self._ajudge(await _inline_or_not(size, self._reply.finish))

    def truncate(self, characters: int) -> None:
        """Forget all but the first `characters` of the reply, as if the rest had never been fed.

        It is tokenised anew, and the tokens that stay the same are not run again. A finished reply
        may go on.
        """
        with self._turn():
            self._reply.truncate(characters)

    async def atruncate(self, characters: int) -> None:
        """`truncate`, without blocking the event loop."""
        with self._turn():
            await _inline_or_not(len(self._reply), self._reply.truncate, characters)

    def fork(self) -> StreamSession:
        """An independent session that goes on from here, with a copy of the cache.

        Raises:
            EngineOverloaded: Too many sessions are open, or no memory is left.
        """
        with self._turn(loses=False):
            slot = Slot(self._slot.room)
            other = StreamSession(self._parts, self._reply.fork(), slot, self.prompt)
            cache = self._slot.cache
            slot.cache = cache.copy(cache.room) if cache else None
            return other

    def close(self) -> None:
        """Free its memory. Closing again does nothing."""
        self._left()

    @contextmanager
    def _turn(self, *, loses: bool = True) -> Generator[None]:
        """One caller at a time; what ends its call early ends the session, if anything is lost."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("a session has one caller at a time: wait for the other call")
        try:
            if self._slot.freed:
                raise EngineClosed("the session is closed")
            if self._broken:
                raise GuardError("the session cannot go on: a call of it failed or was cancelled")
            self._broken = loses
            yield
            self._broken = False
        finally:
            self._lock.release()

    def _judge(self, runs: Sequence[Run]) -> list[TokenVerdict]:
        passings = self._passings(runs)
        answers = self._parts.batcher.judge(passings, conversations=1)
        return self._parts.model.token_verdicts(runs, answers)

    async def _ajudge(self, runs: Sequence[Run]) -> list[TokenVerdict]:
        size = sum(len(run.ids) for run in runs) * _A_TOKEN
        passings = await _inline_or_not(size, self._passings, runs)
        answers = await self._parts.batcher.ajudge(passings, conversations=1)
        return await _inline_or_not(size, self._parts.model.token_verdicts, runs, answers)

    def _passings(self, runs: Sequence[Run]) -> list[Passing]:
        self._make_room(max((run.end for run in runs), default=0))
        return self._parts.model.reply_passings(self._slot, runs)

    def _make_room(self, end: int) -> None:
        """Twice as much, or as much as there is.

        What a reply fills by itself is no outage, whatever else is open: its author could make it.
        """
        slot, parts = self._slot, self._parts
        if end <= slot.room:
            return
        wanted = [min(room, parts.model.context) for room in (2 * slot.room, end + _STEP, end)]
        rooms = [room for room in wanted if room >= end]
        for room in rooms:
            try:
                parts.ledger.grow(id(slot), room * parts.bytes_a_token)
            except EngineOverloaded as error:
                if room == end:
                    raise TextTooLong(end, slot.room) from error
            else:
                slot.room = room
                return


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A session whose prompt has not run yet."""

    session: StreamSession
    model: Model
    passings: list[Passing] = field(repr=False)
    judged: bool
    """Whether there is a prompt to judge."""

    @classmethod
    def of(cls, parts: SessionParts, conversation: Conversation | None) -> Opening:
        """Prepare a session, which counts as open from here on."""
        prompt = parts.model.opened(conversation)
        slot = Slot(min(len(prompt.ids) + _STEP, parts.model.context))
        if slot.room * parts.bytes_a_token > parts.ledger.limits.memory:
            raise TextTooLong(slot.room, parts.ledger.limits.memory // parts.bytes_a_token)
        return cls(
            session=StreamSession(parts, parts.model.reply(prompt), slot),
            model=parts.model,
            passings=parts.model.prompt_passings(slot, prompt),
            judged=conversation is not None,
        )

    def opened(self, answers: Sequence[Read | GuardError]) -> StreamSession:
        """The session, once its prompt has run."""
        verdict = self.model.prompt_verdict(answers)
        self.session.prompt = verdict if self.judged else None
        return self.session

    @contextmanager
    def unless_it_fails(self) -> Generator[None]:
        """Close the session where it does not come to be open."""
        try:
            yield
        except BaseException:
            self.session.close()
            raise


def _leave(ledger: Ledger, slot: Slot) -> None:
    slot.free()
    ledger.leave(id(slot))


async def _inline_or_not(size: int, call: Callable[..., _Result], *args: object) -> _Result:
    """What a call returns, made on a thread where it has so many characters to look at."""
    return call(*args) if size <= _INLINE else await asyncio.to_thread(call, *args)
