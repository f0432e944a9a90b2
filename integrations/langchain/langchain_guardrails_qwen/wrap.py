"""A runnable between two guards, as one step that no surrounding chain takes apart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableConfig,
    RunnableSequence,
)
from langchain_core.runnables.base import RunnableLike, coerce_to_runnable
from langchain_core.runnables.config import patch_config
from langchain_core.runnables.graph import Graph
from pydantic import BaseModel
from typing_extensions import override

from guardrails_qwen.streaming import aanswers, aclose_source, answers, aonce, once
from langchain_guardrails_qwen.streams import added_up


class Input(BaseModel):
    """What a pair is given, in drawings."""


class Output(BaseModel):
    """What a pair gives, in drawings."""


def guarded(
    left: Runnable[Any, Any],
    runnable: RunnableLike[Any, Any],
    right: Runnable[Any, Any],
    *,
    beside: bool = False,
) -> Runnable[Any, Any]:
    """`left | runnable | right`, in a run of its own. Keyword arguments go to `runnable`.

    With `beside`, `left` and `runnable` run at the same time; batches run one after the other.

    Sequences that meet are merged into one, with one run. A binding around each keeps them apart:
    guards inside `runnable` and outside the whole remember their prompts elsewhere.
    """
    inner: Runnable[Any, Any] = coerce_to_runnable(runnable)
    name = f"guarded({inner.get_name()})"
    kind = GuardedBeside if beside else Guarded
    return _unmerged(kind(first=left, middle=[_unmerged(inner)], last=right, name=name))


def _unmerged(runnable: Runnable[Any, Any]) -> Runnable[Any, Any]:
    if not isinstance(runnable, RunnableSequence):
        return runnable
    return Bound(bound=runnable, kwargs={}, config={})


class Bound(RunnableBinding[Any, Any]):
    """A binding that closes what is bound when it is closed."""

    @classmethod
    @override
    def get_lc_namespace(cls) -> list[str]:
        return cls.__module__.split(".")

    @override
    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Any]:
        chunks = self.atransform(_alone(input), config, **kwargs)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await aclose_source(chunks)

    @override
    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        own = self._merge_configs(config)
        chunks = _transformed(self.bound, input, own, **{**self.kwargs, **kwargs})
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await aclose_source(chunks)


class Guarded(RunnableSequence[Any, Any]):
    """A sequence of three that hands keyword arguments to the second one, not to the first.

    `stream` and `astream` are `transform` and `atransform`.
    """

    @classmethod
    @override
    def get_lc_namespace(cls) -> list[str]:
        return cls.__module__.split(".")

    @override
    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        """The steps between an input and an output: chains around it leave its ends out."""
        graph = super().get_graph(config)
        first, last = graph.first_node(), graph.last_node()
        if first and last:
            graph.add_edge(graph.add_node(Input), first)
            graph.add_edge(last, graph.add_node(Output))
        return graph

    def _bound(self, kwargs: dict[str, Any]) -> RunnableSequence[Any, Any]:
        left, runnable, right = self.steps
        bound = Bound(bound=runnable, kwargs=kwargs, config={}) if kwargs else runnable
        return _InTurn(first=left, middle=[bound], last=right, name=self.name)

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return self._bound(kwargs).invoke(input, config)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return await self._bound(kwargs).ainvoke(input, config)

    @override
    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        bound = self._bound(kwargs)
        return bound.batch(inputs, config, return_exceptions=return_exceptions)

    @override
    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        bound = self._bound(kwargs)
        return await bound.abatch(inputs, config, return_exceptions=return_exceptions)

    @override
    def transform(
        self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> Iterator[Any]:
        yield from self._bound(kwargs).transform(input, config)

    @override
    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Any]:
        chunks = self._bound(kwargs).atransform(input, config)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await aclose_source(chunks, input)


class _Closed(RunnableSequence[Any, Any]):
    """A sequence that ends its steps when it is closed; LangChain's leaves that to the loop."""

    @override
    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        named = patch_config(config, run_name=(config or {}).get("run_name") or self.name)
        chunks = self._atransform_stream_with_config(input, self._atransform, named, **kwargs)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await aclose_source(chunks)


