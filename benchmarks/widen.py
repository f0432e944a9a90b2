"""The bundled checkpoints in the shape of real ones: `python -m benchmarks.widen 0.6B FOLDER`.

Real weights cannot be had everywhere, and the speed of a model depends on its shape only. So a
small checkpoint is widened without changing its function: what it computes stays in the first
residual dimensions, heads, channels and tokens of a larger model, and everything else is random but
leads nowhere. A benchmark then measures a real size, and its verdicts are still the small model's.

- The residual stream is padded with zeros. Its mean square shrinks by d/D, for which the norms'
  weights, their epsilon, and the projections in front of the norms of query and key make up.
- Unused heads and channels end in zero columns of `o_proj` and `down_proj`; in an added layer both
  are zero, so that it passes on what it gets.
- A padded token is random in the padded dimensions, where the final state is zero: its logit is
  exactly 0. It would win only where the best of the real logits is negative; over 250 prompts and
  replies that is never below 3.8 at any position, and 17 where the answer begins.
- The heads of Qwen3Guard-Stream read a final state that is the small one's, padded with zeros. What
  they make of it is padded in turn, for which their own norm makes up in the same way.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import guardrails_qwen

_CHECKPOINTS = Path(guardrails_qwen.__file__).parent / "checkpoints"
BUNDLED = _CHECKPOINTS / "tiny-gen"
BUNDLED_STREAM = _CHECKPOINTS / "tiny-stream"

_COPIED = ("tokenizer.json", "generation_config.json", "chat_template.jinja")

_ORIGIN = "widened_from"

HEAD_DIM = 128
"""Of every attention head, in every size of Qwen3 and in the bundled checkpoints."""

INNER = 512
"""`guard_inner_size` of Qwen3Guard-Stream-0.6B. Larger shapes get it as well: against their layers
the heads cost nothing."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of a Qwen3 model, whose heads have 128 dimensions in every size."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    """Whether the output layer is the embedding."""

    @classmethod
    def of(cls, folder: Path) -> Shape:
        """The shape of the checkpoint in a folder."""
        config = json.loads((folder / "config.json").read_text())
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=config["tie_word_embeddings"],
        )

    @property
    def multiplied(self) -> int:
        """Weights that every token is multiplied by: all but embedding and output layer."""
        attention = self.hidden * HEAD_DIM * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def scoring(self) -> int:
        """Weights of the output layer, which only the positions that are read need."""
        return self.vocabulary * self.hidden


SHAPES = {
    "0.6B": Shape(
        layers=28,
        hidden=1024,
        heads=16,
        kv_heads=8,
        intermediate=3072,
        vocabulary=151936,
        tied=True,
    ),
    "4B": Shape(
        layers=36,
        hidden=2560,
        heads=32,
        kv_heads=8,
        intermediate=9728,
        vocabulary=151936,
        tied=True,
    ),
    "8B": Shape(
        layers=36,
        hidden=4096,
        heads=32,
        kv_heads=8,
        intermediate=12288,
        vocabulary=151936,
        tied=False,
    ),
}
"""Those that Qwen3Guard is published in, from the configurations of Qwen3."""


def widen(
    source: Path,
    target: Path,
    shape: Shape,
    *,
    dtype: torch.dtype = torch.float32,
    context: int | None = None,
) -> None:
    """Write the checkpoint `source` into the folder `target`, in another shape.

    Weights are written layer by layer, so that one layer, or the embedding, is in memory at a time.
    The configuration comes last: a folder that has one is complete.

    Args:
        context: In tokens; by default what is published, 32,768 and, for Stream, 8,192.

    Raises:
        ValueError: The shape has no room for the source.
    """
    small = Shape.of(source)
    config = json.loads((source / "config.json").read_text())
    stream = "guard_inner_size" in config
    context = context or (8192 if stream else 32768)
    _require_room(small, shape, stream=stream)
    target.mkdir(parents=True, exist_ok=True)
    library: Any = safetensors.torch  # its types are incomplete
    stored: Tensors = library.load_file(source / "model.safetensors")
    weights = {name: tensor.float() for name, tensor in stored.items()}
    heads = _heads(weights, small, shape) if stream else {}
    shards = _Widening(weights, small, shape, dtype, heads).shards()
    _write_shards(target, shards, shape.layers + 1)
    for name in _COPIED:
        if (source / name).exists():
            shutil.copy(source / name, target / name)
    tokenizer = json.loads((source / "tokenizer_config.json").read_text())
    _write_json(target / "tokenizer_config.json", tokenizer | {"model_max_length": context})
    config[_ORIGIN] = digest(source)
    made = _config(config, small, shape, dtype, context)
    own = {"guard_inner_size": INNER, "tie_word_embeddings": False} if stream else {}
    _write_json(target / "config.json", made | own)


