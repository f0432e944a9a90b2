"""The messages of a thread that goes on: which are new to a guard, and what becomes of them. Pure.

A thread is what a graph keeps in its state: messages with ids, from turn to turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal
from uuid import uuid4

from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    RemoveMessage,
    ToolMessage,
)

from guardrails_qwen import Action, ConversationError, Decision, Guard, GuardError
from langchain_guardrails_qwen.content import tool_calls
from langchain_guardrails_qwen.judging import (
    Asked,
    asked,
    context_of,
    decided,
    decision_about,
    unblocked,
)
from langchain_guardrails_qwen.ledgers import (
    OWN,
    Ledger,
    Reading,
    Record,
    digest_of,
    reading_of,
    record_of,
)

Scope = Literal["turn", "all"]
"""What is new in a thread that a guard sees for the first time: the last turn, or all of it."""

REMOVE_ALL = "__remove_all__"
"""An id that removes all messages of a LangGraph thread when one of it is removed."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Change:
    """A message of a thread that is not the same any more."""

    old: AnyMessage
    new: AnyMessage | None
    """None: it is removed."""

    @property
    def update(self) -> list[AnyMessage | RemoveMessage]:
        """What to write to the thread.

        A message that lost its id, since that may say something, takes the last place.

        Raises:
            ConversationError: It cannot be written there: nothing tells which message it is.
        """
        if self.old.id is None:
            raise ConversationError(
                "a message without an id cannot be changed where it stands: keep the messages of "
                "the state by langgraph.graph.message.add_messages, which gives them ids"
            )
        removed = RemoveMessage(id=self.old.id)
        if self.new is None:
            return [removed]
        return [self.new] if self.new.id == self.old.id else [removed, self.new]


