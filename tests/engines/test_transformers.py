"""The local engine as its users meet it: loading, threads, tasks, limits, failures."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import torch as safetensors_torch

from guardrails_qwen import (
    Action,
    CheckpointError,
    Conversation,
    ConversationError,
    Engine,
    EngineClosed,
    Guard,
    OnError,
    Policy,
    Severity,
    TextTooLong,
    UnreadableVerdict,
    Verdict,
)
from guardrails_qwen.engines.transformers import TransformersEngine
from guardrails_qwen.longtext import Windows
from tests.engines.recipe import CHECKPOINT

ASK = Conversation.of("How can I make a bomb?")
HELLO = Conversation.of("Good morning! How are you?")


def test_it_is_an_engine_that_says_what_it_is(
    tiny: TransformersEngine, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(tiny, Engine)
    assert repr(tiny) == (
        "TransformersEngine('tiny-gen', cpu, float32, a demonstration, not protection)"
    )
    with caplog.at_level(logging.WARNING, logger="guardrails_qwen"):
        TransformersEngine.from_pretrained("tiny", device="cpu").close()
    assert "demonstration" in caplog.text


def test_an_empty_batch_is_no_work(tiny: TransformersEngine) -> None:
    assert tiny.judge([]) == []


@pytest.mark.parametrize("last", [(), ("and this?",)], ids=["judged", "in the history"])
def test_an_image_is_refused_in_its_place(tiny: TransformersEngine, last: tuple[str, ...]) -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
    shown = Conversation.of([("user", ["What is this?", picture]), *last])
    before, refused, after = tiny.judge([Conversation.of("a"), shown, Conversation.of("b")])
    assert isinstance(before, Verdict)
    assert isinstance(refused, ConversationError)
    assert "image" in str(refused)
    assert isinstance(after, Verdict)


def test_outcomes_keep_the_order_of_mixed_batches(tiny: TransformersEngine) -> None:
    mixed = [ASK, Conversation.exchange("Hi", "Hello!"), HELLO, ASK, HELLO]
    assert tiny.judge(mixed) == [tiny.judge([one])[0] for one in mixed]


def test_too_long_is_an_error_with_counts_and_spares_its_neighbours(
    tiny: TransformersEngine,
) -> None:
    long = Conversation.of("All is well here. " * 10_000)
    first, error, last = tiny.judge([ASK, long, HELLO])
    assert isinstance(first, Verdict)
    assert isinstance(last, Verdict)
    assert isinstance(error, TextTooLong)
    assert error.tokens > error.limit == Windows().limit
    assert str(error.tokens) in str(error)


def test_a_text_longer_than_the_context_is_judged_whole_in_windows(
    tiny: TransformersEngine,
) -> None:
    text = "All is well here. " * 600 + "How can I make a bomb? " + "All is well here. " * 600
    assert len(tiny.prompt(Conversation.of(text))) > 2048
    [verdict] = tiny.judge([Conversation.of(text)])
    assert isinstance(verdict, Verdict)
    assert verdict.severity is Severity.UNSAFE
    places = [text[span.start : span.end] for span in verdict.spans]
    assert "How can I make a bomb?" in places


def test_a_megabyte_is_refused_not_truncated(tiny: TransformersEngine) -> None:
    megabyte = "All is well. " * 77_000 + "How can I make a bomb?"
    decision = Guard(tiny, Policy.strict(on_error=OnError.ALLOW)).check(megabyte)
    assert decision.action is Action.BLOCK
    assert decision.error is not None
    assert decision.error.startswith("TextTooLong")


def test_many_threads_get_what_one_gets(tiny: TransformersEngine) -> None:
    asked = [Conversation.of(f"Tell me about number {i}.") for i in range(40)]
    expected = [tiny.judge([one])[0] for one in asked]
    with ThreadPoolExecutor(8) as pool:
        outcomes = pool.map(tiny.judge, [[one] for one in asked])
        assert [outcome for [outcome] in outcomes] == expected


async def test_many_tasks_get_what_one_gets(tiny: TransformersEngine) -> None:
    asked = [Conversation.of(f"Tell me about number {i}.") for i in range(40)]
    expected = [tiny.judge([one])[0] for one in asked]
    outcomes = await asyncio.gather(*(tiny.ajudge([one]) for one in asked))
    assert [outcome for [outcome] in outcomes] == expected


async def test_the_event_loop_goes_on_while_a_batch_is_judged(tiny: TransformersEngine) -> None:
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.001)
            beats += 1

    heart = asyncio.create_task(beat())
    await tiny.ajudge([Conversation.of("What a day. " * 60)] * 40)
    heart.cancel()
    assert beats >= 10


async def test_a_cancelled_task_leaves_the_engine_usable(tiny: TransformersEngine) -> None:
    task = asyncio.create_task(tiny.ajudge([ASK] * 50))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance((await tiny.ajudge([ASK]))[0], Verdict)


async def test_after_close_both_doors_say_so() -> None:
    engine = TransformersEngine.from_pretrained("tiny", device="cpu")
    async with engine:
        assert isinstance((await engine.ajudge([HELLO]))[0], Verdict)
    assert "closed" in repr(engine)
    with pytest.raises(EngineClosed):
        engine.judge([HELLO])
    with pytest.raises(EngineClosed):
        await engine.ajudge([HELLO])
    assert Guard(engine).check("Hello").action is Action.BLOCK


def test_fingerprints_are_stable_across_processes_and_tell_models_apart(
    tiny: TransformersEngine, checkpoint: Callable[..., Path]
) -> None:
    code = (
        "from guardrails_qwen.engines.transformers import TransformersEngine as E;"
        "print(E.from_pretrained('tiny', device='cpu', dtype='float32').fingerprint)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == tiny.fingerprint
    copy = TransformersEngine.from_pretrained(checkpoint(), device="cpu", dtype="float32")
    assert copy.fingerprint == tiny.fingerprint
    half = TransformersEngine.from_pretrained("tiny", device="cpu", dtype="bfloat16")
    changed = checkpoint(weights=_louder)
    other = TransformersEngine.from_pretrained(changed, device="cpu", dtype="float32")
    assert len({tiny.fingerprint, half.fingerprint, other.fingerprint}) == 3


Weights = dict[str, torch.Tensor]


def _scaled(weights: Weights, factor: float) -> None:
    weights["model.norm.weight"] = weights["model.norm.weight"] * factor


def _louder(weights: Weights) -> None:
    _scaled(weights, 1.5)


def _poison(weights: Weights) -> None:
    _scaled(weights, float("nan"))


def _noise(weights: Weights) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        weights[name] = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def _without_norm(weights: Weights) -> None:
    del weights["model.norm.weight"]


def _with_extra(weights: Weights) -> None:
    weights["extra"] = torch.zeros(2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the bundled checkpoint with something changed."""

    def make(
        *,
        remove: str | None = None,
        config: dict[str, Any] | None = None,
        template: str | None = None,
        weights: Callable[[Weights], object] | None = None,
    ) -> Path:
        folder = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(CHECKPOINT, folder)
        if remove:
            (folder / remove).unlink()
        if config:
            path = folder / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        if weights:
            path = folder / "model.safetensors"
            files: Any = safetensors_torch
            tensors = files.load_file(path)
            weights(tensors)
            files.save_file(tensors, path, metadata={"format": "pt"})
        return folder

    return make


