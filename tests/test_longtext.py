"""A long text as windows, and their verdicts as one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen import (
    Category,
    Conversation,
    ConversationError,
    EngineError,
    GuardError,
    Message,
    OnError,
    Outcome,
    Policy,
    RequestRejected,
    Role,
    Scores,
    Severity,
    Span,
    Stage,
    TextTooLong,
    ToolCall,
    UnreadableVerdict,
    Verdict,
)
from guardrails_qwen.cutting import Measure
from guardrails_qwen.dialects.turns import turns
from guardrails_qwen.longtext import Window, Windows, merged, windows

SMALL = Windows(tokens=20, overlap=5, history=40, sentences=False)


def characters(texts: Sequence[str]) -> list[int]:
    """A tokenizer with one token a character."""
    return [len(text) for text in texts]


def cut(value: Any, settings: Windows = SMALL) -> list[Window]:
    return windows(Conversation.of(value), characters, settings)


def said(found: Sequence[Window]) -> list[str]:
    return [window.conversation.last.text for window in found]


# What is cut, and where.

CUTS = [
    pytest.param("One. Two.", ["One. Two."], id="it fits"),
    pytest.param("", [""], id="nothing"),
    pytest.param(" " * 50, [""], id="white space only"),
    pytest.param(
        "One one. Two two. Three three. Four.",
        ["One one. Two two.", "Three three. Four."],
        id="sentences",
    ),
    pytest.param(
        "你好你好你好你。再见再见再见再。你好你好你好你。",
        ["你好你好你好你。再见再见再见再。", "再见再见再见再。你好你好你好你。"],
        id="Chinese",
    ),
    pytest.param(
        "今日は良い天気。そうですね行きましょう！はい。",
        ["今日は良い天気。そうですね行きましょう！", "はい。"],
        id="Japanese",
    ),
]


@pytest.mark.parametrize(("text", "expected"), CUTS)
def test_windows_are_cut_at_sentence_boundaries(text: str, expected: list[str]) -> None:
    found = windows(
        Conversation.of(text), characters, Windows(tokens=20, overlap=8, sentences=False)
    )
    assert said(found) == expected


PIECES = [
    pytest.param("one two, three four, five six, seven eight", ", ", id="at clauses"),
    pytest.param("one two three four five six seven eight", " ", id="at white space"),
    pytest.param("สวัสดีครับ วันนี้อากาศดี ผมไปตลาด กับเพื่อน แล้วซื้อผลไม้ มาหลาย", " ", id="Thai"),
]


@pytest.mark.parametrize(("text", "separator"), PIECES)
def test_a_sentence_longer_than_a_window_is_cut_where_it_hurts_least(
    text: str, separator: str
) -> None:
    wholes = {part.strip(",") for part in text.split(separator)}
    settings = Windows(tokens=120, overlap=0, sentences=False)
    long = (text + separator) * 5
    for window in windows(Conversation.of(long), characters, settings):
        parts = window.conversation.last.text.strip(",").split(separator)
        assert {part.strip(",") for part in parts} <= wholes


@pytest.mark.parametrize(
    ("unit", "count"),
    [("x", 100_000), ("QUJD", 30_000), ("\u0301", 5_000), ("\u200d", 5_000)],
    ids=repr,
)
def test_what_has_no_white_space_is_cut_anywhere_with_overlap(unit: str, count: int) -> None:
    text = unit * count
    settings = Windows(tokens=256, overlap=64, sentences=False, limit=200_000)
    spans = [window.span for window in cut(text, settings)]
    assert spans[0] is not None
    assert spans[0].start == 0
    for before, after in pairwise(spans):
        assert before is not None
        assert after is not None
        assert before.end - 128 <= after.start <= before.end - 64
    assert spans[-1] is not None
    assert spans[-1].end == len(text)


def test_neighbours_share_whole_sentences() -> None:
    text = " ".join(f"No {i:02}." for i in range(40))
    found = said(cut(text, Windows(tokens=40, overlap=10, sentences=False)))
    for before, after in pairwise(found):
        shared = after[: after.index(before[-6:]) + 6]
        assert before.endswith(shared)
        assert len(shared) >= 10


def test_each_sentence_is_judged_alone_too_if_wanted() -> None:
    sentences = [f"This is sentence number {i}." for i in range(30)]
    found = said(cut(" ".join(sentences), Windows(tokens=60, overlap=5, sentences=True)))
    assert set(sentences) < set(found)
    assert len(found) == len(set(found))


# Nothing is lost.

odd = st.text(st.sampled_from("ab .!?,。！？，中ก\u0e49 \n\t\u200b\x85\u0301🙂({"), max_size=150)
calls = st.lists(st.builds(ToolCall, name=odd, arguments=odd), max_size=2).map(tuple)
messages = st.builds(
    Message, role=st.sampled_from(Role), text=odd, name=odd | st.none(), tool_calls=calls
)
conversations = st.lists(messages, min_size=1, max_size=5).map(tuple).map(Conversation)
sizes = st.builds(
    Windows,
    tokens=st.integers(16, 60),
    overlap=st.integers(0, 8),
    history=st.integers(0, 80),
    sentences=st.booleans(),
)


def bytes_of(texts: Sequence[str]) -> list[int]:
    """A tokenizer with one token a byte."""
    return [len(text.encode()) for text in texts]


def bare(text: str) -> str:
    return "".join(text.split())


@given(conversations, sizes, st.sampled_from([characters, bytes_of]))
def test_every_window_is_a_part_of_the_judged_turn_and_all_of_it_is_in_one(
    conversation: Conversation, settings: Windows, measure: Measure
) -> None:
    turn = turns(conversation)[-1][1]
    covered = [character.isspace() for character in turn]
    for window in windows(conversation, measure, settings):
        judged = turns(window.conversation)[-1][1]
        assert window.conversation.last.role is conversation.last.role
        assert judged in turn
        for place in re.finditer(f"(?={re.escape(judged)})", turn):  # at each place that it fits
            covered[place.start() : place.start() + len(judged)] = [True] * len(judged)
    assert all(covered)


@given(conversations, st.integers(16, 60), st.integers(0, 80))
def test_without_overlap_the_windows_are_the_turn_once(
    conversation: Conversation, tokens: int, history: int
) -> None:
    settings = Windows(tokens=tokens, overlap=0, history=history, sentences=False)
    found = windows(conversation, characters, settings)
    judged = [turns(window.conversation)[-1][1] for window in found]
    assert bare("".join(judged)) == bare(turns(conversation)[-1][1])


@given(conversations, sizes)
def test_spans_are_those_of_the_last_text(conversation: Conversation, settings: Windows) -> None:
    found = windows(conversation, characters, settings)
    text = conversation.last.text
    if len(found) > 1:
        spans = [(window.span, window.conversation.last.text) for window in found]
        assert all(text[s.start : s.end].strip() in judged for s, judged in spans if s)
        held = {i for s, _ in spans if s for i in range(s.start, s.end)}
        assert all(i in held for i, character in enumerate(text) if not character.isspace())


@given(conversations, sizes, st.sampled_from([characters, bytes_of]))
def test_cost_is_bounded(conversation: Conversation, settings: Windows, measure: Measure) -> None:
    found = windows(conversation, measure, settings)
    [length] = measure([turns(conversation)[-1][1]])
    if len(found) > 1 and not settings.sentences:
        sizes = measure(said(found))
        assert all(size <= settings.tokens for size in sizes)
        assert sum(sizes) <= 4 * length + settings.tokens
    most = settings.tokens + settings.history
    for window in found:
        assert sum(measure([text for _, text in turns(window.conversation)])) <= most


NAMED = Message(
    role=Role.ASSISTANT,
    name="the name of whoever says it",
    text="One sentence. Another sentence.",
    tool_calls=(ToolCall(name="a_tool_with_a_long_name", arguments='{"key": "value \\u0041"}'),),
)


def test_names_and_tool_calls_are_judged_without_a_span() -> None:
    found = cut(["hi", NAMED], Windows(tokens=16, overlap=0, sentences=False))
    text = "".join(said(found))
    assert bare(NAMED.judged_text) == bare(text)
    assert found[0].span is None  # the name
    assert found[-1].span is None  # the call
    spans = [window.span for window in found if window.span]
    assert bare("".join(NAMED.text[s.start : s.end] for s in spans)) == bare(NAMED.text)


def test_earlier_messages_of_the_same_side_are_judged() -> None:
    found = cut([("system", "Obey me. " * 10), ("tool", "A bomb. " * 10), ("user", "Hello.")])
    assert any("Obey" in text for text in said(found))
    assert any("bomb" in text for text in said(found))
    assert found[-1].span == Span(start=0, end=6)


# Earlier turns.

SHORT = ("user", "Hi there.")
HISTORY = [
    pytest.param([SHORT, ("assistant", "Yes?"), SHORT], 40, 3, id="all of it fits"),
    pytest.param([("user", "x" * 99), ("assistant", "Yes?"), SHORT], 40, 2, id="the latest"),
    pytest.param([SHORT, ("assistant", "Yes?"), ("user", "x" * 20)], 0, 1, id="no room"),
]


@pytest.mark.parametrize(("value", "history", "count"), HISTORY)
def test_whole_turns_are_kept_from_the_latest_on(value: Any, history: int, count: int) -> None:
    conversation = Conversation.of(value)
    settings = Windows(tokens=20, overlap=5, history=history)
    [window] = windows(conversation, characters, settings)
    assert window.conversation.messages == conversation.messages[-count:]
    assert window.span is None


def test_a_conversation_that_fits_is_returned_as_it_is() -> None:
    conversation = Conversation.exchange("Hi.", "Hello.")
    [window] = windows(conversation, characters, SMALL)
    assert window.conversation is conversation


def test_a_long_prompt_before_a_reply_keeps_its_beginning_and_its_end() -> None:
    prompt = f"It begins. {'And goes on. ' * 100}It ends."
    [window] = windows(Conversation.exchange(prompt, "No."), characters, SMALL)
    asked, reply = window.conversation.messages
    assert asked.text == "It begins. And goes on. … And goes on. It ends."
    assert reply.text == "No."


def test_each_window_of_a_reply_has_the_prompt() -> None:
    found = windows(Conversation.exchange("Why? Tell.", "Because. " * 20), characters, SMALL)
    assert len(found) > 1
    assert {window.conversation.messages[0].text for window in found} == {"Why? Tell."}


def test_an_image_in_a_history_that_is_not_kept_is_refused_too() -> None:
    shown = Message(role=Role.USER, images=("https://example.com/cat.png",))
    with pytest.raises(ConversationError, match="image"):
        windows(Conversation((shown, *[Message.of("x" * 99)] * 99)), characters, SMALL)


def test_a_history_without_end_is_not_measured() -> None:
    measured = list[str]()

    def measure(texts: Sequence[str]) -> list[int]:
        measured.extend(texts)
        return characters(texts)

    history = [("user", "x" * 100_000), ("assistant", "")] * 100
    windows(Conversation.of([*history, ("user", "Hello.")]), measure, SMALL)
    assert sum(map(len, measured)) < 10_000


# The limit.


@pytest.mark.parametrize("unit", ["x", "Hi. ", "a\n", " ", "\n", "你好。", "."], ids=repr)
def test_a_text_beyond_the_limit_is_an_error_and_not_even_measured(unit: str) -> None:
    measured = 0

    def measure(texts: Sequence[str]) -> list[int]:
        nonlocal measured
        measured += sum(map(len, texts))
        return characters(texts)

    with pytest.raises(TextTooLong) as caught:
        windows(Conversation.of(unit * 5_000_000), measure, Windows(limit=10_000))
    assert caught.value.limit == 10_000
    assert caught.value.tokens > 10_000
    assert measured < 1_100_000


def test_a_text_at_the_limit_is_judged() -> None:
    text = "x" * 10_000
    assert cut(text, Windows(limit=10_000))
    with pytest.raises(TextTooLong):
        cut(f"{text}x", Windows(limit=10_000))


SETTINGS = [
    pytest.param({"tokens": 15}, "tokens is 15", id="no room"),
    pytest.param({"tokens": 100.5}, "tokens is 100.5", id="a part of a token"),
    pytest.param({"overlap": -1}, "overlap is -1", id="negative overlap"),
    pytest.param({"history": -1}, "history is -1", id="negative history"),
    pytest.param({"limit": 0}, "limit is 0", id="nothing at all"),
]


@pytest.mark.parametrize(("values", "message"), SETTINGS)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Windows(**values)


def test_a_smaller_window_needs_no_other_setting() -> None:
    assert len(cut("Well. " * 100, Windows(tokens=20))) > 1
    with pytest.raises(TextTooLong):
        cut("Well. " * 100, Windows(limit=100))


def test_a_sentence_alone_has_little_of_a_long_prompt() -> None:
    asked = Conversation.exchange("Why? " * 200, "Because it is so. " * 100)
    found = windows(asked, characters, Windows(tokens=300, history=1000))
    prompts = [len(window.conversation.messages[0].text) for window in found]
    said = [len(window.conversation.last.text) for window in found]
    assert max(prompts) > 200
    assert all(prompt <= 64 for prompt, text in zip(prompts, said, strict=True) if text < 30)


def test_settings_fit_a_small_context() -> None:
    assert Windows(tokens=512, overlap=128, history=1024).within(700) == Windows(
        tokens=512, overlap=128, history=188
    )
    assert Windows(tokens=512, overlap=128).within(100) == Windows(
        tokens=100, overlap=50, history=0
    )
    with pytest.raises(ValueError, match="tokens is 10"):
        Windows().within(10)


# One verdict from many.


def scored(
    controversial: float, unsafe: float, refusal: float | None = None, **named: float
) -> Scores:
    return Scores(
        severity={
            Severity.SAFE: 1 - controversial - unsafe,
            Severity.CONTROVERSIAL: controversial,
            Severity.UNSAFE: unsafe,
        },
        category={Category[name]: p for name, p in named.items()},
        refusal=refusal,
    )


SAFE = Verdict(
    severity=Severity.SAFE, scores=scored(0.1, 0.1, PII=0.1, VIOLENT=0.3), model="m", tokens=10
)
ODD = Verdict(
    severity=Severity.CONTROVERSIAL,
    categories=frozenset({Category.PII}),
    scores=scored(0.7, 0.1, PII=0.6),
    model="m",
    tokens=5,
)
HARM = Verdict(
    severity=Severity.UNSAFE,
    categories=frozenset({Category.VIOLENT}),
    scores=scored(0.0, 0.6, VIOLENT=0.5),
    model="m",
    tokens=7,
)


def whole(*outcomes: Outcome) -> Outcome:
    """The outcome of windows of ten characters each."""
    conversation = Conversation.of("a part")
    spans = [Span(start=10 * i, end=10 * i + 10) for i in range(len(outcomes))]
    return merged([Window(conversation=conversation, span=span) for span in spans], outcomes)


def verdict(*outcomes: Outcome) -> Verdict:
    outcome = whole(*outcomes)
    assert isinstance(outcome, Verdict)
    return outcome


def test_the_verdict_is_the_worst_windows_with_the_spans_that_caused_it() -> None:
    found = verdict(SAFE, ODD, HARM)
    assert found.severity is Severity.UNSAFE
    assert found.categories == {Category.PII, Category.VIOLENT}
    assert found.spans == (
        Span(start=20, end=30, categories=HARM.categories),
        Span(start=10, end=20, categories=ODD.categories),
    )
    assert found.tokens == 22
    assert found.model == "m"


def test_the_likelier_of_two_equally_bad_windows_comes_first() -> None:
    likelier = Verdict(severity=Severity.UNSAFE, scores=scored(0.0, 0.9))
    assert [span.start for span in verdict(HARM, likelier).spans] == [10, 0]


def test_scores_are_upper_bounds() -> None:
    scores = verdict(SAFE, ODD, HARM).scores
    assert scores is not None
    assert scores.at_least(Severity.CONTROVERSIAL) == pytest.approx(0.8)
    assert scores.at_least(Severity.UNSAFE) == pytest.approx(0.6)
    assert scores.category[Category.PII] == 0.6
    assert scores.category[Category.VIOLENT] == 0.5


def test_labels_are_those_of_all_that_is_not_safe_and_their_scores_the_highest() -> None:
    mild = Verdict(severity=Severity.SAFE, label_scores={"a": 0.3, "b": 0.1})
    harm = Verdict(
        severity=Severity.UNSAFE, labels=frozenset({"b"}), label_scores={"a": 0.2, "b": 0.9}
    )
    sure = Verdict(severity=Severity.UNSAFE, labels=frozenset({"c"}))
    found = verdict(mild, harm, sure)
    assert found.labels == {"b", "c"}
    assert found.label_scores == {"a": 0.3, "b": 0.9, "c": 1.0}
    assert verdict(sure, sure).label_scores == {}


def test_a_verdict_without_scores_counts_as_certain() -> None:
    bare = Verdict(severity=Severity.UNSAFE, categories=frozenset({Category.VIOLENT}))
    scores = verdict(SAFE, bare).scores
    assert scores is not None
    assert scores.at_least(Severity.UNSAFE) == 1
    assert scores.category[Category.VIOLENT] == 1
    assert verdict(bare, bare).scores is None


def test_all_safe_is_safe() -> None:
    found = verdict(SAFE, SAFE)
    assert found.severity is Severity.SAFE
    assert found.categories == frozenset()
    assert found.spans == ()


def test_harm_outside_the_last_text_has_no_span() -> None:
    conversation = Conversation.of("a part")
    places = [Window(conversation=conversation), Window(conversation=conversation)]
    outcome = merged(places, [HARM, SAFE])
    assert isinstance(outcome, Verdict)
    assert outcome.severity is Severity.UNSAFE
    assert outcome.spans == ()


def test_a_single_window_passes_through() -> None:
    assert whole(HARM) is HARM
    error = EngineError("gone")
    assert whole(error) is error


def replied(severity: Severity, *, refused: bool | None) -> Verdict:
    p = None if refused is None else 0.9 if refused else 0.2
    return Verdict(severity=severity, refusal=refused, scores=scored(0.1, 0.1, refusal=p))


REFUSALS = [
    pytest.param([(0, True), (0, False)], True, id="it begins with a refusal"),
    pytest.param([(0, False), (0, True)], False, id="it ends with one"),
    pytest.param([(0, True), (2, False)], False, id="then it complies harmfully"),
    pytest.param([(2, True), (2, True)], True, id="it refuses what is harmful"),
    pytest.param([(0, None), (2, None)], None, id="a prompt"),
]


@pytest.mark.parametrize(("parts", "refused"), REFUSALS)
def test_refusal(parts: list[tuple[int, bool | None]], refused: bool | None) -> None:
    found = verdict(*(replied(Severity(level), refused=said) for level, said in parts))
    assert found.refusal is refused
    assert found.scores is not None
    assert found.scores.refusal == {True: 0.9, False: 0.2, None: None}[refused]


GONE, ODDITY, LONG = EngineError("gone"), UnreadableVerdict("x"), TextTooLong(9, 8)
FAILURES = [
    pytest.param([GONE, GONE], GONE, id="all failed"),
    pytest.param([GONE, ODDITY], ODDITY, id="one is unreadable"),
    pytest.param([GONE, LONG, SAFE], LONG, id="one is too long"),
    pytest.param([LONG, HARM], LONG, id="too long beside harm"),
]


@pytest.mark.parametrize(("outcomes", "error"), FAILURES)
def test_a_window_that_failed_fails_the_whole(outcomes: list[Outcome], error: GuardError) -> None:
    assert whole(*outcomes) is error


@pytest.mark.parametrize("failed", [GONE, ODDITY], ids=["gone", "unreadable"])
@pytest.mark.parametrize("known", [HARM, ODD], ids=["unsafe", "controversial"])
def test_a_failure_beside_known_harm_is_never_waved_through(
    known: Verdict, failed: GuardError
) -> None:
    """Neither by a policy nor by a fallback, which asks the next engine about an `EngineError`."""
    error = whole(SAFE, failed, known)
    assert isinstance(error, GuardError)
    assert not isinstance(error, EngineError)
    assert error.__cause__ is failed
    policy = Policy.strict(on_error=OnError.ALLOW)
    assert not policy.decide_unjudged(Stage.INPUT, error).allowed
    outage = whole(GONE, GONE)
    assert isinstance(outage, GuardError)
    assert policy.decide_unjudged(Stage.INPUT, outage).allowed


def test_a_text_that_outlasts_an_engine_is_never_waved_through() -> None:
    """Its length may be why a part of it was not judged. Another engine may do better."""
    error = whole(SAFE, SAFE, GONE)
    assert isinstance(error, RequestRejected)
    assert error.__cause__ is GONE
    assert "2 of 3 parts" in str(error)
    policy = Policy.strict(on_error=OnError.ALLOW)
    assert not policy.decide_unjudged(Stage.INPUT, error).allowed


@pytest.mark.parametrize("outcomes", [[], [SAFE, SAFE]], ids=["none", "too many"])
def test_outcomes_have_to_fit_the_windows(outcomes: list[Outcome]) -> None:
    with pytest.raises(ValueError, match="outcomes for 1 windows"):
        merged([Window(conversation=Conversation.of("x"))], outcomes)


levels = st.sampled_from(Severity)


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    level, unsafe = draw(levels), draw(st.floats(0, 1))
    controversial = draw(st.floats(0, 1)) * (1 - unsafe)
    chosen = draw(st.frozensets(st.sampled_from(Category), max_size=2))
    named = chosen if level else frozenset[Category]()
    return Verdict(severity=level, categories=named, scores=scored(controversial, unsafe))


@given(st.lists(verdicts(), min_size=2, max_size=6), levels, st.sampled_from(Category))
def test_no_rule_fires_less_on_the_whole_than_on_a_window(
    parts: list[Verdict], level: Severity, category: Category
) -> None:
    found = verdict(*parts)
    for part in parts:
        assert found.severity >= part.severity
        assert found.categories >= part.categories
        assert found.probability(level) >= part.probability(level) - 1e-9
        assert found.probability(level, category) >= part.probability(level, category) - 1e-9
