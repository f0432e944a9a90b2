"""Who judges a reply while it grows: an engine's session, or an engine asked again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guardrails_qwen.conversation import Conversation, Message, Role
from guardrails_qwen.engines.base import Engine, Outcome
from guardrails_qwen.engines.session import Judged, ReplyJudge, Session, SessionEngine
from guardrails_qwen.errors import EngineClosed, GuardError
from guardrails_qwen.streaming.boundaries import SentenceEnds
from guardrails_qwen.streaming.settings import Streaming
from guardrails_qwen.verdict import Severity, Verdict


def judge_for(engine: Engine, prompt: Conversation | None, settings: Streaming) -> ReplyJudge:
    """The judge for a reply: a session where the engine has them, else the engine again and again.

    An engine that wraps others (`CachedEngine`, `FallbackEngine`, `CascadeEngine`) has none, even
    where those have. Nothing is run before the first `feed`.
    """
    if isinstance(engine, SessionEngine):
        return OpenedLater(engine, prompt)
    return RepeatedJudge(engine, prompt, settings)


class OpenedLater:
    """A session that is opened when the first text is there: the constructor only stores."""

    def __init__(self, engine: SessionEngine, prompt: Conversation | None) -> None:
        self.engine = engine
        self.prompt = prompt
        self._session: Session | None = None
        self._closed = False

    def feed(self, text: str) -> Sequence[Judged]:
        """Append to the reply; see `ReplyJudge`."""
        self._require_open()
        if self._session is None:
            self._session = self.engine.open(self.prompt)
        return self._session.feed(text)

    async def afeed(self, text: str) -> Sequence[Judged]:
        """`feed`, without blocking the event loop."""
        self._require_open()
        if self._session is None:
            self._session = await self.engine.aopen(self.prompt)
        return await self._session.afeed(text)

    def finish(self) -> Sequence[Judged]:
        """The reply is complete; see `ReplyJudge`."""
        self._require_open()
        return self._session.finish() if self._session else []

    async def afinish(self) -> Sequence[Judged]:
        """`finish`, without blocking the event loop."""
        self._require_open()
        return await self._session.afinish() if self._session else []

    def truncate(self, characters: int) -> None:
        """Forget the rest of the reply; see `ReplyJudge`."""
        if self._session:
            self._session.truncate(characters)

    async def atruncate(self, characters: int) -> None:
        """`truncate`, without blocking the event loop."""
        if self._session:
            await self._session.atruncate(characters)

    def close(self) -> None:
        """Close the session, if there is one."""
        self._closed = True
        if self._session:
            self._session.close()

    def _require_open(self) -> None:
        if self._closed:
            raise EngineClosed("the judge of this reply is closed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What a reply grew by between two judgements of all of it."""

    start: int
    end: int
    verdict: Verdict

    @property
    def severity(self) -> Severity:
        """That of the verdict."""
        return self.verdict.severity


class RepeatedJudge:
    """Judges the reply so far, with its prompt, again and again: for engines that know no sessions.

    It is judged where a sentence ends `stride` characters or more behind the last judged end, and
    `growth` times as far, and once more when it is complete. Where that is depends on the text
    alone. All judgements before the last one together cost at most growth / (growth − 1) times as
    much as that one.

    Args:
        engine: Judges; it is not closed.
        prompt: What was said before the reply; None where that is not known.
        settings: `stride` and `growth`.
    """

    def __init__(self, engine: Engine, prompt: Conversation | None, settings: Streaming) -> None:
        self.engine = engine
        self.prompt = prompt
        self.settings = settings
        self._reply = ""
        self._judged = 0
        self._ends = SentenceEnds()
        self._error: GuardError | None = None
        """What kept a part from being judged, when something before it could be."""

    def feed(self, text: str) -> Sequence[Judged]:
        """Append to the reply; see `ReplyJudge`."""
        ends = self._due(text)
        return self._read(ends, self.engine.judge(self._until(ends)) if ends else [])

    async def afeed(self, text: str) -> Sequence[Judged]:
        """`feed`, without blocking the event loop."""
        ends = self._due(text)
        return self._read(ends, await self.engine.ajudge(self._until(ends)) if ends else [])

    def finish(self) -> Sequence[Judged]:
        """The reply is complete; see `ReplyJudge`. White space alone is not judged."""
        ends = self._left()
        return self._read(ends, self.engine.judge(self._until(ends)) if ends else [])

    async def afinish(self) -> Sequence[Judged]:
        """`finish`, without blocking the event loop."""
        ends = self._left()
        return self._read(ends, await self.engine.ajudge(self._until(ends)) if ends else [])

    def truncate(self, characters: int) -> None:
        """Forget the rest of the reply; see `ReplyJudge`."""
        self._reply = self._reply[:characters]
        self._judged = min(self._judged, characters)
        self._ends = SentenceEnds(characters)
        self._error = None

    async def atruncate(self, characters: int) -> None:
        """The same; never waits."""
        self.truncate(characters)

    def close(self) -> None:
        """Nothing is held."""

    def _due(self, text: str) -> list[int]:
        """The ends to judge at, now that more is there."""
        self._require_sound()
        known = len(self._ends.found)
        self._reply += text
        self._ends.feed(text)
        due, last = list[int](), self._judged
        for end in self._ends.found[known:]:
            if end >= max(last + self.settings.stride, last * self.settings.growth):
                due.append(end)
                last = end
        return due

    def _left(self) -> list[int]:
        self._require_sound()
        return [len(self._reply)] if self._reply[self._judged :].strip() else []

    def _require_sound(self) -> None:
        if self._error:
            raise self._error

    def _until(self, ends: Sequence[int]) -> list[Conversation]:
        before = self.prompt.messages if self.prompt else ()
        return [
            Conversation((*before, Message(role=Role.ASSISTANT, text=self._reply[:end])))
            for end in ends
        ]

    def _read(self, ends: Sequence[int], outcomes: Sequence[Outcome]) -> list[Stretch]:
        """What was judged. An error behind it waits for the next door, so that it is not lost."""
        if len(outcomes) != len(ends):
            raise GuardError(
                f"the engine returned {len(outcomes)} outcomes for {len(ends)} conversations"
            )
        judged = list[Stretch]()
        for end, outcome in zip(ends, outcomes, strict=True):
            if isinstance(outcome, Verdict):
                judged.append(Stretch(start=self._judged, end=end, verdict=outcome))
                self._judged = end
                continue
            self._error = outcome
            break
        if not judged:
            self._require_sound()
        return judged
