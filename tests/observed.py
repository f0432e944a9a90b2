"""What can be observed of a run, by the place where it was observed, for the tests of adapters."""

from __future__ import annotations

import logging
import traceback
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar

from pydantic import BaseModel
from typing_extensions import override

Opaque = tuple[type, ...]
"""Types of what runs something, and is no record of what was run."""


_Parts = Callable[[Any], Iterable[Any]]


def strings(value: Any, opaque: Opaque = (), seen: dict[int, Any] | None = None) -> Iterator[str]:
    """Every text in a value: in its items and fields, in bytes, and as it would be printed."""
    if isinstance(value, str):
        yield value
        return
    parts = _parts_of(value.__class__, opaque)
    seen = dict[int, Any]() if seen is None else seen
    if parts is None or id(value) in seen:
        return
    seen[id(value)] = value  # kept alive: otherwise another may get its id
    for part in parts(value):
        yield from strings(part, opaque, seen)


@cache
def _parts_of(kind: type, opaque: Opaque) -> _Parts | None:
    """How values of a type are taken apart; None: nothing is in them.

    Asked once for each type, since this looks at millions of values.
    """
    if issubclass(kind, (int, float, type, type(None), logging.Logger, *opaque)):
        return None
    for base, parts in _PARTS.items():
        if issubclass(kind, base):
            return parts
    if any("__call__" in vars(base) for base in kind.__mro__):
        return None
    if hasattr(kind, "__dataclass_fields__"):
        return _fields
    return lambda value: [getattr(value, "__dict__", None)]


def _fields(value: Any) -> list[Any]:
    return [getattr(value, one.name, None) for one in fields(value)]


_PARTS: dict[Any, _Parts] = {
    BaseException: lambda value: ["".join(traceback.format_exception(value)), repr(value)],
    (bytes, bytearray): lambda value: [value.decode(errors="replace")],
    Mapping: lambda value: value.items(),
    BaseModel: lambda value: [
        *(value.__dict__, value.__pydantic_extra__, value.__pydantic_private__)
    ],
    (list, tuple, set, frozenset): lambda value: value,
}


@dataclass(slots=True)
class Sink:
    """Everything that was observed, in its order, by the name of the surface."""

    opaque: ClassVar[Opaque] = ()
    """What holds texts without having been told them: a model double its whole script, say."""

    heard: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def hear(self, surface: str, *values: Any) -> None:
        """One thing was observed there."""
        self.heard[surface].append("\n".join(strings(values, self.opaque)).lower())

    def places(self, word: str) -> dict[str, list[int]]:
        """Where a word was observed: the surfaces, and which of the things observed there.

        A word that was observed only in pieces, of things that follow each other, is at -1.
        """
        found = dict[str, list[int]]()
        for surface, things in self.heard.items():
            whole = [number for number, thing in enumerate(things) if word in thing]
            if whole or word in "".join(things):
                found[surface] = whole or [-1]
        return found


class Log(logging.Handler):
    """A handler that keeps every log record."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(logging.DEBUG)
        self.sink = sink

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.sink.hear("logs", record.getMessage(), record.exc_text, record.exc_info)


@contextmanager
def logged(sink: Sink) -> Generator[None]:
    """All log records while this lasts, of whatever level."""
    root, handler = logging.getLogger(), Log(sink)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
