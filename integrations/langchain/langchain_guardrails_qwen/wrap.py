"""A runnable between two guards, as one step that no surrounding chain takes apart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableConfig,
    RunnableSequence,
)
from langchain_core.runnables.base import RunnableLike, coerce_to_runnable
from typing_extensions import override


def guarded(
    left: Runnable[Any, Any], runnable: RunnableLike[Any, Any], right: Runnable[Any, Any]
) -> Runnable[Any, Any]:
    """`left | runnable | right`, in a run of its own. Keyword arguments go to `runnable`.

    Sequences that meet are merged into one, with one run. A binding around each keeps them apart:
    guards inside `runnable` and outside the whole remember their prompts elsewhere.
    """
    inner: Runnable[Any, Any] = coerce_to_runnable(runnable)
    name = f"guarded({inner.get_name()})"
    return _unmerged(_Guarded(first=left, middle=[_unmerged(inner)], last=right, name=name))


def _unmerged(runnable: Runnable[Any, Any]) -> Runnable[Any, Any]:
    if not isinstance(runnable, RunnableSequence):
        return runnable
    return RunnableBinding[Any, Any](bound=runnable, kwargs={}, config={})


class _Guarded(RunnableSequence[Any, Any]):
    """A sequence of three that hands keyword arguments to the second one, not to the first.

    `stream` and `astream` are `transform` and `atransform`.
    """

    def _bound(self, kwargs: dict[str, Any]) -> RunnableSequence[Any, Any]:
        left, runnable, right = self.steps
        bound = runnable.bind(**kwargs) if kwargs else runnable
        return RunnableSequence(left, bound, right, name=self.name)

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
        async for chunk in self._bound(kwargs).atransform(input, config):
            yield chunk
