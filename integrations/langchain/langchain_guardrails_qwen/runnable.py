"""A guard as a step of a chain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForChainRun,
    BaseCallbackManager,
    BaseRunManager,
    CallbackManagerForChainRun,
)
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.base import RunnableLike
from langchain_core.runnables.config import get_config_list
from langchain_core.runnables.graph import Graph
from langchain_core.runnables.utils import AnyConfigurableField
from pydantic import ConfigDict, Field, SkipValidation
from typing_extensions import Self, override

from guardrails_qwen import Decision, Engine, EngineError, Guard, GuardError, Policy, Stage
from guardrails_qwen.streaming import Streaming
from langchain_guardrails_qwen.chosen import chosen, parts
from langchain_guardrails_qwen.configured import ConfiguredGuard
from langchain_guardrails_qwen.fields import PolicyField, StreamingField, streaming_data
from langchain_guardrails_qwen.gate import Gate, Results, none_failed, require_guard
from langchain_guardrails_qwen.moderated import amoderated, moderated
from langchain_guardrails_qwen.prompts import Place, recall
from langchain_guardrails_qwen.sources import (
    aclose_source,
    aresumed,
    astarted,
    close_source,
    resumed,
    started,
)
from langchain_guardrails_qwen.trace import aannotate, annotate
from langchain_guardrails_qwen.values import DocumentValue, Value
from langchain_guardrails_qwen.wrap import guarded

RunManagers = Sequence[BaseRunManager]
_STREAMING = Streaming()
_NOT_SHOWN = "a value, not shown by its guard"
"""The input of a guard's run in traces."""


