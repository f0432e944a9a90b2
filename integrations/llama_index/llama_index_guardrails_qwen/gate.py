"""A guard where texts pass: what it judges there, and what its callers get instead of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from guardrails_qwen import (
    Action,
    Conversation,
    Decision,
    Guard,
    GuardError,
    GuardViolation,
    Stage,
)
from guardrails_qwen.streaming import Streaming
from llama_index_guardrails_qwen.check import Check
from llama_index_guardrails_qwen.events import Origin

OnViolation = Literal["raise", "reply"]
"""What callers get where the policy blocks: a `GuardViolation`, or a reply that says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unjudgeable:
    """What cannot be put to a guard, and why."""

    error: GuardError
    stage: Stage


Asked = Conversation | Unjudgeable
"""What is asked about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A guard at one place."""

    guard: Guard
    component: str
    """What it is part of, as events name it."""
    on_violation: OnViolation = "raise"
    streaming: Streaming = field(default_factory=Streaming)
    """How replies are moderated while they are written."""

    def __post_init__(self) -> None:
        require_guard(self.guard)
        if self.on_violation not in ("raise", "reply"):
            raise ValueError("on_violation is raise or reply")

    def judge(
        self,
        asked: Sequence[Asked],
        stage: Stage | None = None,
        origin: Origin | None = None,
    ) -> list[Decision]:
        """A decision for each that is asked about, in order, all of them in one batch.

        What cannot be judged is decided about as the policy's `on_error` says.

        Args:
            asked: The conversations; the last message of each is judged.
            stage: By default what the last message is; see `Guard.check`.
            origin: In which call, as events name it; by default the one that is running.

        Raises:
            GuardError: Something could not be judged, and the policy says to raise.
        """
        if not asked:
            return []
        with Check(self.guard, self.component, len(asked), stage, origin) as check:
            results = self.guard.check_many(_judgeable(asked), stage=stage, return_exceptions=True)
            check.note(decisions := self._decisions(asked, results))
            return decisions

    async def ajudge(
        self,
        asked: Sequence[Asked],
        stage: Stage | None = None,
        origin: Origin | None = None,
    ) -> list[Decision]:
        """`judge`, without blocking the event loop."""
        if not asked:
            return []
        with Check(self.guard, self.component, len(asked), stage, origin) as check:
            results = await self.guard.acheck_many(
                _judgeable(asked), stage=stage, return_exceptions=True
            )
            check.note(decisions := self._decisions(asked, results))
            return decisions

    def reply_to(self, decision: Decision) -> str | None:
        """What is answered in place of what was blocked; None: raise.

        To what a user sends that is the policy's replacement; in place of a reply the closing text,
        if there is one.
        """
        if decision.stage in (Stage.OUTPUT, Stage.TOOL_CALL):
            return self.closing
        return self.guard.policy.at(decision.stage).replacement if self._replies else None

    def instead(self, violation: GuardViolation) -> str:
        """What is answered in place of what was kept from passing; of what was dropped, nothing.

        Raises:
            GuardViolation: That one, where nothing is.
        """
        if violation.decision.action is Action.DROP:
            return ""
        text = self.reply_to(violation.decision)
        if text is None:
            raise violation
        return text

    @property
    def closing(self) -> str | None:
        """What a reader gets in place of the rest of a reply that is blocked; None: raise."""
        if self.streaming.closing is not None or not self._replies:
            return self.streaming.closing
        return self.guard.policy.at(Stage.OUTPUT).replacement

    @property
    def _replies(self) -> bool:
        return self.on_violation == "reply"

    def _decisions(
        self, asked: Sequence[Asked], results: Sequence[Decision | GuardError]
    ) -> list[Decision]:
        answers = iter(results)
        return [
            self._decision(next(answers) if isinstance(item, Conversation) else item)
            for item in asked
        ]

    def _decision(self, result: Decision | GuardError | Unjudgeable) -> Decision:
        if isinstance(result, Unjudgeable):
            return self.guard.policy.decide_unjudged(result.stage, result.error)
        if isinstance(result, GuardError):
            raise result
        return result


def require_guard(guard: object) -> None:
    """See that a guard is one.

    Raises:
        TypeError: It is something else: an engine say, or what is made of a guard.
    """
    if not isinstance(guard, Guard):
        raise TypeError(
            f"the guard is {type(guard).__name__}, not a Guard: give Guard.from_pretrained(...), "
            "Guard.remote(...) or Guard(engine, policy)"
        )


def _judgeable(asked: Sequence[Asked]) -> list[Conversation]:
    return [item for item in asked if isinstance(item, Conversation)]