def kept(
    target: Path, shape: Shape, *, dtype: torch.dtype = torch.float32, source: Path = BUNDLED
) -> Path:
    """A bundled checkpoint in that shape, in a folder that is written only if it has to be."""
    config = target / "config.json"
    if not config.exists() or json.loads(config.read_text()).get(_ORIGIN) != digest(source):
        config.unlink(missing_ok=True)
        widen(source, target, shape, dtype=dtype)
    return target


def digest(source: Path) -> str:
    """What tells one state of a checkpoint from another."""
    return hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()[:16]


def _require_room(small: Shape, large: Shape, *, stream: bool) -> None:
    for name in ("layers", "hidden", "kv_heads", "intermediate", "vocabulary"):
        if getattr(large, name) < getattr(small, name):
            raise ValueError(
                f"{name} is {getattr(large, name)}: use at least {getattr(small, name)}"
            )
    if large.heads // large.kv_heads < small.heads // small.kv_heads:
        raise ValueError(
            f"a key head serves {large.heads // large.kv_heads} query heads: "
            f"use at least {small.heads // small.kv_heads}"
        )
    if not small.tied and not stream:
        raise ValueError("the source has an output layer of its own, which is not handled")


def _config(
    config: dict[str, object], small: Shape, large: Shape, dtype: torch.dtype, context: int
) -> dict[str, object]:
    return config | {
        "num_hidden_layers": large.layers,
        "layer_types": ["full_attention"] * large.layers,
        "max_window_layers": large.layers,
        "hidden_size": large.hidden,
        "num_attention_heads": large.heads,
        "num_key_value_heads": large.kv_heads,
        "intermediate_size": large.intermediate,
        "vocab_size": large.vocabulary,
        "tie_word_embeddings": large.tied,
        "rms_norm_eps": float(str(config["rms_norm_eps"])) * small.hidden / large.hidden,
        "max_position_embeddings": context,
        "dtype": str(dtype).removeprefix("torch."),
        "demonstration": True,
    }


@dataclass(frozen=True, slots=True)
class _Axis:
    """One side of a large projection, and where on it the small one's entries go."""

    size: int
    used: torch.Tensor
    """Positions, one for each entry of the small projection."""

    @classmethod
    def first(cls, small: int, large: int) -> _Axis:
        return cls(large, torch.arange(small))

    @classmethod
    def query_heads(cls, small: Shape, large: Shape) -> _Axis:
        """Every query head goes where it shares the key head that it shared before."""
        heads = torch.arange(small.heads)
        shared = small.heads // small.kv_heads
        places = heads // shared * (large.heads // large.kv_heads) + heads % shared
        used = places[:, None] * HEAD_DIM + torch.arange(HEAD_DIM)
        return cls(large.heads * HEAD_DIM, used.flatten())


@dataclass(frozen=True, slots=True)
class _Projection:
    inputs: _Axis
    outputs: _Axis
    scale: float = 1
    adds: bool = False
    """Whether it writes to the residual stream, where nothing random may end up."""


