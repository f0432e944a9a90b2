"""The model of an agent, guarded for one call: what was sent, what was released, and why."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    AnyMessage,
    BaseMessage,
    SystemMessage,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from pydantic import Field, SkipValidation
from typing_extensions import override

from guardrails_qwen import (
    ConversationError,
    Decision,
    Guard,
    GuardError,
    GuardViolation,
    Message,
    Stage,
)
from guardrails_qwen.streaming import Streaming, aclose_source, close_source
from langchain_guardrails_qwen.admission import closing_message
from langchain_guardrails_qwen.chat_model import GuardedChatModel
from langchain_guardrails_qwen.gate import Gate
from langchain_guardrails_qwen.generations import replies_of
from langchain_guardrails_qwen.judging import Asked, asked, context_of
from langchain_guardrails_qwen.ledgers import Ledger, digest_of, reading_of
from langchain_guardrails_qwen.prompts import Place, remember
from langchain_guardrails_qwen.steps import ajudge, judge
from langchain_guardrails_qwen.streams import added_up
from langchain_guardrails_qwen.structured import replanted
from langchain_guardrails_qwen.threads import Admission, Inspection, Scope
from langchain_guardrails_qwen.turn import Turn


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


class AgentModel(GuardedChatModel):
    """The guarded model of one call. It judges only what is new in the thread."""

    call: SkipValidation[ModelCall] = Field(exclude=True, repr=False)

    def __init__(
        self, *, inner: BaseChatModel, call: ModelCall, streaming: Streaming, beside: bool
    ) -> None:
        super().__init__(
            inner=inner, guard=call.guard, streaming=streaming, beside=beside, call=call
        )

    @override
    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        before = len(self.call.released)
        reply = super().invoke(input, config, stop=stop, **kwargs)
        return self.call.returned(reply, since=before)

    @override
    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        before = len(self.call.released)
        reply = await super().ainvoke(input, config, stop=stop, **kwargs)
        return self.call.returned(reply, since=before)

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        try:
            result = super()._generate(messages, stop, run_manager, **kwargs)
        except (GuardViolation, ConversationError) as error:
            result = _result(self.call.answered(error))
        self.call.release(replies_of(result))
        return result

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        try:
            result = await super()._agenerate(messages, stop, run_manager, **kwargs)
        except (GuardViolation, ConversationError) as error:
            result = _result(self.call.answered(error))
        self.call.release(replies_of(result))
        return result

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chunks = super()._stream(messages, stop, run_manager, **kwargs)
        written = list[BaseMessage]()
        try:
            for chunk in chunks:
                written.append(chunk.message)
                yield chunk
        except (GuardViolation, ConversationError) as error:
            yield _chunk(self.call.answered(error))
        finally:
            close_source(chunks)
            self.call.release(added_up(written))

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        chunks = super()._astream(messages, stop, run_manager, **kwargs)
        written = list[BaseMessage]()
        try:
            async for chunk in chunks:
                written.append(chunk.message)
                yield chunk
        except (GuardViolation, ConversationError) as error:
            yield _chunk(self.call.answered(error))
        finally:
            await aclose_source(chunks)
            self.call.release(added_up(written))

    @override
    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The key of a cache: its replies were judged for an agent, and their prompts by turns."""
        return f"for an agent, {super()._get_llm_string(stop, **kwargs)}"

    @override
    def _turn(self, messages: list[BaseMessage]) -> Turn:
        run = uuid4()
        return _AgentTurn(
            gate=Gate(guard=self.guard, streaming=self.streaming),
            messages=messages,
            left=Place(run, 1),
            right=Place(run, 2),
            results=self.call.begun(),
            call=self.call,
        )


def agent_model(model: Any, *, call: ModelCall, streaming: Streaming, beside: bool) -> Any:
    """The guarded model of a call, or what was made of a model, of the guarded one.

    Raises:
        NotImplementedError: No model can be found in it.
    """

    def guarded(inner: BaseChatModel) -> BaseChatModel:
        return AgentModel(inner=inner, call=call, streaming=streaming, beside=beside)

    return guarded(model) if isinstance(model, BaseChatModel) else replanted(model, guarded)


@dataclass(frozen=True, slots=True, kw_only=True)
class _AgentTurn(Turn):
    """A call of which only what is new in the thread is judged on the way in."""

    call: ModelCall

    @override
    def admit(self) -> list[BaseMessage]:
        inspection = self.call.inspect(_thread(self.messages))
        return self._admitted(inspection, judge(self.call.guard, inspection.asked))

    @override
    async def aadmit(self) -> list[BaseMessage]:
        inspection = self.call.inspect(_thread(self.messages))
        return self._admitted(inspection, await ajudge(self.call.guard, inspection.asked))

    def _admitted(
        self, inspection: Inspection, results: Sequence[Decision | GuardError]
    ) -> list[BaseMessage]:
        messages = self.call.admitted(inspection, results)
        remember(self.left, self.call.prompt)
        return self.messages if messages is inspection.messages else list(messages)


def _thread(messages: list[BaseMessage]) -> list[AnyMessage]:
    return messages  # pyright: ignore[reportReturnType] - the union of all that there is


def _result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def _chunk(message: AIMessage) -> ChatGenerationChunk:
    chunk = AIMessageChunk(
        content=message.content,
        response_metadata=message.response_metadata,
        chunk_position="last",
    )
    return ChatGenerationChunk(message=chunk)
