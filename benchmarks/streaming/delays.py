"""How many tokens arrive from the start of a harmful sentence until each contender objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.streaming.contenders import EVERY, Published
from benchmarks.streaming.leaks import Outcome, Stream, Tokens
from guardrails_qwen import Conversation, Severity, Verdict
from guardrails_qwen.engines.base import Engine

SAFE = Severity.SAFE.label


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """Of one contender, over many streams."""

    tokens: Sequence[int]
    """Of the streams to which it objected in time, sorted: 1 is the sentence's first token."""
    early: int
    """Streams to which it objected before their harmful sentence had begun."""
    missed: int

    @classmethod
    def of(cls, found: Iterable[int | None]) -> Delay:
        """From the tokens of each stream; 0 or less is too early, None never."""
        all_ = list(found)
        known = sorted(one for one in all_ if one is not None)
        late = [one for one in known if one > 0]
        return cls(tokens=late, early=len(known) - len(late), missed=len(all_) - len(known))


def ours(outcomes: Sequence[Outcome], tokens: Tokens) -> Delay:
    """Until a guard has blocked, with all that it holds back to be sure."""
    return Delay.of(
        0 if one.early else one.delay(tokens) if one.blocked else None for one in outcomes
    )


def published(contender: Published, streams: Sequence[Stream], tokens: Tokens) -> Delay:
    """Until two tokens in a row are not safe, as the tech report says (arXiv 2510.14276)."""

    def found(stream: Stream) -> int | None:
        bad = [label != SAFE for label in contender.worst(stream.reply, stream.prompt)]
        at = next((i for i in range(1, len(bad)) if bad[i - 1] and bad[i]), None)
        return None if at is None else at + 1 - _before(stream, tokens)

    return Delay.of(found(stream) for stream in streams)


def rerun(engine: Engine, streams: Sequence[Stream], tokens: Tokens) -> Delay:
    """Until the reply so far is not safe, asked every 32 tokens and at its end."""
    return Delay.of(_rerun(engine, stream, tokens) for stream in streams)


def _rerun(engine: Engine, stream: Stream, tokens: Tokens) -> int | None:
    spans = tokens(stream.reply)
    counts = list(_counts(len(spans)))
    asked = [
        Conversation.exchange(stream.prompt, stream.reply[: spans[count - 1][1]])
        for count in counts
    ]
    for count, outcome in zip(counts, engine.judge(asked), strict=True):
        if isinstance(outcome, Verdict) and outcome.severity > Severity.SAFE:
            return count - _before(stream, tokens)
    return None


def _counts(tokens: int) -> Iterator[int]:
    yield from range(EVERY, tokens, EVERY)
    yield tokens


def _before(stream: Stream, tokens: Tokens) -> int:
    """Tokens that end in front of the harmful sentence, or where it begins."""
    return sum(end <= stream.start for _, end in tokens(stream.reply))
