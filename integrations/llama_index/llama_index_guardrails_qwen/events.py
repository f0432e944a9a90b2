"""What the instrumentation of LlamaIndex is told of a guard: never any text."""

from __future__ import annotations

from typing import Any

from llama_index.core.instrumentation import (
    get_dispatcher,  # pyright: ignore[reportPrivateImportUsage]
)
from llama_index.core.instrumentation.events import BaseEvent
from llama_index_instrumentation.dispatcher import active_instrument_tags, instrument_tags
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


def tell(event: GuardEvent) -> None:
    """Tell handlers, with the active tags but for the one that quotes."""
    active = active_instrument_tags.get()
    with instrument_tags({key: tag for key, tag in active.items() if key != _QUOTING}):
        dispatcher.event(event)
