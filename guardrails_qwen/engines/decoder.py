"""A Qwen3 decoder as plain tensor operations, for rows of packed prompts behind a shared prefix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3ForCausalLM

from guardrails_qwen.engines.matmul import Linear, Precision, linear, native_bfloat16, unpacked
from guardrails_qwen.engines.packing import Row

_SUPPORTED_ROPE = {"default", "linear", "llama3", "yarn"}
"""Kinds of rotary embedding whose angles do not depend on the length of the sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
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


class KeysValues:
    """Keys and values of what a row can look back at, in place for all layers.

    The first `past` positions stay; a row writes its own behind them, and the next row overwrites
    these. Nothing is copied to be looked at.

    Args:
        layout: Layers, key/value heads, positions that fit, head_dim.
        like: A tensor of their dtype and device.
    """

    def __init__(self, layout: tuple[int, int, int, int], like: Tensor) -> None:
        layers, heads, self.room, head_dim = layout
        self._buffer = like.new_zeros(layers, 2, heads, self.room, head_dim)

    @torch.inference_mode()
    def copy(self, other: KeysValues, past: int) -> None:
        """Take over the first `past` positions of another."""
        self._buffer[:, :, :, :past] = other._buffer[:, :, :, :past]

    def append(self, layer: int, past: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [tokens, heads, head_dim] behind `past`; all up to there [heads, all, head_dim]."""
        end = past + len(keys)
        own = self._buffer[layer, :, :, :end]
        own[0, :, past:] = keys.transpose(0, 1)
        own[1, :, past:] = values.transpose(0, 1)
        return own[0], own[1]


class Decoder:
    """The layers of a Qwen3 model, which it takes over from the library's module.

    Queries, keys and values are one multiplication, gate and up another; keys and values are never
    repeated for grouped heads; the last layer goes on only at the positions that are read.

    On a CPU activations are float32 and matrices are multiplied in `precision`; elsewhere all is in
    its dtype.
    """

    def __init__(self, model: Qwen3ForCausalLM, precision: Precision) -> None:
        config: Any = model.config
        self.device = model.device
        self.precision = precision
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._head_dim: int = config.head_dim
        self._eps: float = config.rms_norm_eps
        plain = self.device.type != "cpu" or precision is Precision.FLOAT16
        self._dtype = precision.dtype if plain else torch.float32
        narrow = precision in {Precision.BFLOAT16, Precision.INT8} and native_bfloat16()
        self._narrow_attention = narrow and not plain
        self._rotary = _rotary(model, self._dtype)
        inner: Any = model.model
        tied = model.lm_head.weight is inner.embed_tokens.weight
        wide = torch.bfloat16 if self._narrow_attention else self._dtype
        if tied:
            model.lm_head.weight = None  # pyright: ignore[reportAttributeAccessIssue]
        self._embedding = _taken(inner.embed_tokens, wide)
        self._head = self._embedding if tied else _taken(model.lm_head, wide)
        self._score = unpacked(self._head)
        self._norm = self._own(inner.norm)
        self._layers = list(self._converted(inner.layers))

    @torch.inference_mode()
    def __call__(self, row: Row, past: int, behind: KeysValues) -> Tensor:
        """Final hidden states [reads, width] of a row, at `row.reads`."""
        rotary = self._rotary[:, row.positions, None]
        mask = self._mask(row.mask)
        x = functional.embedding(row.ids, self._embedding).to(self._dtype)
        *layers, last = enumerate(self._layers)
        for index, layer in layers:
            q, keys, values = self._qkv(layer, x, rotary, behind, index, past)
            x = self._rest(layer, x, self._attend(q, keys, values, mask))
        q, keys, values = self._qkv(last[1], x, rotary, behind, last[0], past)
        mask = self._mask(row.mask[row.reads])
        x = self._rest(last[1], x[row.reads], self._attend(q[row.reads], keys, values, mask))
        return self._normed(x, self._norm)

    @torch.inference_mode()
    def keys_values(self, room: int) -> KeysValues:
        """Room for the keys and values of so many positions."""
        dtype = torch.bfloat16 if self._narrow_attention else self._dtype
        like = torch.empty(0, dtype=dtype, device=self.device)
        return KeysValues((len(self._layers), self._kv_heads, room, self._head_dim), like)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Logits [reads, tokens] of some tokens [tokens], in float32."""
        return hidden.float() @ self._head[tokens].float().t()

    @torch.inference_mode()
    def likeliest(self, hidden: Tensor) -> Tensor:
        """The likeliest of all tokens [reads]."""
        return self._score(hidden).argmax(-1)

    def _qkv(  # noqa: PLR0913, PLR0917
        self, layer: _Layer, x: Tensor, rotary: Tensor, behind: KeysValues, index: int, past: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        projected = layer.qkv(self._normed(x, layer.attention_norm))
        heads = projected.view(len(x), -1, self._head_dim)
        qk = self._normed(heads[:, : -self._kv_heads], None) * layer.qk_norm
        qk = _rotated(qk, rotary)
        return (
            qk[:, : self._heads],
            *behind.append(index, past, qk[:, self._heads :], heads[:, -self._kv_heads :]),
        )

    def _rest(self, layer: _Layer, x: Tensor, attended: Tensor) -> Tensor:
        x = x + layer.out(attended)
        gate, up = layer.gate_up(self._normed(x, layer.mlp_norm)).chunk(2, dim=-1)
        return x + layer.down(functional.silu(gate).mul_(up))

    def _normed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, self._eps)

    def _mask(self, visible: Tensor) -> Tensor:
        """What is added to attention scores [groups · tokens, all]: 0 or minus infinity."""
        dtype = torch.bfloat16 if self._narrow_attention else self._dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        mask.masked_fill_(~visible, -torch.inf)
        return mask.repeat(self._heads // self._kv_heads, 1)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention of queries [tokens, heads, head_dim] to [kv heads, all, head_dim].

        Query heads of one key/value head are laid end to end, so that nothing is repeated.
        """
        grouped = q.view(len(q), self._kv_heads, -1, self._head_dim).permute(1, 2, 0, 3)
        folded = grouped.reshape(self._kv_heads, -1, self._head_dim)
        if self._narrow_attention:
            folded = folded.to(keys.dtype)
            scores = torch.baddbmm(mask, folded, keys.transpose(1, 2), alpha=self._head_dim**-0.5)
            attended = torch.bmm(scores.softmax(-1), values)  # faster on a CPU than the below
        else:
            attended = functional.scaled_dot_product_attention(
                folded[None], keys[None], values[None], attn_mask=mask
            )
        return attended.view(grouped.shape).permute(2, 0, 1, 3).reshape(len(q), -1).to(q.dtype)

    def _converted(self, layers: Any) -> Iterator[_Layer]:
        """The layers, each freed in the module once it is taken, so that memory holds one twice."""
        for layer in layers:
            attention, mlp = layer.self_attn, layer.mlp
            norms = [(attention.q_norm, self._heads), (attention.k_norm, self._kv_heads)]
            yield _Layer(
                attention_norm=self._own(layer.input_layernorm),
                qkv=self._linear(attention.q_proj, attention.k_proj, attention.v_proj),
                qk_norm=torch.cat([self._own(norm).expand(count, -1) for norm, count in norms]),
                out=self._linear(attention.o_proj),
                mlp_norm=self._own(layer.post_attention_layernorm),
                gate_up=self._linear(mlp.gate_proj, mlp.up_proj),
                down=self._linear(mlp.down_proj),
            )

    def _own(self, norm: Any) -> Tensor:
        return _taken(norm, self._dtype)

    def _linear(self, *modules: Any) -> Linear:
        weight = torch.cat([module.weight.detach() for module in modules])
        for module in modules:
            module.weight = None
        return linear(weight, self.precision)


def unsupported(config: Any) -> str | None:
    """What in a configuration the decoder does not do, if anything."""
    parameters: dict[str, Any] = config.rope_parameters or {}
    rope = str(parameters.get("rope_type", "default"))
    if config.attention_bias:
        return "attention biases"
    if config.hidden_act != "silu":
        return f"the activation {config.hidden_act}"
    if config.use_sliding_window:
        return "sliding windows"
    return None if rope in _SUPPORTED_ROPE else f"rotary embeddings of type {rope}"


def _taken(module: Any, dtype: torch.dtype) -> Tensor:
    """A module's weight, which it has no more: a view would keep all of a mapped file in memory."""
    weight: Tensor = module.weight.detach()
    module.weight = None
    return weight.to(dtype, copy=True)


def _rotary(model: Qwen3ForCausalLM, dtype: torch.dtype) -> Tensor:
    """Cosine and sine [2, context, head_dim] of every position, as the library has them."""
    positions = torch.arange(model.config.max_position_embeddings or 0, device=model.device)
    like = torch.empty(0, dtype=dtype, device=model.device)
    rotary: Any = model.model.rotary_emb
    with torch.inference_mode():
        return torch.stack(rotary(like, positions[None]))[:, 0]


def _rotated(x: Tensor, rotary: Tensor) -> Tensor:
    """Heads [tokens, heads, head_dim], turned by its position."""
    first, second = x.chunk(2, dim=-1)
    half = first.shape[-1]  # cosine and sine are the same for both halves
    turned = x * rotary[0]
    turned[..., :half].addcmul_(second, rotary[1, ..., :half], value=-1)
    turned[..., half:].addcmul_(first, rotary[1, ..., half:])
    return turned
