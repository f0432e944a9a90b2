"""The messages that a model is sent: what is asked about them, and which may pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
from llama_index_guardrails_qwen.gate import Asked, Unjudgeable
from llama_index_guardrails_qwen.incidents import claimed
from llama_index_guardrails_qwen.known import Known, Prefix, digests_of
from llama_index_guardrails_qwen.messages import (
    decided_message,
    read_message,
    role_of,
    unjudgeable,
)

_CHANGED = (Action.REDACT, Action.REPLACE)
_SYSTEM = (Role.SYSTEM, Role.DEVELOPER)

_ROUNDS = 4
"""How often the past is asked about again; what is not settled then is left out for this call."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Item:
    """A message, and what is known of it."""

    message: ChatMessage
    role: Role
    place: int
    past: bool
    """Whether it was said before the last message of a user."""
    last: bool
    asked: Asked | None = None
    """None: nothing is asked about it."""
    digest: bytes | None = None
    """How it is known behind everything before it; None: what cannot be read is not."""
    short: bytes = b""
    """… and behind the message before it."""
    decision: Decision | None = None
    """What was decided about it; None: nothing but that it may pass."""

    @property
    def refused(self) -> bool:
        return self.decision is not None and not self.decision.allowed

    @property
    def stops(self) -> bool:
        """Whether nothing is sent because of it."""
        if not self.decision or self.decision.action < Action.DROP:
            return False
        if self.decision.action is Action.DROP:
            return self.last and self.role is not Role.TOOL
        return not self.past or (self.place == 0 and self.role in _SYSTEM)

    def passed(self) -> ChatMessage | None:
        """What is sent of it; None: nothing."""
        if not self.decision or self.decision.allowed:
            return self.message
        if self.decision.action in _CHANGED or self.role is Role.TOOL:  # a call wants an answer
            return decided_message(self.message, self.decision)
        return None


