"""A guard in front of a graph's step: it judges what is new in the thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage, ToolMessage

from guardrails_qwen import Action, Stage
from langchain_guardrails_qwen.messages import FILTERED
from langchain_guardrails_qwen.steps import Ask, Steps
from langchain_guardrails_qwen.thread_settings import ThreadSettings, thread_of
from langchain_guardrails_qwen.threads import Admission, decision_of, record_of
from langchain_guardrails_qwen.values import STATE_KEY


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """What a guard found."""

    update: dict[str, Any]
    """What changes in the state; nothing where that is nothing."""
    ended: bool = False
    """Whether this is the end of the run."""


def closing_message(text: str) -> AIMessage:
    """What the assistant says in place of an answer."""
    return AIMessage(content=text, id=str(uuid4()), response_metadata=dict(FILTERED))


def admitted(settings: ThreadSettings, state: object) -> Steps[Admitted]:
    """Judge what is new in a thread.

    Raises:
        GuardViolation: Something is blocked, and that is an error.
        GuardError: Something could not be judged, and the policy says to raise.
    """
    thread = thread_of(state)
    ends = settings.exit_behavior == "end"
    if ends and has_blocked_result(settings, state):
        return _ended(settings, Stage.TOOL_RESULT, Admission(messages=thread))
    if settings.beside:
        return Admitted(update={})
    inspection = settings.inspection(thread, state)
    if not inspection.new:
        return Admitted(update=settings.update(inspection.records))
    results = yield Ask(inspection.conversations)
    admission = inspection.settle([settings.tolerated(result) for result in results])
    if ends and admission.violation:
        return _ended(settings, admission.violation.stage, admission)
    changed = {STATE_KEY: admission.changes} if admission.changes else {}
    return Admitted(update={**changed, **settings.update(admission.records)})


def has_blocked_result(settings: ThreadSettings, state: object) -> bool:
    """Whether a tool call, or what came of one, was blocked since the model was last asked."""
    ledger = settings.ledger(state)
    for message in reversed(thread_of(state)):
        if isinstance(message, AIMessage):
            return False
        decision = decision_of(ledger, message) if isinstance(message, ToolMessage) else None
        if decision and decision["action"] == Action.BLOCK.label:
            return True
    return False


def _ended(settings: ThreadSettings, stage: Stage, admission: Admission) -> Admitted:
    """The end of a run, with a word of the guard if the assistant did not have the last one."""
    records, changes = dict(admission.records), list(admission.changes)
    last = admission.messages[-1]
    if not isinstance(last, AIMessage):
        last = closing_message(settings.closing(stage) or "")
        records[last.id or ""] = record_of(last, settings.guard)
        changes.append(last)
    return Admitted(update={STATE_KEY: changes, **settings.update(records)}, ended=True)
