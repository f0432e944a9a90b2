"""Where a component's guard comes from: it is given, or made where it is needed."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from guardrails_qwen import Guard
from llama_index_guardrails_qwen.gate import require_guard

GuardSource = Guard | Callable[[], Guard]
"""A guard, or a function that makes one: `functools.partial(Guard.from_pretrained, "tiny")`."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A source on its way to another process, unpacked where the guard is needed.

    A pool of processes waits for ever for one that fails while it unpacks a task, so it must not
    fail there.
    """

    pickled: bytes = field(repr=False)

    def __call__(self) -> Guard:
        return guard_of(_unpacked(self))


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
    source = _unpacked(source)
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
    source = _unpacked(source)
    return isinstance(source, Guard) or _key(source) in _this_process().guards


def require_source(source: object) -> None:
    """See that a guard can come from this.

    Raises:
        TypeError: It cannot.
    """
    if not callable(source) or isinstance(source, type):
        require_guard(source)


def carried(source: GuardSource) -> Carried:
    """A source for another process.

    Raises:
        PicklingError: It cannot get there; the message says what to give instead.
    """
    try:
        return source if isinstance(source, Carried) else Carried(pickle.dumps(source))
    except Exception as error:  # noqa: BLE001 - pickling raises anything
        cause = type(error).__name__
    raise pickle.PicklingError(
        f"this guard cannot be sent to another process ({cause}): for num_workers give a function "
        'that makes one there, as functools.partial(Guard.from_pretrained, "tiny")'
    )


def _unpacked(source: GuardSource) -> GuardSource:
    return pickle.loads(source.pickled) if isinstance(source, Carried) else source  # noqa: S301 - the pickle that brought it is trusted as much


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
