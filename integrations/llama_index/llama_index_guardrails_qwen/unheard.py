"""Calls of a model that nobody overhears.

LlamaIndex tells handlers everything that a model says: through dispatchers, which the whole process
shares, and through callback managers. They are told of a guarded model in place of the one inside.
LlamaIndex has no way to call a model in silence. So the first guarded model changes two of its
classes, for as long as the process lives: dispatchers and callback managers say nothing of what
runs in an unheard call but what guards inside of it decide, which is without text, and all else as
before.
"""

from __future__ import annotations

import functools
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, TypeVar

from llama_index.core.callbacks import CallbackManager
from llama_index_instrumentation.dispatcher import Dispatcher

from guardrails_qwen.streaming import aclose_source, close_source
from llama_index_guardrails_qwen.events import GuardEvent

_T = TypeVar("_T")


class _Silence:
    """What nobody is told of, until it is over: also in tasks that go on then."""

    def __init__(self) -> None:
        self.over = False


_silence: ContextVar[_Silence | None] = ContextVar("guardrails_qwen_unheard", default=None)

_TELLING = ("event", "span_enter", "span_exit", "span_drop")
_TRACING = ("start_trace", "end_trace", "on_event_start", "on_event_end")
_lock = Lock()
_changed = list[type]()


@contextmanager
def unheard() -> Generator[None, None, None]:
    """Of what runs inside nobody is told; threads that do not inherit the context excepted.

    Tasks that go on behind its end are heard again; those of what failed or was cut off are not,
    for they may go on with what was blocked. It ends in the task that began it, so it goes around
    one step of a generator, never around a `yield`.
    """
    silence = _Silence()
    with _kept(silence):
        yield
    silence.over = True


@contextmanager
def _kept(silence: _Silence) -> Generator[None, None, None]:
    """Silence for one step of several."""
    _install()
    outer = _silence.get()
    token = _silence.set(outer if outer and not outer.over else silence)
    try:
        yield
    finally:
        _silence.reset(token)


def unheard_call(call: Callable[[], _T]) -> _T:
    """What a call gives, unheard."""
    with unheard():
        return call()


async def aunheard_call(call: Callable[[], Awaitable[_T]]) -> _T:
    """The same."""
    with unheard():
        return await call()


def unheard_steps(call: Callable[[], Iterator[_T]]) -> Generator[_T, None, None]:
    """What a call gives, each step unheard; closed, it is closed."""
    silence, source = _Silence(), None
    try:
        with _kept(silence):
            source = call()
        while True:
            with _kept(silence):
                try:
                    item = next(source)
                except StopIteration:
                    silence.over = True
                    return
            yield item
    finally:
        with _kept(silence):
            close_source(source)


async def aunheard_steps(
    call: Callable[[], Awaitable[AsyncIterator[_T]]],
) -> AsyncGenerator[_T, None]:
    """The same. All steps run in the task that asks for them, as if nothing were in between."""
    silence, source = _Silence(), None
    try:
        with _kept(silence):
            source = await call()
        while True:
            with _kept(silence):
                try:
                    item = await anext(source)
                except StopAsyncIteration:
                    silence.over = True
                    return
            yield item
    finally:
        with _kept(silence):
            await aclose_source(source)


def _install() -> None:
    with _lock:
        if _changed:
            return
        for name in _TELLING:
            setattr(Dispatcher, name, _unless_silent(getattr(Dispatcher, name)))
        setattr(Dispatcher, "aevent", _aunless_silent(Dispatcher.aevent))  # noqa: B010
        for name in _TRACING:
            setattr(CallbackManager, name, _unless_silent(getattr(CallbackManager, name)))
        _changed.extend((Dispatcher, CallbackManager))


def _unless_silent(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_silent() and not _is_guards(args, kwargs):
            return kwargs.get("event_id", "")  # nothing else that these return is used
        return method(self, *args, **kwargs)

    return told


def _aunless_silent(method: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(method)
    async def told(self: Any, *args: Any, **kwargs: Any) -> None:
        if not _is_silent() or _is_guards(args, kwargs):
            await method(self, *args, **kwargs)

    return told


def _is_silent() -> bool:
    silence = _silence.get()
    return silence is not None and not silence.over


def _is_guards(args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    """Whether a guard says what is told."""
    return isinstance(args[0] if args else kwargs.get("event"), GuardEvent)
