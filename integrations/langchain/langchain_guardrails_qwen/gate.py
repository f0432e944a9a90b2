"""A guard where values pass: what it judges there, and by which rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardrails_qwen import Decision, Guard, GuardError, Stage
from guardrails_qwen.streaming import Streaming
from langchain_guardrails_qwen.document_passage import DocumentPassage
from langchain_guardrails_qwen.passage import Passage, Passing, asked, attempt, settled, shared
from langchain_guardrails_qwen.prompts import Place
from langchain_guardrails_qwen.trace import Results


def _unheard(_results: Results) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A guard, and what it shall judge of the values that pass."""

    guard: Guard
    stage: Stage | None = None
    """The stage, if it shall not follow from the value."""
    key: str | None = None
    """The field to judge of a dict."""
    streaming: Streaming = field(default_factory=Streaming)
    """How replies are moderated while they are written."""
    trust_system: bool = False
    """Whether the system messages that begin a list are the application's own, and left out."""
    heard: Callable[[Results], None] = _unheard
    """Gets to know everything that is decided: of a value all at once, of a stream at its end."""

    def judge(self, values: Iterable[Any], places: Iterable[Place]) -> list[Any]:
        """What to pass on of each value, or the error that keeps it from passing."""
        return self.judge_each(values, places)[0]

    async def ajudge(self, values: Iterable[Any], places: Iterable[Place]) -> list[Any]:
        """`judge`, without blocking the event loop."""
        return (await self.ajudge_each(values, places))[0]

    def judge_each(
        self, values: Iterable[Any], places: Iterable[Place]
    ) -> tuple[list[Any], Sequence[Results]]:
        """What `judge` gives, and the results for each value."""
        passing = self.read(values, places)
        results = self.check(passing)
        return settled(passing, results), shared(passing, results)

    async def ajudge_each(
        self, values: Iterable[Any], places: Iterable[Place]
    ) -> tuple[list[Any], Sequence[Results]]:
        """`judge_each`, without blocking the event loop."""
        passing = self.read(values, places)
        results = await self.acheck(passing)
        return settled(passing, results), shared(passing, results)

    def read(self, values: Iterable[Any], places: Iterable[Place]) -> list[Passing]:
        """The values as they pass."""
        pairs = zip(values, places, strict=True)
        return [attempt(self._read, value, place) for value, place in pairs]

    def check(self, passing: Sequence[Passing]) -> list[Decision | GuardError]:
        """The results for all that has to be judged of them, in order."""
        results = self.guard.check_many(asked(passing), stage=self.stage, return_exceptions=True)
        self.heard(results)
        return results

    async def acheck(self, passing: Sequence[Passing]) -> list[Decision | GuardError]:
        """`check`, without blocking the event loop."""
        results = await self.guard.acheck_many(
            asked(passing), stage=self.stage, return_exceptions=True
        )
        self.heard(results)
        return results

    def _read(self, value: Any, place: Place) -> Passing:
        documents = DocumentPassage.of(value, self.guard, self.stage)
        if documents:
            return documents
        passage = Passage.of(value, place, self.stage, self.key, self.streaming.closing)
        return passage.trusting() if self.trust_system else passage


def require_guard(guard: object) -> None:
    """See that a guard is one.

    Raises:
        TypeError: It is something else: an engine say, or what is made of a guard.
    """
    if not isinstance(guard, Guard):
        raise TypeError(
            f"the guard is {type(guard).__name__}, not a Guard: give Guard.from_pretrained(...), "
            "Guard.remote(...) or Guard(engine, policy)"
        )


def none_failed(results: list[Any]) -> list[Any]:
    """What may pass of values, where that is so of all of them.

    Raises:
        Exception: The first one among them.
    """
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
