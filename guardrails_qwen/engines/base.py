"""The contract between a guard and whatever runs the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.errors import CheckpointError, EngineError, GuardError, RequestRejected
from guardrails_qwen.verdict import Verdict

Outcome = Verdict | GuardError
"""What became of one conversation: a verdict, or the error that kept it from being judged."""


@runtime_checkable
class Engine(Protocol):
    """Runs a safety model over conversations.

    Both doors take a batch and return one outcome for each conversation, in the same order. The
    last message of a conversation is what is judged. A conversation that cannot be judged becomes
    an error in its own place and spares its neighbours; an engine that cannot judge anything (it is
    closed, its server is gone) raises `EngineError`. A failure never becomes a verdict.
    """

    @property
    def name(self) -> str:
        """The model, by the name that people know it by."""
        ...

    @property
    def fingerprint(self) -> str:
        """The model, exactly: equal fingerprints give equal verdicts."""
        ...

    def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """Judge a batch; blocks until done."""
        ...

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """Judge a batch; never blocks the event loop."""
        ...


def failed(outcome: Outcome) -> bool:
    """Whether an engine failed, by itself or at a text, so that another may do better.

    Other errors say something of the text: that it is none that can be judged, or too long, or that
    a part of it is not safe.
    """
    failures = (EngineError, CheckpointError, RequestRejected)
    return isinstance(outcome, failures) or crashed(outcome)


def crashed(outcome: Outcome) -> bool:
    """Whether it stands for a foreign exception; see `failure`."""
    cause = outcome.__cause__ if type(outcome) is GuardError else None
    return cause is not None and not isinstance(cause, GuardError)


def failure(error: Exception) -> GuardError:
    """What stands for an exception that kept a text from being judged.

    Of a foreign one only the type, since it may quote the text. It is no `EngineError`: a bug is
    nothing that `on_error: allow` should wave through, since a text may have provoked it.
    """
    if isinstance(error, GuardError):
        return error
    failed = GuardError(f"the engine failed: {type(error).__name__}")
    failed.__cause__ = error
    return failed
