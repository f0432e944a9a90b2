"""Where the sentences of a growing text end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen.streaming import SentenceEnds
from tests.streaming.test_laws import texts

# "|" stands where a sentence ends
CASES = [
    pytest.param("One. |Two! |Three? |Four… |Five", id="stops"),
    pytest.param("One.Two!Three", id="stops without white space"),
    pytest.param("Really?! |Yes... |Well", id="several stops"),
    pytest.param('He said "Stop." |Then (he left.) |He did.” |»Yes.« |No', id="closers"),
    pytest.param('Stop. |"Why?" |(Because.) |So', id="openers belong to what they open"),
    pytest.param("**Bold.** |_Slanted._ |`Code.` |So", id="markup"),
    pytest.param("One.  \t |Two", id="white space belongs to the sentence before it"),
    pytest.param("  One. |Two", id="white space alone is no sentence"),
    pytest.param("\n\nOne\n|Two\r\n\r\n|- Three\u2028|Four", id="lines"),
    pytest.param("你好。|他说：“好。”|走吧！？|好", id="Chinese"),
    pytest.param("はい。」|いいえ。 |はい", id="Japanese"),
    pytest.param("यह है। |वह है", id="Hindi"),
    pytest.param("كيف؟ |جيد۔ |نعم", id="Arabic and Urdu"),
    pytest.param("Dr. Who met Mr. Bean, e.g. at 5 p.m. in the U.S. Army. |So", id="abbreviations"),
    pytest.param("J. R. R. Tolkien et al. wrote (cf. Smith). |So", id="initials"),
    pytest.param("I said no. |He left in 2020. |So", id="words and years are none"),
    pytest.param("1. First. |2. Second.\n|10. Third", id="numbers that begin a sentence"),
    pytest.param("Pi is 3.14 or so. |It is 3. |So", id="numbers in a sentence"),
    pytest.param("ก" * 120 + " |ข" + "ก" * 10 + " ข", id="Thai: a space after 120 characters"),
    pytest.param("word " * 200 + "|word word", id="a space after 1,000 characters"),
    pytest.param("a" * 2000 + "|" + "a" * 10, id="anywhere after 2,000"),
    pytest.param("a" * 2000 + "\u0301|" + "a" * 10, id="but not before a combining mark"),
]


def ends(text: str, size: int) -> list[int]:
    found = SentenceEnds()
    for at in range(0, len(text), size):
        found.feed(text[at : at + size])
    return found.found


@pytest.mark.parametrize("marked", CASES)
def test_ends(marked: str) -> None:
    *sentences, _ = marked.split("|")
    expected = [len("".join(sentences[:count])) for count in range(1, len(sentences) + 1)]
    for size in (1, 2, 7, len(marked)):
        assert ends(marked.replace("|", ""), size) == expected


@given(texts | st.text(), st.integers(1, 9), st.text())
def test_an_end_is_known_with_its_next_character_and_for_good(
    text: str, size: int, more: str
) -> None:
    found = ends(text, size)
    assert found == ends(text, max(1, len(text)))
    assert ends(text + more, size)[: len(found)] == found
    for end in found:
        assert not text[end].isspace()
        assert end in ends(text[: end + 1], 1)
        assert text[:end].strip()


def test_ends_are_looked_up_by_offset() -> None:
    found = SentenceEnds(100)
    found.feed("One. Two. Three")
    assert found.found == [105, 110]
    assert [found.up_to(at) for at in (104, 105, 109, 200)] == [None, 105, 105, 110]
    assert [found.after(at) for at in (0, 105, 106, 111)] == [105, 105, 110, None]
