"""The contract of engines that judge a reply while it grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.engines.base import Engine
from guardrails_qwen.token_verdict import TokenVerdict
from guardrails_qwen.verdict import Severity, Verdict


class Judged(Protocol):
    """A stretch of a reply, judged together with all that comes before it."""

    @property
    def start(self) -> int:
        """Its first character in the reply."""
        ...

    @property
    def end(self) -> int:
        """Behind its last character."""
        ...

    @property
    def severity(self) -> Severity:
        """That of `verdict`."""
        ...

    @property
    def verdict(self) -> Verdict:
        """What the model thinks of it."""
        ...


class ReplyJudge(Protocol):
    """Judges a reply while it grows.

    What is handed in is judged in order and without gaps, but not at once: the judge keeps what it
    cannot judge yet. Stretches that share a character come in one answer. All doors raise
    `GuardError` where something cannot be judged; after that, or after a door was left early, the
    judge goes on with nothing but `close`.
    """

    def feed(self, text: str) -> Sequence[Judged]:
        """Append to the reply; what could be judged now."""
        ...

    async def afeed(self, text: str) -> Sequence[Judged]:
        """`feed`, without blocking the event loop."""
        ...

    def finish(self) -> Sequence[Judged]:
        """The reply is complete: judge what is left of it."""
        ...

    async def afinish(self) -> Sequence[Judged]:
        """`finish`, without blocking the event loop."""
        ...

    def truncate(self, characters: int) -> None:
        """Forget all but the first `characters` of the reply, as if the rest had never been fed.

        What of them was not judged yet is judged later; nothing is judged a second time. A reply
        that was finished goes on.
        """
        ...

    async def atruncate(self, characters: int) -> None:
        """`truncate`, without blocking the event loop."""
        ...

    def close(self) -> None:
        """Let go of everything, without waiting for anything. Closing again does nothing."""
        ...


class Session(Protocol):
    """A reply that a model judges token by token, behind its prompt: a `ReplyJudge`."""

    @property
    def prompt(self) -> Verdict | None:
        """What the model thinks of the prompt; None where there is none."""
        ...

    def feed(self, text: str) -> list[TokenVerdict]:
        """Append to the reply; the verdicts on tokens that no continuation can change any more."""
        ...

    async def afeed(self, text: str) -> list[TokenVerdict]:
        """`feed`, without blocking the event loop."""
        ...

    def finish(self) -> list[TokenVerdict]:
        """The reply is complete: the verdicts on the rest of its tokens."""
        ...

    async def afinish(self) -> list[TokenVerdict]:
        """`finish`, without blocking the event loop."""
        ...

    def truncate(self, characters: int) -> None:
        """Forget all but the first `characters` of the reply; see `ReplyJudge.truncate`."""
        ...

    async def atruncate(self, characters: int) -> None:
        """`truncate`, without blocking the event loop."""
        ...

    def fork(self) -> Session:
        """An independent session that goes on from here."""
        ...

    def close(self) -> None:
        """Free its memory. Closing again does nothing."""
        ...


@runtime_checkable
class SessionEngine(Engine, Protocol):
    """An engine that can also judge a reply while it grows."""

    def open(self, conversation: Conversation | None) -> Session:
        """A session for the reply to a conversation.

        Args:
            conversation: What was said before the reply, the prompt last; None where that is not
                known.

        Raises:
            EngineOverloaded: Too many sessions are open.
            TextTooLong: The conversation leaves no room for a reply.
            GuardError: The conversation could not be judged.
        """
        ...

    async def aopen(self, conversation: Conversation | None) -> Session:
        """`open`, without blocking the event loop."""
        ...
