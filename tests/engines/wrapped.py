"""Members for the tests of engines that wrap engines, and both doors of these."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from guardrails_qwen import Conversation, Engine, EngineError, Outcome, Scores, Severity, Verdict
from guardrails_qwen.testing import ScriptedEngine

Judging = Callable[[Engine, Sequence[Conversation]], list[Outcome]]


def _blocking(engine: Engine, batch: Sequence[Conversation]) -> list[Outcome]:
    return engine.judge(batch)


def _asynchronous(engine: Engine, batch: Sequence[Conversation]) -> list[Outcome]:
    async def judged() -> list[Outcome]:
        return await engine.ajudge(batch)

    return asyncio.run(judged())


DOORS: list[Judging] = [_blocking, _asynchronous]
"""An engine's two doors: what passes through both is proved to agree."""


@dataclass
class Oracle:
    """An engine that does what it is told: it returns anything, or raises it."""

    answer: Any
    name: str = "oracle"
    fingerprint: str = "oracle"

    def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        if isinstance(self.answer, BaseException):
            raise self.answer
        found = self.answer(conversations) if callable(self.answer) else self.answer
        return cast("list[Outcome]", found)

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        return self.judge(conversations)


@dataclass
class Ending:
    """Notes down who was closed, and how."""

    ended: list[str] = field(default_factory=list[str])

    def closable(self, name: str, error: Exception | None = None) -> ScriptedEngine:
        """An engine with `close`."""
        return _Closable(self.ended, name, error)

    def aclosable(self, name: str, error: Exception | None = None) -> ScriptedEngine:
        """An engine with `close` and `aclose`."""
        return _AsyncClosable(self.ended, name, error)


class _Closable(ScriptedEngine):
    def __init__(self, ended: list[str], name: str, error: Exception | None) -> None:
        super().__init__(name=name)
        self.ended = ended
        self.error = error

    def close(self) -> None:
        self._end("close")

    def _end(self, door: str) -> None:
        self.ended.append(f"{door} {self.name}")
        if self.error:
            raise self.error


class _AsyncClosable(_Closable):
    async def aclose(self) -> None:
        self._end("aclose")


def scored(controversial: float, unsafe: float, **other: Any) -> Verdict:
    """The verdict of a model with these probabilities: the likeliest severity."""
    severity = {
        Severity.SAFE: 1 - controversial - unsafe,
        Severity.CONTROVERSIAL: controversial,
        Severity.UNSAFE: unsafe,
    }
    likeliest = max(severity, key=severity.__getitem__)
    return Verdict(severity=likeliest, scores=Scores(severity=severity), **other)


def models(outcomes: Sequence[Outcome]) -> list[str]:
    """Who answered, or what went wrong."""
    return [o.model if isinstance(o, Verdict) else type(o).__name__ for o in outcomes]


GONE = EngineError("the server is gone")
