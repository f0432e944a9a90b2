"""Our decoder against the library's, and rows padded for graphs against rows as they are."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from guardrails_qwen.engines.backbone import unsupported
from guardrails_qwen.engines.decoder import Decoder
from guardrails_qwen.engines.graphs import GraphedDecoder, lengths_up_to
from guardrails_qwen.engines.matmul import Precision, native_int8
from guardrails_qwen.engines.packing import Row, chunk_row
from tests.engines.recipe import CHECKPOINT

AUTO: Any = AutoModelForCausalLM
NEAR = {
    Precision.FLOAT32: 1e-4,
    Precision.BFLOAT16: 0.35,
    Precision.INT8: 0.7,
    Precision.FLOAT16: 0.1,
}
"""Largest difference of a logit; logits are around 10."""


def _ids(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(7000), k=count)


@pytest.fixture(scope="module")
def library() -> Any:
    return AUTO.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=list(Precision), ids=lambda precision: precision.value)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    precision: Precision = request.param
    if precision is Precision.INT8 and not native_int8():
        pytest.skip("this processor has no 8-bit instructions")
    return Decoder(AUTO.from_pretrained(CHECKPOINT, dtype=precision.dtype), precision)


def _everywhere(row: Row) -> Row:
    return Row(
        ids=row.ids, positions=row.positions, mask=row.mask, reads=torch.arange(len(row.ids))
    )


@pytest.mark.parametrize("tokens", [1, 17, 300])
def test_logits_are_those_of_the_library(library: Any, decoder: Decoder, tokens: int) -> None:
    ids = _ids(tokens)
    row = _everywhere(chunk_row(ids, 0))
    hidden = decoder(row, 0, decoder.keys_values(tokens))
    found = decoder.logits(hidden, torch.arange(8000))
    with torch.inference_mode():
        expected = library(torch.tensor([ids])).logits[0]
    assert (found - expected).abs().max() < NEAR[decoder.precision]
    if decoder.precision is Precision.FLOAT32:
        assert torch.equal(decoder.likeliest(hidden), expected.argmax(-1))


def test_a_row_behind_a_prefix_is_the_end_of_the_whole(decoder: Decoder) -> None:
    ids = _ids(90)
    behind = decoder.keys_values(90)
    decoder(chunk_row(ids[:40], 0), 0, behind)
    whole = decoder(_everywhere(chunk_row(ids, 0)), 0, decoder.keys_values(90))
    found = decoder(_everywhere(chunk_row(ids[40:], 40)), 40, behind)
    assert torch.allclose(found.float(), whole[40:].float(), atol=NEAR[decoder.precision])


def test_a_prefix_stays_when_rows_come_and_go(decoder: Decoder) -> None:
    ids, behind = _ids(30), decoder.keys_values(80)
    decoder(chunk_row(ids, 0), 0, behind)
    first = decoder(chunk_row(_ids(20, 1), 30), 30, behind)
    decoder(chunk_row(_ids(50, 2), 30), 30, behind)
    again = decoder(chunk_row(_ids(20, 1), 30), 30, behind)
    assert torch.equal(first, again)


class Recorder:
    """Records by running again, as a CPU can; counts how often."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.recorded += 1
        return run


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 100, 128])
def test_a_padded_row_gives_what_the_row_gives(decoder: Decoder, tokens: int) -> None:
    lengths = lengths_up_to(128)
    behind = decoder.keys_values(20 + lengths[-1])
    decoder(chunk_row(_ids(20), 0), 0, behind)
    graphed = GraphedDecoder(decoder, 20, behind, lengths, Recorder())
    long = _everywhere(chunk_row(_ids(128, 5), 20))
    graphed(long)  # what it leaves behind must not show
    row = _everywhere(chunk_row(_ids(tokens, 6), 20))
    plain = decoder(row, 20, behind).clone()
    assert graphed.fits(row)
    padded = graphed(row)
    assert padded.shape == plain.shape
    assert torch.allclose(padded.float(), plain.float(), atol=NEAR[decoder.precision] / 3)


def test_each_length_is_recorded_once() -> None:
    decoder = Decoder(AUTO.from_pretrained(CHECKPOINT, dtype=torch.float32), Precision.FLOAT32)
    recorder = Recorder()
    behind = decoder.keys_values(200)
    graphed = GraphedDecoder(decoder, 0, behind, lengths_up_to(192), recorder)
    for tokens in (3, 40, 64, 90, 3):
        graphed(chunk_row(_ids(tokens), 0))
    assert recorder.recorded == 2
    graphed.warm_up()
    assert recorder.recorded == len(lengths_up_to(192)) == 4
    assert not graphed.fits(chunk_row(_ids(193), 0))


@pytest.mark.parametrize("most", [1, 64, 65, 256, 1000, 4096])
def test_lengths_reach_far_enough_and_pad_little(most: int) -> None:
    lengths = lengths_up_to(most)
    assert lengths[-1] >= most
    assert all(b <= 1.5 * a for a, b in itertools.pairwise(lengths))


UNSUPPORTED = [
    pytest.param({"attention_bias": True}, "attention biases", id="bias"),
    pytest.param({"hidden_act": "gelu"}, "the activation gelu", id="activation"),
    pytest.param({"use_sliding_window": True}, "sliding windows", id="window"),
    pytest.param(
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}},
        "rotary embeddings of type dynamic",
        id="rotary",
    ),
    pytest.param({}, None, id="as published"),
]


@pytest.mark.parametrize(("changes", "reason"), UNSUPPORTED)
def test_what_the_decoder_does_not_do_is_named(
    library: Any, changes: dict[str, Any], reason: str | None
) -> None:
    config = library.config.__class__(**{**library.config.to_dict(), **changes})
    assert unsupported(config) == reason
