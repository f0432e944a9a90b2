"""A moderated reply as it is shown: as coloured text, or as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Protocol

from guardrails_qwen import Decision, Severity
from guardrails_qwen.cli.terminal import COLOURS, Output, write_json
from guardrails_qwen.engines.session import Judged, ReplyJudge
from guardrails_qwen.streaming import Block, Event, Redact, Release

Run = tuple[Severity | None, str]
"""Text that was judged alike; None where it was not judged."""


class RecordingJudge:
    """A judge that remembers how severe each character was found, for what is released of it.

    Events do not say it, because a moderator decides by more than severities. What is taken out of
    a reply the judge is made to forget: so what it remembers is what the reader has.
    """

    def __init__(self, judge: ReplyJudge) -> None:
        self._judge = judge
        self._severities = bytearray()
        self._released = 0

    def feed(self, text: str) -> Sequence[Judged]:
        """See `ReplyJudge`."""
        return self._noted(self._judge.feed(text))

    async def afeed(self, text: str) -> Sequence[Judged]:
        """See `ReplyJudge`."""
        return self._noted(await self._judge.afeed(text))

    def finish(self) -> Sequence[Judged]:
        """See `ReplyJudge`."""
        return self._noted(self._judge.finish())

    async def afinish(self) -> Sequence[Judged]:
        """See `ReplyJudge`."""
        return self._noted(await self._judge.afinish())

    def truncate(self, characters: int) -> None:
        """See `ReplyJudge`."""
        self._judge.truncate(characters)
        del self._severities[characters:]

    async def atruncate(self, characters: int) -> None:
        """See `ReplyJudge`."""
        await self._judge.atruncate(characters)
        del self._severities[characters:]

    def close(self) -> None:
        """See `ReplyJudge`."""
        self._judge.close()

    def runs(self, released: str) -> Iterator[Run]:
        """What is released next, as runs of one severity."""
        start, self._released = self._released, self._released + len(released)
        known = self._severities[start : self._released]
        severities = [*map(Severity, known), *[None] * (len(released) - len(known))]
        for severity, run in groupby(zip(severities, released, strict=True), lambda pair: pair[0]):
            yield severity, "".join(character for _, character in run)

    def _noted(self, found: Sequence[Judged]) -> Sequence[Judged]:
        kept = self._severities
        for judged in found:
            kept.extend(bytes(max(0, judged.end - len(kept))))
            for at in range(judged.start, judged.end):  # tokens may share a character
                kept[at] = max(kept[at], judged.severity)
        return found


class Display(Protocol):
    """Shows what became of a reply."""

    def show(self, events: Iterable[Event]) -> None:
        """What happened now."""
        ...

    def end(self, decision: Decision | None) -> None:
        """Nothing more comes; None where it ends before anything was decided."""
        ...


class ColouredText:
    """Released text in the colours of its risk, markers and closing text bold."""

    def __init__(self, output: Output, judge: RecordingJudge) -> None:
        self._output = output
        self._judge = judge

    def show(self, events: Iterable[Event]) -> None:
        """Nothing of what is held back."""
        for event in events:
            if isinstance(event, Release):
                for severity, text in self._judge.runs(event.text):
                    self._output.write(text, COLOURS[severity if text.strip() else Severity.SAFE])
            elif isinstance(event, Redact):
                self._output.write(event.marker, bold=True)
            elif isinstance(event, Block) and event.closing:
                self._output.write(event.closing, bold=True)

    def end(self, decision: Decision | None) -> None:
        """The line is complete; the decision is for standard error."""
        self._output.end_line()


class JsonLines:
    """One object an event, and the decision. The only text of the reply in it is released text."""

    def __init__(self, judge: RecordingJudge, *, demonstration: bool) -> None:
        self._judge = judge
        self._demonstration = demonstration

    def show(self, events: Iterable[Event]) -> None:
        """One line each."""
        for event in events:
            write_json(self._fields(event))

    def end(self, decision: Decision | None) -> None:
        """The decision on the reply."""
        if decision:
            decided = decision.to_dict(text=False)
            fields = {"decision": decided, "demonstration": self._demonstration}
            write_json({"event": "end", **fields})

    def _fields(self, event: Event) -> dict[str, object]:
        if isinstance(event, Release):
            place = {"start": event.start, "end": event.end, "text": event.text}
            return {"event": "release", **place, "risks": list(self._risks(event))}
        if isinstance(event, Redact):
            decision = event.decision.to_dict(text=False)
            place = {"start": event.start, "marker": event.marker}
            return {"event": "redact", **place, "decision": decision}
        if isinstance(event, Block):
            return {"event": "block", "closing": event.closing}
        return {"event": "hold", "characters": event.characters}

    def _risks(self, event: Release) -> Iterator[dict[str, object]]:
        """The parts that were not found safe."""
        end = event.start
        for severity, text in self._judge.runs(event.text):
            start, end = end, end + len(text)
            if severity is not Severity.SAFE and text.strip():
                label = severity.label if severity else None
                yield {"start": start, "end": end, "severity": label}
