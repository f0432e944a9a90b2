"""How many sessions may be open at once, and how much memory their caches may take."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum

from guardrails_qwen.errors import EngineOverloaded


class AtLimit(str, Enum):
    """What happens to a session that has filled the model's context."""

    REANCHOR = "reanchor"
    """It goes on from its prompt and the last part of the reply: as many tokens as half of what the
    context has for a reply. What lies between is forgotten by the model, not unjudged."""
    REFUSE = "refuse"
    """The reply is `TextTooLong`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """How many sessions may be open at once, and how much they may take."""

    most: int = 1024
    """Sessions; one more is refused with `EngineOverloaded`."""
    memory: int = 4 * 1024**3
    """Bytes of keys and values of all sessions together. Whole messages take beside them what 8,192
    tokens take, or the longest."""
    at_limit: AtLimit = AtLimit.REANCHOR

    def __post_init__(self) -> None:
        object.__setattr__(self, "at_limit", AtLimit(self.at_limit))
        if self.most < 1 or self.memory < 1:
            raise ValueError("sessions and memory are at least 1: memory is in bytes")


class Ledger:
    """Keeps account of open sessions and their bytes. Safe to use from any thread."""

    def __init__(self, limits: Sessions) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._bytes = dict[int, int]()

    @property
    def sessions(self) -> int:
        """How many are open."""
        return len(self._bytes)

    @property
    def memory(self) -> int:
        """Bytes of their keys and values."""
        with self._lock:
            return sum(self._bytes.values())

    def enter(self, key: int, size: int) -> None:
        """Account for a new session.

        Raises:
            EngineOverloaded: There are too many, or no memory is left.
        """
        with self._lock:
            if len(self._bytes) >= self.limits.most:
                raise EngineOverloaded(
                    f"{len(self._bytes)} sessions are open, which is as many as may be: close "
                    "those that are done, or raise Sessions(most=…)"
                )
            self._require(size)
            self._bytes[key] = size

    def grow(self, key: int, size: int) -> None:
        """Account for more, or less, of an open session; of one that is closed, for nothing.

        Raises:
            EngineOverloaded: No memory is left.
        """
        with self._lock:
            if key in self._bytes:
                self._require(size - self._bytes[key])
                self._bytes[key] = size

    def leave(self, key: int) -> None:
        """A session is closed; leaving again does nothing."""
        with self._lock:
            self._bytes.pop(key, None)

    def _require(self, more: int) -> None:
        used = sum(self._bytes.values())
        if more > 0 and used + more > self.limits.memory:
            raise EngineOverloaded(
                f"{len(self._bytes)} sessions take {used / 1e6:.0f} MB of the "
                f"{self.limits.memory / 1e6:.0f} MB that they may, and {more / 1e6:.0f} MB more "
                "are needed: close those that are done, or raise Sessions(memory=…)"
            )
