"""A long text as windows that a model judges one by one, and their verdicts as one. Pure.

The last turn, which is what is judged, is cut at sentence boundaries into windows that overlap.
Nothing of it is left out: messages of one side are one turn, and names and tool calls belong to it.
Earlier turns are context, and each window is judged with the latest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from guardrails_qwen.conversation import Conversation, Message, Role, require_text
from guardrails_qwen.cutting import Measure, Ruler, alone, excerpt, runs, units_of
from guardrails_qwen.dialects.turns import turns
from guardrails_qwen.engines.base import Outcome, failed
from guardrails_qwen.errors import GuardError, RequestRejected, TextTooLong, unavailable
from guardrails_qwen.verdict import Category, Scores, Severity, Span, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """How a long text is cut. Lengths are in tokens of the model that judges."""

    tokens: int = 512
    """Most text in a window; a turn that is no longer than this is not cut."""
    overlap: int = 64
    """What two neighbours share, at least, in whole sentences, where these take no more than half a
    window and leave room for the next. More than half a window counts as half."""
    history: int = 1024
    """Most text of earlier turns that a turn is judged with, besides what it leaves of its own
    window. The windows of a turn that was cut get no more than `tokens` of it, so that it doubles
    the cost at most, and no less than a quarter of a window, which takes from their own text."""
    sentences: bool = True
    """Whether each sentence of a turn that was cut is judged alone as well, so that none can hide
    among harmless ones. Of earlier turns it has 64 tokens at most: there are many sentences."""
    limit: int = 32_768
    """Most text of one judged turn; beyond it the outcome is `TextTooLong`, and no model runs."""

    def __post_init__(self) -> None:
        least = {"tokens": _LEAST, "overlap": 0, "history": 0, "limit": 1}
        for name, most in least.items():
            value: object = getattr(self, name)
            if not isinstance(value, int) or value < most:
                raise ValueError(f"{name} is {value}: use a whole number of tokens from {most} on")

    def within(self, room: int) -> Windows:
        """The same, made so small that a window and its history have no more than `room` tokens.

        Raises:
            ValueError: There is no room for any window.
        """
        tokens = min(self.tokens, room)
        history = min(self.history, room - tokens)
        overlap = min(self.overlap, tokens // 2)
        return replace(self, tokens=tokens, history=history, overlap=overlap)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a conversation that is judged by itself."""

    conversation: Conversation
    span: Span | None = None
    """Where its text is in that of the last message; None where it holds nothing of it, or where
    the turn was not cut."""


