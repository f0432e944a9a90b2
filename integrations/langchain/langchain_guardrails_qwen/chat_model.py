"""A chat model of which nobody hears what its guard does not let through."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    BaseCallbackManager,
    BaseRunManager,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, PrivateAttr
from typing_extensions import Self, override

from guardrails_qwen import Guard
from guardrails_qwen.streaming import Streaming, aanswers, aclose_source, answers, aonce, once
from langchain_guardrails_qwen.gate import Gate
from langchain_guardrails_qwen.generations import amessages_of, chunk_of, messages_of
from langchain_guardrails_qwen.judged_cache import judged_only
from langchain_guardrails_qwen.native import asteps, steps
from langchain_guardrails_qwen.runs import Listening, atold, told
from langchain_guardrails_qwen.structured import replanted
from langchain_guardrails_qwen.turn import Turn
from langchain_guardrails_qwen.unheard import aunheard_steps, unheard, unheard_steps

_STREAMING = Streaming()
_TAKEN_OVER = (
    *("name", "callbacks", "tags", "metadata", "verbose"),
    *("rate_limiter", "output_version", "profile", "cache"),
)
"""Fields for what the outer model does in place of the inner one."""


class GuardedChatModel(BaseChatModel):
    """A chat model whose callbacks, traces and events hear only what its guard lets through.

    ```python
    model = GuardedChatModel(inner=llm, guard=Guard.from_pretrained("tiny"))
    ```

    The messages are judged before the inner model is asked, and its reply together with them:
    while it is written, where it streams. It replaces the inner model wherever one is wanted: tools
    and structured output are those of the inner one, and so are its names, profile, token counts
    and parameters. What is bound is bound to this one.

    The inner model runs without callbacks, and so does what it calls itself; those that it was made
    with are taken over, as are its cache and its rate limiter. What a user sends is in the trace of
    the run, as with any model; every decision is there too, without text, see `trace`. Cached are
    replies as they were released, for the same policy and engine, and only what was judged.

    A reply that was taken back has the finish reason "content_filter", and is a refusal where
    LangChain knows them; see `refusals`. A reply may have notes in its metadata; see `notes`.

    An inner model that streams only in native events of the third version is judged when its reply
    is complete. A guarded model cannot be dumped and loaded: its engine is live.

    Name the errors that `with_fallbacks` and `with_retry` are for: by default LangChain gives what
    was blocked to the fallback, which may have no guard, and asks again after a violation.

    Args:
        inner: The model to guard.
        guard: The engine and the policy.
        streaming: How replies are moderated while they are written.
        beside: Whether to judge the messages while the inner model answers them already. Nothing
            is released before the verdict.
        trust_system: Whether the system messages that begin the messages are the application's own
            words, which may name what is forbidden: the guard does not read them then. Only where
            no caller can send them.

    Raises:
        GuardViolation: The policy blocks the messages, or the reply where there is no closing text.
        ConversationError: Something cannot be judged.
        GuardError: It could not be judged, and the policy says to raise.
    """

    inner: BaseChatModel
    guard: Guard
    streaming: Streaming = _STREAMING
    beside: bool = False
    trust_system: bool = False

    _manager: BaseRunManager | None = PrivateAttr(default=None)
    _listener: Listening | None = PrivateAttr(default=None)

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def __init__(
        self,
        *,
        inner: BaseChatModel,
        guard: Guard,
        streaming: Streaming = _STREAMING,
        beside: bool = False,
        trust_system: bool = False,
        **fields: Any,
    ) -> None:
        """Args: fields: fields of chat models; by default those of `inner`.

        Raises:
            TypeError: `inner` is no chat model.
        """
        if not isinstance(inner, BaseChatModel):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"inner has to be a chat model, not a {type(inner).__name__}; what is bound is "
                "bound to the guarded model: GuardedChatModel(inner=llm, guard=guard).bind(...)"
            )
        own: dict[str, Any] = {name: getattr(inner, name, None) for name in _TAKEN_OVER}
        own |= {**fields, "inner": inner, "guard": guard}
        own |= {"streaming": streaming, "beside": beside, "trust_system": trust_system}
        super().__init__(**own)

    @property
    @override
    def _llm_type(self) -> str:
        return f"guarded-{self.inner._llm_type}"

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        turn = self._turn(messages)

        def call(prompt: list[BaseMessage]) -> ChatResult:
            with unheard():
                return self.inner._generate(prompt, stop=stop, **kwargs)

        with told(run_manager or self._run, turn.results):
            [result] = answers(turn.admit, partial(once, call), messages, early=self.beside)
            return turn.passed(result)

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        turn = self._turn(messages)

        async def call(prompt: list[BaseMessage]) -> ChatResult:
            with unheard():
                return await self.inner._agenerate(prompt, stop=stop, **kwargs)

        answer = aanswers(turn.aadmit, partial(aonce, call), messages, early=self.beside)
        async with atold(run_manager or self._run, turn.results):
            async with aclosing(answer) as results:
                [result] = [result async for result in results]
            return await turn.apassed(result)

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        turn = self._turn(messages)

        def call(prompt: list[BaseMessage]) -> Iterator[BaseMessage]:
            written = partial(steps, self.inner, prompt, stop=stop, **kwargs)
            return messages_of(unheard_steps(written))

        chunks = answers(turn.admit, call, messages, early=self.beside)
        run = run_manager or self._run
        with told(run, turn.results), closing(turn.moderated(chunks)) as released:
            yield from map(chunk_of, released)

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        turn = self._turn(messages)

        def call(prompt: list[BaseMessage]) -> AsyncIterator[BaseMessage]:
            written = partial(asteps, self.inner, prompt, stop=stop, **kwargs)
            return amessages_of(aunheard_steps(written))

        answer = aanswers(turn.aadmit, call, messages, early=self.beside)
        run = run_manager or self._run
        async with atold(run, turn.results), aclosing(turn.amoderated(answer)) as released:
            async for chunk in released:
                yield chunk_of(chunk)

    @override
    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        own = ensure_config(config)
        manager = CallbackManager.configure(own.get("callbacks"), self.callbacks, self.verbose)
        model, own["callbacks"] = self._listening(manager), manager
        yield from super(GuardedChatModel, model).stream(input, own, stop=stop, **kwargs)

    @override
    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        own = ensure_config(config)
        manager = AsyncCallbackManager.configure(own.get("callbacks"), self.callbacks, self.verbose)
        model, own["callbacks"] = self._listening(manager), manager
        chunks = super(GuardedChatModel, model).astream(input, own, stop=stop, **kwargs)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await aclose_source(chunks)

    @override
    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        model = super(GuardedChatModel, self._in(run_manager))
        return model._generate_with_cache(messages, stop=stop, run_manager=run_manager, **kwargs)

    @override
    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        model = super(GuardedChatModel, self._in(run_manager))
        return await model._agenerate_with_cache(
            messages, stop=stop, run_manager=run_manager, **kwargs
        )

    @override
    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The tools as the inner model binds them, bound to this one.

        Raises:
            NotImplementedError: The inner model has no tools, or binds them in a way of its own.
        """
        choice = {} if tool_choice is None else {"tool_choice": tool_choice}
        return replanted(self.inner.bind_tools(tools, **choice, **kwargs), self._around)

    @override
    def with_structured_output(
        self, schema: dict[str, Any] | type | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """What the inner model makes of itself, around this one: what is parsed was released.

        Arguments are those of the inner model. A reply that the guard took back is no output: the
        parser raises `ModelRefusalError` where the installed langchain-core has it, otherwise its
        own error, with the closing text and nothing else; parsers of tool calls, which find none,
        give None.

        Raises:
            NotImplementedError: The inner model has none, or one that cannot be guarded.
        """
        structured: Any = self.inner.with_structured_output
        return replanted(structured(schema, **kwargs), self._around)

    @property
    def model(self) -> Any:
        """The name of the inner model, where it has one; so are `model_name` and `model_id`."""
        inner: Any = self.inner
        return inner.model

    @property
    def model_name(self) -> Any:
        """Agents choose by these names how output is structured."""
        inner: Any = self.inner
        return inner.model_name

    @property
    def model_id(self) -> Any:
        """See `model`."""
        inner: Any = self.inner
        return inner.model_id

    @override
    def get_token_ids(self, text: str) -> list[int]:
        """As the inner model counts, unless this one has a `custom_get_token_ids`."""
        if self.custom_get_token_ids:
            return super().get_token_ids(text)
        return self.inner.get_token_ids(text)

    @override
    def get_num_tokens(self, text: str) -> int:
        """The same."""
        if self.custom_get_token_ids:
            return super().get_num_tokens(text)
        return self.inner.get_num_tokens(text)

    @override
    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """The same."""
        if self.custom_get_token_ids:
            return super().get_num_tokens_from_messages(messages, tools)
        tooled = {} if tools is None else {"tools": tools}
        return self.inner.get_num_tokens_from_messages(messages, **tooled)

    def _listening(self, manager: BaseCallbackManager) -> Self:
        """This model for one stream, of which those who hear it are told what was decided."""
        if not manager.handlers:
            return self
        listening = Listening(manager)
        manager.add_handler(listening, inherit=False)
        model = self.model_copy()
        model._listener = listening
        return model

    def _in(self, run_manager: BaseRunManager | None) -> Self:
        """This model for one run, with a cache for what was judged."""
        model = self.model_copy(update={"cache": judged_only(self.cache)})
        model._manager = run_manager
        return model

    @property
    def _run(self) -> BaseRunManager | None:
        """The run that this is a model for, if anybody hears it."""
        return self._manager or (self._listener.run if self._listener else None)

    def _around(self, model: BaseChatModel) -> BaseChatModel:
        """This model around another one than `inner`."""
        return self if model is self.inner else self.model_copy(update={"inner": model})

    def _turn(self, messages: list[BaseMessage]) -> Turn:
        """What one call does with its messages and its replies."""
        gate = Gate(guard=self.guard, streaming=self.streaming, trust_system=self.trust_system)
        return Turn.begun(gate, messages)

    @override
    def _should_stream(self, *, async_api: bool, **kwargs: Any) -> bool:
        disabled = self._is_disabled(kwargs)
        return not disabled and self.inner._should_stream(async_api=async_api, **kwargs)

    @override
    def _should_use_protocol_streaming(self, *, async_api: bool, **kwargs: Any) -> bool:
        disabled = self._is_disabled(kwargs)
        protocol = self.inner._should_use_protocol_streaming
        return not disabled and protocol(async_api=async_api, **kwargs)

    def _is_disabled(self, kwargs: dict[str, Any]) -> bool:
        """Whether this model shall not stream; the inner one may have reasons of its own."""
        disabled = self.disable_streaming
        return disabled is True or (disabled == "tool_calling" and bool(kwargs.get("tools")))

    @property
    @override
    def _identifying_params(self) -> Mapping[str, Any]:
        return self.inner._identifying_params

    @override
    def _get_invocation_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        return self.inner._get_invocation_params(stop=stop, **kwargs)

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.inner._get_ls_params(stop=stop, **kwargs)

    @override
    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The key of a cache: another one than the inner model's, whose replies nobody judged."""
        guard = f"{self.guard.policy.fingerprint}.{self.guard.engine.fingerprint}"
        guard += f".{self.streaming.closing!r}{'.trusting' if self.trust_system else ''}"
        return f"guarded by {guard}: {self.inner._get_llm_string(stop=stop, **kwargs)}"
