"""What was judged already in this process, so that it is not judged again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

from typing_extensions import Self

_T = TypeVar("_T")


class Remembered(Generic[_T]):
    """The latest values by digest. Safe for threads; copies share it, other processes begin anew.

    Args:
        most: How many are kept; 0: none.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[bytes, _T] = OrderedDict()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[int]]:
        return type(self), (self._most,)

    def get(self, digest: bytes) -> _T | None:
        """What is known; None: nothing."""
        with self._lock:
            if digest in self._values:
                self._values.move_to_end(digest)
            return self._values.get(digest)

    def put(self, digest: bytes, value: _T) -> None:
        """Keep something; what was not asked for longest goes."""
        with self._lock:
            self._values[digest] = value
            self._values.move_to_end(digest)
            while len(self._values) > self._most:
                self._values.popitem(last=False)
