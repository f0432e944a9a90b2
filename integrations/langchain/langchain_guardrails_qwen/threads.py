"""The messages of a thread that goes on: which are new to a guard, and what becomes of them. Pure.

A thread is what a graph keeps in its state: messages with ids, from turn to turn. A ledger is kept
beside it, in the state as well, and says what a guard has decided about each: so nothing is judged
twice, and whatever was changed, or put in by somebody else, is judged wherever it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Literal

from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    ToolMessage,
)

from guardrails_qwen import (
    Action,
    Conversation,
    ConversationError,
    Decision,
    Guard,
    GuardError,
    Stage,
)
from guardrails_qwen import Message as Said
from langchain_guardrails_qwen.messages import decided_message, read_message

Scope = Literal["turn", "all"]
"""What is new in a thread that a guard sees for the first time: the last turn, or all of it."""

Record = dict[str, Any]
"""What is known of a message, as plain data without text: the digest of what was let through, the
fingerprint of the guard, and its decision, or None."""

Ledger = Mapping[str, Record | None]
"""Records by message, see `key_of`; None takes one away."""

Ledgers = Mapping[str, Ledger]
"""Ledgers by the name of their guard."""


_REPLIES = frozenset({Stage.OUTPUT, Stage.TOOL_CALL})
"""Stages of what the assistant says."""


def merged(old: Ledgers | None, new: Ledgers | None) -> Ledgers:
    """Ledgers after an update: the reducer of their channel. Updates may come in any order."""
    total = dict[str, Ledger](old or {})
    for name, ledger in (new or {}).items():
        records = {**total.get(name, {}), **ledger}
        total[name] = {key: record for key, record in records.items() if record is not None}
    return total


def key_of(message: BaseMessage) -> str | None:
    """Where a ledger has a message: by its id, but an answer of a tool by that of its call.

    An answer is judged before the thread gives it an id.
    """
    return f"tool:{message.tool_call_id}" if isinstance(message, ToolMessage) else message.id


def digest_of(message: BaseMessage, guard: Guard) -> str | None:
    """A mark of all that a guard reads of a message; None where it cannot be read.

    Names are left out where applications give them: those of agents and tools.
    """
    try:
        said = read_message(message)
    except ConversationError:
        return None
    name = said.name if isinstance(message, HumanMessage) else None
    text = replace(said, name=name).judged_text
    parts = (guard.fingerprint, said.role.value, text)
    return blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def record_of(message: BaseMessage, guard: Guard, decision: Decision | None = None) -> Record:
    """What a ledger keeps of a message that passed; without a decision it is known, not judged."""
    return {
        "digest": digest_of(message, guard),
        "fingerprint": guard.fingerprint,
        "decision": decision.to_dict(text=False) if decision else None,
    }


def decision_of(ledger: Ledger, message: BaseMessage) -> dict[str, Any] | None:
    """What a guard has decided about the message in a place, as `Decision.to_dict` has it."""
    record = ledger.get(key_of(message) or "")
    return record["decision"] if record else None


def knows(ledger: Ledger, message: BaseMessage, guard: Guard) -> bool:
    """Whether a guard has decided about just this message."""
    record = ledger.get(key_of(message) or "")
    if not record or not record["decision"] or record["fingerprint"] != guard.fingerprint:
        return False
    return bool(record["digest"] == digest_of(message, guard))


def conversation_of(messages: Iterable[BaseMessage]) -> Conversation:
    """Messages as a conversation.

    Raises:
        ConversationError: One of them cannot be judged.
    """
    return Conversation(tuple(_read(index, message) for index, message in enumerate(messages)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What a guard has decided about the new messages of a thread."""

    messages: list[AnyMessage]
    """The thread as it may go on: the very same list where all of it passes unchanged."""
    changes: list[AnyMessage | RemoveMessage] = field(
        default_factory=list[AnyMessage | RemoveMessage]
    )
    """What is not the same any more, to be written to the thread: changed and removed messages."""
    records: dict[str, Record | None] = field(default_factory=dict[str, "Record | None"])
    """What the ledger gets to know."""
    violation: Decision | None = None
    """The first decision that blocks; its message is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A thread that a guard looks at, and what of it is new."""

    guard: Guard
    messages: list[AnyMessage]
    new: tuple[int, ...]
    """Which messages have to be judged."""
    records: dict[str, Record | None]
    """What the ledger gets to know whatever is decided: what stood there before the guard came, and
    what is gone."""
    closing: str | None = None
    """What the assistant says in place of what is blocked; by default the policy's replacement."""

    @classmethod
    def of(  # noqa: PLR0913 - all but the first three by name
        cls,
        messages: list[AnyMessage],
        ledger: Ledger,
        guard: Guard,
        *,
        scope: Scope = "turn",
        judged: Callable[[BaseMessage], bool] = lambda _: True,
        closing: str | None = None,
    ) -> Inspection:
        """Look at a thread.

        New is what the ledger does not have with just this text. Of a thread that it does not know
        at all, only the last turn is, unless `scope` says all: what came before is the context.

        Args:
            messages: The thread.
            ledger: What the guard knows of it.
            guard: The guard. A ledger of another policy or model is none.
            scope: What is new in an unknown thread.
            judged: Whether a message has to be judged at all.
            closing: What the assistant says in place of what is blocked.
        """
        valid = {
            key: record["digest"]
            for key, record in ledger.items()
            if record and record.get("fingerprint") == guard.fingerprint
        }
        keys = [key_of(message) for message in messages]
        digests = [digest_of(message, guard) for message in messages]
        known = [
            digest is not None and key in valid and valid[key] == digest
            for key, digest in zip(keys, digests, strict=True)
        ]
        met = any(key in valid for key in keys)
        begin = 0 if met or scope == "all" else _last_turn(messages)
        fresh = [i for i in range(begin, len(messages)) if not known[i]]
        new = tuple(i for i in fresh if judged(messages[i]))
        context = [i for i in range(len(messages)) if not known[i] and i not in new]
        gone: dict[str, Record | None] = dict.fromkeys(set(ledger) - set(keys))
        seen = {key: record_of(messages[i], guard) for i in context if (key := keys[i])}
        records = {**gone, **seen}
        return cls(guard=guard, messages=messages, new=new, records=records, closing=closing)

    @property
    def conversations(self) -> list[Conversation]:
        """One for each new message, which comes last in it.

        Raises:
            ConversationError: A message cannot be judged.
        """
        if not self.new:
            return []
        said = conversation_of(self.messages).messages
        return [Conversation(said[: index + 1]) for index in self.new]

    def settle(self, results: Sequence[Decision | GuardError]) -> Admission:
        """What becomes of the new messages.

        Raises:
            GuardError: One could not be judged, and the policy says to raise.
        """
        for result in results:
            if isinstance(result, GuardError):
                raise result
        decisions = [result for result in results if isinstance(result, Decision)]
        after: list[AnyMessage | None] = list(self.messages)
        changes, records = list[AnyMessage | RemoveMessage](), dict(self.records)
        for index, decision in zip(self.new, decisions, strict=True):
            old = self.messages[index]
            message = after[index] = self.passed(old, decision)
            if message is not old:
                changes.append(message or RemoveMessage(id=old.id or ""))
            if key := key_of(old):
                records[key] = record_of(message, self.guard, decision) if message else None
        for index in self._orphans(after):
            orphan = self.messages[index]
            after[index] = records[key_of(orphan) or ""] = None
            changes.append(RemoveMessage(id=orphan.id or ""))
        return Admission(
            messages=[m for m in after if m is not None] if changes else self.messages,
            changes=[change for change in changes if change.id],
            records=records,
            violation=next((d for d in decisions if d.action is Action.BLOCK), None),
        )

    def _orphans(self, after: Sequence[AnyMessage | None]) -> list[int]:
        """Answers to calls that a changed reply has lost: models refuse them without these."""
        lost = {
            call["id"]
            for old, new in zip(self.messages, after, strict=True)
            if isinstance(old, AIMessage) and new is not old
            for call in old.tool_calls
        }
        return [
            index
            for index, message in enumerate(after)
            if isinstance(message, ToolMessage) and message.tool_call_id in lost
        ]

    def passed(self, message: AnyMessage, decision: Decision) -> AnyMessage | None:
        """What passes of a message; None where it is removed.

        One that is dropped goes, if there is more than that and it has an id to remove it by; an
        answer of a tool is emptied, since models refuse a call without an answer.
        """
        dropped = decision.action is Action.DROP and message.id and len(self.messages) > 1
        if dropped and not isinstance(message, ToolMessage):
            return None
        return decided(message, unblocked(self.guard, decision, self.closing))


def unblocked(guard: Guard, decision: Decision, closing: str | None = None) -> Decision:
    """The same, with another text in place of a message that is blocked.

    Args:
        guard: It has the policy, whose replacement that text is.
        decision: Any decision.
        closing: That text where the assistant is to say it.
    """
    if decision.action is not Action.BLOCK:
        return decision
    text = guard.policy.at(decision.stage).replacement
    if closing is not None and decision.stage in _REPLIES:
        text = closing
    return replace(decision, action=Action.REPLACE, text=text)


def decided(message: Any, decision: Decision) -> Any:
    """`decided_message`, of the same type."""
    return decided_message(message, decision)


def _read(index: int, message: BaseMessage) -> Said:
    try:
        return read_message(message)
    except ConversationError as error:
        raise ConversationError(f"message {index}: {error}") from error


def _last_turn(messages: Sequence[BaseMessage]) -> int:
    """Where the last turn begins: behind the assistant's last message that was answered.

    What the assistant said at the very end is no turn of the past: somebody put it there, for the
    model to go on with.
    """
    end = len(messages)
    while end and isinstance(messages[end - 1], AIMessage):
        end -= 1
    while end and not isinstance(messages[end - 1], AIMessage):
        end -= 1
    return end
