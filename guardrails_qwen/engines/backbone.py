"""The layers of a Qwen3 model as plain tensor operations, without a say in what looks at what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from guardrails_qwen.engines.matmul import Linear, Precision, linear, native_bfloat16

_SUPPORTED_ROPE = {"default", "linear", "llama3", "yarn"}
"""Kinds of rotary embedding whose angles do not depend on the length of the sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The weights of one layer."""

    attention_norm: Tensor
    """[width]"""
    qkv: Linear
    """Queries, keys and values of all heads, in this order."""
    qk_norm: Tensor
    """[heads + key/value heads, head_dim]"""
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class Backbone:
    """The layers of a Qwen3 model, which it takes over from the library's module.

    Queries, keys and values are one multiplication, gate and up another; keys and values are never
    repeated for grouped heads. Attention is left to the caller.

    On a CPU activations are float32 and matrices are multiplied in `precision`; elsewhere all is in
    its dtype.

    Args:
        model: The library's `Qwen3Model`, which is empty afterwards.
        precision: What matrices are multiplied in.
    """

    def __init__(self, model: Any, precision: Precision) -> None:
        config: Any = model.config
        self.device: torch.device = model.device
        self.precision = precision
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.head_dim: int = config.head_dim
        self._eps: float = config.rms_norm_eps
        plain = self.device.type != "cpu" or precision is Precision.FLOAT16
        self.dtype = precision.dtype if plain else torch.float32
        narrow = precision in {Precision.BFLOAT16, Precision.INT8} and native_bfloat16()
        self.narrow_attention = narrow and not plain
        self.cache_dtype = torch.bfloat16 if self.narrow_attention else self.dtype
        """What keys and values are kept in."""
        self._rotary = _rotary(model, self.dtype)
        self.embedding = taken(model.embed_tokens, self.cache_dtype)
        """[vocabulary, width]"""
        self._norm = self._own(model.norm)
        self.layers = list(self._converted(model.layers))

    @property
    def bytes_a_token(self) -> int:
        """What keys and values of one token take, in all layers."""
        values = 2 * len(self.layers) * self.kv_heads * self.head_dim
        return values * self.cache_dtype.itemsize

    def embedded(self, ids: Tensor) -> Tensor:
        """Tokens [tokens] as the first layer takes them [tokens, width]."""
        return functional.embedding(ids, self.embedding).to(self.dtype)

    def rotary(self, positions: Tensor) -> Tensor:
        """Cosine and sine [2, tokens, 1, head_dim] of positions [tokens]."""
        return self._rotary[:, positions, None]

    def projected(self, layer: Layer, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [tokens, heads, head_dim], keys and values [tokens, kv heads, head_dim]."""
        heads = layer.qkv(self._normed(x, layer.attention_norm)).view(len(x), -1, self.head_dim)
        qk = self._normed(heads[:, : -self.kv_heads], None) * layer.qk_norm
        qk = _rotated(qk, rotary)
        return qk[:, : self.heads], qk[:, self.heads :], heads[:, -self.kv_heads :]

    def rest(self, layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
        """What the layer makes of its input and of what was attended to [tokens, all heads]."""
        x = x + layer.out(attended)
        gate, up = layer.gate_up(self._normed(x, layer.mlp_norm)).chunk(2, dim=-1)
        return x + layer.down(functional.silu(gate).mul_(up))

    def final(self, x: Tensor) -> Tensor:
        """The hidden states behind the last norm."""
        return self._normed(x, self._norm)

    def _normed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, self._eps)

    def _converted(self, layers: Any) -> Iterator[Layer]:
        """The layers, each freed in the module once it is taken, so that memory holds one twice."""
        for layer in layers:
            attention, mlp = layer.self_attn, layer.mlp
            norms = [(attention.q_norm, self.heads), (attention.k_norm, self.kv_heads)]
            yield Layer(
                attention_norm=self._own(layer.input_layernorm),
                qkv=self._linear(attention.q_proj, attention.k_proj, attention.v_proj),
                qk_norm=torch.cat([self._own(norm).expand(count, -1) for norm, count in norms]),
                out=self._linear(attention.o_proj),
                mlp_norm=self._own(layer.post_attention_layernorm),
                gate_up=self._linear(mlp.gate_proj, mlp.up_proj),
                down=self._linear(mlp.down_proj),
            )

    def _own(self, norm: Any) -> Tensor:
        return taken(norm, self.dtype)

    def _linear(self, *modules: Any) -> Linear:
        weight = torch.cat([module.weight.detach() for module in modules])
        for module in modules:
            module.weight = None
        return linear(weight, self.precision)


def unsupported(config: Any) -> str | None:
    """What in a configuration the backbone does not do, if anything."""
    parameters: dict[str, Any] = config.rope_parameters or {}
    rope = str(parameters.get("rope_type", "default"))
    if config.attention_bias:
        return "attention biases"
    if config.hidden_act != "silu":
        return f"the activation {config.hidden_act}"
    if config.use_sliding_window:
        return "sliding windows"
    return None if rope in _SUPPORTED_ROPE else f"rotary embeddings of type {rope}"


def taken(module: Any, dtype: torch.dtype) -> Tensor:
    """A module's weight, which it has no more: a view would keep all of a mapped file in memory."""
    weight: Tensor = module.weight.detach()
    module.weight = None
    return weight.to(dtype, copy=True)


def _rotary(model: Any, dtype: torch.dtype) -> Tensor:
    """Cosine and sine [2, context, head_dim] of every position, as the library has them."""
    positions = torch.arange(model.config.max_position_embeddings or 0, device=model.device)
    like = torch.empty(0, dtype=dtype, device=model.device)
    with torch.inference_mode():
        return torch.stack(model.rotary_emb(like, positions[None]))[:, 0]


def _rotated(x: Tensor, rotary: Tensor) -> Tensor:
    """Heads [tokens, heads, head_dim], turned by its position."""
    first, second = x.chunk(2, dim=-1)
    half = first.shape[-1]  # cosine and sine are the same for both halves
    turned = x * rotary[0]
    turned[..., :half].addcmul_(second, rotary[1, ..., :half], value=-1)
    turned[..., half:].addcmul_(first, rotary[1, ..., half:])
    return turned
