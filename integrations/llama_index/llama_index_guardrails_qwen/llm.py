"""A language model of which nobody hears what its guard does not let through."""

from __future__ import annotations

import json
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Sequence,
)
from functools import partial
from hashlib import sha256
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.tools import BaseTool
from pydantic import ConfigDict, Field, PrivateAttr, computed_field
from typing_extensions import Self, override

from guardrails_qwen import Guard, GuardViolation
from guardrails_qwen.streaming import Streaming, aanswers, answers, aonce, once
from llama_index_guardrails_qwen import asking
from llama_index_guardrails_qwen.callbacks import (
    astreamed,
    chat_callback,
    completion_callback,
    streamed,
)
from llama_index_guardrails_qwen.completions import (
    acompletions_of,
    completion_of,
    completions_of,
    messages_of,
)
from llama_index_guardrails_qwen.gate import Gate, OnViolation, require_guard
from llama_index_guardrails_qwen.incidents import raise_claimed
from llama_index_guardrails_qwen.known import Known
from llama_index_guardrails_qwen.portable import require_portable
from llama_index_guardrails_qwen.turn import Turn

_TAKEN_OVER = (
    *("callback_manager", "system_prompt", "messages_to_prompt", "completion_to_prompt"),
    *("output_parser", "pydantic_program_mode", "query_wrapper_prompt"),
)
"""Fields for what the outer model does in place of the inner one."""

_Call = Callable[[list[ChatMessage]], ChatResponse]
_ACall = Callable[[list[ChatMessage]], Awaitable[ChatResponse]]
_Stream = Callable[[list[ChatMessage]], Iterator[ChatResponse]]
_AStream = Callable[[list[ChatMessage]], AsyncIterator[ChatResponse]]


