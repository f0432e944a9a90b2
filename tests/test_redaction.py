"""Finding sentences and taking them out."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guardrails_qwen import Category, Span
from guardrails_qwen.redaction import redacted, suspects
from guardrails_qwen.sentences import middle, sentences

CASES = [
    pytest.param("", [], id="nothing"),
    pytest.param(" \n\t\r\n ", [], id="white space"),
    pytest.param("One", ["One"], id="no stop"),
    pytest.param("One. Two! Three?", ["One.", "Two!", "Three?"], id="three"),
    pytest.param("  One.  Two.  ", ["One.", "Two."], id="white space around"),
    pytest.param("one\ntwo\r\nthree", ["one", "two", "three"], id="lines"),
    pytest.param("你好。再见！", ["你好。", "再见！"], id="Chinese"),
    pytest.param("行こう？はい。", ["行こう？", "はい。"], id="Japanese"),
    pytest.param("यह एक है। यह दो है।", ["यह एक है।", "यह दो है।"], id="Hindi"),
    pytest.param("ไปไหนมา? ไปตลาด", ["ไปไหนมา?", "ไปตลาด"], id="Thai"),
    pytest.param("Dr. Smith left. He ran.", ["Dr. Smith left.", "He ran."], id="an abbreviation"),
    pytest.param("It costs 3.50 now. Buy!", ["It costs 3.50 now.", "Buy!"], id="a number"),
]
ODD = "ab .!?。！？\"'()“”\x00\x1c\x85\u200b\u202e\u2028\u3000\ufeffß中🙂\u0301 \n\r\tDr1"


@pytest.mark.parametrize(("text", "found"), CASES)
def test_sentences(text: str, found: list[str]) -> None:
    assert [text[span.start : span.end] for span in sentences(text)] == found


@given(st.text(st.sampled_from(ODD) | st.characters(exclude_categories=["Cs"])))
@example("！\x85\x85\u200d\t！.D\x85.\u2028\x85\x00文D\x85")
def test_sentences_cover_everything_but_white_space_in_order(text: str) -> None:
    spans = list(sentences(text))
    kept = "".join(text[span.start : span.end] for span in spans)
    assert "".join(kept.split()) == "".join(text.split())
    assert all(a.end <= b.start for a, b in pairwise(spans))
    assert all(text[span.start : span.end].strip() for span in spans)


@pytest.mark.parametrize(
    "text", ["你好。", "a", ".", " ", "\n", "Hi there. ", '"', "(", "\x85.", "é"], ids=repr
)
def test_a_megabyte_of_anything_is_split_in_time(text: str) -> None:
    started = time.process_time()
    long = text * (1_000_000 // len(text))
    spans = list(sentences(long))
    assert sum(span.end - span.start for span in spans) <= len(long)
    assert time.process_time() - started < 20


def test_spaces_end_thai_sentences_that_are_long() -> None:
    text = " ".join(["วันนี้อากาศดีมากผมไปตลาด"] * 50)
    found = [text[span.start : span.end] for span in sentences(text)]
    assert " ".join(found) == text
    assert all(120 <= len(sentence) < 150 for sentence in found[:-1])


MIDDLES = [
    pytest.param("one two, three four", "one two, ", id="a clause"),
    pytest.param("one two three four", "one two ", id="white space"),
    pytest.param("onetwothreefour", "onetwot", id="nothing"),
    pytest.param("ab\u0301\u0301\u0301b", "ab\u0301\u0301\u0301", id="combining characters"),
    pytest.param("ab", "a", id="two characters"),
]


@pytest.mark.parametrize(("text", "first"), MIDDLES)
def test_the_middle_is_where_a_cut_hurts_least(text: str, first: str) -> None:
    assert text[: middle(text)] == first


@given(st.text(st.sampled_from(ODD), min_size=2))
def test_the_middle_is_inside(text: str) -> None:
    assert 0 < middle(text) < len(text)


SUSPECTS = [
    pytest.param([], ["One.", "Two.", "Three.", "Four."], id="no span: all"),
    pytest.param([(6, 7)], ["Two."], id="inside a sentence"),
    pytest.param([(5, 9), (17, 22)], ["Two.", "Four."], id="two spans"),
    pytest.param([(3, 6)], ["One.", "Two."], id="across two"),
    pytest.param([(10, 16), (0, 22)], ["One.", "Two.", "Three.", "Four."], id="nested"),
    pytest.param([(4, 5)], [], id="between sentences"),
]


@pytest.mark.parametrize(("spans", "found"), SUSPECTS)
def test_suspects(spans: list[tuple[int, int]], found: list[str]) -> None:
    text = "One. Two. Three. Four."
    touched = suspects(text, [Span(start=start, end=end) for start, end in spans])
    assert [text[span.start : span.end] for span in touched] == found


def test_a_stop_far_behind_does_not_move_sentences() -> None:
    text = f"{'x' * 1990}. Second sentence. {'y' * 5000}. Last one."
    found = [text[span.start : span.end] for span in sentences(text)]
    assert found[0] == f"{'x' * 1990}."
    assert found[1] == "Second sentence."
    assert found[-1] == "Last one."


TEXT = "Keep. Bad one. Worse. Keep too."
BAD = Span(start=6, end=14, categories=frozenset({Category.VIOLENT}))
WORSE = Span(start=15, end=21, categories=frozenset({Category.PII, Category.VIOLENT}))
NAMELESS = Span(start=0, end=5)
BOTH = Span(start=6, end=21, categories=frozenset({Category.VIOLENT, Category.PII}))

REDACTIONS = [
    pytest.param([], TEXT, (), id="nothing"),
    pytest.param([BAD], "Keep. [Violent] Worse. Keep too.", (BAD,), id="one"),
    pytest.param([BAD, WORSE], "Keep. [Violent, PII] Keep too.", (BOTH,), id="neighbours"),
    pytest.param([WORSE, BAD], "Keep. [Violent, PII] Keep too.", (BOTH,), id="in any order"),
    pytest.param([NAMELESS], "[unsafe] Bad one. Worse. Keep too.", (NAMELESS,), id="nameless"),
    pytest.param(
        [NAMELESS, WORSE],
        "[unsafe] Bad one. [Violent, PII] Keep too.",
        (NAMELESS, WORSE),
        id="two apart",
    ),
    pytest.param([BOTH, BAD], "Keep. [Violent, PII] Keep too.", (BOTH,), id="one inside another"),
]


@pytest.mark.parametrize(("offending", "text", "taken"), REDACTIONS)
def test_redacted(offending: list[Span], text: str, taken: tuple[Span, ...]) -> None:
    assert redacted(TEXT, offending, "[{category}]") == (text, taken)


def test_a_marker_is_a_text_and_no_format() -> None:
    text, _ = redacted("Bad.", [Span(start=0, end=4)], "{0} {category} {category} % {")
    assert text == "{0} unsafe unsafe % {"


@given(st.text(st.sampled_from(ODD), max_size=60), st.sets(st.integers(0, 9)))
def test_what_is_taken_out_is_gone_and_the_rest_is_there(text: str, chosen: set[int]) -> None:
    spans = list(sentences(text))
    offending = [span for index, span in enumerate(spans) if index in chosen]
    result, taken = redacted(text, offending, "\ue000")
    position, kept = 0, list[str]()
    for span in taken:
        kept.append(text[position : span.start])
        position = span.end
    kept.append(text[position:])
    assert result == "\ue000".join(kept)
    assert all(
        any(span.start <= bad.start and bad.end <= span.end for span in taken) for bad in offending
    )
