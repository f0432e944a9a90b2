"""A verdict from one forward pass: all answers are scored at once, and none is generated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen3ForCausalLM
from transformers.cache_utils import DynamicLayer

from guardrails_qwen.dialects.token_tree import Answer, Logits, Node, TokenTree, shares
from guardrails_qwen.engines.packing import (
    PackedTree,
    Row,
    Slot,
    chunk_row,
    first_row,
    plan,
    second_row,
)

_PIECE_ROWS = 4
"""A prompt longer than this many rows runs in pieces, which bounds the memory of its mask."""

_LOGIT_ROWS = 256
"""Positions whose logits over the whole vocabulary are held at once."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What the model would answer to one prompt, and how likely it holds each answer."""

    answer: Answer
    """The answer that greedy decoding would have written, one choice a field."""
    distribution: dict[Answer, float]
    """P(first fields) over the documented answers."""
    last: dict[str, float]
    """P(last field), given the fields before it as in `answer`."""
    tokens: int
    """Tokens that were computed for it."""


class OffFormat(Exception):
    """The model would have written something else than a documented answer."""


class NotFinite(Exception):
    """The model's logits are not numbers."""


@dataclass(frozen=True, slots=True)
class _Read:
    """Logits behind one node: of its children, and the likeliest of all tokens."""

    children: Logits
    likeliest: int


