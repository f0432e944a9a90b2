"""The messages that a model is sent: what is asked about them, and which may pass. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from guardrails_qwen import (
    Action,
    Conversation,
    Decision,
    Guard,
    GuardError,
    GuardViolation,
    Message,
    Role,
)
from llama_index_guardrails_qwen.gate import Asked
from llama_index_guardrails_qwen.incidents import claimed
from llama_index_guardrails_qwen.known import Known, digests_of
from llama_index_guardrails_qwen.messages import (
    decided_message,
    read_message,
    role_of,
    unjudgeable,
)

_CHANGED = (Action.REDACT, Action.REPLACE)
_SYSTEM = (Role.SYSTEM, Role.DEVELOPER)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Item:
    """A message, and how it is known; what cannot be read is not."""

    message: ChatMessage
    role: Role
    asked: Asked | None
    """None: nothing is asked about it."""
    digest: bytes | None = None


class Thread:
    """Messages on their way to a model.

    Args:
        messages: The messages.
        guard: Whose decisions are known.
        known: What was let through before; nothing is asked about that.
        trust_system: Whether nothing is asked about the system messages that begin.
    """

    def __init__(
        self, messages: Sequence[ChatMessage], guard: Guard, known: Known, *, trust_system: bool
    ) -> None:
        self._known = known
        self._items = _items(messages, guard, known, trust_system=trust_system)

    @property
    def asked(self) -> list[Asked]:
        """All that has to be judged."""
        return [item.asked for item in self._items if item.asked]

    def admitted(self, decisions: Sequence[Decision]) -> list[ChatMessage]:
        """The messages to send, after what was decided.

        What is not let through of the past, which is all that somebody said before the last message
        of a user, is left out: it poisons no later turn. Calls of tools go with their results.

        Raises:
            GuardViolation: A message of the present is blocked, or the last one dropped; or a tool
                was kept from doing something, and this has not been raised yet.
        """
        incidents = [claimed(item.message.content or "") for item in self._items]
        for incident in filter(None, incidents):
            raise GuardViolation(incident)
        answers = iter(decisions)
        present = self._present()
        sent, orphans = list[ChatMessage](), False
        for place, item in enumerate(self._items):
            decision = next(answers) if item.asked else None
            if orphans and item.role is Role.TOOL:
                continue
            message = self._passed(item, decision, past=place < present)
            orphans = item.role is Role.ASSISTANT and message is not item.message
            sent.extend([message] if message else [])
        return sent

    def _present(self) -> int:
        """Where the last message of a user stands, which begins the present."""
        users = [place for place, item in enumerate(self._items) if item.role is Role.USER]
        return users[-1] if users else 0

    def _passed(self, item: _Item, decision: Decision | None, *, past: bool) -> ChatMessage | None:
        if decision is None or decision.allowed:
            if item.digest and decision and not decision.degraded:
                self._known.add(item.digest)
            return item.message
        if decision.action in _CHANGED:
            return decided_message(item.message, decision)
        if item.role is Role.TOOL and (past or decision.action is Action.DROP):
            return decided_message(item.message, decision)  # a call wants an answer
        if past and item.role not in _SYSTEM:
            return None
        if decision.action is Action.DROP and item is not self._items[-1]:
            return None
        raise GuardViolation(decision)


def prompt_of(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """What a reply answers, as a guard reads it; what cannot be read is left out.

    That was let through in spite of it, by whoever may say so.
    """
    read = list[Message]()
    for message in messages:
        try:
            read.append(read_message(message))
        except GuardError:
            continue
    return tuple(read)


def _items(
    messages: Sequence[ChatMessage], guard: Guard, known: Known, *, trust_system: bool
) -> list[_Item]:
    items, read = list[_Item](), list[Message]()
    begins = True
    for message in messages:
        role = role_of(message)
        begins = begins and role in _SYSTEM
        fields: dict[str, Any] = {"message": message, "role": role}
        if begins and trust_system:
            items.append(_Item(**fields, asked=None))
            continue
        try:
            read.append(read_message(message))
        except GuardError as error:
            items.append(_Item(**fields, asked=unjudgeable(error, role)))
            continue
        digest = digests_of(read[-2:], guard)[-1]
        asked = None if digest in known else Conversation(tuple(read))
        items.append(_Item(**fields, asked=asked, digest=digest))
    return items
