"""The benchmark of streams counts right, and its contenders do what they stand for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.streaming import material, speed
from benchmarks.streaming.__main__ import PARTS, main
from benchmarks.streaming.contenders import (
    OURS,
    OURS_LATER,
    PROMPT,
    PUBLISHED,
    RERUN,
    Published,
    joined,
    pieces_of,
    plain_tokenizer,
    spans_of,
)
from benchmarks.streaming.delays import Delay
from benchmarks.streaming.leaks import Outcome, Stream, streams, summarised
from tests.engines import stream_shaped
from tests.engines.stream_reference import StreamReference

STREAM = Stream(
    prompt="Ask.", reply="aa bb BAD BAD cc", start=6, end=13, chunks=("aa bb BAD", " BAD cc")
)


def words(text: str) -> list[tuple[int, int]]:
    """A tokenizer for tests: a word and the space before it, as byte-level ones do."""
    ends = [i for i in range(1, len(text) + 1) if i == len(text) or text[i] == " "]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def outcome(released: int, received: int, *, blocked: bool = True) -> Outcome:
    return Outcome(
        stream=STREAM, released=STREAM.reply[:released], received=received, blocked=blocked
    )


@pytest.mark.parametrize(
    ("found", "leaked", "delay"),
    [
        (outcome(0, 5), 0, None),
        (outcome(6, 9), 0, 1),
        (outcome(7, 9), 1, 1),
        (outcome(9, 13), 1, 2),
        (outcome(10, 13), 2, 2),
        (outcome(16, 16), 2, 3),
        (outcome(16, 16, blocked=False), 2, None),
    ],
    ids=["early", "at once", "a letter", "a word", "and its space", "at the end", "never"],
)
def test_leaks_and_delays_are_counted_in_tokens(
    found: Outcome, leaked: int, delay: int | None
) -> None:
    assert found.leaked_tokens(words) == leaked
    assert found.delay(words) == delay


def test_a_summary_counts_each_stream_once() -> None:
    found = summarised(
        [outcome(0, 5), outcome(6, 9), outcome(10, 13), outcome(16, 16, blocked=False)], words
    )
    assert (found.streams, found.early, found.missed, found.clean) == (4, 1, 1, 1)
    assert (found.leaked, found.harmful) == (4, 6)
    assert (found.leaked_median, found.delay_median) == (1, 1.5)


def test_a_delay_knows_early_from_never() -> None:
    found = Delay.of([5, None, 0, 1, -2])
    assert (list(found.tokens), found.early, found.missed) == ([1, 5], 2, 1)


@given(seed=st.integers(0, 1000))
def test_streams_hold_their_harmful_sentence_where_they_say(seed: int) -> None:
    found = material.made_up()
    for stream in streams(found.harmless, found.harmful, 10, seed):
        assert stream.reply[stream.start : stream.end] in found.harmful
        assert "".join(stream.chunks) == stream.reply


def test_without_data_there_are_no_real_texts(tmp_path: Path) -> None:
    assert material.real(tmp_path) is None


@given(a=st.floats(0, 9), b=st.floats(0, 9), c=st.floats(0, 9), length=st.integers(64, 4096))
def test_what_grows_with_the_square_is_integrated_exactly(
    a: float, b: float, c: float, length: int
) -> None:
    places = speed.positions(32 + 4 * length)
    assert places == [32 + i * length for i in range(5)]
    values = [a + b * x / length + c * (x / length) ** 2 for x in range(0, 4 * length + 1, length)]
    assert speed.integrated(values) == pytest.approx(a + 2 * b + 16 / 3 * c)


def test_the_published_recipe_says_what_the_reference_says(tmp_path: Path) -> None:
    stream_shaped.save(tmp_path)
    reply = "First, mix flour and water; 然后等待。 It's easy 🚀"
    contender = Published(tmp_path, device="cpu", dtype=torch.float32)
    reads = StreamReference(tmp_path).reply([("user", PROMPT)], reply)
    assert contender.worst(reply) == [read.worst.label for read in reads]
    assert len(set(contender.worst(reply))) > 1


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40), size=st.integers(1, 9))
def test_pieces_are_the_text(text: str, size: int) -> None:
    tokenizer = plain_tokenizer(stream_shaped.TOKENIZER)
    pieces = pieces_of(text, tokenizer)
    assert "".join(pieces) == text
    assert len(pieces) == len(spans_of(text, tokenizer))
    assert "".join(joined(pieces, size)) == text


def test_a_run_writes_all_of_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = stream_shaped.save(tmp_path / "small", stream_shaped.Shape(layers=1))
    arguments = ["--quick", "--only", ",".join(PARTS), "--checkpoint", str(checkpoint)]
    arguments += ["--lengths", "64,80", "--together", "4", "--paced", "2x400", "--streams", "4"]
    arguments += ["--delays", "2", "--threads", str(torch.get_num_threads())]
    arguments += ["--data", str(tmp_path), "--folder", str(tmp_path / "out")]
    main(arguments)
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "out" / "streaming.md").read_text(encoding="utf-8") + "\n"
    assert all(name in printed for name in (OURS, OURS_LATER, PUBLISHED, RERUN))
    assert "made-up sentences" in printed
    raw = json.loads((tmp_path / "out" / "streaming.json").read_text(encoding="utf-8"))
    assert set(raw["costs"]) == {"64", "80"}
    assert all(cost["token"] > 0 for row in raw["costs"].values() for cost in row.values())
    assert [row["fed"] for row in raw["flatness"]] == [1, 16]
    assert [row["streams"] for row in raw["together"]] == [64, 64]
    assert len(raw["paced"][0]["delays"]) == 2 * 250
    assert {row["streams"] for row in raw["leaks"].values()} == {4}
    assert set(raw["delays"]) == {OURS, PUBLISHED, RERUN}
    assert set(raw["about"]["load"]) == set(PARTS)


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "costs,prices"])
    assert "prices" in capsys.readouterr().err
