"""The model of an agent, guarded for one call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    AnyMessage,
    BaseMessage,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from pydantic import Field, SkipValidation
from typing_extensions import override

from guardrails_qwen import (
    ConversationError,
    Decision,
    GuardError,
    GuardViolation,
)
from guardrails_qwen.streaming import Streaming, aclosed_after, closed_after
from langchain_guardrails_qwen.agents.model_call import ModelCall
from langchain_guardrails_qwen.chat_model import GuardedChatModel
from langchain_guardrails_qwen.gate import Gate
from langchain_guardrails_qwen.generations import replies_of
from langchain_guardrails_qwen.prompts import remember
from langchain_guardrails_qwen.steps import ajudge, judge
from langchain_guardrails_qwen.streams import added_up
from langchain_guardrails_qwen.structured import replanted
from langchain_guardrails_qwen.threads import Inspection
from langchain_guardrails_qwen.turn import Turn


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
    def get_name(self, suffix: str | None = None, *, name: str | None = None) -> str:
        """That of the inner model: who looks for its runs in traces and events finds them."""
        return self.inner.get_name(suffix, name=name)

    @property
    @override
    def _serialized(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What handlers are told of the model: that is the inner one, which is made only once."""
        return self.inner._serialized

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
            with closed_after(chunks):
                for chunk in chunks:
                    written.append(chunk.message)
                    yield chunk
        except (GuardViolation, ConversationError) as error:
            last = _chunk(self.call.answered(error))
            written.append(last.message)
            yield last
        finally:
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
            async with aclosed_after(chunks):
                async for chunk in chunks:
                    written.append(chunk.message)
                    yield chunk
        except (GuardViolation, ConversationError) as error:
            last = _chunk(self.call.answered(error))
            written.append(last.message)
            yield last
        finally:
            self.call.release(added_up(written))

    @override
    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The key of a cache: its replies were judged for an agent, and their prompts by turns."""
        return f"for an agent, {super()._get_llm_string(stop, **kwargs)}"

    @override
    def _turn(self, messages: list[BaseMessage]) -> Turn:
        gate = Gate(guard=self.guard, streaming=self.streaming)
        return _AgentTurn.begun(gate, messages, results=self.call.begun(), call=self.call)


def agent_model(model: Any, *, call: ModelCall, streaming: Streaming, beside: bool) -> Any:
    """The guarded model of a call, or what was made of a model, of the guarded one.

    Raises:
        NotImplementedError: No model can be found in it.
    """

    def guarded(inner: BaseChatModel) -> BaseChatModel:
        return AgentModel(inner=inner, call=call, streaming=streaming, beside=beside)

    return guarded(model) if isinstance(model, BaseChatModel) else replanted(model, guarded)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
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
