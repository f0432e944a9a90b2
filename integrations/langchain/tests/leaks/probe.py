"""What can be observed of a run, sorted by where it was observed."""

from __future__ import annotations

import logging
import traceback
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, cast

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import Runnable
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from langgraph.runtime import Runtime
from pydantic import BaseModel
from typing_extensions import override

_OPAQUE = (type, Runnable, BaseLanguageModel, BaseCallbackHandler, Runtime, logging.Logger)
"""What runs something, and is no record of what was run: a model double holds its whole script."""


def strings(value: Any, seen: dict[int, Any] | None = None) -> Iterator[str]:
    """Every text in a value: in its items and fields, in bytes, and as it would be printed."""
    seen = dict[int, Any]() if seen is None else seen
    if isinstance(value, str):
        yield value
    elif isinstance(value, (bytes, bytearray)):
        yield value.decode(errors="replace")
    elif isinstance(value, BaseException):
        yield from ("".join(traceback.format_exception(value)), repr(value))
    elif isinstance(value, _OPAQUE) or callable(value) or id(value) in seen:
        return
    else:
        seen[id(value)] = value  # kept alive: otherwise another may get its id
        for part in _parts(value):
            yield from strings(part, seen)


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from cast("Mapping[Any, Any]", value).items()
    elif isinstance(value, BaseModel):
        yield from (value.__dict__, value.__pydantic_extra__, value.__pydantic_private__)
    elif is_dataclass(value):
        yield from (getattr(value, one.name, None) for one in fields(value))
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    elif hasattr(value, "__dict__"):
        yield vars(value)


@dataclass(slots=True)
class Sink:
    """Everything that was observed, in its order, by the name of the surface."""

    heard: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def hear(self, surface: str, *values: Any) -> None:
        """One thing was observed there."""
        self.heard[surface].append("\n".join(strings(values)).lower())

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


class Ears(BaseCallbackHandler):
    """A handler of callbacks that keeps all that it is told."""

    run_inline = True

    def __init__(self, sink: Sink) -> None:
        self.sink = sink

    @override
    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.sink.hear("callbacks: model", messages, kwargs)

    @override
    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.sink.hear("callbacks: model", token, kwargs)

    def on_stream_event(self, event: Any, **kwargs: Any) -> None:
        self.sink.hear("callbacks: model", event)

    @override
    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.sink.hear("callbacks: model", response, kwargs)

    @override
    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.sink.hear("callbacks: model", error, kwargs)

    @override
    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        self.sink.hear(_chain(kwargs, "start"), inputs, kwargs)

    @override
    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self.sink.hear(_chain(kwargs, "end"), outputs, kwargs)

    @override
    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self.sink.hear(_chain(kwargs, "end"), error, kwargs)

    @override
    def on_tool_start(self, serialized: Any, input_str: str, **kwargs: Any) -> None:
        self.sink.hear("callbacks: tool", input_str, kwargs)

    @override
    def on_tool_end(self, output: Any, **kwargs: Any) -> None:
        self.sink.hear("callbacks: tool", output, kwargs)

    @override
    def on_tool_error(self, error: BaseException, **kwargs: Any) -> None:
        self.sink.hear("callbacks: tool", error, kwargs)

    @override
    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.sink.hear("callbacks: custom", name, data, kwargs)


def _chain(kwargs: Mapping[str, Any], moment: str) -> str:
    return f"callbacks: chain {moment}"


class Trace(BaseTracer):
    """A tracer that keeps the finished runs, as those do that send them somewhere."""

    run_inline = True

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.sink = sink

    @override
    def _persist_run(self, run: Run) -> None:
        for one in _tree(run):
            self.sink.hear("tracer", _record(one))


def _tree(run: Any) -> Iterator[Any]:
    yield run
    for child in run.child_runs:
        yield from _tree(child)


def _record(run: Any) -> list[Any]:
    return [run.inputs, run.outputs, run.error, run.extra, run.events, run.tags]


class Log(logging.Handler):
    """A handler that keeps every log record."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(logging.DEBUG)
        self.sink = sink

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.sink.hear("logs", record.getMessage(), record.exc_text, record.exc_info)
