"""What the instrumentation of LlamaIndex is told of a guard: never any text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_index.core.instrumentation import (
    get_dispatcher,  # pyright: ignore[reportPrivateImportUsage]
)
from llama_index.core.instrumentation.events import BaseEvent
from llama_index_instrumentation.dispatcher import active_instrument_tags, instrument_tags
from llama_index_instrumentation.span import active_span_id
from pydantic import Field
from typing_extensions import override

dispatcher = get_dispatcher(__name__)

_QUOTING = "llamaindex.step.input_summary"
"""The tag in which workflows sum up what a step was given, texts included."""


class GuardEvent(BaseEvent):
    """What all events of guards say. Span and tags are those of the call that is guarded."""

    check_id: str = Field(description="The same in all events of one check.")
    component: str = Field(description="What asks the guard: `llm`, `query_engine` and so on.")
    fingerprint: str = Field(description="Policy and model, as `Guard.fingerprint` gives them.")

    @classmethod
    @override
    def class_name(cls) -> str:
        return cls.__name__


class GuardCheckStartEvent(GuardEvent):
    """Something is about to be judged."""

    texts: int = Field(description="How many; of a reply that streams, 1.")
    stage: str | None = Field(description="At which stage; None: each by who says it.")


class GuardCheckEndEvent(GuardEvent):
    """It was judged, or could not be."""

    decisions: list[dict[str, Any]] = Field(
        description="What was decided, in order, as `Decision.to_dict(text=False)` gives it."
    )
    seconds: float = Field(description="How long that took.")
    error: str | None = Field(description="The type of the error, where nothing was decided.")


class GuardViolationEvent(GuardEvent):
    """A text did not pass as it was: it was redacted, replaced, dropped or blocked."""

    decision: dict[str, Any] = Field(description="As in `GuardCheckEndEvent`.")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Origin:
    """The call that is guarded, as events name it: a stream may be read behind its end."""

    span_id: str | None
    tags: Mapping[str, Any]

    @classmethod
    def now(cls) -> Origin:
        """The call that is running, with its tags but for the one that quotes."""
        tags = active_instrument_tags.get()
        return cls(
            span_id=active_span_id.get(),
            tags={key: tag for key, tag in tags.items() if key != _QUOTING},
        )

    def tell(self, event: GuardEvent) -> None:
        """Tell handlers."""
        event.span_id = self.span_id
        with instrument_tags(dict(self.tags)):
            dispatcher.event(event)