def windows(conversation: Conversation, measure: Measure, settings: Windows) -> list[Window]:
    """The windows to judge for one conversation; at least one, and itself if it fits.

    All that is not white space in the judged turn is in a window. Time grows linearly with the
    text, and far beyond the limit nothing is even measured.

    Raises:
        TextTooLong: The judged turn has more tokens than the limit.
        ConversationError: There is an image, in the history too: what is cut is text.
    """
    require_text(conversation.messages)
    *earlier, last = [list(group) for _, group in groupby(conversation.messages, key=_side)]
    ruler, turn = Ruler(measure), _text(last)
    if len(turn) > settings.limit * _LONGEST_TOKEN:
        raise TextTooLong(len(turn) // _LONGEST_TOKEN, settings.limit)
    if ruler.fits(turn, min(settings.tokens, settings.limit)):
        kept = Conversation((*_context(earlier, ruler, _left(turn, ruler, settings)), *last))
        return [Window(conversation=conversation if kept == conversation else kept)]
    shared = min(max(settings.history, settings.tokens // 4), settings.tokens)
    context = _context(earlier, ruler, shared)
    room = settings.tokens + settings.history - shared
    if context and shared > settings.history:
        settings = settings.within(max(room, _LEAST))
    units = units_of(turn, ruler, longest=settings.tokens, limit=settings.limit)
    beside = _context(earlier, ruler, min(shared, _BESIDE))
    single = dict.fromkeys(alone(units) if settings.sentences else (), beside)
    overlapping = runs(units, most=settings.tokens, overlap=settings.overlap)
    contexts = single | dict.fromkeys(overlapping, context)
    cuts = {pair: Span(start=units[pair[0]].start, end=units[pair[1] - 1].end) for pair in contexts}
    filled = {pair: cut for pair, cut in cuts.items() if turn[cut.start : cut.end].strip()}
    _require_covered(turn, list(filled.values()))
    filled = filled or dict(list(cuts.items())[:1])
    return [
        _window(contexts[pair], conversation.last, turn, filled[pair])
        for pair in sorted(filled, key=lambda pair: (pair[0], -pair[1]))
    ]


def merged(found: Sequence[Window], outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome for a conversation from those of its windows.

    Of a single window it is that window's. Otherwise an error of any window is an error of the
    whole. The severity is the worst, categories and labels are those of all windows that are not
    safe, scores are upper bounds (the highest of all windows), tokens add up. A reply counts as
    refused where its beginning refuses, and every window that is not safe does. `spans` are the
    windows that are not safe, the worst first.
    """
    if len(found) != len(outcomes) or not found:
        raise ValueError(f"{len(outcomes)} outcomes for {len(found)} windows")
    if len(found) == 1:
        return outcomes[0]
    verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
    if len(verdicts) < len(outcomes):
        errors = [outcome for outcome in outcomes if isinstance(outcome, GuardError)]
        return _failure(errors, verdicts)
    harmful = [verdict for verdict in verdicts if verdict.severity]
    spoken = [verdicts[0], *harmful]
    return replace(
        verdicts[0],
        severity=max(verdict.severity for verdict in verdicts),
        categories=frozenset[Category]().union(*(verdict.categories for verdict in harmful)),
        refusal=_all([verdict.refusal for verdict in spoken]),
        scores=_scores(verdicts, spoken),
        spans=_spans(found, verdicts),
        labels=frozenset[str]().union(*(verdict.labels for verdict in harmful)),
        label_scores=_label_scores(verdicts),
        tokens=sum(verdict.tokens or 0 for verdict in verdicts),
    )


_LONGEST_TOKEN = 64
"""Characters of a token; rows of spaces and signs have tokens as long as that, and no text has."""
_LEAST = 16
"""Tokens of the smallest window; any one character is smaller."""
_BESIDE = 64
"""Tokens of earlier turns that a sentence is judged with."""
_TURN = 8
"""Tokens that a template spends on a turn, about; so empty turns use up a budget as well."""


def _side(message: Message) -> bool:
    return message.role is Role.ASSISTANT


def _text(group: Sequence[Message]) -> str:
    """A turn as the model reads it."""
    return turns(Conversation(tuple(group)))[-1][1]


def _require_covered(turn: str, cuts: Sequence[Span]) -> None:
    """Raise where a character is in no window, whatever the code above comes to be."""
    position = 0
    for cut in [*sorted(cuts, key=lambda cut: cut.start), Span(start=len(turn), end=len(turn))]:
        if turn[position : cut.start].strip():
            raise GuardError("a part of the text is in no window: it would go unjudged")
        position = max(position, cut.end)


def _window(context: Sequence[Message], last: Message, turn: str, cut: Span) -> Window:
    text = turn[cut.start : cut.end]
    start = cut.start + len(text) - len(text.lstrip())
    text = text.strip()
    offset = len(turn) - len(last.judged_text) + (len(last.name) + 2 if last.name else 0)
    begin, end = max(start, offset), min(start + len(text), offset + len(last.text))
    return Window(
        conversation=Conversation((*context, Message(role=last.role, text=text))),
        span=Span(start=begin - offset, end=end - offset) if begin < end else None,
    )


def _left(turn: str, ruler: Ruler, settings: Windows) -> int:
    """Tokens for earlier turns beside a turn that fits a window."""
    own = ruler.count(turn, settings.tokens)
    return settings.history + settings.tokens - min(settings.tokens, own)


def _context(earlier: Sequence[list[Message]], ruler: Ruler, budget: int) -> list[Message]:
    """The latest turns that have no more than `budget` tokens; if need be a part of the last."""
    kept = list[Message]()
    left = budget - _TURN
    for group in reversed(earlier):
        text = _text(group)
        tokens = ruler.count(text, left) if left > 0 else budget + 1
        if tokens > left:
            return kept or _abridged(group[-1].role, text, ruler, left)
        kept[:0] = group
        left -= tokens + _TURN
    return kept


def _abridged(role: Role, text: str, ruler: Ruler, budget: int) -> list[Message]:
    """The beginning and the end of a turn, cut at sentence boundaries where it can be."""
    if budget < 2:
        return []
    head = excerpt(text, ruler, budget // 2)
    tail = excerpt(text[len(head) :], ruler, budget // 2, tail=True)
    return [Message(role=role, text=f"{head.strip()} … {tail.strip()}")]


def _failure(errors: Sequence[GuardError], verdicts: Sequence[Verdict]) -> GuardError:
    """The error of the whole: none that a policy waves through if harm is known or likely.

    A policy may let a text pass whose engine was not available. But its author chose what is not
    readable, and its length, which may be what keeps an engine from the rest of it. A window that
    is not safe is a fact: no other engine should be asked about the text.
    """
    if any(verdict.severity for verdict in verdicts) and all(map(failed, errors)):
        failure = GuardError("a part of the text is not safe and another could not be judged")
    elif verdicts and all(map(unavailable, errors)):
        parts = len(verdicts) + len(errors)
        failure = RequestRejected(f"{len(verdicts)} of {parts} parts of the text could be judged")
    else:
        return next((error for error in errors if not unavailable(error)), errors[0])
    failure.__cause__ = errors[0]
    return failure


def _all(refusals: Sequence[bool | None]) -> bool | None:
    known = [refusal for refusal in refusals if refusal is not None]
    return all(known) if len(known) == len(refusals) else None


def _scores(verdicts: Sequence[Verdict], spoken: Sequence[Verdict]) -> Scores | None:
    """The highest probabilities of all windows, so that a threshold on them errs towards firing."""
    if all(verdict.scores is None for verdict in verdicts):
        return None
    worst = {level: max(v.probability(level) for v in verdicts) for level in Severity}
    unsafe = min(1.0, worst[Severity.UNSAFE])
    harmful = min(1.0, max(unsafe, worst[Severity.CONTROVERSIAL]))
    severity = {
        Severity.SAFE: 1 - harmful,
        Severity.CONTROVERSIAL: harmful - unsafe,
        Severity.UNSAFE: unsafe,
    }
    named = {
        category: max(v.probability(Severity.SAFE, category) for v in verdicts)
        for category in Category
    }
    refusals = [verdict.scores.refusal if verdict.scores else None for verdict in spoken]
    refused = [p for p in refusals if p is not None]
    return Scores(
        severity=severity,
        category=named if any(v.scores and v.scores.category for v in verdicts) else {},
        refusal=min(refused) if len(refused) == len(refusals) else None,
    )


def _label_scores(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The highest of all windows, for the same reason; a found one that has none there is sure."""
    told = dict[str, float]()
    if any(verdict.label_scores for verdict in verdicts):
        for verdict in verdicts:
            scores = dict.fromkeys(verdict.labels, 1.0) | dict(verdict.label_scores)
            for label, score in scores.items():
                told[label] = max(score, told.get(label, 0.0))
    return told


def _spans(found: Sequence[Window], verdicts: Sequence[Verdict]) -> tuple[Span, ...]:
    """Where the windows are that are not safe; the one that made the verdict is the first."""
    placed = [
        (verdict, window.span)
        for window, verdict in zip(found, verdicts, strict=True)
        if verdict.severity and window.span
    ]
    placed.sort(key=lambda item: (-item[0].severity, -item[0].probability(item[0].severity)))
    return tuple(replace(span, categories=verdict.categories) for verdict, span in placed)
