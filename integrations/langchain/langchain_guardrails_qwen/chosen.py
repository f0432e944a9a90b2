"""The guard of a call, after what its config chooses; and which values of a batch share one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import TypeGuard

from langchain_core.runnables import RunnableConfig

from guardrails_qwen import Engine, Guard, GuardError, Policy

ENGINE_KEY = "guardrails_qwen_engine"
"""Where a guard without an engine of its own looks for one among the configurable values."""


def chosen(
    guard: Guard | None, policy: Policy | None, engine: Engine | None, config: RunnableConfig
) -> Guard:
    """A guard with this policy and this engine in place of its own.

    Raises:
        GuardError: There is no engine, or something else in its place.
    """
    if guard and policy is None and engine is None:
        return guard
    candidates = (engine, guard.engine if guard else None, _configured(config))
    found = next((one for one in candidates if one is not None), None)
    if not _is_engine(found):
        raise GuardError(
            "this guard has no engine, as none has that was loaded: give it one by "
            f"with_engine(engine), or its chain by with_config(configurable={{{ENGINE_KEY!r}: "
            "engine})"
        )
    if guard is None:
        return Guard(found, policy)
    changed = copy(guard)
    changed.engine, changed.policy = found, policy or guard.policy
    return changed


def parts(configs: Sequence[RunnableConfig]) -> Iterator[slice]:
    """A batch in parts that are judged one after the other.

    Each has one engine and no more values than the config's "max_concurrency".
    """
    start = 0
    for stop in range(1, len(configs) + 1):
        most = configs[start].get("max_concurrency") or len(configs)
        full = stop - start >= most
        if (
            full
            or stop == len(configs)
            or _configured(configs[stop]) is not _configured(configs[start])
        ):
            yield slice(start, stop)
            start = stop


def _configured(config: RunnableConfig) -> object:
    return (config.get("configurable") or {}).get(ENGINE_KEY)


def _is_engine(value: object) -> TypeGuard[Engine]:
    """Whether it has the doors of one. Its properties are not looked at: they may ask a server."""
    return hasattr(type(value), "judge") and hasattr(type(value), "ajudge")