def written(
    thread: Sequence[AnyMessage], changes: Sequence[Change]
) -> list[AnyMessage | RemoveMessage]:
    """What to write to a thread, so that it has these changes.

    Where two messages have one id nothing tells which of them is meant. Such a thread is written
    anew, and begins with the removal of all that it has.

    Raises:
        ConversationError: A message has no id.
    """
    updates = [message for change in changes for message in change.update]
    ids = [message.id for message in thread]
    if not updates or len(set(ids)) == len(ids):
        return updates
    after, taken = list[AnyMessage | RemoveMessage](), set[str | None]()
    for message in thread:
        new = next((change.new for change in changes if change.old is message), message)
        if new is not None:
            after.append(new.model_copy(update={"id": str(uuid4())}) if new.id in taken else new)
            taken.add(new.id)
    return [RemoveMessage(id=REMOVE_ALL), *after]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Admission:
    """What a guard has decided about the new messages of a thread."""

    messages: list[AnyMessage]
    """The thread as it may go on: the very same list where all of it passes unchanged."""
    readings: Sequence[Reading] = ()
    """The same, as the guard reads it."""
    changes: list[Change] = field(default_factory=list[Change])
    """What is not the same any more."""
    records: dict[str, Record | None] = field(default_factory=dict[str, "Record | None"])
    """What the ledger gets to know."""
    violation: Decision | None = None
    """The first decision that blocks; its message is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Inspection:
    """A thread that a guard looks at, and what of it is new."""

    guard: Guard
    messages: list[AnyMessage]
    readings: Sequence[Reading]
    """The same, as the guard reads it."""
    new: tuple[int, ...]
    """Which messages have to be judged."""
    context: dict[str, Record]
    """What the ledger gets to know whatever is decided: what stood there before the guard came."""
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
            if record and record["fingerprint"] == guard.fingerprint
            if scope == "turn" or record["decision"] or record.get(OWN)
        }
        keys = [message.id for message in messages]
        readings = [reading_of(message) for message in messages]
        digests = [
            digest_of(message, guard.fingerprint, reading)
            for message, reading in zip(messages, readings, strict=True)
        ]
        known = [
            digest is not None and digest in (valid.get(key or ""), valid.get(f"{key}:{digest}"))
            for key, digest in zip(keys, digests, strict=True)
        ]
        met = any(key in valid for key in keys)
        begin = 0 if met or scope == "all" else _last_turn(messages)
        unknown = [i for i in range(len(messages)) if not known[i]]
        new = tuple(i for i in unknown if i >= begin and judged(messages[i]))
        rest = [i for i in set(unknown).difference(new) if keys[i] is not None]
        return cls(
            guard=guard,
            messages=messages,
            readings=readings,
            new=new,
            context={
                keys[i] or "": {
                    "digest": digests[i],
                    "fingerprint": guard.fingerprint,
                    "decision": None,
                }
                for i in rest
            },
            closing=closing,
        )

    @property
    def asked(self) -> list[Asked]:
        """A conversation for each new message, which comes last in it."""
        if not self.new:
            return []
        context = context_of(self.readings)
        return [asked(context[:index], self.readings[index]) for index in self.new]

    def decisions(self, results: Sequence[Decision | GuardError]) -> list[Decision]:
        """What is done with the new messages.

        Raises:
            GuardError: One could not be judged, and the policy says to raise.
        """
        return [
            decision_about(self.messages[index], result, self.guard)
            for index, result in zip(self.new, results, strict=True)
        ]

    def settle(self, decisions: Sequence[Decision]) -> Admission:
        """What becomes of the thread."""
        after: list[AnyMessage | None] = list(self.messages)
        records: dict[str, Record | None] = {**self.context}
        for index, decision in zip(self.new, decisions, strict=True):
            old = self.messages[index]
            after[index] = None
            message = after[index] = self.passed(old, decision, alone=not any(after))
            if message and message.id is not None:
                records[message.id] = record_of(message, self.guard, decision)
        for index in self._orphans(after):
            after[index] = None
            records[self.messages[index].id or ""] = None
        changes = [
            Change(old=old, new=new)
            for old, new in zip(self.messages, after, strict=True)
            if new is not old
        ]
        readings = [
            old if message is self.messages[index] else reading_of(message)
            for index, (message, old) in enumerate(zip(after, self.readings, strict=True))
            if message is not None
        ]
        return Admission(
            messages=[m for m in after if m is not None] if changes else self.messages,
            readings=readings,
            changes=changes,
            records=records,
            violation=next((d for d in decisions if d.action is Action.BLOCK), None),
        )

    def _orphans(self, after: Sequence[AnyMessage | None]) -> list[int]:
        """Answers to calls that a changed reply has lost: models refuse them without these.

        A reply's answers stand between it and the next one; ids of calls may be used again.
        """
        orphans, lost = list[int](), set[str | None]()
        for index, (old, new) in enumerate(zip(self.messages, after, strict=True)):
            if isinstance(old, AIMessage):
                calls = [] if new is old else old.tool_calls
                lost = {call["id"] for call in calls}
            elif isinstance(new, ToolMessage) and new.tool_call_id in lost:
                orphans.append(index)
        return orphans

    def passed(
        self, message: AnyMessage, decision: Decision, *, alone: bool = False
    ) -> AnyMessage | None:
        """What passes of a message; None where it is removed.

        One that is dropped goes, unless it stands alone; an answer of a tool is emptied, since
        models refuse a call without an answer.
        """
        emptied = alone or isinstance(message, ToolMessage) or message.id == REMOVE_ALL
        if decision.action is Action.DROP and not emptied:
            return None
        return decided(message, unblocked(self.guard, decision, self.closing))


def _last_turn(messages: Sequence[BaseMessage]) -> int:
    """Where the last turn begins: behind the assistant's last answer that was followed by anything.

    An assistant that asks for tools has not answered yet. What it said at the very end is no turn
    of the past either: somebody put it there, for the model to go on with.
    """
    end = len(messages)
    while end and isinstance(messages[end - 1], AIMessage):
        end -= 1
    while end and not _is_answer(messages[end - 1]):
        end -= 1
    return end


def _is_answer(message: BaseMessage) -> bool:
    try:
        return isinstance(message, AIMessage) and not tool_calls(message)
    except ConversationError:
        return False