class GuardedLLM(FunctionCallingLLM):
    """A model whose callers, handlers and agents get only what its guard lets through.

    ```python
    llm = GuardedLLM(inner=llm, guard=Guard.from_pretrained("tiny"))
    ```

    It replaces the inner model wherever one is wanted: in `Settings.llm`, in indices, query and
    chat engines, and in agents, which have no other hook. The messages are judged before the inner
    model is asked, and its reply together with them: while it is written, where it streams. Text
    leaves as it is cleared; thoughts and tool calls wait for the end of the reply and are judged
    with it, so that no tool is called by a reply that is blocked. Tools, metadata and prompts are
    those of the inner model. Structured prediction is LlamaIndex's own, by tools or by text as the
    metadata say: a JSON mode of the inner model's own would give objects that nobody has judged.

    Handlers are told of this model as of any other, and not of the inner one, unless that runs in
    threads which do not take over the context; see `unheard`. What a user sends is in their events.
    What the inner model raises is raised as it is, and handlers are told: it may quote the reply.

    Messages that were let through before are not judged again; see `known`. A message of the past
    that is not let through is left out of what the inner model is sent: so an agent whose memory
    keeps a blocked message goes on to answer the next one.

    Of a response are kept the message, the delta, counts of tokens and ids; what else providers
    give (`raw`, log-probabilities) may say what nobody has judged. `additional_kwargs` of the last
    one have the decision, under "guardrails_qwen".

    Args:
        inner: The model to guard.
        guard: The engine and the policy.
        on_violation: What callers get where the policy blocks: `raise` raises `GuardViolation`,
            which ends the run of an agent; `reply` gives a reply, which is the policy's
            replacement, or `streaming.closing` in place of what the model said.
        streaming: How replies are moderated while they are written.
        beside: Whether to judge the messages while the inner model answers them already. Nothing is
            released before the verdict.
        trust_system: Whether a system message that comes first is the application's own words,
            which may name what is forbidden: the guard does not read it then. Not where it holds
            what was retrieved, as those of context chat engines do, or what users said, as those of
            memories do that have none of an agent's before them.

    Raises:
        GuardViolation: The policy blocks the messages or the reply.
        GuardError: Something could not be judged, and the policy says to raise.
    """

    inner: LLM = Field(exclude=True)
    guard: Guard = Field(exclude=True)
    on_violation: OnViolation = "raise"
    streaming: Streaming = Field(default_factory=Streaming, exclude=True)
    beside: bool = False
    trust_system: bool = False

    _known: Known = PrivateAttr(default_factory=Known)

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", hide_input_in_errors=True
    )

    def __init__(self, *, inner: LLM, guard: Guard, **fields: Any) -> None:
        """Take over from `inner` what is not given: its prompts, its callback manager and so on.

        Args:
            inner: See above.
            guard: See above.
            fields: Those above, and those of models.

        Raises:
            TypeError: `inner` is no model or a structured one, or `guard` is no guard.
        """
        require_guard(guard)
        if not isinstance(inner, LLM):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"inner has to be an LLM of LlamaIndex, not a {type(inner).__name__}")
        if isinstance(inner, StructuredLLM):
            raise TypeError(
                "inner is a StructuredLLM: guard the model in it, "
                "GuardedLLM(inner=inner.llm, guard=guard).as_structured_llm(inner.output_cls)"
            )
        own: dict[str, Any] = {name: getattr(inner, name) for name in _TAKEN_OVER}
        super().__init__(**{**own, **fields, "inner": inner, "guard": guard})

    @classmethod
    @override
    def class_name(cls) -> str:
        return "GuardedLLM"

    @classmethod
    @override
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """What `to_dict` gave, around a model and a guard: `inner` and `guard` are to be given."""
        return super().from_dict({k: v for k, v in data.items() if k in cls.model_fields}, **kwargs)

    @property
    @override
    def metadata(self) -> LLMMetadata:
        """That of the inner model."""
        return self.inner.metadata

    @override
    def to_payload(self) -> dict[str, Any]:
        """What handlers are told of this model: what they would be told of the inner one."""
        return {**self.inner.to_payload(), "class_name": self.class_name()}

    @computed_field
    @property
    def fingerprint(self) -> str:
        """Policy, safety model and inner model: what caches of what this one wrote go by."""
        inner = json.dumps(self.inner.to_dict(), sort_keys=True, default=str)
        return f"{self.guard.fingerprint}.{sha256(inner.encode()).hexdigest()[:16]}"

    @override
    def __repr_args__(self) -> Iterator[tuple[str, object]]:
        """Nothing of the inner model but its name: it may know secrets."""
        yield "inner", self.inner.class_name()
        yield "guard", self.guard

    @override
    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy around a copy of the inner model, with the same guard, whose engine is live."""
        memo = {} if memo is None else memo
        memo[id(self.guard)] = self.guard
        return super().__deepcopy__(memo)

    @override
    def __getstate__(self) -> dict[Any, Any]:
        """What is pickled. What cannot be would be left out otherwise, the guard say.

        Raises:
            PicklingError: The guard cannot be, because its engine is live, or the inner model.
        """
        for name, part in (("guard", self.guard), ("inner model", self.inner)):
            require_portable(name, part)
        return super().__getstate__()

    @chat_callback
    @override
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._answer(messages, partial(asking.chat, self.inner, **kwargs))

    @chat_callback
    @override
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return await self._aanswer(messages, partial(asking.achat, self.inner, **kwargs))

    @partial(streamed, chat_callback)
    @override
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return self._stream(messages, partial(asking.stream_chat, self.inner, **kwargs))

    @partial(astreamed, chat_callback)
    @override
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        return await self._astream(messages, partial(asking.astream_chat, self.inner, **kwargs))

    @completion_callback
    @override
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        call = partial(asking.complete, self.inner, formatted=formatted, **kwargs)
        return completion_of(self._answer(messages_of(prompt), call))

    @completion_callback
    @override
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        call = partial(asking.acomplete, self.inner, formatted=formatted, **kwargs)
        return completion_of(await self._aanswer(messages_of(prompt), call))

    @partial(streamed, completion_callback)
    @override
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        call = partial(asking.stream_complete, self.inner, formatted=formatted, **kwargs)
        return completions_of(self._stream(messages_of(prompt), call))

    @partial(astreamed, completion_callback)
    @override
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        call = partial(asking.astream_complete, self.inner, formatted=formatted, **kwargs)
        return acompletions_of(await self._astream(messages_of(prompt), call))

    @override
    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        return self._caller._prepare_chat_with_tools_compat(
            tools,
            user_msg=user_msg,
            chat_history=chat_history,
            verbose=verbose,
            allow_parallel_tool_calls=allow_parallel_tool_calls,
            tool_required=tool_required,
            **kwargs,
        )

    @override
    def _validate_chat_with_tools_response(
        self,
        response: ChatResponse,
        tools: Sequence[BaseTool],
        allow_parallel_tool_calls: bool = False,
        **kwargs: Any,
    ) -> ChatResponse:
        return self._caller._validate_chat_with_tools_response(
            response, tools, allow_parallel_tool_calls=allow_parallel_tool_calls, **kwargs
        )

    @override
    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls as the inner model finds them in what was released."""
        if not (error_on_no_tool_call or isinstance(self.inner, FunctionCallingLLM)):
            return []  # agents ask any model that is of the type of this one
        return self._caller.get_tool_calls_from_response(
            response, error_on_no_tool_call=error_on_no_tool_call, **kwargs
        )

    @override
    def predict_and_call(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> AgentChatResponse:
        """What the tools give that are called. No model reads it, so this raises what they report.

        Raises:
            GuardViolation: The messages or the reply are blocked, or a guarded tool is.
        """
        try:
            answer = super().predict_and_call(tools, *args, **kwargs)
        except ValueError as error:  # quotes what tools gave
            raise_claimed([str(error)])
            raise
        raise_claimed(source.content for source in answer.sources)
        return answer

    @override
    async def apredict_and_call(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> AgentChatResponse:
        """The same."""
        try:
            answer = await super().apredict_and_call(tools, *args, **kwargs)
        except ValueError as error:
            raise_claimed([str(error)])
            raise
        raise_claimed(source.content for source in answer.sources)
        return answer

    def _answer(self, messages: Sequence[ChatMessage], call: _Call) -> ChatResponse:
        turn = self._turn(messages)
        try:
            [response] = answers(turn.admit, partial(once, call), turn.messages, early=self.beside)
            return turn.passed(response)
        except GuardViolation as violation:
            return turn.answered(violation)

    async def _aanswer(self, messages: Sequence[ChatMessage], call: _ACall) -> ChatResponse:
        turn = self._turn(messages)
        source = aanswers(turn.aadmit, partial(aonce, call), turn.messages, early=self.beside)
        try:
            [response] = [response async for response in source]
            return await turn.apassed(response)
        except GuardViolation as violation:
            return turn.answered(violation)

    def _stream(
        self, messages: Sequence[ChatMessage], call: _Stream
    ) -> Generator[ChatResponse, None, None]:
        """The reply. Without `beside` the messages are judged before this returns."""
        turn = self._turn(messages)
        if self.beside:
            return turn.moderated(answers(turn.admit, call, turn.messages, early=True))
        try:
            admitted = turn.admit()
        except GuardViolation as violation:
            return asking.only(turn.answered(violation))
        return turn.moderated(call(admitted))

    async def _astream(
        self, messages: Sequence[ChatMessage], call: _AStream
    ) -> AsyncGenerator[ChatResponse, None]:
        """The same."""
        turn = self._turn(messages)
        if self.beside:
            return turn.amoderated(aanswers(turn.aadmit, call, turn.messages, early=True))
        try:
            admitted = await turn.aadmit()
        except GuardViolation as violation:
            return asking.aonly(turn.answered(violation))
        return turn.amoderated(call(admitted))

    def _turn(self, messages: Sequence[ChatMessage]) -> Turn:
        gate = Gate(
            guard=self.guard,
            component="llm",
            on_violation=self.on_violation,
            streaming=self.streaming,
        )
        return Turn(gate, self._known, messages, trust_system=self.trust_system)

    @property
    def _caller(self) -> FunctionCallingLLM:
        """The inner model, which can call tools.

        Raises:
            ValueError: It cannot.
        """
        if not isinstance(self.inner, FunctionCallingLLM):
            raise ValueError(f"{self.inner.class_name()} is no model that calls tools")  # noqa: TRY004
        return self.inner
