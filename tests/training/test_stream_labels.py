"""Token labels of replies whose harmful part starts at a known sentence."""

import pytest

from training.example import CONTROVERSIAL, ILLEGAL, NONE, SAFE, SELF_HARM, UNSAFE
from training.stream_example import Piece, StreamExample, token_labels

LEAD = Piece(text="Boil it. ")
HARM = Piece(text="Then steal it. ", severity=UNSAFE, category=ILLEGAL)
DOUBT = Piece(text="I feel lost. ", severity=CONTROVERSIAL, category=SELF_HARM)
REST = Piece(text="Serve it warm.")


def labelled(*pieces: Piece, size: int = 3) -> list[tuple[str, str]]:
    """The labels of tokens of `size` characters."""
    length = sum(len(piece.text) for piece in pieces)
    ends = [*range(size, length, size), length]
    return [(label.severity, label.category) for label in token_labels(pieces, ends)]


CASES = {
    "safe all through": ((LEAD, REST), [(SAFE, NONE)] * 8),
    "harmful from the first token": ((HARM,), [(UNSAFE, ILLEGAL)] * 5),
    "harmful from its sentence on": (
        (LEAD, HARM, REST),
        [(SAFE, NONE)] * 3 + [(UNSAFE, ILLEGAL)] * 10,
    ),
    "worse later": (
        (DOUBT, HARM),
        [(CONTROVERSIAL, SELF_HARM)] * 4 + [(UNSAFE, ILLEGAL)] * 6,
    ),
    "no better later": ((HARM, DOUBT), [(UNSAFE, ILLEGAL)] * 10),
}


@pytest.mark.parametrize(("pieces", "expected"), CASES.values(), ids=CASES)
def test_the_worst_label_so_far_holds(
    pieces: tuple[Piece, ...], expected: list[tuple[str, str]]
) -> None:
    assert labelled(*pieces) == expected


def test_a_token_across_the_boundary_is_harmful() -> None:
    end = len(LEAD.text) + 1
    assert [label.severity for label in token_labels((LEAD, HARM), [6, end])] == [SAFE, UNSAFE]


def test_the_first_harmful_tokens_count_less_and_the_others_fully() -> None:
    text = Piece(text="x" * 60, severity=UNSAFE, category=ILLEGAL)
    weights = [label.weight for label in token_labels((text,), range(1, 61))]
    assert weights == sorted(weights)
    assert 0 < weights[0] < 0.5
    assert weights[-1] == 1


def test_a_vague_beginning_counts_less_for_longer() -> None:
    clear = Piece(text="x" * 60, severity=UNSAFE, category=ILLEGAL)
    vague = Piece(text="x" * 60, severity=UNSAFE, category=ILLEGAL, vague=True)
    pairs = zip(
        token_labels((clear,), range(1, 61)), token_labels((vague,), range(1, 61)), strict=True
    )
    assert all(v.weight <= c.weight for c, v in pairs)
    assert token_labels((vague,), range(1, 61))[20].weight < 1


def test_safe_tokens_count_fully() -> None:
    assert {label.weight for label in token_labels((LEAD, REST), [3, 9, 20])} == {1.0}


@pytest.mark.parametrize(
    ("reply", "onset"),
    [((LEAD, REST), None), ((HARM,), 0), ((LEAD, HARM, REST), len(LEAD.text)), ((), None)],
    ids=["safe", "at once", "later", "no reply"],
)
def test_the_onset_is_where_the_first_harmful_piece_starts(
    reply: tuple[Piece, ...], onset: int | None
) -> None:
    assert StreamExample(turns=("Hello",), reply=reply).onset == onset
