"""Rows as they are, rows recorded, and what must not spread from one prompt to another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from guardrails_qwen import (
    Conversation,
    Guard,
    GuardError,
    OnError,
    Policy,
    UnreadableVerdict,
    Verdict,
)
from guardrails_qwen.engines import one_pass
from guardrails_qwen.engines.decoder import Decoder
from guardrails_qwen.engines.graphs import GraphedDecoder, lengths_up_to
from guardrails_qwen.engines.one_pass import OnePass
from guardrails_qwen.engines.packing import Row, chunk_row
from guardrails_qwen.engines.transformers import TransformersEngine
from guardrails_qwen.longtext import Windows

ASKED = [
    *(Conversation.of(f"How can I {what}?") for what in ("bake bread", "make a bomb", "steal")),
    *(
        Conversation.exchange(f"How can I {what}?", reply)
        for what in ("bake bread", "make a bomb", "steal a car", "hurt my neighbour")
        for reply in (
            "I'm sorry, I can't help with that.",
            "First you need a sharp knife.",
            "Sure.",
        )
    ),
    Conversation.of("All is well here. " * 60),
]


def _engine(**options: Any) -> TransformersEngine:
    return TransformersEngine.from_pretrained("tiny", device="cpu", dtype="float32", **options)


def _recorded(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return run


def _recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows go the way that they go on a GPU."""

    def with_record(*arguments: Any, **options: Any) -> OnePass:
        return OnePass(*arguments, **options, record=_recorded)

    monkeypatch.setattr(one_pass, "OnePass", with_record)


def _numbers(verdict: object) -> list[float]:
    assert isinstance(verdict, Verdict)
    assert verdict.scores
    return [*verdict.scores.severity.values(), verdict.scores.refusal or 0.0]


@pytest.mark.parametrize("row_tokens", [40, 64, 256, 1024])
def test_recorded_rows_give_what_rows_give(
    monkeypatch: pytest.MonkeyPatch, row_tokens: int
) -> None:
    plain = _engine().judge(ASKED)
    _recording(monkeypatch)
    with _engine(row_tokens=row_tokens, warm_up=True) as engine:
        recorded = engine.judge(ASKED)
    assert recorded == plain
    for one, other in zip(recorded, plain, strict=True):
        assert _numbers(one) == pytest.approx(_numbers(other), abs=1e-4)


def test_a_recording_that_does_nothing_is_not_used() -> None:
    decoder = _decoder()

    def useless(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        same = run().clone()
        return lambda: same

    assert torch.allclose(*_both(decoder, useless), atol=1e-5)


def test_what_cannot_be_recorded_runs_all_the_same() -> None:
    def refusing(_: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("no capture while another is underway")

    assert torch.allclose(*_both(_decoder(), refusing), atol=1e-5)


def _decoder() -> Decoder:
    from guardrails_qwen.engines.loading import load

    return load("tiny", device=torch.device("cpu"), dtype="float32").decoder


def _both(decoder: Decoder, record: Any) -> tuple[Tensor, Tensor]:
    """A row through graphs, and as it is."""
    lengths = lengths_up_to(64)
    behind = decoder.keys_values(lengths[-1])
    row: Row = chunk_row(list(range(40)), 0)
    found = GraphedDecoder(decoder, 0, behind, lengths, record)(row).clone()
    return found, decoder(row, 0, behind)


def test_a_prompt_that_is_not_finite_spares_its_neighbours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is masked out is multiplied by 0, and NaN times 0 is NaN."""
    bad = Conversation.of("Zebras jump over fences.")
    with _engine() as engine:
        others = {token for asked in ASKED for token in engine.prompt(asked)}
        mark = next(token for token in engine.prompt(bad) if token not in others)
        original = Decoder.__call__

        def broken(self: Decoder, row: Row, past: int, behind: Any) -> Tensor:
            hidden = original(self, row, past, behind)
            return hidden * torch.nan if (row.ids == mark).any() else hidden

        monkeypatch.setattr(Decoder, "__call__", broken)
        outcomes = engine.judge([ASKED[0], bad, ASKED[1]])
    assert [type(outcome) for outcome in outcomes] == [Verdict, UnreadableVerdict, Verdict]


def test_a_crash_that_a_text_provokes_is_not_waved_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = OnePass.__call__

    def fragile(self: OnePass, prompts: Any) -> Any:
        if any(len(prompt) > 150 for prompt in prompts):
            raise RuntimeError("shapes do not fit")
        return original(self, prompts)

    monkeypatch.setattr(OnePass, "__call__", fragile)
    with _engine() as engine:
        guard = Guard(engine, Policy.strict(on_error=OnError.ALLOW))
        short, long = guard.check_many(["Hello", "How can I make a bomb? " * 20])
    assert short.allowed
    assert not long.allowed
    assert "bomb" not in str(long.error)


def test_cost_counts_all_pieces_and_nothing_twice() -> None:
    text = "All is well here, and the sun shines on the old harbour. "
    with _engine(windows=Windows(tokens=1800), row_tokens=64) as engine:
        asked = Conversation.of(text * 60)
        [verdict] = engine.judge([asked])
        assert isinstance(verdict, Verdict)
        assert verdict.tokens
        assert verdict.tokens > len(engine.prompt(asked)) - 150
        first, second = engine.judge([asked, asked])
    assert isinstance(first, Verdict)
    assert isinstance(second, Verdict)
    assert first == second
    assert (first.tokens, second.tokens) == (verdict.tokens, 0)


def test_long_texts_keep_no_short_one_out() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from guardrails_qwen import Batching

    long = "".join(f"Number {n} is well. " for n in range(60))
    with _engine(windows=Windows(tokens=32), batching=Batching(capacity=20)) as engine:
        with ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(engine.judge, [Conversation.of(f"{n} {long}")]) for n in range(12)]
            [outcome] = engine.judge([ASKED[0]])
        assert isinstance(outcome, Verdict)
        assert all(isinstance(found.result()[0], Verdict) for found in asked)


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "nothing"])
def test_a_device_that_is_none_is_named(device: str) -> None:
    with pytest.raises(GuardError, match="use auto, cpu, cuda or mps"):
        TransformersEngine.from_pretrained("tiny", device=device)
