"""When a stream is flagged, how late, and how often for nothing."""

import pytest

from training.example import ILLEGAL, UNSAFE
from training.stream_example import Piece, StreamExample
from training.stream_measure import Debounce, Judged, flags

S, U, C = 0, 1, 2
"""Indices of the published heads: Safe, Unsafe, Controversial."""

CASES: dict[str, tuple[list[int], list[int], list[int], list[int]]] = {
    "safe": ([S, S, S], [], [], []),
    "one alone": ([S, U, S, U], [1, 3], [], []),
    "two alike": ([S, U, U, S], [1, 2], [2], [2]),
    "two unlike": ([S, C, U, S], [1, 2], [2], []),
    "from the start": ([U, U, S], [0, 1], [1], [1]),
    "nothing": ([], [], [], []),
}


@pytest.mark.parametrize(("severities", "off", "report", "evaluation"), CASES.values(), ids=CASES)
def test_which_tokens_flag(
    severities: list[int], off: list[int], report: list[int], evaluation: list[int]
) -> None:
    expected = {Debounce.OFF: off, Debounce.REPORT: report, Debounce.EVALUATION: evaluation}
    found = {
        debounce: [i for i, flag in enumerate(flags(severities, debounce)) if flag]
        for debounce in Debounce
    }
    assert found == expected


def judged(severities: list[int], *, lead: int = 2) -> Judged:
    """A reply of one character a token, harmful after `lead` tokens."""
    harm = "x" * (len(severities) - lead)
    reply = (Piece(text="o" * lead), Piece(text=harm, severity=UNSAFE, category=ILLEGAL))
    return Judged(
        example=StreamExample(turns=("Hello",), reply=reply),
        severities=severities,
        ends=list(range(1, len(severities) + 1)),
        prompt=S,
        unsafe=0.0,
    )


DELAYS = {
    "at once": ([S, S, U, U], 0, 1),
    "later": ([S, S, S, S, U, U], 2, 3),
    "never": ([S, S, S, S], None, None),
    "once only": ([S, S, S, U, S], 1, None),
    "from before": ([S, U, U, U], 0, 0),
}


@pytest.mark.parametrize(("severities", "off", "report"), DELAYS.values(), ids=DELAYS)
def test_delays_count_from_the_first_harmful_token(
    severities: list[int], off: int | None, report: int | None
) -> None:
    reply = judged(severities)
    assert (reply.delay(Debounce.OFF), reply.delay(Debounce.REPORT)) == (off, report)


def test_early_flags_are_those_before_the_harmful_part() -> None:
    reply = judged([U, U, U, U], lead=2)
    assert [reply.early(debounce) for debounce in Debounce] == [2, 1, 1]


def test_a_harmless_reply_has_no_onset_and_every_flag_is_early() -> None:
    reply = Judged(
        example=StreamExample(turns=("Hello",), reply=(Piece(text="oooo"),)),
        severities=[S, U, U, S],
        ends=[1, 2, 3, 4],
        prompt=S,
        unsafe=0.0,
    )
    assert reply.onset is None
    assert reply.delay(Debounce.OFF) is None
    assert reply.early(Debounce.OFF) == 2
