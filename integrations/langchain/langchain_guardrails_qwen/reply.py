"""A reply in chunks, on its way to the reader: what of it waits, what left, and as what. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessageChunk

from guardrails_qwen import Action, ConversationError, Decision, GuardError, GuardViolation
from guardrails_qwen.streaming import Block, Event, Redact, Release
from langchain_guardrails_qwen.content import words
from langchain_guardrails_qwen.messages import decided_message
from langchain_guardrails_qwen.passage import Passing
from langchain_guardrails_qwen.pieces import (
    BlockOrder,
    closing,
    ended,
    is_end,
    is_silent,
    may_repeat,
    part,
    plain_text,
    said,
    said_by,
    told_later,
    usage_of,
)
from langchain_guardrails_qwen.streams import added_up, is_complete, spoken


@dataclass(slots=True, kw_only=True, repr=False)
class _Waiting:
    """A chunk, and where its text stands in the reply."""

    chunk: Any
    start: int
    end: int

    def since(self, at: int, *, changed: bool) -> Any:
        """The end of the chunk, from a character of the reply on."""
        start = min(max(at, self.start), self.end)
        return part(self.chunk, start - self.start, self.end - self.start, changed=changed)


class Reply:
    """The chunks of a reply, and what leaves of them, by what a moderator says.

    While chunks say nothing but text, `add` gives the text to moderate, and `passed` turns the
    moderator's events into chunks. From the first chunk on that says more, all that did not leave
    has to be judged as a whole, and `rest_passed` gives what leaves then.

    Chunks leave in their order, one without text not before the text before it. What says that the
    reply is complete waits until it is, and so does metadata that may repeat its text.

    Args:
        closing: What the reader gets in place of the rest when the policy blocks; None: raise.
        replacement: … when something was redacted, and the rest does not pass as text alone.
    """

    def __init__(self, *, closing: str | None, replacement: str) -> None:
        self.came: list[Any] = []
        """All chunks."""
        self.mixed = False
        """Whether one of them said more than text."""
        self._closing = closing
        self._replacement = replacement
        self._order = BlockOrder()
        self._waiting = deque[_Waiting]()
        self._ends: list[Any] = []
        """What waits for the end: what says that the reply is complete, what may repeat it, and
        what came behind these without text."""
        self._more: list[Any] = []
        """Chunks from the first one on that says more than text."""
        self._length = 0
        """Characters that came, of text to moderate."""
        self._at = 0
        """Characters that left, or were taken out."""
        self._told: list[str] = []
        """The text of each chunk that left."""
        self._changed = False
        """Whether something was taken out: metadata may repeat it."""
        self._model: Any = ""
        """A chunk after which others are made."""

    def add(self, chunk: Any) -> str:
        """One more chunk; the text of it that has to be moderated.

        Raises:
            ConversationError: It does not add up with the others.
        """
        if self.came and type(chunk) is not type(self.came[0]):
            added_up([self.came[0], chunk])
        self.came.append(chunk)
        text = None if self.mixed else plain_text(chunk)
        if text is None or not self._order.continues(chunk):
            self.mixed = True
            self._model = self._model or chunk
            self._more.append(chunk)
            return ""
        self._model = chunk if text or not self._length else self._model
        if not text and (self._ends or is_end(chunk) or may_repeat(chunk)):
            self._ends.append(chunk)
            return text
        now, later = told_later(chunk)
        start, self._length = self._length, self._length + len(text)
        self._waiting.append(_Waiting(chunk=now, start=start, end=self._length))
        self._ends.extend([later] if later else [])
        return text

    def passed(self, events: Iterable[Event], *, finished: bool = False) -> Iterator[Any]:
        """What leaves, after what a moderator said.

        Args:
            events: What it said.
            finished: Whether the reply is complete.

        Raises:
            GuardViolation: It is blocked, and there is no closing text.
        """
        for event in events:
            if isinstance(event, Release):
                yield from self._skipped(event.start)
                yield from self._released(event.end, finished=finished)
            elif isinstance(event, Redact):
                self._changed = True
                yield self._tell(said(self._model, event.marker))
            elif isinstance(event, Block):
                yield from self._closed(event.closing, event.decision)
                return
        yield from self._released(self._at, finished=finished)  # what has no text
        if finished:
            yield from self._skipped(self._length)
            yield from (part(chunk, 0, 0, changed=self._changed) for chunk in self._ends)

    def rest_passed(
        self, passing: Sequence[Passing], results: Sequence[Decision | GuardError]
    ) -> Iterator[Any]:
        """What leaves of a reply that was judged as a whole.

        Args:
            passing: What all chunks add up to.
            results: What was decided about that.

        Raises:
            GuardViolation: It is blocked, and there is no closing text.
            GuardError: It could not be judged, and the policy says to raise.
            ConversationError: Its blocks add up to something else than what was released.
        """
        total, decision = _decided(passing, results)
        rest = self._rest()
        if decision.action is Action.BLOCK:
            yield from self._closed(self._closing, decision)
        elif decision.allowed and not self._changed:
            yield from rest if is_complete(total, self.came) else self._in_order(total, rest)
        elif not self._told:
            yield ended(_changed(total, decision))
        elif decision.action is Action.REDACT and not self._changed:
            yield from self._redacted(total, rest, decision)
        else:
            yield from self._closed(
                self._replacement if decision.action <= Action.REDACT else decision.text or "",
                decision,
            )

    def _released(self, end: int, *, finished: bool) -> Iterator[Any]:
        """All up to a character that did not leave yet."""
        while self._waiting and self._waiting[0].end <= end:
            item = self._waiting.popleft()
            if finished or not is_end(item.chunk):
                yield self._tell(item.since(self._at, changed=self._changed))
            else:
                yield from self._beginning(item, item.end)
                self._ends.append(item.since(item.end, changed=self._changed))
            self._at = max(self._at, item.end)
        if self._waiting:
            yield from self._beginning(self._waiting[0], end)
            self._at = max(self._at, end)

    def _beginning(self, item: _Waiting, end: int) -> Iterator[Any]:
        """A chunk up to a character of the reply, without its end."""
        start = max(self._at, item.start)
        if start < end:
            yield self._tell(part(item.chunk, start - item.start, end - item.start, last=False))

    def _skipped(self, start: int) -> Iterator[Any]:
        """All text up to a character was taken out; usage, and what came without text, stays."""
        self._at = max(self._at, start)
        while self._waiting and self._waiting[0].end <= start:
            item = self._waiting.popleft()
            rest = item.since(item.end, changed=self._changed)
            if item.start == item.end or not is_silent(rest):
                yield self._tell(rest)

    def _rest(self) -> list[Any]:
        """All that did not leave."""
        waiting = [item.since(self._at, changed=self._changed) for item in self._waiting]
        return [*waiting, *self._ends, *self._more]

    def _closed(self, text: str | None, decision: Decision) -> Iterator[Any]:
        if text is None:
            raise GuardViolation(decision)
        if text or isinstance(self._model, AIMessageChunk):
            yield closing(self._model, text, usage_of(self._rest()))

    def _in_order(self, total: Any, rest: list[Any]) -> Iterator[Any]:
        """The rest of a reply that passed, so that its reader has what was judged."""
        told, text, [unsaid] = "".join(self._told), spoken(total), added_up(rest)
        if told + spoken(unsaid) == text:
            yield unsaid
        elif text.startswith(told):
            yield ended(unsaid.model_copy(update={"content": text[len(told) :]}))
        else:
            raise ConversationError(
                "what was released of this reply is not how its blocks begin when they are added "
                "up: a block was continued behind another one"
            )

    def _redacted(self, total: Any, rest: list[Any], decision: Decision) -> Iterator[Any]:
        """What a redaction of the whole leaves behind what the reader has."""
        told, text = "".join(self._told), _text(_changed(total, decision))
        if not text.startswith(told):
            yield from self._closed(self._replacement, decision)
            return
        [unsaid], tail = added_up(rest), text[len(told) :]
        if isinstance(unsaid, str):
            yield tail
        else:
            changed = _changed(unsaid, decision)
            yield ended(changed.model_copy(update={"content": tail}))

    def _tell(self, chunk: Any) -> Any:
        self._told.append(said_by(chunk))
        return chunk


def _decided(
    passing: Sequence[Passing], results: Sequence[Decision | GuardError]
) -> tuple[Any, Decision]:
    [passage] = passing
    if isinstance(passage, ConversationError):
        raise passage
    [result] = results
    if isinstance(result, GuardError):
        raise result
    return passage.value, result


def _changed(value: Any, decision: Decision) -> Any:
    return decision.text or "" if isinstance(value, str) else decided_message(value, decision)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else words(value)
