"""What can be observed of a run, sorted by where it was observed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import Runnable
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from langgraph.runtime import Runtime
from typing_extensions import override

from tests import observed


class Sink(observed.Sink):
    """What was observed of LangChain."""

    __slots__ = ()
    opaque = (Runnable, BaseLanguageModel, BaseCallbackHandler, Runtime)


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