class _Widening:
    """Makes the tensors of the large model; random numbers are the same in every run.

    Args:
        heads: What there is in place of an output layer: the heads of Qwen3Guard-Stream, widened.
    """

    def __init__(
        self, weights: Tensors, small: Shape, large: Shape, dtype: torch.dtype, heads: Tensors
    ) -> None:
        self.weights = weights
        self.heads = {name: tensor.to(dtype).contiguous() for name, tensor in heads.items()}
        self.small = small
        self.large = large
        self.dtype = dtype
        self.scale = math.sqrt(small.hidden / large.hidden)
        self.random = torch.Generator().manual_seed(0)

    def shards(self) -> Iterator[Tensors]:
        """The embedding, what reads the final state, then one layer after the other."""
        yield self._ends()
        real = {i * self.large.layers // self.small.layers: i for i in range(self.small.layers)}
        for index in range(self.large.layers):
            yield self._layer(index, real.get(index))

    def _ends(self) -> Tensors:
        large = self.large
        small = self.weights["model.embed_tokens.weight"]
        tokens, hidden = small.shape
        embedding = self._zeros(large.vocabulary, large.hidden)
        embedding[:tokens, :hidden] = small
        embedding[tokens:, hidden:].normal_(0, small.std().item(), generator=self.random)
        norm = self._norm("model.norm.weight")
        tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": norm, **self.heads}
        own = not large.tied and not self.heads
        return tensors | ({"lm_head.weight": embedding.clone()} if own else {})

    def _layer(self, index: int, real: int | None) -> Tensors:
        """A layer of the small model, or one that changes nothing if `real` is `None`."""
        like = f"model.layers.{real or 0}."
        made = {
            "input_layernorm": self._norm(like + "input_layernorm.weight"),
            "post_attention_layernorm": self._norm(like + "post_attention_layernorm.weight"),
            "self_attn.q_norm": self.weights[like + "self_attn.q_norm.weight"],
            "self_attn.k_norm": self.weights[like + "self_attn.k_norm.weight"],
        }
        for name, projection in self._projections().items():
            small = self.weights[f"{like}{name}.weight"]
            made[name] = self._projection(small, projection, real=real is not None)
        return {
            f"model.layers.{index}.{name}.weight": tensor.to(self.dtype).contiguous()
            for name, tensor in made.items()
        }

    def _projections(self) -> dict[str, _Projection]:
        small, large, dim = self.small, self.large, HEAD_DIM
        residual = _Axis.first(small.hidden, large.hidden)
        channels = _Axis.first(small.intermediate, large.intermediate)
        keys = _Axis.first(small.kv_heads * dim, large.kv_heads * dim)
        queries = _Axis.query_heads(small, large)
        return {
            "self_attn.q_proj": _Projection(residual, queries, scale=self.scale),
            "self_attn.k_proj": _Projection(residual, keys, scale=self.scale),
            "self_attn.v_proj": _Projection(residual, keys),
            "self_attn.o_proj": _Projection(queries, residual, adds=True),
            "mlp.gate_proj": _Projection(residual, channels),
            "mlp.up_proj": _Projection(residual, channels),
            "mlp.down_proj": _Projection(channels, residual, adds=True),
        }

    def _projection(
        self, small: torch.Tensor, projection: _Projection, *, real: bool
    ) -> torch.Tensor:
        """`[outputs, inputs]`: zero where it would add to the residual stream, else random."""
        inputs, outputs = projection.inputs, projection.outputs
        large = self._zeros(outputs.size, inputs.size)
        if not projection.adds:
            large.normal_(0, projection.scale * small.std().item(), generator=self.random)
        if real:
            fitted = (projection.scale * small).to(self.dtype)
            large[outputs.used[:, None], inputs.used[None, :]] = fitted
        return large

    def _norm(self, name: str) -> torch.Tensor:
        small = self.weights[name]
        large = torch.empty(self.large.hidden)
        large.normal_(small.mean().item(), small.std().item(), generator=self.random)
        large[: len(small)] = small
        return (large * self.scale).to(self.dtype)

    def _zeros(self, *size: int) -> torch.Tensor:
        return torch.zeros(*size, dtype=self.dtype)


def _heads(weights: Tensors, small: Shape, large: Shape) -> Tensors:
    """The eight tensors of Qwen3Guard-Stream for the large model's final state.

    The inner norm has the same epsilon as all others, which was made smaller for the residual
    stream. So what goes into it is scaled until its mean square has shrunk as much.
    """
    random = torch.Generator().manual_seed(1)
    made = Tensors()
    for side in ("", "query_"):
        name = f"{side}risk_level_category_pre.weight"
        pre = weights[name]
        inner, hidden = pre.shape
        ratio = math.sqrt(INNER / inner)
        scale = ratio * math.sqrt(small.hidden / large.hidden)
        made[name] = torch.zeros(INNER, large.hidden)
        made[name][:, hidden:].normal_(0, pre.std().item(), generator=random)
        made[name][:inner, :hidden] = scale * pre
        name = f"{side}risk_level_category_layernorm.weight"
        made[name] = torch.randn(INNER, generator=random) / ratio
        made[name][:inner] = weights[name] / ratio
        for name in (f"{side}risk_level_head.weight", f"{side}category_head.weight"):
            head = weights[name]
            made[name] = torch.empty(len(head), INNER)
            made[name].normal_(0, head.std().item(), generator=random)
            made[name][:, :inner] = head
    return made


def _write_shards(target: Path, shards: Iterator[Tensors], count: int) -> None:
    library: Any = safetensors.torch  # its types are incomplete
    places: dict[str, str] = {}
    size = 0
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{count:05}.safetensors"
        library.save_file(tensors, target / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    _write_json(target / "model.safetensors.index.json", index)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Widen a bundled checkpoint."""
    parser = argparse.ArgumentParser(description="A bundled checkpoint in a real shape.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--stream", action="store_true", help="Qwen3Guard-Stream, not Gen")
    options = parser.parse_args()
    dtype: torch.dtype = getattr(torch, options.dtype)
    source = BUNDLED_STREAM if options.stream else BUNDLED
    widen(source, options.folder, SHAPES[options.shape], dtype=dtype)


if __name__ == "__main__":
    main()
