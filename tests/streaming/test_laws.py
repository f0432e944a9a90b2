"""What holds for every reply, however it is cut, judged and decided about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

import guardrails_qwen
from guardrails_qwen import (
    Action,
    Category,
    Decision,
    Policy,
    Rule,
    Severity,
    StagePolicy,
    Verdict,
)
from guardrails_qwen.engines.incremental import TextEncoder
from guardrails_qwen.engines.session import ReplyJudge
from guardrails_qwen.engines.session_limits import AtLimit
from guardrails_qwen.engines.stream_prompting import StreamPrompt
from guardrails_qwen.engines.stream_reply import Reply, Run
from guardrails_qwen.engines.tokenization import PromptEncoder
from guardrails_qwen.streaming import (
    Block,
    Debounce,
    Event,
    Hold,
    HoldBack,
    Redact,
    Release,
    RepeatedJudge,
    Streaming,
    StreamModerator,
)
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine
from guardrails_qwen.token_verdict import TokenVerdict
from tests.streaming.doors import StreamDoors, told
from tests.streaming.lettered import LetteredJudge

DOORS = StreamDoors(asynchronous=False)

words = st.sampled_from(
    [
        "good",
        "x",
        "y",
        "xx",
        "zz",
        "yyy",
        "axa",
        "q",
        "w",
        "ww",
        "Dr.",
        "1.",
        "é",
        "👍🏽",
        "สวัสดี",
        "!",
        "x\u0301\u0323",
        "\u0323q\u0301",
        "\u1112\u1161\u11ab",
        "\u11ab가",
    ]
)
gaps = st.sampled_from([" ", " ", " ", "", ". ", ".", "! ", ".\n", "\n\n", "。", "?” ", "  "])
texts = st.lists(st.tuples(words, gaps), max_size=30).map(
    lambda parts: "".join(word + gap for word, gap in parts)
)
actions = st.sampled_from([a for a in Action if a is not Action.ALLOW])
rules = st.builds(
    Rule,
    action=actions | st.just(Action.REDACT),
    severity=st.sampled_from([Severity.CONTROVERSIAL, Severity.UNSAFE]),
    category=st.none() | st.sampled_from([Category.VIOLENT, Category.PII]),
    probability=st.none() | st.just(0.6),
) | st.builds(Rule, action=actions, severity=st.just(Severity.SAFE), category=st.just(Category.PII))
policies = st.one_of(
    actions.map(lambda action: Policy.strict(action=action)),
    actions.map(lambda action: Policy.loose(action=action)),
    st.lists(rules, max_size=4).map(
        lambda some: Policy(name="any", default=StagePolicy(rules=tuple(some)))
    ),
)
settings = st.builds(
    Streaming,
    hold_back=st.sampled_from(HoldBack),
    tokens=st.integers(0, 4),
    debounce=st.sampled_from(Debounce),
    closing=st.none() | st.just("[stopped]"),
    stride=st.integers(1, 40),
    growth=st.sampled_from([1.01, 1.5, 3]),
)


@st.composite
def cuts(draw: st.DrawFn, text: str) -> list[str]:
    """A text in chunks, empty ones among them."""
    at = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


def by_letters(conversation: object) -> Verdict:
    """Whole texts, judged by their end: what is wrong with the last few characters."""
    tokens = LetteredJudge().whole(getattr(conversation, "last").text)  # noqa: B009
    return max(tokens[-8:], key=lambda token: token.severity).verdict


def lettered(_: Streaming) -> LetteredJudge:
    return LetteredJudge()


def at_once(_: Streaming) -> LetteredJudge:
    """Judges all that is there."""
    return LetteredJudge(ahead=0)


def late(_: Streaming) -> LetteredJudge:
    """Judges next to nothing before the end."""
    return LetteredJudge(ahead=50)


def repeated(streaming: Streaming) -> RepeatedJudge:
    return RepeatedJudge(ScriptedEngine(by_letters), None, streaming)


Outcome = tuple[list[Event], Decision]


def moderated(
    policy: Policy, streaming: Streaming, judge: ReplyJudge, chunks: Sequence[str]
) -> Outcome:
    per_token = not isinstance(judge, RepeatedJudge)
    moderator = StreamModerator(policy, streaming, per_token=per_token)
    events = DOORS.moderate(moderator, judge, chunks)
    assert moderator.decision is not None
    return events, moderator.decision


@cache
def bundled() -> TextEncoder:
    file = Path(guardrails_qwen.__file__).parent / "checkpoints" / "tiny-stream" / "tokenizer.json"
    return TextEncoder(PromptEncoder(file.read_text("utf-8")).plain)


class Tokenized:
    """Judges the tokens of a real tokenizer by the letters that they end with."""

    def __init__(self) -> None:
        prompt = StreamPrompt(prompt=(1, 2), opening=(3,), head="\n\n")
        self.reply = Reply(bundled(), prompt, 100_000, AtLimit.REANCHOR)
        self.text = ""

    def feed(self, text: str) -> list[TokenVerdict]:
        self.text += text
        return self._judged(self.reply.feed(text))

    async def afeed(self, text: str) -> list[TokenVerdict]:
        return self.feed(text)

    def finish(self) -> list[TokenVerdict]:
        return self._judged(self.reply.finish())

    async def afinish(self) -> list[TokenVerdict]:
        return self.finish()

    def truncate(self, characters: int) -> None:
        self.text = self.text[:characters]
        self.reply.truncate(characters)

    async def atruncate(self, characters: int) -> None:
        self.truncate(characters)

    def close(self) -> None:
        pass

    def _judged(self, runs: Sequence[Run]) -> list[TokenVerdict]:
        return [
            replace(
                max(LetteredJudge(0).whole(self.text[: token.end])[-2:], key=_severity),
                start=token.start,
                end=token.end,
            )
            for run in runs
            for token in run.scored
        ]


def _severity(token: TokenVerdict) -> Severity:
    return token.severity


def tokenized(_: Streaming) -> Tokenized:
    return Tokenized()


judges = st.sampled_from([lettered, at_once, late, tokenized, repeated])
Made = Callable[[Streaming], ReplyJudge]


@given(st.data(), texts, policies, settings, judges)
def test_every_chunking_gives_the_same_text_and_the_same_decision(
    data: st.DataObject, text: str, policy: Policy, streaming: Streaming, made: Made
) -> None:
    chunks = data.draw(cuts(text))
    whole, decision = moderated(policy, streaming, made(streaming), [text])
    for pieces in (chunks, list(text)):
        events, other = moderated(policy, streaming, made(streaming), pieces)
        assert told(events) == told(whole)
        assert other == decision


@given(st.data(), texts, policies, settings, judges)
def test_what_is_released_is_the_reply_but_for_what_was_taken_out(
    data: st.DataObject, text: str, policy: Policy, streaming: Streaming, made: Made
) -> None:
    events, decision = moderated(policy, streaming, made(streaming), data.draw(cuts(text)))
    at = 0
    for event in events:
        if isinstance(event, Release):
            taken = [span for span in decision.redactions if at <= span.start < event.start]
            assert event.start == (taken[-1].end if taken else at)
            assert event.text == text[event.start : event.end] != ""
            at = event.end
        if isinstance(event, Redact):
            assert event.start == at
    if not decision.redactions:
        assert text.startswith(told(events))
    released = sum(event.end - event.start for event in events if isinstance(event, Release))
    taken_out = sum(span.end - span.start for span in decision.redactions)
    ended = any(isinstance(event, Block) for event in events)
    assert ended or released + taken_out == len(text)
    if decision.action <= Action.FLAG:
        assert decision.text == told(events) == text
    elif decision.action is Action.REDACT:
        assert decision.text == told(events)


@given(st.data(), texts, settings, judges)
def test_markers_that_only_white_space_parts_are_one(
    data: st.DataObject, text: str, streaming: Streaming, made: Made
) -> None:
    policy = Policy.loose(action=Action.REDACT)
    events, _ = moderated(policy, streaming, made(streaming), data.draw(cuts(text)))
    marks = "".join(
        "#" if isinstance(event, Redact) else event.text.strip()
        for event in events
        if isinstance(event, (Redact, Release))
    )
    assert "##" not in marks


@given(st.data(), texts, policies, settings, judges)
def test_nothing_comes_after_a_block(
    data: st.DataObject, text: str, policy: Policy, streaming: Streaming, made: Made
) -> None:
    judge = made(streaming)
    moderator = StreamModerator(policy, streaming, per_token=not isinstance(judge, RepeatedJudge))
    events = DOORS.moderate(moderator, judge, data.draw(cuts(text)))
    blocks = [event for event in events if isinstance(event, Block)]
    assert blocks in ([], events[-1:])
    stopped = moderator.decision is not None and moderator.decision.action > Action.REDACT
    assert bool(blocks) is stopped


@given(st.data(), texts, policies, settings)
def test_what_is_released_was_judged_in_the_context_that_the_reader_has(
    data: st.DataObject, text: str, policy: Policy, streaming: Streaming
) -> None:
    judge = LetteredJudge()
    moderator = StreamModerator(policy, streaming, per_token=True)
    readable = ""
    for chunk in data.draw(cuts(text)):
        events = DOORS.run(moderator.feed(chunk), judge)
        readable += "".join(event.text for event in events if isinstance(event, Release))
        assert judge.text.startswith(readable)
        assert len(readable) <= judge.clear
    events = DOORS.run(moderator.finish(), judge)
    readable += "".join(event.text for event in events if isinstance(event, Release))
    assert judge.text.startswith(readable)


@given(st.data(), texts, settings)
def test_what_waits_and_what_left_is_all_that_came(
    data: st.DataObject, text: str, streaming: Streaming
) -> None:
    moderator = StreamModerator(Policy.loose(), streaming, per_token=True)
    judge, came, out = LetteredJudge(), 0, 0
    for chunk in data.draw(cuts(text)):
        events = DOORS.run(moderator.feed(chunk), judge)
        came += len(chunk)
        out += sum(event.end - event.start for event in events if isinstance(event, Release))
        for event in events:
            if isinstance(event, Hold):
                assert events == [event]
                assert event.characters == came - out > 0
        assert moderator.over or events or came == out


@given(texts, settings, st.sampled_from([Policy.strict, Policy.loose]))
def test_what_is_left_of_a_redacted_reply_passes_by_itself(
    text: str, streaming: Streaming, preset: Callable[..., Policy]
) -> None:
    policy = preset(action=Action.REDACT)

    def at(reply: str) -> Verdict:
        word = "" if reply[-1].isspace() else reply.rsplit(maxsplit=1)[-1]
        bad = {"x": Severity.UNSAFE, "y": Severity.CONTROVERSIAL, "z": Severity.UNSAFE}
        return Verdict(severity=max([Severity.SAFE, *(bad.get(c, Severity.SAFE) for c in word)]))

    if not text.strip():
        return
    engine = ScriptedStreamEngine(tokens=at)
    events, _ = moderated(policy, streaming, engine.open(None), [text])
    left = "".join(event.text for event in events if isinstance(event, Release))
    if left.strip():
        _, decision = moderated(policy, streaming, engine.open(None), [left])
        assert decision.action <= Action.FLAG