class _InTurn(_Closed):
    """A sequence of three, one after the other."""

    @override
    async def _atransform(
        self,
        inputs: AsyncIterator[Any],
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        chunks, sources = inputs, list[AsyncIterator[Any]]()
        for step, child in zip(self.steps, _children(run_manager, config), strict=True):
            chunks = _transformed(step, chunks, child)
            sources.insert(0, chunks)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await aclose_source(*sources)


class GuardedBeside(Guarded):
    """The same, of which the first two run at the same time."""

    @override
    def _bound(self, kwargs: dict[str, Any]) -> RunnableSequence[Any, Any]:
        left, runnable, right = super()._bound(kwargs).steps
        return _Beside(first=left, middle=[runnable], last=right, name=self.name)


class _Beside(_Closed):
    """A sequence of three, of which the second one runs while the first one judges its input."""

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return self._call_with_config(self._answer, input, config)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return await self._acall_with_config(self._aanswer, input, config)

    def _answer(
        self, value: Any, run_manager: CallbackManagerForChainRun, config: RunnableConfig
    ) -> Any:
        left, runnable, right = self.steps
        first, second, third = _children(run_manager, config)
        call = partial(once, partial(runnable.invoke, config=second))
        [reply] = answers(partial(left.invoke, value, first), call, value, early=True)
        return right.invoke(reply, third)

    async def _aanswer(
        self, value: Any, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
    ) -> Any:
        left, runnable, right = self.steps
        first, second, third = _children(run_manager, config)
        call = partial(aonce, partial(runnable.ainvoke, config=second))
        answer = aanswers(partial(left.ainvoke, value, first), call, value, early=True)
        async with aclosing(answer) as replies:
            [reply] = [reply async for reply in replies]
        return await right.ainvoke(reply, third)

    @override
    def _transform(
        self,
        inputs: Iterator[Any],
        run_manager: CallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> Iterator[Any]:
        left, runnable, right = self.steps
        first, second, third = _children(run_manager, config)
        for value in added_up(list(inputs)):
            replies = answers(
                partial(left.invoke, value, first),
                partial(runnable.stream, config=second),
                value,
                early=True,
            )
            yield from right.transform(replies, third)

    @override
    async def _atransform(
        self,
        inputs: AsyncIterator[Any],
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        left, runnable, right = self.steps
        first, second, third = _children(run_manager, config)
        for value in added_up([chunk async for chunk in inputs]):
            replies = aanswers(
                partial(left.ainvoke, value, first),
                lambda value: _transformed(runnable, _alone(value), second),
                value,
                early=True,
            )
            chunks = right.atransform(replies, third)
            try:
                async for chunk in chunks:
                    yield chunk
            finally:
                await aclose_source(chunks)


async def _alone(value: Any) -> AsyncIterator[Any]:
    yield value


async def _transformed(
    runnable: Runnable[Any, Any],
    values: AsyncIterator[Any],
    config: RunnableConfig,
    **kwargs: Any,
) -> AsyncIterator[Any]:
    """`atransform`, closed when it is closed, also where it is no more than `astream`."""
    sources: list[AsyncIterator[Any]] = [values]
    try:
        kind: type[Any] = type(runnable)
        if kind.atransform is getattr(Runnable, "atransform"):  # noqa: B009
            chunks = [runnable.astream(v, config, **kwargs) for v in await _sum(values)]
        else:
            chunks = [runnable.atransform(values, config, **kwargs)]
        sources[:0] = chunks
        for source in chunks:
            async for chunk in source:
                yield chunk
    finally:
        await aclose_source(*sources)


async def _sum(values: AsyncIterator[Any]) -> list[Any]:
    return added_up([value async for value in values])


def _children(
    run_manager: CallbackManagerForChainRun | AsyncCallbackManagerForChainRun,
    config: RunnableConfig,
) -> list[RunnableConfig]:
    """The configs of the steps, numbered as sequences do."""
    return [
        patch_config(config, callbacks=run_manager.get_child(f"seq:step:{step}"))
        for step in (1, 2, 3)
    ]
