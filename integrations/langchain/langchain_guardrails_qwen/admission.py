"""A guard in front of a graph's step: it judges what is new in the thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage, AnyMessage

from guardrails_qwen import Action, Stage
from langchain_guardrails_qwen.ledgers import ENDS, OWN, decision_of, gone, record_of
from langchain_guardrails_qwen.refusals import taken_back
from langchain_guardrails_qwen.steps import Ask, Steps
from langchain_guardrails_qwen.thread_settings import ThreadSettings, thread_of
from langchain_guardrails_qwen.threads import Admission, written
from langchain_guardrails_qwen.values import STATE_KEY


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Admitted:
    """What a guard found."""

    update: dict[str, Any]
    """What changes in the state; nothing where that is nothing."""
    ended: bool = False
    """Whether this is the end of the run."""


def closing_message(text: str) -> AIMessage:
    """What the assistant says in place of an answer."""
    return AIMessage(content=text, id=str(uuid4()), response_metadata=taken_back({}))


def admitted(settings: ThreadSettings, state: object) -> Steps[Admitted]:
    """Judge what is new in a thread.

    Raises:
        GuardViolation: Something is blocked, and that is an error.
        GuardError: Something could not be judged, and the policy says to raise.
    """
    thread = thread_of(state)
    ends = settings.exit_behavior == "end"
    blocked = ends and has_blocked_result(settings, state)
    if settings.beside and not blocked:
        return Admitted(update={})
    inspection = settings.inspection(thread, state)
    results = yield Ask(inspection.asked)
    decisions = inspection.decisions(results)
    admission = inspection.settle([settings.tolerated(decision) for decision in decisions])
    admission.records.update(gone(settings.ledger(state), thread))
    if blocked or (ends and admission.violation):
        violation = admission.violation
        stage = violation.stage if violation else Stage.TOOL_RESULT
        return _ended(settings, stage, thread, admission)
    changes = written(thread, admission.changes)
    changed = {STATE_KEY: changes} if changes else {}
    return Admitted(update={**changed, **settings.update(admission.records)})


def has_blocked_result(settings: ThreadSettings, state: object) -> bool:
    """Whether a tool call, or what came of one, was blocked, and the assistant said nothing yet."""
    ledger = settings.ledger(state)
    since = takewhile(lambda m: not isinstance(m, AIMessage), reversed(thread_of(state)))
    records = (ledger.get(message.id or "") for message in since)
    return any(record and record.get(ENDS) for record in records)


def is_block(decision: Mapping[str, Any] | None) -> bool:
    """Whether a decision, as a ledger has it, blocks."""
    return decision is not None and decision["action"] == Action.BLOCK.label


def _ended(
    settings: ThreadSettings, stage: Stage, thread: list[AnyMessage], admission: Admission
) -> Admitted:
    """The end of a run, where the guard has the last word: its own, or a reply that it replaced."""
    records, changes = dict(admission.records), written(thread, admission.changes)
    last = admission.messages[-1]
    replaced = any(change.new is last for change in admission.changes)
    if not (replaced and isinstance(last, AIMessage) and is_block(decision_of(records, last))):
        said = closing_message(settings.closing(stage) or "")
        records[said.id or ""] = {**record_of(said, settings.guard), OWN: True}
        changes.append(said)
    return Admitted(update={STATE_KEY: changes, **settings.update(records)}, ended=True)
