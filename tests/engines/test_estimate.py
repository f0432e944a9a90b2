"""Estimated lengths are not much too small, and not absurdly large."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen.engines.estimate import estimated


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("   ", 0),
        (" " * 7, 0),
        (" " * 8, 1),
        (" " * 8000, 1000),
        ("a" + " " * 16 + "b", 4),
        ("Hello", 1),
        ("Hello, how are you?", 6),
        ("responsibilities", 8),
        ("responsibility", 3),
        ("internationalisation", 10),
        ("12345", 5),
        ("a\n\nb", 4),
        ("你好，世界", 5),
        ("Привет", 6),
        ("😀😀", 4),
        ("x" * 1000, 500),
        ("\t\n" * 50, 100),
    ],
)
def test_lengths(text: str, tokens: int) -> None:
    assert estimated([text]) == [tokens]


def test_one_for_each_text_in_order() -> None:
    assert estimated(["a b c", "", "a"]) == [3, 0, 1]
    assert estimated([]) == []


@given(st.text(max_size=200))
def test_never_more_than_two_a_character_and_never_negative(text: str) -> None:
    [found] = estimated([text])
    assert 0 <= found <= 2 * len(text)


@given(st.text(max_size=60), st.text(max_size=60))
def test_two_texts_take_about_what_they_take_together(one: str, other: str) -> None:
    [first, second, both] = estimated([one, other, f"{one} {other}"])
    assert first + second <= both <= first + second + 1
