"""A Qwen3 decoder as plain tensor operations, for rows of packed prompts behind a shared prefix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3ForCausalLM

from guardrails_qwen.engines.backbone import Backbone, taken
from guardrails_qwen.engines.matmul import Precision, unpacked
from guardrails_qwen.engines.packing import Row


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


class Decoder(Backbone):
    """A backbone that runs rows and scores tokens; its last layer goes on only where it is read."""

    def __init__(self, model: Qwen3ForCausalLM, precision: Precision) -> None:
        tied = model.lm_head.weight is model.model.embed_tokens.weight
        if tied:
            model.lm_head.weight = None  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__(model.model, precision)
        self._head = self.embedding if tied else taken(model.lm_head, self.cache_dtype)
        self._score = unpacked(self._head)

    @torch.inference_mode()
    def __call__(self, row: Row, past: int, behind: KeysValues) -> Tensor:
        """Final hidden states [reads, width] of a row, at `row.reads`."""
        rotary = self.rotary(row.positions)
        mask = self._mask(row.mask)
        x = self.embedded(row.ids)
        *layers, last = enumerate(self.layers)
        for index, layer in layers:
            q, keys, values = self.projected(layer, x, rotary)
            attended = self._attend(q, *behind.append(index, past, keys, values), mask)
            x = self.rest(layer, x, attended)
        q, keys, values = self.projected(last[1], x, rotary)
        mask = self._mask(row.mask[row.reads])
        attended = self._attend(q[row.reads], *behind.append(last[0], past, keys, values), mask)
        return self.final(self.rest(last[1], x[row.reads], attended))

    @torch.inference_mode()
    def keys_values(self, room: int) -> KeysValues:
        """Room for the keys and values of so many positions."""
        like = torch.empty(0, dtype=self.cache_dtype, device=self.device)
        return KeysValues((len(self.layers), self.kv_heads, room, self.head_dim), like)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Logits [reads, tokens] of some tokens [tokens], in float32."""
        return hidden.float() @ self._head[tokens].float().t()

    @torch.inference_mode()
    def likeliest(self, hidden: Tensor) -> Tensor:
        """The likeliest of all tokens [reads]."""
        return self._score(hidden).argmax(-1)

    def _mask(self, visible: Tensor) -> Tensor:
        """What is added to attention scores [groups · tokens, all]: 0 or minus infinity."""
        mask = torch.zeros(visible.shape, dtype=self.cache_dtype, device=visible.device)
        mask.masked_fill_(~visible, -torch.inf)
        return mask.repeat(self.heads // self.kv_heads, 1)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention of queries [tokens, heads, head_dim] to [kv heads, all, head_dim].

        Query heads of one key/value head are laid end to end, so that nothing is repeated.
        """
        grouped = q.view(len(q), self.kv_heads, -1, self.head_dim).permute(1, 2, 0, 3)
        folded = grouped.reshape(self.kv_heads, -1, self.head_dim)
        if self.narrow_attention:
            folded = folded.to(keys.dtype)
            scores = torch.baddbmm(mask, folded, keys.transpose(1, 2), alpha=self.head_dim**-0.5)
            attended = torch.bmm(scores.softmax(-1), values)  # faster on a CPU than the below
        else:
            attended = functional.scaled_dot_product_attention(
                folded[None], keys[None], values[None], attn_mask=mask
            )
        return attended.view(grouped.shape).permute(2, 0, 1, 3).reshape(len(q), -1).to(q.dtype)
