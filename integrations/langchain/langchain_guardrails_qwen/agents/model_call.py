"""A call of an agent's model, from the guard's side: what was sent, what was released, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, SystemMessage

from guardrails_qwen import (
    ConversationError,
    Decision,
    Guard,
    GuardError,
    GuardViolation,
    Message,
    Stage,
)
from langchain_guardrails_qwen.admission import closing_message
from langchain_guardrails_qwen.judging import Asked, asked, context_of
from langchain_guardrails_qwen.ledgers import Ledger, digest_of, reading_of
from langchain_guardrails_qwen.threads import Admission, Inspection, Scope


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Released:
    """A reply that the guard let out."""

    message: BaseMessage
    digest: str | None
    decision: Decision | None
    """What was decided; None of a reply from a cache."""


@dataclass(slots=True, kw_only=True, repr=False)
class ModelCall:
    """A call of the model, from the guard's side. It is filled in while the call goes on."""

    guard: Guard
    ledger: Ledger
    """What the guard knows of the thread."""
    scope: Scope
    judged: Callable[[BaseMessage], bool]
    """Whether a message of the thread has to be judged at all."""
    system: SystemMessage | None
    """The application's own words, which are not judged."""
    closing: str | None
    """What ends a call that is blocked; None: raise."""
    goes_on: bool
    """Whether the model is asked also where a message was blocked: it is replaced by then."""
    sent: Sequence[AnyMessage] = ()
    """What was to be sent."""
    admission: Admission | None = None
    """What may be sent."""
    prompt: tuple[Message, ...] = ()
    """The same, as the guard reads it."""
    released: list[Released] = field(default_factory=list["Released"])
    """What came back."""
    results: list[Decision | GuardError] = field(default_factory=list[Decision | GuardError])
    """What was decided so far, in order: about the messages, then about the reply."""
    asked: int = 0
    """How many of these are about the messages, or about replies that were released already."""

    @property
    def violation(self) -> Decision | None:
        """Why the model was not asked."""
        return None if self.goes_on or not self.admission else self.admission.violation

    @property
    def closed(self) -> BaseMessage | None:
        """The last reply, if it is not the model's own, or not all of it."""
        last = self.released[-1] if self.released else None
        changed = last and last.decision and not last.decision.allowed
        return last.message if last and (changed or self.violation) else None

    def inspect(self, messages: list[AnyMessage]) -> Inspection:
        """What of the messages that are about to be sent is new."""

        def judged(message: BaseMessage) -> bool:
            return message != self.system and self.judged(message)

        return Inspection.of(
            messages,
            self.ledger,
            self.guard,
            scope=self.scope,
            judged=judged,
            closing=self.closing,
        )

    def begun(self) -> list[Decision | GuardError]:
        """The model is asked, perhaps once more: a new list of results, to be filled in."""
        self.results, self.asked = [], 0
        return self.results

    def admitted(
        self, inspection: Inspection, results: Sequence[Decision | GuardError]
    ) -> list[AnyMessage]:
        """What may be sent.

        Raises:
            GuardViolation: Nothing.
            GuardError: Something could not be judged, and the policy says to raise.
        """
        decisions = inspection.decisions(results)
        self.results.extend(decisions)
        self.asked = len(self.results)
        self.sent = inspection.messages
        self.admission = inspection.settle(decisions)
        self.prompt = context_of(self.admission.readings)
        if self.violation:
            raise GuardViolation(self.violation)
        return self.admission.messages

    def answered(self, error: GuardViolation | ConversationError) -> AIMessage:
        """What is said to a prompt that is not sent, or in place of a reply that cannot be read.

        Raises:
            GuardViolation: That is an error.
            ConversationError: The policy says to raise what cannot be judged.
        """
        if isinstance(error, ConversationError):
            decision = self.guard.policy.decide_unjudged(Stage.OUTPUT, error)
            self.results.append(decision)
            error = GuardViolation(decision)
        if self.closing is None:
            raise error
        return closing_message(self.closing)

    def release(self, messages: Sequence[BaseMessage]) -> None:
        """Replies leave, after what was decided about them."""
        decisions = [r for r in self.results[self.asked :] if isinstance(r, Decision)]
        decision = max(decisions, key=lambda decision: decision.action, default=None)
        self.asked = len(self.results)
        self.released.extend(self._released(message, decision) for message in messages)

    def returned(self, message: AIMessage, *, since: int) -> AIMessage:
        """A reply as LangChain returns it, in another form perhaps than it was released in.

        Args:
            message: The reply.
            since: How many had been released before. If none was since then, it is from a cache.
        """
        if not self.released_as(message):
            last = self.released[-1].decision if len(self.released) > since else None
            self.released.append(self._released(message, last))
        return message

    def _released(self, message: BaseMessage, decision: Decision | None) -> Released:
        digest = digest_of(message.model_copy(update={"name": None}), self.guard.fingerprint)
        return Released(message=message, digest=digest, decision=decision)

    def released_as(self, message: BaseMessage) -> Released | None:
        """What is known of just this reply, if the guard let it out. Agents give it their name."""
        digest = digest_of(message.model_copy(update={"name": None}), self.guard.fingerprint)
        return next((r for r in self.released if digest and r.digest == digest), None)

    def reply(self, message: BaseMessage) -> Asked:
        """What to ask about a reply: it stands behind what was sent."""
        return asked(self.prompt, reading_of(message))