class GuardRunnable(RunnableSerializable[Any, Any]):
    """Judges the value that passes and passes it on, changes it or raises `GuardViolation`.

    ```python
    guard = GuardRunnable(Guard.from_pretrained("tiny"))
    chain = guard | llm | guard
    ```

    It takes a text, a message, a list of messages in any form, a prompt value, a state dict with
    "messages", or a dict of which `key` names the field to judge, and gives the same kind back: the
    very same object where it is allowed. Judged are all messages of the last turn, that is, all
    trailing messages of one side (the assistant, or everybody else), each in its place. At
    `Stage.CONTEXT` it also takes a document or a list of them, as `documents` describes: those that
    pass have their verdict in their metadata.

    The stage follows from the value: the assistant's are output (tool call where there is no text),
    a tool's are tool result, others input. A plain text is output where a guard further left in the
    same sequence has let a prompt in. A reply is judged together with that prompt, or with the one
    that its own list begins with. The guard on the left may stand in a sequence around that of the
    guard on the right; where neither is certain, or there is no prompt, a reply is judged alone.
    `wrap` is sure to find it.

    A reply that streams is moderated while it is written: chunks of text leave, in their types and
    with their ids, when they are cleared. Anything else is held back until all of it was judged: a
    prompt, and what comes from the first chunk on that says more than text (tool calls, reasoning).
    A blocked reply stops the model. Callbacks of the model itself see its tokens before any guard
    can; `GuardedChatModel` is for that.

    Every decision is a custom event "guardrails_qwen.decision" to callbacks and `astream_events`,
    and metadata and tags of the guard's run in traces, also where it ends with an error; see
    `trace`. The run's input is not shown in traces, and what is passed on is its output. Runs
    around it are LangChain's: that of a sequence has in its trace all that the sequence is given.

    A batch is one batch of the engine; with "max_concurrency" in the config, several of no more
    than so many values. Policy and engine can be made configurable, and a guard can be dumped and
    loaded; its engine is not, see `serialisation`.

    With `with_retry` a guard is judged again only where its engine failed, and `with_fallbacks`
    asks another guard only then. Around a chain, name the exceptions: by default LangChain's
    `with_retry` runs the chain again after a violation, and its `with_fallbacks` gives the input
    that was blocked to the fallback.

    Args:
        guard: The engine and the policy.
        stage: The stage, if it shall not follow from the value.
        key: The field to judge of a dict.
        name: The name in graphs and traces; by default "guard", with the stage if there is one.
        streaming: How replies are moderated while they are written. Its closing text is what a
            blocked reply is replaced by in every method, with the finish reason "content_filter":
            a text or a message of the assistant, or a dict behind a guard on the left.
        trust_system: Whether the system messages that begin a list of messages are the
            application's own words, which may name what is forbidden: a guard does not read them
            then. Only where no caller can send them.
        policy: In place of the guard's.
        engine: In place of the guard's.
        trace_text: Whether traces and events have the text that a decision passes on, and traces
            the input of the guard's run, unless a model said it.

    Raises:
        GuardViolation: The policy blocks the value, and it is not replaced by a closing text.
        ConversationError: It is something that cannot be judged. Nothing passes unjudged.
        GuardError: It could not be judged, and the policy says to raise; or there is no engine.
        TypeError: `guard` is no `Guard`.
    """

    guard: SkipValidation[Guard | None] = Field(default=None, exclude=True)
    stage: Stage | None = None
    key: str | None = None
    streaming: StreamingField = Field(default=_STREAMING, exclude=True)
    trust_system: bool = False
    policy: PolicyField = None
    engine: SkipValidation[Engine | None] = Field(default=None, exclude=True)
    trace_text: bool = False

    model_config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)

    def __init__(  # noqa: PLR0913  pydantic's own would take no positional ones
        self,
        guard: Guard | None = None,
        stage: Stage | None = None,
        key: str | None = None,
        name: str | None = None,
        streaming: Streaming = _STREAMING,
        *,
        trust_system: bool = False,
        policy: Policy | None = None,
        engine: Engine | None = None,
        trace_text: bool = False,
    ) -> None:
        if guard is not None:
            require_guard(guard)
        fields: dict[str, Any] = {"guard": guard, "stage": stage, "key": key, "name": name}
        fields |= {"streaming": streaming, "policy": policy, "engine": engine}
        fields |= {"trust_system": trust_system, "trace_text": trace_text}
        super().__init__(**fields)

    def wrap(
        self,
        runnable: RunnableLike[Any, Any],
        *,
        output_key: str | None = None,
        beside: bool = False,
    ) -> Runnable[Any, Any]:
        """A runnable that judges its input, runs `runnable`, and judges the reply with the input.

        The pair belongs together wherever it stands: in sequences, parallels, functions, with
        retries. The stages follow from the values. Keyword arguments go to `runnable`.

        Args:
            runnable: A model, a chain, or anything that can be made a runnable.
            output_key: The field to judge of the reply, if that is a dict.
            beside: Run `runnable` while the input is judged. Nothing is released before the
                verdict; an unsafe input ends the run, and one that passes changed makes a new one.
                Batches judge the input first.
        """
        left, right = self.pair(output_key)
        return guarded(left, runnable, right, beside=beside)

    def pair(self, output_key: str | None = None) -> tuple[GuardRunnable, GuardRunnable]:
        """The guards that `wrap` puts on the left and on the right."""
        left: dict[str, Any] = {"stage": None, "name": "guard-input", "streaming": _STREAMING}
        right: dict[str, Any] = {"stage": None, "name": "guard-output", "key": output_key}
        return self.model_copy(update=left), self.model_copy(update=right)

    def with_engine(self, engine: Engine) -> Self:
        """The same guard on this engine."""
        return self.model_copy(update={"engine": engine})

    @override
    def with_retry(
        self,
        *,
        retry_if_exception_type: Any = (EngineError,),
        wait_exponential_jitter: bool = True,
        exponential_jitter_params: Any = None,
        stop_after_attempt: int = 3,
    ) -> Runnable[Any, Any]:
        """Judge again where the engine failed and the policy says to raise."""
        return super().with_retry(
            retry_if_exception_type=retry_if_exception_type,
            wait_exponential_jitter=wait_exponential_jitter,
            exponential_jitter_params=exponential_jitter_params,
            stop_after_attempt=stop_after_attempt,
        )

    @override
    def with_fallbacks(
        self,
        fallbacks: Sequence[Runnable[Any, Any]],
        *,
        exceptions_to_handle: tuple[type[BaseException], ...] = (EngineError,),
        exception_key: str | None = None,
    ) -> Any:
        """Ask another guard where the engine failed and the policy says to raise."""
        return super().with_fallbacks(
            fallbacks, exceptions_to_handle=exceptions_to_handle, exception_key=exception_key
        )

    @override
    def configurable_fields(self, **kwargs: AnyConfigurableField) -> Any:
        """Fields that a config may choose for each call: policy and engine, for example."""
        super().configurable_fields(**kwargs)  # refuses fields that do not exist
        return ConfiguredGuard(default=self, fields=kwargs)

    @override
    def get_name(self, suffix: str | None = None, *, name: str | None = None) -> str:
        """The given name, or "guard" with the stage if there is one."""
        stage = "-" + self.stage.value.replace("_", "-") if self.stage else ""
        return super().get_name(suffix, name=name or self.name or f"guard{stage}")

    @property
    @override
    def InputType(self) -> Any:
        """The kinds of values that can be judged."""
        return Value | DocumentValue if self.stage is Stage.CONTEXT else Value

    @property
    @override
    def OutputType(self) -> Any:
        """The same: a guard gives the kind back that it is given."""
        return self.InputType

    @override
    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        """One node. What goes in comes out, and a chain may begin and end with the same guard."""
        graph = Graph()
        graph.add_node(self, metadata=(config or {}).get("metadata"))
        return graph

    @classmethod
    @override
    def is_lc_serializable(cls) -> bool:
        """Everything but the engine is dumped."""
        return True

    @property
    @override
    def lc_attributes(self) -> dict[str, Any]:
        """Policy, stage and streaming as plain data. Whatever the engine is stays here."""
        policy = self.policy or (self.guard.policy if self.guard else None)
        data = {
            "policy": policy.to_dict() if policy else None,
            "stage": self.stage.value if self.stage else None,
            "streaming": streaming_data(self.streaming),
        }
        return {key: value for key, value in data.items() if value}

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Judge the value and pass it on. Keyword arguments are ignored, as prompts do."""

        def judged(_: Any, run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> Any:
            return none_failed(self._judge([input], [run_manager], [config]))[0]

        return self._call_with_config(judged, self._traced(input, config), config)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Judge the value and pass it on. Keyword arguments are ignored, as prompts do."""

        async def judged(
            _: Any, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
        ) -> Any:
            return none_failed(await self._ajudge([input], [run_manager], [config]))[0]

        return await self._acall_with_config(judged, self._traced(input, config), config)

    @override
    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """All inputs in one batch of the engine, or "max_concurrency" at once."""
        configs = get_config_list(config, len(inputs))

        def judged(_: Any, run_manager: RunManagers, config: list[RunnableConfig]) -> list[Any]:
            return self._judge(inputs, run_manager, config)

        return self._batch_with_config(
            judged,
            list(map(self._traced, inputs, configs)),
            configs,
            return_exceptions=return_exceptions,
        )

    @override
    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """All inputs in one batch of the engine, or "max_concurrency" at once."""
        configs = get_config_list(config, len(inputs))

        async def judged(
            _: Any, run_manager: RunManagers, config: list[RunnableConfig]
        ) -> list[Any]:
            return await self._ajudge(inputs, run_manager, config)

        return await self._abatch_with_config(
            judged,
            list(map(self._traced, inputs, configs)),
            configs,
            return_exceptions=return_exceptions,
        )

    @override
    def transform(
        self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> Iterator[Any]:
        """Moderate a reply while it comes; hold anything else back until all of it was judged."""
        first = list[Any]()

        def judged(
            _: Iterator[Any], run_manager: CallbackManagerForChainRun, config: RunnableConfig
        ) -> Iterator[Any]:
            place, results = Place.of(run_manager), list[Decision | GuardError]()
            gate = self._gate(config, results.extend)
            try:
                yield from moderated(gate, resumed(first, input), place)
            except GuardError as error:
                results.extend([] if results else [error])
                raise
            finally:
                annotate(run_manager, results, text=self.trace_text)

        try:
            yield from self._transform_stream_with_config(started(input, first), judged, config)
        finally:
            close_source(input)

    @override
    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Any]:
        """Moderate a reply while it comes; hold anything else back until all of it was judged."""
        first = list[Any]()

        async def judged(
            _: AsyncIterator[Any],
            run_manager: AsyncCallbackManagerForChainRun,
            config: RunnableConfig,
        ) -> AsyncIterator[Any]:
            place, results = Place.of(run_manager), list[Decision | GuardError]()
            gate = self._gate(config, results.extend)
            try:
                async with aclosing(amoderated(gate, aresumed(first, input), place)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            except GuardError as error:
                results.extend([] if results else [error])
                raise
            finally:
                await aannotate(run_manager, results, text=self.trace_text)

        chunks = self._atransform_stream_with_config(astarted(input, first), judged, config)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await aclose_source(chunks, input)

    def _gate(self, config: RunnableConfig, heard: Callable[[Results], None] | None = None) -> Gate:
        guard = chosen(self.guard, self.policy, self.engine, config)
        gate = Gate(
            guard=guard,
            stage=self.stage,
            key=self.key,
            streaming=self.streaming,
            trust_system=self.trust_system,
        )
        return replace(gate, heard=heard) if heard else gate

    def _traced(self, value: Any, config: RunnableConfig | None) -> Any:
        """What the run's trace has as its input."""
        if not self.trace_text:
            return _NOT_SHOWN
        callbacks = (config or {}).get("callbacks")
        place = Place.of(callbacks) if isinstance(callbacks, BaseCallbackManager) else Place()
        near = recall(place, near=True)
        replies = self.stage in (Stage.OUTPUT, Stage.TOOL_CALL) or near is not None
        return _NOT_SHOWN if replies or isinstance(value, AIMessage) else value

    def _judge(
        self,
        values: list[Any],
        run_managers: Sequence[BaseRunManager],
        configs: Sequence[RunnableConfig],
    ) -> list[Any]:
        judged = list[Any]()
        for part in parts(configs):
            gate = self._gate(configs[part][0])
            places = map(Place.of, run_managers[part], values[part])
            passed_on, results = gate.judge_each(values[part], places)
            for run_manager, own in zip(run_managers[part], results, strict=True):
                annotate(run_manager, own, text=self.trace_text)
            judged += passed_on
        return judged

    async def _ajudge(
        self,
        values: list[Any],
        run_managers: Sequence[BaseRunManager],
        configs: Sequence[RunnableConfig],
    ) -> list[Any]:
        judged = list[Any]()
        for part in parts(configs):
            gate = self._gate(configs[part][0])
            places = map(Place.of, run_managers[part], values[part])
            passed_on, results = await gate.ajudge_each(values[part], places)
            for run_manager, own in zip(run_managers[part], results, strict=True):
                await aannotate(run_manager, own, text=self.trace_text)
            judged += passed_on
        return judged
