"""Where verdicts are kept, and for how long."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from guardrails_qwen.verdict import Verdict


@runtime_checkable
class VerdictStore(Protocol):
    """Keeps verdicts by key. It may forget any of them at any time, and must not make one up.

    It is called from many threads. What a method raises counts as nothing found, or nothing kept.
    """

    @property
    def blocking(self) -> bool:
        """Whether calls can take so long that an event loop should not wait for them."""
        ...

    def get(self, key: str) -> Verdict | None:
        """The verdict last put under a key, or None where it is not known (any more)."""
        ...

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict."""
        ...

    def close(self) -> None:
        """Let go of what is held open. Used again, the store opens it again."""
        ...


class MemoryStore:
    """Verdicts of this process; the least recently used goes first.

    Args:
        max_entries: How many are kept; one with all scores takes about 1.5 kB.
        ttl: How long one is valid after it was put, in seconds; None is without end.
        clock: A clock that never goes back, in seconds.
    """

    blocking = False

    def __init__(
        self,
        max_entries: int = 100_000,
        ttl: float | None = 3600.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        require_limits(ttl=ttl, max_entries=max_entries)
        self.max_entries = max_entries
        self.ttl = ttl
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[Verdict, float]] = OrderedDict()

    def __repr__(self) -> str:
        return f"MemoryStore(max_entries={self.max_entries}, ttl={self.ttl})"

    def __len__(self) -> int:
        """How many entries it holds, outdated ones included."""
        return len(self._entries)

    def get(self, key: str) -> Verdict | None:
        """The verdict under a key, which counts as used now."""
        with self._lock:
            if key not in self._entries:
                return None
            verdict, since = self._entries[key]
            if self.ttl is not None and self._clock() - since >= self.ttl:
                del self._entries[key]
                return None
            self._entries.move_to_end(key)
            return verdict

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict, in place of the least recently used where there is no room."""
        with self._lock:
            self._entries[key] = verdict, self._clock()
            self._entries.move_to_end(key)
            if len(self._entries) > self.max_entries:
                self._entries.popitem(last=False)

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()


def require_limits(*, ttl: float | None, **sizes: int) -> None:
    """Raise `ValueError` for a store that could keep nothing."""
    for what, size in sizes.items():
        if size < 1:
            raise ValueError(f"{what} is {size}: use at least 1")
    if ttl is not None and not ttl > 0:  # NaN as well
        raise ValueError(f"ttl is {ttl}: use more than 0 seconds, or None for no end")