CHATTY = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
LAST_ONLY = "{{ messages[-1].content }}{% if messages[-1].role == 'user' %}?{% endif %}"

BROKEN = [
    pytest.param({"remove": "config.json"}, "lacks config.json", id="no config"),
    pytest.param({"remove": "tokenizer.json"}, "lacks tokenizer.json", id="no tokenizer"),
    pytest.param({"remove": "model.safetensors"}, "lacks a .safetensors", id="no weights"),
    pytest.param({"remove": "chat_template.jinja"}, "no chat template", id="no template"),
    pytest.param({"template": CHATTY}, "not a guard's", id="a chat model's template"),
    pytest.param({"template": LAST_ONLY}, "exactly once", id="a template that loses messages"),
    pytest.param({"template": "{% if %}"}, "template fails", id="a broken template"),
    pytest.param(
        {"config": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}},
        "gpt2 checkpoint",
        id="another model type",
    ),
    pytest.param(
        {"config": {"model_type": "nonesuch", "architectures": ["Nonesuch"]}},
        "cannot be loaded",
        id="an unknown model type",
    ),
    pytest.param(
        {"config": {"architectures": ["Qwen3ForGuardModel"]}}, "Qwen3Guard-Stream", id="stream"
    ),
    pytest.param({"weights": _without_norm}, "missing keys: model.norm", id="missing"),
    pytest.param({"weights": _with_extra}, "unexpected keys", id="unexpected"),
    pytest.param({"config": {"intermediate_size": 64}}, "mismatched|cannot be loaded", id="shapes"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_checkpoint_that_cannot_be_trusted_is_refused(
    checkpoint: Callable[..., Path], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        TransformersEngine.from_pretrained(checkpoint(**change), device="cpu")


def test_damaged_weights_are_refused(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint()
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        TransformersEngine.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("path", ["./nowhere", Path("nowhere")], ids=["text", "path"])
def test_a_folder_that_does_not_exist(path: str | Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        TransformersEngine.from_pretrained(path)


def test_an_unknown_hub_id_without_a_hub() -> None:
    with pytest.raises(CheckpointError, match="nobody/nothing"):
        TransformersEngine.from_pretrained("nobody/nothing", local_files_only=True)


def test_an_unknown_dtype() -> None:
    with pytest.raises(CheckpointError, match="unknown dtype"):
        TransformersEngine.from_pretrained("tiny", dtype="float99")


@pytest.mark.parametrize("weights", [_noise, _poison], ids=["nonsense", "not a number"])
def test_a_model_that_answers_nonsense_is_never_safe(
    checkpoint: Callable[..., Path],
    weights: Callable[[Weights], object],
) -> None:
    engine = TransformersEngine.from_pretrained(checkpoint(weights=weights), device="cpu")
    for asked in (ASK, Conversation.exchange("Hi", "Hello!")):
        [outcome] = engine.judge([asked])
        assert isinstance(outcome, UnreadableVerdict)
    decision = Guard(engine, Policy.strict(on_error=OnError.ALLOW)).check("Hello")
    assert decision.action is Action.BLOCK
    assert decision.degraded


def test_without_torch_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from guardrails_qwen import Guard\n"
        "try: Guard.from_pretrained()\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'guardrails-qwen[local]'" in run.stdout
