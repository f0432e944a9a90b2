"""Which run takes place in which step of which other one.

LangChain tells a run of its parent, and of nothing above. So a handler listens to all chains that
begin: it is the only one of LangChain's means that reaches every run, and it keeps ids, and inputs
while they are being handed on.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tracers.context import register_configure_hook
from typing_extensions import override

ALONE = -2
"""Nothing is certain about where a run takes place."""
BRANCH = -1
"""One of several that are given the same, as the branches of a parallel are."""
WITHIN = 0
"""Inside of a run, and given what that was given. Steps of sequences are counted from 1 on."""

UNKNOWN = object()
"""An input that is not known."""

_STEP = re.compile(r"seq:step:(\d+)")


@dataclass(slots=True, repr=False)
class _Run:
    """A run, and what it takes place in."""

    parent: UUID | None
    step: int
    name: str
    given: object
    """Its input, until it ends."""


class _Lineage(BaseCallbackHandler):
    """Remembers runs for as long as their ids live.

    Chains begin with their input, or, where they stream, without it. What runs within another one
    is given the same where that is the very same object, or where LangChain's own tags and names
    say so.
    """

    run_inline = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: WeakKeyDictionary[UUID, _Run] = WeakKeyDictionary()

    @override
    def on_chain_start(
        self,
        serialized: dict[str, Any],
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep where a run begins."""
        if not isinstance(run_id, UUID):  # pyright: ignore[reportUnnecessaryIsInstance]
            return
        name = str(kwargs.get("name") or "")
        step = self.step(parent_run_id, tags or (), inputs, name)
        run = _Run(parent=parent_run_id, step=step, name=name, given=inputs)
        with self._lock:
            self._runs[run_id] = run

    @override
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Let go of the input."""
        self._forget(run_id)

    @override
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Let go of the input."""
        self._forget(run_id)

    def around(self, run_id: UUID | None) -> tuple[UUID | None, int]:
        """The run in which another one takes place, and where in it."""
        run = self._run(run_id)
        return (run.parent, run.step) if run else (None, ALONE)

    def step(
        self, parent_id: UUID | None, tags: Sequence[str], given: object, name: str = ""
    ) -> int:
        """Where in its parent a run takes place that has these tags and is given that."""
        if parent_id is None:
            return ALONE
        for tag in tags:
            if found := _STEP.fullmatch(tag):
                return int(found[1])
        if any(tag.startswith("map:key:") for tag in tags):
            return BRANCH
        parent = self._run(parent_id)
        if parent is None:
            return ALONE
        chosen = any(tag.startswith("branch:") for tag in tags)
        within = chosen or self._same(given, parent.given) or _hands_on(parent.name, name)
        return WITHIN if within else ALONE

    @property
    @override
    def ignore_llm(self) -> bool:
        return True

    @property
    @override
    def ignore_chat_model(self) -> bool:
        return True

    @property
    @override
    def ignore_retriever(self) -> bool:
        return True

    @property
    @override
    def ignore_agent(self) -> bool:
        return True

    @property
    @override
    def ignore_retry(self) -> bool:
        return True

    @property
    @override
    def ignore_custom_event(self) -> bool:
        return True

    @staticmethod
    def _same(given: object, parents: object) -> bool:
        return given is parents and given is not UNKNOWN

    def _run(self, run_id: UUID | None) -> _Run | None:
        if not isinstance(run_id, UUID):
            return None
        with self._lock:
            return self._runs.get(run_id)

    def _forget(self, run_id: UUID) -> None:
        if run := self._run(run_id):
            run.given = UNKNOWN


def _hands_on(parent: str, name: str) -> bool:
    """Whether a run hands its input on, by the names that LangChain gives to such runs."""
    if parent == "RunnableWithFallbacks":
        return True
    return parent.startswith("RunnableAssign<") and name.startswith("RunnableParallel<")


lineage = _Lineage()
register_configure_hook(ContextVar("guardrails_qwen_lineage", default=lineage), inheritable=True)
