"""A guard as a step of a chain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
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
from pydantic import ConfigDict
from typing_extensions import override

from guardrails_qwen import Guard, Stage
from guardrails_qwen.streaming import Streaming
from langchain_guardrails_qwen.gate import Gate, none_failed
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
from langchain_guardrails_qwen.wrap import guarded

RunManagers = Sequence[BaseRunManager]
_STREAMING = Streaming()
_NOT_SHOWN = "a reply, not shown before it is judged"
"""The input of a reply's run in traces."""


class GuardRunnable(RunnableSerializable[Any, Any]):
    """Judges the value that passes and passes it on, changes it or raises `GuardViolation`.

    ```python
    guard = GuardRunnable(Guard.from_pretrained("tiny"))
    chain = guard | llm | guard
    ```

    It takes a text, a message, a list of messages in any form, a prompt value, a state dict with
    "messages", or a dict of which `key` names the field to judge, and gives the same kind back: the
    very same object where it is allowed. Judged are all messages of the last turn, that is, all
    trailing messages of one side (the assistant, or everybody else), each in its place.

    The stage follows from the value: the assistant's are output (tool call where there is no text),
    a tool's are tool result, others input. A plain text is output where a guard further left in the
    same sequence has let a prompt in. A reply is judged together with that prompt, or with the one
    that its own list begins with; where there is neither (the guards are in different sequences, or
    one is wrapped in `with_retry` or `with_fallbacks`), alone. `wrap` is sure to find it.

    A reply that streams is moderated while it is written: chunks of text leave, in their types and
    with their ids, when they are cleared. Anything else is held back until all of it was judged: a
    prompt, and what comes from the first chunk on that says more than text (tool calls, reasoning).
    A blocked reply stops the model. Callbacks of the model itself see its tokens before any guard
    can; `GuardedChatModel` is for that.

    Args:
        guard: The engine and the policy.
        stage: The stage, if it shall not follow from the value.
        key: The field to judge of a dict.
        name: The name in graphs and traces; by default "guard", with the stage if there is one.
        streaming: How replies are moderated while they are written. Its closing text is what a
            blocked reply is replaced by in every method, with the finish reason "content_filter":
            a text or a message of the assistant, or a dict behind a guard on the left.

    Raises:
        GuardViolation: The policy blocks the value, and it is not replaced by a closing text.
        ConversationError: It is something that cannot be judged. Nothing passes unjudged.
        GuardError: It could not be judged, and the policy says to raise.
    """

    guard: Guard
    stage: Stage | None = None
    key: str | None = None
    streaming: Streaming = _STREAMING

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def __init__(
        self,
        guard: Guard,
        stage: Stage | None = None,
        key: str | None = None,
        name: str | None = None,
        streaming: Streaming = _STREAMING,
    ) -> None:
        fields: dict[str, Any] = {"guard": guard, "stage": stage, "key": key, "name": name}
        fields["streaming"] = streaming
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
        left = GuardRunnable(self.guard, key=self.key, name="guard-input")
        right = GuardRunnable(
            self.guard, key=output_key, name="guard-output", streaming=self.streaming
        )
        return guarded(left, runnable, right, beside=beside)

    @override
    def get_name(self, suffix: str | None = None, *, name: str | None = None) -> str:
        """The given name, or "guard" with the stage if there is one."""
        stage = "-" + self.stage.value.replace("_", "-") if self.stage else ""
        return super().get_name(suffix, name=name or self.name or f"guard{stage}")

    @override
    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        """One node. What goes in comes out, and a chain may begin and end with the same guard."""
        graph = Graph()
        graph.add_node(self, metadata=(config or {}).get("metadata"))
        return graph

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Judge the value and pass it on. Keyword arguments are ignored, as prompts do."""

        def judged(_: Any, run_manager: CallbackManagerForChainRun) -> Any:
            return none_failed(self._judge([input], [run_manager]))[0]

        return self._call_with_config(judged, self._traced(input, config), config)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Judge the value and pass it on. Keyword arguments are ignored, as prompts do."""

        async def judged(_: Any, run_manager: AsyncCallbackManagerForChainRun) -> Any:
            return none_failed(await self._ajudge([input], [run_manager]))[0]

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
        """All inputs in one batch of the engine."""
        configs = get_config_list(config, len(inputs))

        def judged(_: Any, run_manager: RunManagers) -> list[Any]:
            return self._judge(inputs, run_manager)

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
        """All inputs in one batch of the engine."""
        configs = get_config_list(config, len(inputs))

        async def judged(_: Any, run_manager: RunManagers) -> list[Any]:
            return await self._ajudge(inputs, run_manager)

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

        def judged(_: Iterator[Any], run_manager: CallbackManagerForChainRun) -> Iterator[Any]:
            yield from moderated(self._gate, resumed(first, input), Place.of(run_manager))

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
            _: AsyncIterator[Any], run_manager: AsyncCallbackManagerForChainRun
        ) -> AsyncIterator[Any]:
            place = Place.of(run_manager)
            async with aclosing(amoderated(self._gate, aresumed(first, input), place)) as chunks:
                async for chunk in chunks:
                    yield chunk

        chunks = self._atransform_stream_with_config(astarted(input, first), judged, config)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await aclose_source(chunks, input)

    @property
    def _gate(self) -> Gate:
        return Gate(guard=self.guard, stage=self.stage, key=self.key, streaming=self.streaming)

    def _traced(self, value: Any, config: RunnableConfig | None) -> Any:
        """What the run's trace has as its input: the value, if no model said it."""
        callbacks = (config or {}).get("callbacks")
        place = Place.of(callbacks) if isinstance(callbacks, BaseCallbackManager) else Place()
        replies = self.stage in (Stage.OUTPUT, Stage.TOOL_CALL) or recall(place) is not None
        return _NOT_SHOWN if replies or isinstance(value, AIMessage) else value

    def _judge(self, values: list[Any], run_manager: RunManagers) -> list[Any]:
        return self._gate.judge(values, map(Place.of, run_manager))

    async def _ajudge(self, values: list[Any], run_manager: RunManagers) -> list[Any]:
        return await self._gate.ajudge(values, map(Place.of, run_manager))
