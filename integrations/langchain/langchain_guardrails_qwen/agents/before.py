"""What a guard does before the model is asked: it judges what is new in the thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage, ToolMessage

from guardrails_qwen import Action, Stage
from langchain_guardrails_qwen.agents.model import closing_message
from langchain_guardrails_qwen.agents.settings import Settings, thread_of
from langchain_guardrails_qwen.agents.steps import Ask, Steps
from langchain_guardrails_qwen.threads import Admission, Inspection, key_of, record_of
from langchain_guardrails_qwen.values import STATE_KEY

Update = dict[str, Any]


def before_model(settings: Settings, state: Mapping[str, Any]) -> Steps[Update | None]:
    """An update of the state, if there is anything new.

    Raises:
        GuardViolation: Something is blocked, and that is an error.
        GuardError: Something could not be judged, and the policy says to raise.
    """
    thread, ledger = thread_of(state), settings.ledger(state)
    if settings.exit_behavior == "end" and _has_blocked_result(settings, state):
        return _ended(settings, state, Stage.TOOL_RESULT, Admission(messages=thread))
    if settings.beside:
        return None
    inspection = Inspection.of(
        thread, ledger, settings.guard, scope=settings.scope, judged=settings.checks
    )
    if not inspection.new:
        return settings.update(inspection.records) or None
    results = yield Ask(inspection.conversations)
    admission = inspection.settle([settings.tolerated(result) for result in results])
    if admission.violation and settings.exit_behavior == "end":
        return _ended(settings, state, admission.violation.stage, admission)
    changed = {STATE_KEY: admission.changes} if admission.changes else {}
    return {**changed, **settings.update(admission.records)}


def _ended(
    settings: Settings, state: Mapping[str, Any], stage: Stage, admission: Admission
) -> Update:
    """The agent's run ends with a word of the guard."""
    said = closing_message(settings.closing(stage) or "")
    records = {**admission.records, said.id or "": record_of(said, settings.guard)}
    stale = {"structured_response": None} if "structured_response" in state else {}
    return {
        STATE_KEY: [*admission.changes, said],
        "jump_to": "end",
        **stale,
        **settings.update(records),
    }


def _has_blocked_result(settings: Settings, state: Mapping[str, Any]) -> bool:
    """Whether a tool call, or what came of one, was blocked since the model was last asked."""
    ledger = settings.ledger(state)
    for message in reversed(thread_of(state)):
        if isinstance(message, AIMessage):
            return False
        record = ledger.get(key_of(message) or "") if isinstance(message, ToolMessage) else None
        decision = record and record["decision"]
        if decision and decision["action"] == Action.BLOCK.label:
            return True
    return False
