"""What a model makes of itself (tools, structured output), made around another model. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from inspect import getclosurevars, isfunction, ismethod
from types import ModuleType
from typing import Any, cast

from langchain_core.language_models import BaseChatModel, BaseLanguageModel
from langchain_core.output_parsers.base import BaseLLMOutputParser
from langchain_core.runnables import (
    Runnable,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    RunnablePick,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase, RunnableEachBase
from langchain_core.runnables.passthrough import RunnableAssign

_PARTS: dict[type[Any], tuple[str, ...]] = {
    RunnableBindingBase: ("bound",),
    RunnableEachBase: ("bound",),
    RunnableSequence: ("first", "middle", "last"),
    RunnableParallel: ("steps__",),
    RunnableAssign: ("mapper",),
    RunnableWithFallbacks: ("runnable", "fallbacks"),
}
"""Runnables made of others, and where these are."""

_LEAVES: tuple[type[Any], ...] = (
    BaseLLMOutputParser,
    RunnableLambda,
    RunnableGenerator,
    RunnablePassthrough,
    RunnablePick,
)
"""Runnables that work on what a model said, or on what it is asked."""

_ARGUMENTS = frozenset({"kwargs", "config", "config_factories"})
"""What a binding hands to a call: no step of it."""

_PLAIN = (str, bytes, int, float, type, ModuleType, type(None))
_MOST = 10_000
"""Objects to look at."""

Wrap = Callable[[BaseChatModel], BaseChatModel]


def replanted(runnable: Runnable[Any, Any], wrap: Wrap) -> Runnable[Any, Any]:
    """A copy of what a model made of itself, with `wrap(model)` wherever it asks a model.

    Raises:
        NotImplementedError: It asks one in a way that cannot be found, or none at all. So no
            answer passes by the guard.
    """
    found = list[BaseChatModel]()

    def noted(model: BaseChatModel) -> BaseChatModel:
        found.append(model)
        return wrap(model)

    copy = _copied(runnable, noted)
    if not found:
        raise _not_guarded(runnable)
    return copy


def _copied(value: Any, wrap: Wrap) -> Any:
    if isinstance(value, BaseChatModel):
        return wrap(value)
    if isinstance(value, (list, tuple)):
        return [_copied(item, wrap) for item in cast("Iterable[Any]", value)]
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {key: _copied(item, wrap) for key, item in items}
    parts = _parts(value)
    known = _ARGUMENTS.union(parts) if parts else parts
    if _asks({key: item for key, item in _fields(value).items() if key not in known}):
        raise _not_guarded(value)
    copies = {part: _copied(getattr(value, part), wrap) for part in parts}
    return value.model_copy(update=copies) if copies else value


def _parts(runnable: object) -> tuple[str, ...]:
    """Where a runnable has those that it is made of.

    Raises:
        NotImplementedError: It is of no known kind.
    """
    found = next((parts for kind, parts in _PARTS.items() if isinstance(runnable, kind)), None)
    if found is None and not isinstance(runnable, _LEAVES):
        raise _not_guarded(runnable)
    return found or ()


def _asks(root: object) -> bool:
    """Whether a language model can be reached from a value, or too much to be sure."""
    seen, waiting = dict[int, object](), [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, BaseLanguageModel) or len(seen) > _MOST:
            return True
        if id(value) not in seen and not isinstance(value, _PLAIN):
            seen[id(value)] = value
            waiting += _reachable(value)
    return False


def _reachable(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        yield from cast("Mapping[object, object]", value).values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from cast("Iterable[object]", value)
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    elif ismethod(value):
        yield from (value.__self__, value.__func__)
    elif isfunction(value):
        yield from (getclosurevars(value).nonlocals, value.__defaults__, value.__kwdefaults__)
    else:
        yield from _fields(value).values()


def _fields(value: object) -> dict[str, object]:
    private: object = getattr(value, "__pydantic_private__", None)
    hidden = cast("dict[str, object]", private) if isinstance(private, dict) else {}
    return {**getattr(value, "__dict__", {}), **hidden}


def _not_guarded(runnable: object) -> NotImplementedError:
    return NotImplementedError(
        f"the {type(runnable).__name__} that the inner model made of itself cannot be guarded: its "
        "calls of a model cannot be found; bind what it needs to the guarded model, and parse what "
        "is released: GuardedChatModel(...).bind(...) | parser"
    )