class Thread:
    """Messages on their way to a model.

    What is not let through of the past, which is all before the last message of a user, is left out
    with what answers it: it poisons no later turn. Only a system message that comes first is never
    left out: it may be what the application relies on.

    Each message is judged behind what is sent before it, and not behind anything else: what is left
    out may be what made another one seem harmful, or harmless. So what stands behind a message that
    was just refused is asked about again: `learn` until nothing is asked any more.

    Args:
        messages: The messages.
        guard: Whose decisions are known.
        known: What was decided before.
        trust_system: Whether nothing is asked about a system message that comes first. Those behind
            it may be those of a memory, with what users said.
    """

    def __init__(
        self, messages: Sequence[ChatMessage], guard: Guard, known: Known, *, trust_system: bool
    ) -> None:
        self._messages = messages
        self._guard = guard
        self._known = known
        self.trusted = int(trust_system and _begins_with_system(messages))
        """How many messages at the beginning nothing is asked about."""
        self._settled = dict[int, Decision]()
        """What was decided, by the places of the messages."""
        self._rounds = 0
        self._items = list(self._walked())

    @property
    def asked(self) -> list[Asked]:
        """What has to be judged now; nothing once something was decided that keeps all back."""
        return [item.asked for item in self._open if item.asked]

    @property
    def _open(self) -> list[_Item]:
        """What is asked about: all at once, and after some rounds one by one.

        Otherwise many that are refused would be judged as many times.
        """
        if any(item.stops for item in self._items):
            return []
        items = [item for item in self._items if item.asked]
        return items[:1] if self._rounds >= _ROUNDS else items

    def learn(self, decisions: Sequence[Decision]) -> None:
        """Remember what was decided about what is asked."""
        found = [
            replace(item, decision=decision)
            for item, decision in zip(self._open, decisions, strict=True)
        ]
        refused = next((item for item in found if item.refused), None)
        for item in found:
            if refused is None or item.place <= refused.place:
                self._settle(item)
            elif item.past and item.decision:
                # perhaps only because of what is left out now: so for this call, and not remembered
                if item.refused:
                    self._settled[item.place] = item.decision
                elif self._rounds + 1 >= _ROUNDS:
                    self._settled[item.place] = replace(
                        item.decision, action=Action.DROP, text=None
                    )
        self._rounds += 1
        self._items = list(self._walked())

    def admitted(self) -> list[ChatMessage]:
        """The messages to send, once nothing is asked any more.

        Raises:
            GuardViolation: A message of the present is blocked, the last one dropped, or a system
                message that comes first blocked; or a tool was kept from doing something, and this
                has not been raised yet.
        """
        incidents = [claimed(item.message.content or "") for item in self._items]
        for incident in filter(None, incidents):
            raise GuardViolation(incident)
        sent, along = list[ChatMessage](), _Along()
        for item in self._items:
            if along.goes(item.role):
                continue
            if item.stops and item.decision:
                raise GuardViolation(item.decision)
            message = along.of(item)
            sent.extend([message] if message else [])
        return sent

    def _walked(self) -> Iterator[_Item]:
        read, prefix, along = list[Message](), Prefix(self._guard), _Along()
        roles = [role_of(message) for message in self._messages]
        present = max((place for place, role in enumerate(roles) if role is Role.USER), default=0)
        for place, (message, role) in enumerate(zip(self._messages, roles, strict=True)):
            item = _Item(
                message=message,
                role=role,
                place=place,
                past=place < present,
                last=place == len(roles) - 1,
            )
            if place >= self.trusted and not along.goes(role):
                item = self._looked_up(item, read, prefix)
                passed = along.of(item)
                if passed and not isinstance(item.asked, Unjudgeable):
                    read.append(_as_context(passed, past=item.past))
                    prefix.add(read[-1])
            yield item

    def _looked_up(self, item: _Item, read: Sequence[Message], prefix: Prefix) -> _Item:
        """The item with what is known of it, or else what is asked about it."""
        if item.place in self._settled:
            return replace(item, decision=self._settled[item.place])
        try:
            own = read_message(item.message)
        except GuardError as error:
            return replace(item, asked=unjudgeable(error, item.role))
        digest, short = prefix.then(own), digests_of([*read[-1:], own], self._guard)[-1]
        item = replace(item, digest=digest, short=short)
        if digest in self._known or (item.past and short in self._known):
            return item
        known = replace(item, decision=self._known.refused(digest))
        if known.decision and not known.stops:
            return known
        return replace(item, asked=Conversation((*read, own)))

    def _settle(self, item: _Item) -> None:
        """This was decided behind what is sent before it."""
        if item.decision is None:
            return
        self._settled[item.place] = item.decision
        if item.digest is None or item.decision.degraded:
            return
        if item.refused:
            self._known.add(item.digest, refused=item.decision)
        else:
            self._known.add(item.digest)
            self._known.add(item.short)


def _as_context(message: ChatMessage, *, past: bool) -> Message:
    """A message as others are judged behind it.

    Pictures of the past were judged in their place: a text model would refuse all that follows.
    """
    read = read_message(message)
    return replace(read, images=()) if past else read


class _Along:
    """What goes along with what is left out: answers with what they answer, results with calls."""

    def __init__(self) -> None:
        self._roles: tuple[Role, ...] = ()

    def goes(self, role: Role) -> bool:
        """Whether a message of this role goes along with the one before it."""
        return role in self._roles

    def of(self, item: _Item) -> ChatMessage | None:
        """What is sent of a message that does not."""
        message = item.passed()
        self._roles = ()
        if item.role is Role.USER and message is None:
            self._roles = (Role.ASSISTANT, Role.TOOL)
        elif item.role is Role.ASSISTANT and message is not item.message:
            self._roles = (Role.TOOL,)
        return message


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


def _begins_with_system(messages: Sequence[ChatMessage]) -> bool:
    return any(role_of(message) in _SYSTEM for message in messages[:1])
