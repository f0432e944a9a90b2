"""One turn of a chat engine: what of it goes on, is answered and is remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llama_index.core.base.llms.types import ChatMessage, MessageRole

from guardrails_qwen import (
    Action,
    Conversation,
    Decision,
    GuardError,
    GuardViolation,
    Message,
    Role,
)
from llama_index_guardrails_qwen.chat_sources import beside_reply
from llama_index_guardrails_qwen.content import is_words
from llama_index_guardrails_qwen.events import Origin
from llama_index_guardrails_qwen.gate import Asked, Gate
from llama_index_guardrails_qwen.known import Known, digests_of
from llama_index_guardrails_qwen.messages import (
    asked_about,
    decided_message,
    read_message,
    role_of,
    said,
    unjudgeable,
)
from llama_index_guardrails_qwen.turn import Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an engine answers."""

    came: str = field(repr=False)
    """As the engine gave it."""
    released: str = field(default="", repr=False)
    """… and as it was released, if it was judged while it was written."""
    decision: Decision | None = None
    """What was decided then; None: it is still to be judged."""
    response: object = field(default=None, repr=False)
    """… with all that the engine tells beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What is left of a turn that has passed."""

    reply: str = field(repr=False)
    decision: Decision
    """About the reply."""
    messages: list[ChatMessage] = field(repr=False)
    """What is remembered."""
    shows_sources: bool
    """Whether what is told beside the reply may be read."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Open:
    """What is still to be judged when an engine has answered."""

    written: list[ChatMessage]
    """All that the engine wrote to its memory."""
    messages: list[ChatMessage]
    """What is judged of it, and the reply, if that is still to be."""
    reply: ChatMessage | None
    """The reply, in the memory or not; None where nothing was said."""


class ChatTurn:
    """One message to a chat engine, and the reply to it.

    Args:
        gate: The guard.
        known: What it let through before.
        message: What the user says.
    """

    def __init__(self, gate: Gate, known: Known, message: str) -> None:
        self._gate = gate
        self._origin = Origin.now()
        self._known = known
        self._given = message
        self._message = said(MessageRole.USER, message)
        self.prompt: Conversation | None = None
        """What the reply is an answer to, with what the engine read last; None before `begin`."""

    @property
    def message(self) -> str:
        """What the user says, as far as that passed."""
        return self._message.content or ""

    def begin(self, history: Sequence[ChatMessage]) -> list[ChatMessage]:
        """Judge the message, and what is not known of the history before it; what passed of that.

        Raises:
            GuardViolation: The message is blocked or dropped, or a system message that comes first
                is blocked.
            GuardError: Something could not be judged, and the policy says to raise.
        """
        return self._begun(self._call([*history, self._message]).admit())

    async def abegin(self, history: Sequence[ChatMessage]) -> list[ChatMessage]:
        """`begin`, without blocking the event loop."""
        return self._begun(await self._call([*history, self._message]).aadmit())

    def admitted(self, messages: list[ChatMessage], *, begun: bool) -> list[ChatMessage]:
        """What an engine may read of its memory. Raises as `begin` does."""
        sent = self._call(messages if begun else [*messages, self._message]).admit()
        self._answers(sent)
        return sent if begun else sent[:-1]

    async def aadmitted(self, messages: list[ChatMessage], *, begun: bool) -> list[ChatMessage]:
        """`admitted`, without blocking the event loop."""
        sent = await self._call(messages if begun else [*messages, self._message]).aadmit()
        self._answers(sent)
        return sent if begun else sent[:-1]

    def settle(self, written: Sequence[ChatMessage], answer: Answer) -> Settled:
        """Judge the answer with its prompt, and all else that the engine wrote to its memory.

        Raises:
            GuardViolation: Something of it is blocked, or the reply is dropped.
            GuardError: Something could not be judged, and the policy says to raise.
        """
        left = self._left(written, answer)
        asked = [*self._about(left.messages), *self._beside(answer)]
        return self._settled(answer, left, self._gate.judge(asked, origin=self._origin))

    async def asettle(self, written: Sequence[ChatMessage], answer: Answer) -> Settled:
        """`settle`, without blocking the event loop."""
        left = self._left(written, answer)
        asked = [*self._about(left.messages), *self._beside(answer)]
        return self._settled(answer, left, await self._gate.ajudge(asked, origin=self._origin))

    def _call(self, messages: Sequence[ChatMessage]) -> Turn:
        """A model is about to be called with messages, whoever does that."""
        return Turn(self._gate, self._known, messages, trust_system=False)

    def _begun(self, sent: list[ChatMessage]) -> list[ChatMessage]:
        *history, self._message = sent
        self._answers(sent)
        return history

    def _answers(self, sent: Sequence[ChatMessage]) -> None:
        """The reply will be an answer to these, if they end with what the user says."""
        if sent and role_of(sent[-1]) is Role.USER:
            self.prompt = Conversation(tuple(read_message(message) for message in sent))

    def _about(self, messages: Sequence[ChatMessage]) -> list[Asked]:
        return asked_about(messages, self.prompt.messages if self.prompt else ())

    def _beside(self, answer: Answer) -> list[Asked]:
        """What is asked about what the engine tells beside its answer."""
        before = self.prompt.messages if self.prompt else ()
        try:
            text = beside_reply(answer.response, {self._given, self.message, answer.came})
            message = Message(role=Role.ASSISTANT, text=text)
        except GuardError as error:
            return [unjudgeable(error, Role.ASSISTANT)]
        return [Conversation((*before, message))] if text else []

    def _left(self, written: Sequence[ChatMessage], answer: Answer) -> _Open:
        written = self._attributed(written, answer.came)
        others = [message for message in written if message != self._message]
        replies = [message for message in others if _says(message, answer.came)]
        reply = replies[-1] if replies else None
        if answer.decision is not None:
            others = [message for message in others if message is not reply]
        elif reply is None:
            others.append(reply := said(MessageRole.ASSISTANT, answer.came))
        return _Open(written=written, messages=others, reply=reply)

    def _attributed(self, written: Sequence[ChatMessage], came: str) -> list[ChatMessage]:
        """What was written, the reply as the assistant's: models may leave that to be guessed.

        A message of LlamaIndex is the user's where nothing is said.
        """
        own = next((message for message in written if message == self._message), None)
        return [
            message.model_copy(update={"role": MessageRole.ASSISTANT})
            if message is not own and _says(message, came, by=Role.USER)
            else message
            for message in written
        ]

    def _settled(self, answer: Answer, left: _Open, decisions: Sequence[Decision]) -> Settled:
        decisions, beside = decisions[: len(left.messages)], decisions[len(left.messages) :]
        found = {id(message): one for message, one in zip(left.messages, decisions, strict=True)}
        decision = answer.decision or found[id(left.reply)]
        for one in [*decisions, decision]:
            if one.action is Action.BLOCK or (one is decision and one.action is Action.DROP):
                raise GuardViolation(one)
        kept = list[ChatMessage]()
        for message in left.written:
            one = found.get(id(message))
            if message is left.reply and answer.decision:
                kept.append(_released(message, answer))
            elif one is None or one.action is not Action.DROP:
                kept.append(decided_message(message, one) if one else message)
        if answer.decision and left.reply is None and kept:
            kept.append(said(MessageRole.ASSISTANT, answer.released.strip()))
        if all(one.allowed and not one.degraded for one in [*decisions, decision]):
            self._remember(kept)
        reply = answer.released
        if answer.decision is None and left.reply:
            reply = answer.came if decision.allowed else _text(left.reply, decision)
        shows = decision.allowed and all(one.allowed for one in beside)
        return Settled(reply=reply, decision=decision, messages=kept, shows_sources=shows)

    def _remember(self, messages: Sequence[ChatMessage]) -> None:
        """These passed, and need not be judged again."""
        if self.prompt is None or not messages:
            return
        read = [read_message(message) for message in messages]
        digests = digests_of([*self.prompt.messages[:-1], *read], self._gate.guard)
        for digest in digests[-len(read) :]:
            self._known.add(digest)


def _says(message: ChatMessage, text: str, *, by: Role = Role.ASSISTANT) -> bool:
    return role_of(message) is by and (message.content or "").strip() == text.strip()


def _released(message: ChatMessage, answer: Answer) -> ChatMessage:
    """A reply as it was released; beside its words nothing was judged, and nothing is kept."""
    if is_words(message) and answer.released == answer.came:
        return message
    return said(MessageRole.ASSISTANT, answer.released.strip())


def _text(message: ChatMessage, decision: Decision) -> str:
    return decided_message(message, decision).content or ""
