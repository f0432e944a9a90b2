"""A cache of replies that keeps none that nobody has judged."""

from __future__ import annotations

from typing import Any

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.outputs import ChatGeneration
from typing_extensions import override

from langchain_guardrails_qwen.notes import is_judged


class JudgedCache(BaseCache):
    """Another cache, which is not told of what was decided without a verdict.

    What it has was judged under the same policy and engine: both are in the key. A reply that was
    waved through, or taken back, because the engine was out of order is none of these.
    """

    def __init__(self, cache: BaseCache) -> None:
        self.cache = cache

    @override
    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        return self.cache.lookup(prompt, llm_string)

    @override
    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        return await self.cache.alookup(prompt, llm_string)

    @override
    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        if _all_judged(return_val):
            self.cache.update(prompt, llm_string, return_val)

    @override
    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        if _all_judged(return_val):
            await self.cache.aupdate(prompt, llm_string, return_val)

    @override
    def clear(self, **kwargs: Any) -> None:
        self.cache.clear(**kwargs)

    @override
    async def aclear(self, **kwargs: Any) -> None:
        await self.cache.aclear(**kwargs)


def judged_only(cache: BaseCache | bool | None) -> BaseCache | bool | None:
    """The cache of a model, if it has one: its own, or the one that LangChain has for all."""
    given = cache if isinstance(cache, BaseCache) else get_llm_cache()
    return cache if cache is False or given is None else JudgedCache(given)


def _all_judged(generations: RETURN_VAL_TYPE) -> bool:
    return all(
        is_judged(generation.message)
        for generation in generations
        if isinstance(generation, ChatGeneration)
    )
