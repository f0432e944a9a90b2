"""A runnable between two guards, as one step that no surrounding chain takes apart."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import Runnable, RunnableBinding, RunnableSequence
from langchain_core.runnables.base import RunnableLike, coerce_to_runnable


def guarded(
    left: Runnable[Any, Any], runnable: RunnableLike[Any, Any], right: Runnable[Any, Any]
) -> Runnable[Any, Any]:
    """`left | runnable | right`, in a run of its own.

    Sequences that meet are merged into one, with one run. A binding around each keeps them apart:
    guards inside `runnable` and outside the whole remember their prompts elsewhere.
    """
    inner: Runnable[Any, Any] = coerce_to_runnable(runnable)
    name = f"guarded({inner.get_name()})"
    return _unmerged(RunnableSequence(left, _unmerged(inner), right, name=name))


def _unmerged(runnable: Runnable[Any, Any]) -> Runnable[Any, Any]:
    if not isinstance(runnable, RunnableSequence):
        return runnable
    return RunnableBinding[Any, Any](bound=runnable, kwargs={}, config={})
