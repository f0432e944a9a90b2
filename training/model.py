"""The shape of tiny-gen, and how its weights are written in 16 bit."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM


def config(tokenizer: Any) -> Qwen3Config:
    """The shape: head_dim 128 and two query heads a key/value head, as in the real models."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        attention_bias=False,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def save(
    model: Qwen3ForCausalLM, folder: Path, verdicts: Callable[[Qwen3ForCausalLM], list[int]]
) -> None:
    """Write the weights in the 16-bit type whose verdicts agree best with float32, and say so."""
    expected = verdicts(model)
    rounded: dict[str, Qwen3ForCausalLM] = {}
    changed: dict[str, int] = {}
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        rounded[name] = copy.deepcopy(model).to(dtype)  # pyright: ignore[reportCallIssue, reportArgumentType]
        found = verdicts(copy.deepcopy(rounded[name]).float())
        changed[name] = sum(a != b for a, b in zip(expected, found, strict=True))
    print(f"verdicts changed by rounding, of {len(expected)}: {changed}", flush=True)
    best = rounded[min(changed, key=lambda name: changed[name])]
    best.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        max_new_tokens=32,
    )
    best.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)
