"""Calls of a model that nobody overhears, though it calls other models itself.

LangChain hands callbacks on to whatever runs inside a run: by context variables, without anybody
passing them. A model that asks another one would tell them what no guard has judged.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers import context as tracing

from guardrails_qwen.streaming import aclose_source, close_source

_T = TypeVar("_T")
_NOBODY = BaseCallbackHandler()


@contextmanager
def unheard() -> Generator[None, None, None]:
    """What runs inside inherits no config, no callbacks and no tracing.

    It ends in the task that began it, so it goes around one step of a generator, never around a
    `yield`. What is printed by `set_debug` is printed still.
    """
    # importing it costs a tenth of a second, which LangChain avoids as well
    from langsmith import run_helpers as langsmith

    with ExitStack() as restored:
        _set(restored, var_child_runnable_config, None)
        _set(restored, tracing.tracing_v2_callback_var, None)
        # a handler that is set is taken in place of one that an environment variable asks for
        for variable, *_ in tracing._configure_hooks:  # pyright: ignore[reportPrivateUsage]
            _set(restored, variable, _NOBODY)
        silent = langsmith.tracing_context(enabled=False)  # pyright: ignore[reportUnknownMemberType]
        restored.enter_context(silent)
        yield


def _set(restored: ExitStack, variable: ContextVar[Any], value: object) -> None:
    restored.callback(variable.reset, variable.set(value))


def unheard_steps(call: Callable[[], Iterator[_T]]) -> Iterator[_T]:
    """What a call gives, each step unheard; closed, it is closed."""
    with unheard():
        source = call()
    try:
        while True:
            with unheard():
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item
    finally:
        with unheard():
            close_source(source)


async def aunheard_steps(call: Callable[[], AsyncIterator[_T]]) -> AsyncGenerator[_T, None]:
    """The same. All steps run in the task that asks for them, as if nothing were in between."""
    with unheard():
        source = call()
    try:
        while True:
            with unheard():
                try:
                    item = await anext(source)
                except StopAsyncIteration:
                    return
            yield item
    finally:
        with unheard():
            await aclose_source(source)
