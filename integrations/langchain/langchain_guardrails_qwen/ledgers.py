"""What guards know of a thread: kept beside its messages, in the state of its graph. Pure.

A ledger says what a guard has decided about each message, and has digests in place of texts: so
nothing is judged twice, and whatever was changed, or put in by somebody else, is judged wherever it
stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage

from guardrails_qwen import ConversationError, Decision, Guard, Message
from guardrails_qwen.fields import is_token
from langchain_guardrails_qwen.messages import read_message

Record = dict[str, Any]
"""What is known of a message, as plain data without text: the digest of what was let through, the
fingerprint of the guard, and its decision, or None."""

Ledger = Mapping[str, Record | None]
"""Records by the ids of messages, "<id>:<digest>" for other versions of one that models were sent;
None takes one away."""

Ledgers = Mapping[str, Ledger]
"""Ledgers by the name of their guard."""

OWN = "own"
"""A field of records: the guard said this itself."""

ENDS = "ends"
"""A field of records: the run ends for this, as soon as the tools that are running are done."""

Reading = Message | ConversationError
"""A message as a guard reads it, or why it cannot."""


def merged(old: Ledgers | None, new: Ledgers | None) -> Ledgers:
    """Ledgers after an update: the reducer of their channel. Updates may come in any order."""
    total = dict[str, Ledger](old or {})
    for name, ledger in (new or {}).items():
        records = {**total.get(name, {}), **ledger}
        total[name] = {key: record for key, record in records.items() if record is not None}
    return total


def reading_of(message: BaseMessage) -> Reading:
    """A message as a guard reads it, or why it cannot be read."""
    try:
        return read_message(message)
    except ConversationError as error:
        return error


def digest_of(message: BaseMessage, fingerprint: str, reading: Reading | None = None) -> str | None:
    """A mark of all that a guard reads of a message; None where it cannot be read.

    Names of agents and tools, which applications give, are left out if they are no more than that.
    """
    said = reading or reading_of(message)
    if isinstance(said, ConversationError):
        return None
    given = not isinstance(message, HumanMessage) and is_token(said.name or "")
    name = None if given else said.name
    calls = [call.judged_text for call in said.tool_calls]
    parts = [fingerprint, said.role.value, name or "", said.text, *calls]
    marked = "".join(f"{len(part)}:{part}" for part in parts)
    return blake2b(marked.encode(), digest_size=16).hexdigest()


def record_of(message: BaseMessage, guard: Guard, decision: Decision | None = None) -> Record:
    """What a ledger keeps of a message that passed; without a decision it is known, not judged."""
    return {
        "digest": digest_of(message, guard.fingerprint),
        "fingerprint": guard.fingerprint,
        "decision": decision.to_dict(text=False) if decision else None,
    }


def decision_of(ledger: Ledger, message: BaseMessage) -> dict[str, Any] | None:
    """What a guard has decided about the message in a place, as `Decision.to_dict` has it."""
    record = ledger.get(message.id or "")
    return record["decision"] if record else None


def knows(ledger: Ledger, message: BaseMessage, guard: Guard) -> bool:
    """Whether a guard has decided about just this message."""
    record = ledger.get(message.id or "")
    if not record or not record["decision"] or record["fingerprint"] != guard.fingerprint:
        return False
    return bool(record["digest"] == digest_of(message, guard.fingerprint))


def require_arrived(ledger: Ledger, messages: Iterable[BaseMessage]) -> None:
    """See that a thread is as a guard has just left it.

    Raises:
        ConversationError: A message that was changed stands there unchanged.
    """
    for message in messages:
        record = ledger.get(message.id or "")
        if record and record["digest"] != digest_of(message, record["fingerprint"]):
            raise ConversationError(
                "a message that a guard has changed is still in the state as it was: keep messages "
                "by langgraph.graph.message.add_messages, which knows them by their ids"
            )


def as_sent(
    records: Mapping[str, Record | None], sent: Iterable[BaseMessage], thread: Iterable[BaseMessage]
) -> dict[str, Record | None]:
    """Records of what a model was sent, for the ledger of a thread that may read otherwise.

    Args:
        records: By the ids of messages.
        sent: The messages, which somebody may have edited, cleared or trimmed on the way.
        thread: Those of the thread.
    """
    kept = {message.id: message for message in thread}
    edited = {m.id for m in sent if m.id in kept and kept[m.id] != m}
    return {
        f"{key}:{record['digest']}" if record and key in edited else key: record
        for key, record in records.items()
    }


def gone(ledger: Ledger, thread: Iterable[BaseMessage]) -> dict[str, Record | None]:
    """What a ledger has of messages that a thread has no more, to take it away."""
    ids = {message.id for message in thread}
    return {key: None for key in ledger if not {key, key.rpartition(":")[0]} & ids}
