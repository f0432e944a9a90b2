"""A widened checkpoint computes what the bundled one computes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.widen import BUNDLED, INNER, Shape, widen
from guardrails_qwen import CheckpointError, Conversation, Verdict
from guardrails_qwen.engines.transformers import TransformersEngine
from tests.engines import stream_shaped
from tests.engines.stream_reference import StreamReference

SHAPE = Shape(
    layers=6, hidden=256, heads=8, kv_heads=4, intermediate=512, vocabulary=9000, tied=True
)
SHAPES = {
    "two query heads a key head": SHAPE,
    "four query heads a key head": replace(SHAPE, heads=12, kv_heads=3),
    "an output layer of its own": replace(SHAPE, tied=False),
    "nothing added": Shape(
        layers=4, hidden=192, heads=4, kv_heads=2, intermediate=384, vocabulary=8000, tied=True
    ),
}

CONVERSATIONS = [
    Conversation.of("Where does the ferry to the islands leave from?"),
    Conversation.of("How can I make a bomb?"),
    Conversation.of("怎么才能偷偷拿到同事的密码?"),
    Conversation.exchange("How do I pick a lock?", "I can't help with that."),
    Conversation.exchange("Tell me about the harbour.", "It is quiet at night. " * 40),
]


@pytest.fixture(scope="module", params=SHAPES.values(), ids=list(SHAPES))
def widened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("widened")
    widen(BUNDLED, folder, request.param, context=4096)
    return folder


@pytest.fixture(scope="module")
def tiny() -> TransformersEngine:
    return TransformersEngine.from_pretrained("tiny", device="cpu", dtype="float32")


def _logits(folder: Path, prompt: list[int]) -> torch.Tensor:
    """`[tokens, vocabulary]`."""
    auto: Any = AutoModelForCausalLM
    model: Any = auto.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([prompt])).logits[0]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_logits_are_equal_at_every_position(
    widened: Path, tiny: TransformersEngine, conversation: Conversation
) -> None:
    prompt = tiny.prompt(conversation)
    expected, actual = _logits(BUNDLED, prompt), _logits(widened, prompt)
    known = expected.shape[1]
    assert torch.allclose(actual[:, :known], expected, rtol=0, atol=1e-4)
    assert not actual[:, known:].any()
    assert (actual[:, :known].max(dim=1).values > 1).all(), "a padded token could win"


def test_verdicts_and_probabilities_are_equal(widened: Path, tiny: TransformersEngine) -> None:
    engine = TransformersEngine.from_pretrained(widened, device="cpu", dtype="float32")
    pairs = list(zip(tiny.judge(CONVERSATIONS), engine.judge(CONVERSATIONS), strict=True))
    for expected, actual in pairs:
        assert isinstance(expected, Verdict)
        assert isinstance(actual, Verdict)
        assert actual.severity == expected.severity
        assert actual.categories == expected.categories
        assert actual.refusal == expected.refusal
        assert actual.scores is not None
        assert expected.scores is not None
        assert actual.scores.severity == pytest.approx(expected.scores.severity, abs=1e-4)
        assert actual.scores.category == pytest.approx(expected.scores.category, abs=1e-4)
    assert len({verdict.severity for verdict, _ in pairs if isinstance(verdict, Verdict)}) > 1


def test_it_says_that_it_is_a_demonstration(widened: Path) -> None:
    engine = TransformersEngine.from_pretrained(widened, device="cpu", dtype="float32")
    assert engine.demonstration


def test_what_is_unused_is_random(tmp_path: Path) -> None:
    widen(BUNDLED, tmp_path, SHAPE)
    auto: Any = AutoModelForCausalLM
    model: Any = auto.from_pretrained(tmp_path, dtype=torch.float32)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight")):
            continue
        assert (weight == 0).float().mean() < 0.01, name
        assert weight.std() > 0.01, name


def test_bfloat16_gives_verdicts_too(tmp_path: Path) -> None:
    widen(BUNDLED, tmp_path, SHAPE, dtype=torch.bfloat16)
    engine = TransformersEngine.from_pretrained(tmp_path, device="cpu", dtype="bfloat16")
    assert all(isinstance(outcome, Verdict) for outcome in engine.judge(CONVERSATIONS))


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        (replace(SHAPE, layers=3), "layers"),
        (replace(SHAPE, hidden=128), "hidden"),
        (replace(SHAPE, intermediate=256), "intermediate"),
        (replace(SHAPE, vocabulary=7000), "vocabulary"),
        (replace(SHAPE, heads=1, kv_heads=1), "kv_heads"),
        (replace(SHAPE, heads=4, kv_heads=4), "query heads"),
    ],
    ids=["layers", "hidden", "intermediate", "vocabulary", "key heads", "query heads"],
)
def test_a_shape_without_room_is_refused(tmp_path: Path, shape: Shape, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        widen(BUNDLED, tmp_path / "widened", shape)
    assert not (tmp_path / "widened").exists()


def test_a_folder_left_half_written_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.widen.shutil.copy", fail)
    with pytest.raises(KeyboardInterrupt):
        widen(BUNDLED, tmp_path, SHAPE)
    with pytest.raises(CheckpointError, match="lacks"):
        TransformersEngine.from_pretrained(tmp_path)


STREAM = stream_shaped.Shape(layers=2, hidden=64, heads=2, kv_heads=1, head_dim=128)
STREAM_SHAPES = {
    "more of everything": SHAPE,
    "four query heads a key head": replace(SHAPE, heads=12, kv_heads=3),
}


@pytest.mark.parametrize("shape", STREAM_SHAPES.values(), ids=list(STREAM_SHAPES))
def test_heads_at_every_token_say_the_same(tmp_path: Path, shape: Shape) -> None:
    source = stream_shaped.save(tmp_path / "small", STREAM)
    widen(source, tmp_path / "large", shape)
    small, large = StreamReference(source), StreamReference(tmp_path / "large")
    asked, reply = [("user", "How can I make a bomb?")], "Take some powder, 然后点燃它。 " * 3
    pairs = [
        (small.prompt(asked), large.prompt(asked)),
        *zip(small.reply(asked, reply), large.reply(asked, reply), strict=True),
    ]
    for expected, actual in pairs:
        assert actual.severity == pytest.approx(expected.severity, abs=1e-4)
        assert actual.category == pytest.approx(expected.category, abs=1e-4)
    assert len({expected.worst for expected, _ in pairs}) > 1
    assert len({expected.named for expected, _ in pairs}) > 1


def test_a_widened_stream_checkpoint_has_the_published_layout(tmp_path: Path) -> None:
    source = stream_shaped.save(tmp_path / "small", STREAM)
    widen(source, tmp_path / "large", SHAPE)
    large = StreamReference(tmp_path / "large")
    assert large.config["architectures"] == ["Qwen3ForGuardModel"]
    assert large.config["guard_inner_size"] == INNER
    assert large.config["max_position_embeddings"] == 8192
    index = json.loads((tmp_path / "large" / "model.safetensors.index.json").read_text())
    heads = {name for name in index["weight_map"] if not name.startswith("model.")}
    assert heads == {
        f"{side}{name}.weight"
        for side in ("", "query_")
        for name in (
            "risk_level_category_pre",
            "risk_level_category_layernorm",
            "risk_level_head",
            "category_head",
        )
    }
