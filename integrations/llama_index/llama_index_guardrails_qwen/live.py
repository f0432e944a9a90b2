"""A reply that is moderated while it is written, and LlamaIndex's instrumentation told of it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

from typing_extensions import Self

from guardrails_qwen import Action, Conversation, Decision, Stage
from guardrails_qwen.streaming import Event, GuardedStream
from llama_index_guardrails_qwen.check import Check
from llama_index_guardrails_qwen.events import Origin
from llama_index_guardrails_qwen.gate import Gate


class Live:
    """A `GuardedStream` that begins with its first text, in a check of its own.

    Use it as a context manager. Where it is left before the reply was complete, nothing more is
    released.

    Args:
        gate: The guard.
        origin: In which call the reply was asked for; by default the one that reads it.
    """

    def __init__(self, gate: Gate, origin: Origin | None = None) -> None:
        self.prompt: Conversation | None = None
        """What the reply answers; to be set before the first text."""
        self._gate = gate
        self._origin = origin
        self._stream: GuardedStream | None = None
        self._check: Check | None = None
        self._open = ExitStack()

    @property
    def over(self) -> bool:
        """Whether nothing more will be released."""
        return self._stream is not None and self._stream.over

    @property
    def decision(self) -> Decision | None:
        """What was decided about the reply; None before its end, and where it has no text."""
        return self._stream.decision if self._stream else None

    @property
    def cut(self) -> bool:
        """Whether nothing follows what was said: it was blocked, replaced or dropped."""
        return self.decision is not None and self.decision.action > Action.REDACT

    def feed(self, text: str) -> list[Event]:
        """More of the reply; what became of it. Raises as `GuardedStream.feed` does."""
        return self._begun().feed(text) if text else []

    async def afeed(self, text: str) -> list[Event]:
        """`feed`, without blocking the event loop."""
        return await self._begun().afeed(text) if text else []

    def finish(self) -> list[Event]:
        """The reply is complete; what becomes of the rest."""
        return self._stream.finish() if self._stream else []

    async def afinish(self) -> list[Event]:
        """`finish`, without blocking the event loop."""
        return await self._stream.afinish() if self._stream else []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._check and self.decision:
            self._check.note([self.decision])
        self._open.__exit__(kind, error, trace)

    def _begun(self) -> GuardedStream:
        if self._stream is None:
            gate = self._gate
            self._check = self._open.enter_context(
                Check(gate.guard, gate.component, 1, Stage.OUTPUT, self._origin)
            )
            settings = replace(gate.streaming, closing=gate.closing)
            stream = gate.guard.stream(self.prompt, settings=settings)
            self._stream = self._open.enter_context(stream)
        return self._stream
