"""Stretches of many texts in one forward pass, each behind keys and values of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from guardrails_qwen.engines.backbone import Backbone


class TextCache:
    """The keys and values of one text, in place for all layers; it grows.

    Args:
        backbone: Whose they are.
        room: Positions that fit.
    """

    def __init__(self, backbone: Backbone, room: int) -> None:
        shape = (len(backbone.layers), 2 * backbone.kv_heads, room, backbone.head_dim)
        self.tensor = torch.zeros(shape, dtype=backbone.cache_dtype, device=backbone.device)
        """[layers, keys and values of all heads, room, head_dim]"""

    @property
    def room(self) -> int:
        """Positions that fit."""
        return self.tensor.shape[2]

    @torch.inference_mode()
    def grow(self, room: int, used: int) -> None:
        """Make room for so many positions, and keep the first `used`."""
        layers, heads, _, head_dim = self.tensor.shape
        larger = self.tensor.new_zeros(layers, heads, room, head_dim)
        larger[:, :, :used] = self.tensor[:, :, :used]
        self.tensor = larger

    @torch.inference_mode()
    def copy(self, used: int) -> TextCache:
        """Another one that begins with the same `used` positions."""
        other = object.__new__(TextCache)
        other.tensor = torch.zeros_like(self.tensor)
        other.tensor[:, :, :used] = self.tensor[:, :, :used]
        return other


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Tokens of a text behind `past` others, whose keys and values are in its cache.

    Its own are written behind these, over whatever is there: to run it twice does no harm.
    """

    cache: TextCache
    past: int
    ids: Sequence[int] = field(repr=False)

    @property
    def end(self) -> int:
        """Positions that are in use afterwards."""
        return self.past + len(self.ids)


class Ragged:
    """Runs stretches of texts side by side: whatever weighs is done for all of them at once.

    Only attention goes text by text, because each looks back at another length; nothing is padded
    and no key or value is ever copied.

    Args:
        backbone: The model.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    @torch.inference_mode()
    def __call__(self, stretches: Sequence[Stretch]) -> Tensor:
        """Final hidden states [tokens of all stretches, width], in order; caches are distinct."""
        model, device = self.backbone, self.backbone.device
        lengths = [len(stretch.ids) for stretch in stretches]
        ids = torch.tensor([token for stretch in stretches for token in stretch.ids])
        spans = [torch.arange(stretch.past, stretch.end) for stretch in stretches]
        rotary = model.rotary(torch.cat(spans).to(device))
        masks = [self._mask(stretch) for stretch in stretches]
        caches = [stretch.cache.tensor[:, :, : stretch.end].unbind(0) for stretch in stretches]
        x = model.embedded(ids.to(device))
        for index, layer in enumerate(model.layers):
            q, keys, values = model.projected(layer, x, rotary)
            new = torch.cat([keys, values], 1).transpose(0, 1)
            each = zip(
                self._folded(q, lengths),
                torch.split(new, lengths, 1),
                (cache[index] for cache in caches),
                masks,
                strict=True,
            )
            x = model.rest(layer, x, torch.cat([self._attended(*one) for one in each]))
        return model.final(x)

    def _folded(self, q: Tensor, lengths: Sequence[int]) -> Sequence[Tensor]:
        """Queries [tokens, heads, head_dim] of each stretch as [1, kv heads, all, head_dim].

        Query heads of one key/value head are laid end to end, so that nothing is repeated.
        """
        kv_heads, head_dim = self.backbone.kv_heads, self.backbone.head_dim
        grouped = q.to(self.backbone.cache_dtype).view(len(q), kv_heads, -1, head_dim)
        if max(lengths) == 1:
            return torch.split(grouped, 1)
        return [
            own.permute(1, 2, 0, 3).reshape(1, kv_heads, -1, head_dim)
            for own in torch.split(grouped, list(lengths))
        ]

    def _attended(self, folded: Tensor, new: Tensor, cache: Tensor, mask: Tensor | None) -> Tensor:
        """What a stretch sees [tokens, heads · head_dim]; its own keys and values are written."""
        kv_heads, tokens = self.backbone.kv_heads, new.shape[1]
        cache[:, -tokens:] = new
        looked_back = cache[None]
        seen = functional.scaled_dot_product_attention(
            folded, looked_back[:, :kv_heads], looked_back[:, kv_heads:], attn_mask=mask
        )
        if tokens > 1:
            seen = seen.view(kv_heads, -1, tokens, self.backbone.head_dim).permute(2, 0, 1, 3)
        return seen.reshape(tokens, -1).to(self.backbone.dtype)

    def _mask(self, stretch: Stretch) -> Tensor | None:
        """What may be looked at [groups · tokens, end]; None where all may."""
        tokens = len(stretch.ids)
        if tokens == 1:
            return None
        model = self.backbone
        mask = torch.full((tokens, stretch.end), -torch.inf, dtype=model.cache_dtype)
        mask.triu_(stretch.past + 1)
        return mask.repeat(model.heads // model.kv_heads, 1).to(model.device)
