"""What can be observed of LlamaIndex, sorted by where it was observed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from llama_index.core import Settings
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.instrumentation import (
    get_dispatcher,  # pyright: ignore[reportPrivateImportUsage]
)
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms.llm import LLM
from llama_index.core.tools import BaseTool
from llama_index.core.workflow import Context, Workflow
from pydantic import PrivateAttr, SkipValidation
from typing_extensions import override

from guardrails_qwen import Guard
from tests import observed

_KINDS = {
    **dict.fromkeys(("llm",), "model"),
    **dict.fromkeys(("embedding", "rerank", "retrieval"), "retrieval"),
    **dict.fromkeys(("exception", "span"), "error"),
    **{name: name for name in ("query", "synthesis")},
    "chat_engine": "chat",
    "agent": "tool",
    "step_function": "step",
}
"""What an event is about, by the module that it comes from."""


class Sink(observed.Sink):
    """What was observed of LlamaIndex."""

    __slots__ = ()
    opaque = (
        *(LLM, BaseEmbedding, BaseRetriever, BaseQueryEngine, BaseChatEngine, BaseTool, Guard),
        *(Workflow, Context, CallbackManager),
    )


class Ears(BaseEventHandler):
    """Hears every event of the dispatchers."""

    sink: SkipValidation[Sink]

    @classmethod
    @override
    def class_name(cls) -> str:
        return "Ears"

    @override
    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        package, module = type(event).__module__.split(".")[::-1][1::-1] or ("", "")
        kind = "guard" if "guardrails" in package else _KINDS.get(module, "others")
        self.sink.hear(f"events: {kind}", event)


class SpanEars(SimpleSpanHandler):
    """Hears what spans are told."""

    _sink: Sink = PrivateAttr()

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    @override
    def span_enter(self, id_: str, bound_args: Any, *args: Any, **kwargs: Any) -> None:
        self._sink.hear("spans: start", bound_args.arguments, kwargs.get("tags"))

    @override
    def span_exit(self, id_: str, bound_args: Any, *args: Any, **kwargs: Any) -> None:
        self._sink.hear("spans: end", kwargs.get("result"))

    @override
    def span_drop(self, id_: str, bound_args: Any, *args: Any, **kwargs: Any) -> None:
        self._sink.hear("spans: error", kwargs.get("err"))


class CallbackEars(BaseCallbackHandler):
    """Hears what callback managers are told."""

    def __init__(self, sink: Sink) -> None:
        super().__init__([], [])
        self.sink = sink

    @override
    def on_event_start(
        self, event_type: CBEventType, payload: Any = None, event_id: str = "", *args: Any, **_: Any
    ) -> str:
        self.sink.hear("callbacks", payload)
        return event_id

    @override
    def on_event_end(
        self, event_type: CBEventType, payload: Any = None, *_: Any, **__: Any
    ) -> None:
        self.sink.hear("callbacks", payload)

    @override
    def start_trace(self, trace_id: str | None = None) -> None:
        """Nothing of a trace is text."""

    @override
    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None:
        """Nothing of a trace is text."""


@contextmanager
def listening(sink: Sink) -> Generator[None]:
    """Everything that handlers are told while this lasts, log records and warnings included."""
    root: Any = get_dispatcher("root")
    events, spans = Ears(sink=sink), SpanEars(sink)
    root.add_event_handler(events)
    root.add_span_handler(spans)
    before = Settings.callback_manager
    Settings.callback_manager = CallbackManager([CallbackEars(sink)])
    try:
        with observed.logged(sink), _warned(sink), _threads(sink):
            yield
    finally:
        Settings.callback_manager = before
        root.event_handlers.remove(events)
        root.span_handlers.remove(spans)


@contextmanager
def _warned(sink: Sink) -> Generator[None]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    for warning in told:
        sink.hear("warnings", str(warning.message))


@contextmanager
def _threads(sink: Sink) -> Generator[None]:
    """What a thread raises, Python prints."""
    before = threading.excepthook
    threading.excepthook = lambda told: sink.hear("error", told.exc_value)
    try:
        yield
    finally:
        threading.excepthook = before
