"""One call of a guarded model: its messages on the way in, its replies on the way out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import uuid4

from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from typing_extensions import Self

from guardrails_qwen import Decision, GuardError
from langchain_guardrails_qwen.gate import Gate, Results, none_failed
from langchain_guardrails_qwen.generations import replies_of, with_messages, with_notes
from langchain_guardrails_qwen.moderated import amoderated, moderated
from langchain_guardrails_qwen.notes import notes_on
from langchain_guardrails_qwen.prompts import Place


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Turn:
    """One call of the model. Its places remember the prompt as long as one of them lives."""

    gate: Gate
    messages: list[BaseMessage]
    left: Place
    right: Place
    results: list[Decision | GuardError] = field(default_factory=list[Decision | GuardError])
    """What was decided so far, in order: about the messages, then about the reply."""

    @classmethod
    def begun(cls, gate: Gate, messages: list[BaseMessage], **fields: Any) -> Self:
        """A call that begins, at places of its own. Others are the fields of its class."""
        run = uuid4()
        left, right = Place(run, 1), Place(run, 2)
        return cls(gate=gate, messages=messages, left=left, right=right, **fields)

    def admit(self) -> list[BaseMessage]:
        """The messages that may be sent: the very same list where they pass unchanged.

        Raises:
            GuardError: They may not, or could not be judged, and the policy says to raise.
        """
        return none_failed(self._heard.judge([self.messages], [self.left]))[0]

    async def aadmit(self) -> list[BaseMessage]:
        """`admit`, without blocking the event loop."""
        return none_failed(await self._heard.ajudge([self.messages], [self.left]))[0]

    def passed(self, result: ChatResult) -> ChatResult:
        """What may be released of a result: the very same one where nothing is to be said of it.

        Raises:
            GuardError: It may not, or could not be judged, and the policy says to raise.
        """
        prompt, replies = list(self.results), replies_of(result)
        judged = self._heard.judge_each(replies, [self.right] * len(replies))
        return _released(result, prompt, *judged)

    async def apassed(self, result: ChatResult) -> ChatResult:
        """`passed`, without blocking the event loop."""
        prompt, replies = list(self.results), replies_of(result)
        judged = await self._heard.ajudge_each(replies, [self.right] * len(replies))
        return _released(result, prompt, *judged)

    def moderated(self, chunks: Iterable[Any]) -> Generator[Any, None, None]:
        """What may be released of a reply that streams; see `moderated`."""
        notes = partial(notes_on, self.results)
        yield from moderated(self._heard, chunks, self.right, notes)

    async def amoderated(self, chunks: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
        """`moderated`, without blocking the event loop."""
        notes = partial(notes_on, self.results)
        async with aclosing(amoderated(self._heard, chunks, self.right, notes)) as released:
            async for chunk in released:
                yield chunk

    @property
    def _heard(self) -> Gate:
        return replace(self.gate, heard=self.results.extend)


def _released(
    result: ChatResult, prompt: Results, judged: list[Any], results: Sequence[Results]
) -> ChatResult:
    passed_on = with_messages(result, none_failed(judged))
    return with_notes(passed_on, [notes_on(prompt, reply) for reply in results])
