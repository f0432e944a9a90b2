"""What a guard checks of a thread, and what it does about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, FunctionMessage, ToolMessage

from guardrails_qwen import Action, Decision, Guard, GuardViolation, Stage
from guardrails_qwen.streaming import Streaming
from langchain_guardrails_qwen.gate import require_guard
from langchain_guardrails_qwen.ledgers import Ledger, Record
from langchain_guardrails_qwen.threads import Inspection, Scope
from langchain_guardrails_qwen.values import STATE_KEY

ExitBehavior = Literal["end", "replace", "error"]
"""What happens where the policy blocks."""

LEDGERS = "guardrails"
"""The field of a state that has the ledgers of all guards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadSettings:
    """See `GuardrailMiddleware`."""

    guard: Guard
    name: str
    exit_behavior: ExitBehavior = "end"
    check_input: bool = True
    check_output: bool = True
    check_tool_calls: bool = True
    check_tool_results: bool = True
    violation_message: str | None = None
    streaming: Streaming = field(default_factory=Streaming)
    beside: bool = False
    scope: Scope = "turn"

    def __post_init__(self) -> None:
        require_guard(self.guard)
        if self.exit_behavior not in ("end", "replace", "error"):
            raise ValueError("exit_behavior is one of 'end', 'replace' and 'error'")
        if self.scope not in ("turn", "all"):
            raise ValueError("scope is one of 'turn' and 'all'")

    def checks(self, message: BaseMessage) -> bool:
        """Whether a message of the thread has to be judged before the model sees it."""
        if isinstance(message, (ToolMessage, FunctionMessage)):
            return self.check_tool_results
        if isinstance(message, AIMessage):
            return self.check_input or self.check_output
        return self.check_input

    def closing(self, stage: Stage) -> str | None:
        """What the assistant says where something is blocked; None: an error is raised."""
        if self.exit_behavior == "error":
            return None
        said = self.violation_message, self.streaming.closing
        given = next((text for text in said if text is not None), None)
        return self.guard.policy.at(stage).replacement if given is None else given

    def tolerated(self, decision: Decision) -> Decision:
        """A decision that can be carried out.

        Raises:
            GuardViolation: It blocks, and that is an error.
        """
        if decision.action is Action.BLOCK and self.exit_behavior == "error":
            raise GuardViolation(decision)
        return decision

    def inspection(self, messages: list[AnyMessage], state: object) -> Inspection:
        """What is new in a thread, to judge it."""
        return Inspection.of(
            messages,
            self.ledger(state),
            self.guard,
            scope=self.scope,
            judged=self.checks,
            closing=self.closing(Stage.OUTPUT),
        )

    def ledger(self, state: object) -> Ledger:
        """What the guard knows of the thread."""
        return ledger_of(state, self.name)

    def update(self, records: Mapping[str, Record | None]) -> dict[str, Any]:
        """What the guard gets to know, as an update of the state; nothing where that is nothing."""
        return {LEDGERS: {self.name: dict(records)}} if records else {}


def thread_of(state: object) -> list[AnyMessage]:
    """The messages of a state in any of the forms that LangGraph has."""
    if isinstance(state, list):
        return cast("list[AnyMessage]", state)
    return cast("list[AnyMessage]", _field(state, STATE_KEY) or [])


def ledger_of(state: object, name: str) -> Ledger:
    """What the guard of a name knows of the thread."""
    ledgers = cast("Mapping[str, Ledger]", _field(state, LEDGERS) or {})
    return ledgers.get(name, {})


def _field(state: object, key: str) -> object:
    if isinstance(state, Mapping):
        return cast("Mapping[str, object]", state).get(key)
    return getattr(state, key, None)
