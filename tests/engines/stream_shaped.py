"""Very small checkpoints in the published layout of Qwen3Guard-Stream, with random weights.

What they say is arbitrary, and changes from token to token, which is what a comparison of two ways
to compute it needs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import Qwen3Config, Qwen3Model

import guardrails_qwen

RISKS = ("Safe", "Unsafe", "Controversial")
CATEGORIES = (
    "Violent",
    "Sexual Content",
    "Self-Harm",
    "Political",
    "PII",
    "Copyright",
    "Illegal Acts",
    "Unethical",
)
QUERY_CATEGORIES = (*CATEGORIES, "Jailbreak")
"""Names and order as published."""

CHAT_TEMPLATE = (
    "{% for said in messages %}"
    "{{ '<|im_start|>' + said.role + '\n' }}"
    "{% if loop.last and said.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ said.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""The chat format of Qwen3, without tools."""

Tensors = dict[str, torch.Tensor]

TOKENIZER = Path(guardrails_qwen.__file__).parent / "checkpoints" / "tiny-gen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """In what checkpoints of the family differ."""

    layers: int = 2
    hidden: int = 48
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    intermediate: int = 96
    vocabulary: int = 8000
    """8,000 at least, which is what the tokenizer has."""
    inner: int = 24
    """Of the heads: `guard_inner_size`."""
    context: int = 8192
    risks: Sequence[str] = RISKS
    """By index."""
    categories: Sequence[str] = CATEGORIES
    query_categories: Sequence[str] = QUERY_CATEGORIES
    seed: int = 0
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Oddity:
    """What a checkpoint of the family does not have, or has and should not."""

    without: Sequence[str] = ()
    """Names of tensors that are left out."""
    added: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    """Tensors by name; those that exist are replaced."""
    config: Mapping[str, object] = field(default_factory=dict[str, object])
    """Fields of the configuration; None removes one."""


def save(folder: Path, shape: Shape | None = None, oddity: Oddity | None = None) -> Path:
    """Write a checkpoint into the folder; the same weights for the same shape."""
    shape, oddity = shape or Shape(), oddity or Oddity()
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v for k, v in _weights(shape).items() if k not in oddity.without}
    library: Any = safetensors.torch  # its types are incomplete
    library.save_file(
        weights | dict(oddity.added), folder / "model.safetensors", metadata={"format": "pt"}
    )
    config = {**_config(shape), **oddity.config}
    _write(folder / "config.json", {k: v for k, v in config.items() if v is not None})
    shutil.copy(TOKENIZER / "tokenizer.json", folder / "tokenizer.json")
    described = json.loads((TOKENIZER / "tokenizer_config.json").read_text())
    _write(folder / "tokenizer_config.json", described | {"model_max_length": shape.context})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return folder


def backbone_config(shape: Shape) -> dict[str, Any]:
    """The fields that every Qwen3 model has."""
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": 7997,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.context,
        "max_window_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pad_token_id": 7995,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": shape.vocabulary,
    }


def _config(shape: Shape) -> dict[str, object]:
    return {
        **backbone_config(shape),
        "architectures": ["Qwen3ForGuardModel"],
        "dtype": str(shape.dtype).removeprefix("torch."),
        "guard_inner_size": shape.inner,
        "model_type": "qwen3",
        "num_category": len(shape.categories),
        "num_query_category": len(shape.query_categories),
        "num_query_risk_level": len(shape.risks),
        "num_risk_level": len(shape.risks),
        "query_category_map": _map(shape.query_categories),
        "query_risk_level_map": _map(shape.risks),
        "response_category_map": _map(shape.categories),
        "response_risk_level_map": _map(shape.risks),
        "use_cache": False,
    }


def _map(names: Sequence[str]) -> dict[str, str]:
    return {str(index): name for index, name in enumerate(names)}


def _weights(shape: Shape) -> Tensors:
    """The backbone and the eight tensors, so large that every token matters to those behind it."""
    random = torch.Generator().manual_seed(shape.seed)
    library: Any = Qwen3Config
    with torch.device("meta"):
        backbone = Qwen3Model(library(**backbone_config(shape)))
    weights = {f"model.{name}": like.shape for name, like in backbone.state_dict().items()}
    for side, categories in (("", shape.categories), ("query_", shape.query_categories)):
        weights |= {
            f"{side}risk_level_category_pre.weight": torch.Size([shape.inner, shape.hidden]),
            f"{side}risk_level_category_layernorm.weight": torch.Size([shape.inner]),
            f"{side}risk_level_head.weight": torch.Size([len(shape.risks), shape.inner]),
            f"{side}category_head.weight": torch.Size([len(categories), shape.inner]),
        }
    return {name: _random(size, random).to(shape.dtype) for name, size in weights.items()}


def _random(size: torch.Size, random: torch.Generator) -> torch.Tensor:
    """Around 1 for a norm, else so that what comes out is about as large as what goes in."""
    if len(size) == 1:
        return 1 + 0.2 * torch.randn(size, generator=random)
    return torch.randn(size, generator=random) / size[1] ** 0.5


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
