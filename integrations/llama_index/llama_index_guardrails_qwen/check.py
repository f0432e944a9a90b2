"""One check by a guard, of which LlamaIndex's instrumentation is told."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any
from uuid import uuid4

from typing_extensions import Self

from guardrails_qwen import Decision, Guard, Stage
from llama_index_guardrails_qwen.events import (
    GuardCheckEndEvent,
    GuardCheckStartEvent,
    GuardViolationEvent,
    Origin,
)


class Check:
    """A check from its begin to its end, however that is. `note` everything that is decided.

    Args:
        guard: Who decides.
        component: What asks.
        texts: About how many.
        stage: At which stage; None: each by who says it.
        origin: In which call; by default the one that is running.
    """

    def __init__(
        self,
        guard: Guard,
        component: str,
        texts: int,
        stage: Stage | None,
        origin: Origin | None = None,
    ) -> None:
        self._tell = (origin or Origin.now()).tell
        self._texts = texts
        self._stage = stage
        self._common: dict[str, Any] = {
            "check_id": uuid4().hex,
            "component": component,
            "fingerprint": guard.fingerprint,
        }
        self._decisions: list[Decision] = []
        self._started = 0.0

    def note(self, decisions: Iterable[Decision]) -> None:
        """These were decided."""
        self._decisions.extend(decisions)

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        stage = self._stage.value if self._stage else None
        self._tell(GuardCheckStartEvent(**self._common, texts=self._texts, stage=stage))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        told = [decision.to_dict(text=False) for decision in self._decisions]
        self._tell(
            GuardCheckEndEvent(
                **self._common,
                decisions=told,
                seconds=time.perf_counter() - self._started,
                error=kind.__name__ if kind and not told else None,
            )
        )
        for decision, data in zip(self._decisions, told, strict=True):
            if not decision.allowed:
                self._tell(GuardViolationEvent(**self._common, decision=data))
