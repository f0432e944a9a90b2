"""Where a component's guard comes from: it is given, or made where it is needed."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable

from guardrails_qwen import Guard
from llama_index_guardrails_qwen.gate import require_guard

GuardSource = Guard | Callable[[], Guard]
"""A guard, or a function that makes one: `functools.partial(Guard.from_pretrained, "tiny")`."""


class _Process:
    """The guards that were made in one process, each once."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.guards: dict[object, Guard] = {}


_process = _Process()


def guard_of(source: GuardSource) -> Guard:
    """The guard. One that has to be made is made once a process, however often its source arrives.

    Raises:
        TypeError: What was made is no guard.
    """
    if isinstance(source, Guard):
        return source
    process, key = _this_process(), _key(source)
    with process.lock:
        if key not in process.guards:
            made = source()
            require_guard(made)
            process.guards[key] = made
        return process.guards[key]


def is_made(source: GuardSource) -> bool:
    """Whether `guard_of` answers at once."""
    return isinstance(source, Guard) or _key(source) in _this_process().guards


def require_source(source: object) -> None:
    """See that a guard can come from this.

    Raises:
        TypeError: It cannot.
    """
    if not callable(source) or isinstance(source, type):
        require_guard(source)


def require_portable(source: GuardSource) -> None:
    """See that a source can be sent to another process.

    Raises:
        PicklingError: It cannot; the message says what to give instead.
    """
    try:
        pickle.dumps(source)
    except Exception as error:  # noqa: BLE001 - pickling raises anything
        cause = type(error).__name__
    else:
        return
    raise pickle.PicklingError(
        f"this guard cannot be sent to another process ({cause}): for num_workers give a function "
        'that makes one there, as functools.partial(Guard.from_pretrained, "tiny")'
    )


def _this_process() -> _Process:
    """What a forked process inherits is not its own: the threads of those guards stayed behind."""
    global _process  # noqa: PLW0603 - one registry a process is the point
    if _process.pid != os.getpid():
        _process = _Process()
    return _process


def _key(source: Callable[[], Guard]) -> object:
    try:
        return pickle.dumps(source)
    except Exception:  # noqa: BLE001 - pickling raises anything
        return source
