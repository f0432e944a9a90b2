"""A guard of which a config chooses fields for each call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, cast

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableLike
from langchain_core.runnables.config import get_config_list
from langchain_core.runnables.configurable import RunnableConfigurableFields
from langchain_core.runnables.utils import ConfigurableFieldSpec
from typing_extensions import override

from guardrails_qwen.streaming import aclose_source
from langchain_guardrails_qwen.wrap import guarded

_OBJECTS = ("guard", "policy", "engine", "streaming")


class ConfiguredGuard(RunnableConfigurableFields[Any, Any]):
    """What `GuardRunnable.configurable_fields` gives.

    LangChain would judge the values of a batch one by one; here those that are configured alike are
    judged in one batch. A stream is closed when it is closed, and both guards of a `wrap` are
    configured.
    """

    @classmethod
    @override
    def get_lc_namespace(cls) -> list[str]:
        return cls.__module__.split(".")

    @property
    @override
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """The fields; policies and engines are no data that a schema could describe."""
        objects = {field.id for name, field in self.fields.items() if name in _OBJECTS}
        return [
            spec._replace(annotation=Any, default=None) if spec.id in objects else spec
            for spec in super().config_specs
        ]

    def wrap(
        self,
        runnable: RunnableLike[Any, Any],
        *,
        output_key: str | None = None,
        beside: bool = False,
    ) -> Runnable[Any, Any]:
        """See `GuardRunnable.wrap`."""
        left, right = (self._like(guard) for guard in cast("Any", self.default).pair(output_key))
        return guarded(left, runnable, right, beside=beside)

    @override
    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """One batch for all values that are configured alike."""
        outputs = [None] * len(inputs)
        for guard, places, configs in self._groups(config, len(inputs)):
            values = [inputs[place] for place in places]
            judged = guard.batch(values, configs, return_exceptions=return_exceptions)
            _put(outputs, places, judged)
        return outputs

    @override
    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """One batch for all values that are configured alike."""
        outputs = [None] * len(inputs)
        for guard, places, configs in self._groups(config, len(inputs)):
            values = [inputs[place] for place in places]
            judged = await guard.abatch(values, configs, return_exceptions=return_exceptions)
            _put(outputs, places, judged)
        return outputs

    @override
    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Any]:
        guard, own = self.prepare(config)
        chunks = guard.astream(input, own, **kwargs)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await aclose_source(chunks)

    @override
    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Any]:
        guard, own = self.prepare(config)
        chunks = guard.atransform(input, own, **kwargs)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await aclose_source(chunks, input)

    def _groups(
        self, config: RunnableConfig | list[RunnableConfig] | None, count: int
    ) -> list[tuple[Runnable[Any, Any], list[int], list[RunnableConfig]]]:
        """The guards that are wanted, each with the places of its values and their configs."""
        groups: list[tuple[Runnable[Any, Any], list[int], list[RunnableConfig]]] = []
        for place, one in enumerate(get_config_list(config, count)):
            guard, own = self.prepare(one)
            alike = next((group for group in groups if group[0] == guard), None)
            if alike is None:
                groups.append(alike := (guard, [], []))
            alike[1].append(place)
            alike[2].append(own)
        return groups

    def _like(self, guard: Any) -> Runnable[Any, Any]:
        return ConfiguredGuard(default=guard, fields=self.fields, config=self.config)


def _put(outputs: list[Any], places: Iterable[int], judged: Iterable[Any]) -> None:
    for place, output in zip(places, judged, strict=True):
        outputs[place] = output
