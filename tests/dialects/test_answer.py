"""The answer as data: its parser, its regular expression and what it writes agree."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen import Category, Severity, UnreadableVerdict
from guardrails_qwen.dialects.answer import AnswerFormat, Field
from guardrails_qwen.dialects.qwen3guard import PROMPT_ANSWER, RESPONSE_ANSWER

TOY = AnswerFormat(
    (
        Field(name="A", choices=("x", "x+y", "x y")),
        Field(name="B (2)", choices=("1", "10", "."), many=True),
    )
)
FORMATS = [TOY, PROMPT_ANSWER, RESPONSE_ANSWER]
IDS = ["toy", "prompt", "response"]


@pytest.mark.parametrize("answers", FORMATS, ids=IDS)
def test_every_answer_is_read_as_it_was_written_and_fits_the_regex(answers: AnswerFormat) -> None:
    for values in answers.answers:
        written = answers.write(values)
        assert answers.read(written) == tuple((value,) for value in values)
        assert re.fullmatch(answers.regex, written)


@pytest.mark.parametrize("answers", FORMATS, ids=IDS)
def test_answers_are_all_combinations(answers: AnswerFormat) -> None:
    expected = 1
    for field in answers.fields:
        expected *= len(field.choices)
    assert len(set(answers.answers)) == len(answers.answers) == expected


def test_the_formats_of_qwen3guard() -> None:
    names = [c.label for c in Category]
    assert [s.label for s in Severity] == list(PROMPT_ANSWER.fields[0].choices)
    assert set(PROMPT_ANSWER.fields[1].choices) == {"None", *names}
    assert RESPONSE_ANSWER.fields[:2] == PROMPT_ANSWER.fields
    assert RESPONSE_ANSWER.fields[2].choices == ("Yes", "No")
    written = "Safety: Unsafe\nCategories: PII\nRefusal: No"
    assert RESPONSE_ANSWER.write(["Unsafe", "PII", "No"]) == written


def test_to_write_takes_one_choice_a_field() -> None:
    with pytest.raises(ValueError, match="shorter"):
        TOY.write(["x"])


READABLE = [
    ("A: x\nB (2): 1", (("x",), ("1",))),
    ("A: x+y\nB (2): 10", (("x+y",), ("10",))),
    ("A: x\nB (2): 1, 10,.", (("x",), ("1", "10", "."))),
    ("A:x\nB (2):1,10", (("x",), ("1", "10"))),
    ("\n A : x y \r\n B (2)\t:\t1 ,  10 \n", (("x y",), ("1", "10"))),
    ("<think>\n\n</think>\n\nA: x\nB (2): 1", (("x",), ("1",))),
]


@pytest.mark.parametrize(("answer", "values"), READABLE)
def test_white_space_and_an_empty_think_block_do_not_matter(
    answer: str, values: tuple[tuple[str, ...], ...]
) -> None:
    assert TOY.read(answer) == values


UNREADABLE = [
    "",
    "A: x",
    "B (2): 1\nA: x",
    "A: x\n\nB (2): 1",
    "A: x\nB (2): 1\nC: 1",
    "A: x\nA: x\nB (2): 1",
    "A: X\nB (2): 1",
    "a: x\nB (2): 1",
    "A: x\nB 2: 1",
    "A: x\nB (2): 1,",
    "A: x\nB (2): ,1",
    "A: x\nB (2): 1 10",
    "A: x\nB (2): 2",
    "A: x\nB (2): a",
    "A: x, x y\nB (2): 1",
    "A: xx\nB (2): 1",
    "A: x B (2): 1",
    "A: x\nB (2): 1 (sure)",
    "Well: A: x\nB (2): 1",
    "<think>hm</think>A: x\nB (2): 1",
    "<think>A: x\nB (2): 1",
]


@pytest.mark.parametrize("answer", UNREADABLE, ids=repr)
def test_anything_else_is_unreadable(answer: str) -> None:
    with pytest.raises(UnreadableVerdict) as caught:
        TOY.read(answer)
    assert caught.value.answer == answer
    assert not re.fullmatch(TOY.regex, answer)


fragments = st.sampled_from(
    ["A: ", "A", "B (2): ", "x", "x+y", "x y", "1", "10", ".", ", ", ",", ":", " ", "\n", "\r\n"]
)


@given(st.lists(fragments, max_size=9).map("".join))
def test_the_parser_reads_whatever_the_regex_allows(answer: str) -> None:
    if re.fullmatch(TOY.regex, answer):
        fields = TOY.read(answer)
        assert TOY.write([", ".join(values) for values in fields]) == answer
        assert all(set(v) <= set(f.choices) for v, f in zip(fields, TOY.fields, strict=True))


@given(
    st.sampled_from(TOY.fields[0].choices),
    st.lists(st.sampled_from(TOY.fields[1].choices), min_size=1, max_size=4),
)
def test_lists_fit_the_regex_too(choice: str, many: list[str]) -> None:
    answer = TOY.write([choice, ", ".join(many)])
    assert re.fullmatch(TOY.regex, answer)
    assert TOY.read(answer) == ((choice,), tuple(many))


@pytest.mark.parametrize(
    "answer",
    [
        " " * 10**6,
        "A: x" + " " * 10**6,
        "A: x\nB (2): 1" + ",1" * 300_000 + ",",
        "A: x\nB (2): 1" + " ," * 300_000,
        "<think>" + "\n" * 10**6,
        "A: x\n" * 200_000,
    ],
    ids=lambda answer: repr(answer[:12]),
)
def test_a_long_answer_takes_no_time(answer: str) -> None:
    started = time.process_time()
    with pytest.raises(UnreadableVerdict):
        TOY.read(answer)
    assert time.process_time() - started < 5
