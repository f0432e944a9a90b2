"""A reply on its way to the reader: what is out, what was taken out, what waits. Pure."""

from __future__ import annotations

import io
from dataclasses import dataclass

from guardrails_qwen.decision import Decision
from guardrails_qwen.redaction import filled
from guardrails_qwen.streaming.events import Event, Redact, Release
from guardrails_qwen.verdict import Category, Span


@dataclass(slots=True, kw_only=True)
class _Cut:
    start: int
    decision: Decision
    categories: frozenset[Category]
    end: int | None = None
    """None while the sentence that is taken out goes on."""
    told: bool = False
    """Whether the reader has the marker."""


_WORTH = 4_096
"""Characters that it takes to forget what has left."""


class Draft:
    """The text of a reply as it came, and how far the reader has it.

    What is settled is forgotten by and by, but for what the reader got.
    """

    def __init__(self, marker: str) -> None:
        self.length = 0
        """Characters that came."""
        self.settled = 0
        """Characters that were released or taken out, for good."""
        self._marker = marker
        self._text = io.StringIO(newline="")  # appends and slices in linear time
        self._forgotten = 0  # characters before it
        self._cuts: list[_Cut] = []
        self._told = io.StringIO(newline="")

    @property
    def told(self) -> str:
        """All that the reader has, markers included."""
        return self._told.getvalue()

    @property
    def redactions(self) -> tuple[Span, ...]:
        """What was taken out of what the reader has."""
        return tuple(
            Span(
                start=cut.start,
                end=self.length if cut.end is None else cut.end,
                categories=cut.categories,
            )
            for cut in self._cuts
            if cut.told
        )

    @property
    def waiting(self) -> int:
        """Characters that came and are neither out nor taken out."""
        taken = sum(
            (self.length if cut.end is None else cut.end) - max(cut.start, self.settled)
            for cut in self._cuts
            if cut.end is None or cut.end > self.settled
        )
        return self.length - self.settled - taken

    def append(self, text: str) -> None:
        """More of the reply came."""
        self._forget()
        self._text.seek(0, io.SEEK_END)
        self._text.write(text)
        self.length += len(text)

    def slice(self, start: int, end: int) -> str:
        """A part of the reply; nothing of it is settled."""
        self._text.seek(start - self._forgotten)
        return self._text.read(max(0, end - start))

    def release(self, limit: int, *, complete: bool = False) -> list[Event]:
        """All up to a character is for the reader, but for what was taken out.

        White space behind that waits for what comes next, unless the reply is `complete`.
        """
        events = list[Event]()
        for cut in self._cuts:
            if not cut.told and cut.start <= limit:
                events += self._passed(cut.start)
                events.append(self._mark(cut))
        return [*events, *self._passed(limit, complete=complete)]

    def say(self, text: str) -> None:
        """The reader gets this as well."""
        self._told.write(text)

    def take_out(self, start: int, decision: Decision) -> int:
        """All from a character on is taken out, until `resume`.

        Returns:
            From where on really: nothing that is settled, but what was taken out just before, if
            only white space is between.
        """
        start = max(start, self.settled)
        cut = _Cut(start=start, decision=decision, categories=_categories(decision))
        while self._cuts and self._touches(self._cuts[-1], start):
            last = self._cuts.pop()
            cut.start, cut.told = min(last.start, start), cut.told or last.told
            cut.decision, cut.categories = last.decision, last.categories | cut.categories
        self._cuts.append(cut)
        return max(cut.start, self.settled)

    def resume(self, at: int) -> None:
        """What was taken out ends here."""
        cut = self._cuts[-1]
        cut.end = at
        if cut.told:
            self.settled = at

    @property
    def _going_on(self) -> bool:
        return bool(self._cuts) and self._cuts[-1].told and self._cuts[-1].end is None

    def _touches(self, cut: _Cut, start: int) -> bool:
        """Whether nothing but white space is between two cuts, whose markers are then one."""
        end = self.length if cut.end is None else cut.end
        return end >= start or (end >= self.settled and not self.slice(end, start).strip())

    def _passed(self, limit: int, *, complete: bool = False) -> list[Event]:
        start = self.settled
        if limit <= start or self._going_on:
            return []
        text = self.slice(start, limit)
        if not complete and start in (cut.end for cut in self._cuts) and not text.strip():
            return []  # the next sentence may be taken out with it
        self.settled = limit
        self._told.write(text)
        return [Release(start=start, end=limit, text=text)]

    def _forget(self) -> None:
        """Rarely, so that it takes linear time in all."""
        gone = self.settled - self._forgotten
        if gone >= max(_WORTH, self.length - self.settled):
            rest = self.slice(self.settled, self.length)
            self._text = io.StringIO(newline="")
            self._text.write(rest)
            self._forgotten = self.settled

    def _mark(self, cut: _Cut) -> Redact:
        cut.told = True
        if cut.end is not None:
            self.settled = cut.end
        labels = [category.label for category in Category if category in cut.categories]
        marker = filled(self._marker, labels)
        self._told.write(marker)
        return Redact(start=cut.start, marker=marker, decision=cut.decision)


def _categories(decision: Decision) -> frozenset[Category]:
    return decision.verdict.categories if decision.verdict else frozenset()