class OnePass:
    """Scores prompts that share a policy prefix, many at once.

    The prefix's keys and values are computed once. Prompts are packed side by side into rows, each
    followed by the tokens of the answer tree; a mask lets every token see the prefix, its own
    prompt and its own path only. So nothing is padded, and one forward pass of a row gives the full
    distribution for every prompt in it. What the tree leaves open behind a rare answer takes a
    second, tiny pass on the same cache.

    Args:
        model: A Qwen3 language model.
        prefix: Token ids that every prompt starts with.
        tree: The answers.
        row_tokens: Prompts are packed into rows of about this many tokens, and a longer prompt
            has a row of its own. Attention over a row costs its square.
    """

    def __init__(
        self, model: Qwen3ForCausalLM, prefix: Sequence[int], tree: TokenTree, *, row_tokens: int
    ) -> None:
        self._model = model
        self._prefix = list(prefix)
        self._packed = PackedTree(tree)
        self._row_tokens = row_tokens
        reads = tree.reads
        width = max(len(node.children) for node in reads)
        self._children = torch.tensor(
            [[*node.children, *[0] * (width - len(node.children))] for node in reads]
        ).to(model.device)
        self._keys_values = self._prefill()

    def __call__(self, prompts: Sequence[list[int]]) -> list[Scored | OffFormat | NotFinite]:
        """Score prompts, given without the prefix; one result for each, in the same order."""
        results: dict[int, Scored | OffFormat | NotFinite] = {}
        sizes = [len(prompt) + len(self._packed) for prompt in prompts]
        for indices in plan(sizes, self._row_tokens):
            scored = self._score_row([prompts[i] for i in indices])
            results.update(zip(indices, scored, strict=True))
        return [results[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def _score_row(self, prompts: list[list[int]]) -> list[Scored | OffFormat | NotFinite]:
        cache, past = self._cache(), len(self._prefix)
        piece = _PIECE_ROWS * self._row_tokens
        if len(prompts) == 1 and len(prompts[0]) > piece:
            *chunks, rest = _chunks(prompts[0], piece)
            for chunk in chunks:
                self._run(chunk_row(chunk, past), cache)
                past += len(chunk)
            prompts = [rest]
        row, slots = first_row(prompts, self._packed, past)
        hidden = self._run(row, cache)
        reads = self._first_reads(hidden, slots)
        ends = [self._greedy(own) for own in reads]
        undecided = [i for i, end in enumerate(ends) if end.children]
        if undecided:
            behind = [(slots[i], ends[i]) for i in undecided]
            second = self._second_reads(row, cache, past, behind)
            for i, extra in zip(undecided, second, strict=True):
                reads[i].update(extra)
                ends[i] = self._greedy(reads[i])
        return [
            self._scored(end, own, slot) for end, own, slot in zip(ends, reads, slots, strict=True)
        ]

    def _greedy(self, reads: dict[Node, _Read]) -> Node:
        return self._packed.tree.greedy({node: read.children for node, read in reads.items()})

    def _scored(
        self, end: Node, reads: dict[Node, _Read], slot: Slot
    ) -> Scored | OffFormat | NotFinite:
        values = (value for read in reads.values() for value in read.children.values())
        if not all(map(math.isfinite, values)):
            return NotFinite()
        tree = self._packed.tree
        path = [tree.root, *end.path()]
        if any(reads[node].likeliest not in node.children for node in path if node in reads):
            return OffFormat()
        logits = {node: read.children for node, read in reads.items()}
        [answer] = end.answers
        return Scored(
            answer=answer,
            distribution=tree.distribution(logits),
            last=_last_field(end, logits),
            tokens=slot.tokens + len(self._packed),
        )

    def _first_reads(self, hidden: Tensor, slots: Sequence[Slot]) -> list[dict[Node, _Read]]:
        nodes = self._packed.tree.reads
        positions = [slot.tree + offset for slot in slots for offset in self._packed.offsets]
        children = self._children.repeat(len(slots), 1)
        flat = self._reads(hidden[0, positions], children, nodes * len(slots))
        return [
            dict(zip(nodes, flat[i : i + len(nodes)], strict=True))
            for i in range(0, len(flat), len(nodes))
        ]

    def _second_reads(
        self, row: Row, cache: DynamicCache, past: int, behind: Sequence[tuple[Slot, Node]]
    ) -> list[dict[Node, _Read]]:
        """Go on to the forks that the first pass did not reach."""
        tree = self._packed.tree
        chains = [
            (slot, tree.remainder(next(iter(node.answers))[: tree.resolve]))
            for slot, node in behind
        ]
        hidden = self._run(second_row(chains, self._packed, past, row.ids.shape[1]), cache)
        lengths = accumulate(len(nodes) for _, nodes in chains)
        forks = [nodes[-1] for _, nodes in chains]
        children = torch.tensor([list(fork.children) for fork in forks]).to(hidden.device)
        reads = self._reads(hidden[0, [length - 1 for length in lengths]], children, forks)
        return [{fork: read} for fork, read in zip(forks, reads, strict=True)]

    def _reads(self, hidden: Tensor, children: Tensor, nodes: Sequence[Node]) -> list[_Read]:
        """Logits at positions: `hidden` is [positions, width], `children` [positions, most]."""
        values, likeliest = list[list[float]](), list[int]()
        for part in range(0, len(hidden), _LOGIT_ROWS):
            rows = slice(part, part + _LOGIT_ROWS)
            logits = self._model.lm_head(hidden[rows]).float()
            values += logits.gather(1, children[rows]).tolist()
            likeliest += logits.argmax(-1).tolist()
        return [
            _Read(dict(zip(node.children, own, strict=False)), top)
            for node, own, top in zip(nodes, values, likeliest, strict=True)
        ]

    def _run(self, row: Row, cache: DynamicCache) -> Tensor:
        """Hidden states [1, tokens, width] of a row, behind and into a cache."""
        device = self._model.device
        return self._model.model(
            input_ids=row.ids.to(device),
            position_ids=row.positions.to(device),
            attention_mask=row.mask.to(device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state

    @torch.inference_mode()
    def _prefill(self) -> list[tuple[Tensor, Tensor]]:
        cache = DynamicCache()
        if self._prefix:
            self._run(chunk_row(self._prefix, 0), cache)
        layers = cast("list[DynamicLayer]", cache.layers)
        return [(cast("Tensor", layer.keys), cast("Tensor", layer.values)) for layer in layers]

    def _cache(self) -> DynamicCache:
        cache = DynamicCache()
        for index, (keys, values) in enumerate(self._keys_values):
            cache.update(keys, values, index)  # pyright: ignore[reportUnknownMemberType]
        return cache


def _last_field(end: Node, logits: dict[Node, Logits]) -> dict[str, float]:
    """P(last field) at the fork that decided it."""
    node = end
    while node.parent is not None and len(node.parent.answers) == len(end.answers):
        node = node.parent
    if node.parent is None or node.parent not in logits:
        return {}
    return {
        next(iter(child.answers))[-1]: p
        for child, p in shares(node.parent, logits).items()
        if len(child.answers) == 1
    }


def _chunks(ids: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
