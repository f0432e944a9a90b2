"""A verdict from one forward pass: all answers are scored at once, and none is generated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from guardrails_qwen.dialects.token_tree import (
    Logits,
    Node,
    OffFormat,
    Scored,
    TokenTree,
    last_field,
)
from guardrails_qwen.engines.decoder import Decoder, KeysValues
from guardrails_qwen.engines.graphs import GraphedDecoder, Record, cuda_recorder, lengths_up_to
from guardrails_qwen.engines.packing import (
    PackedTree,
    Row,
    chunk_row,
    first_row,
    plan,
    second_row,
)

_PIECE_ROWS = 4
"""A prompt longer than this many rows runs in pieces, which bounds the memory of its mask."""

_LOGIT_ROWS = 64
"""Positions whose logits over the whole vocabulary are held at once."""


class NotFinite(Exception):
    """The model's logits are not numbers."""


@dataclass(frozen=True, slots=True)
class _Read:
    """Logits behind one node: of its children, and the likeliest of all tokens."""

    children: Logits
    likeliest: int


class OnePass:
    """Scores prompts that share a policy prefix, many at once.

    The prefix's keys and values are computed once and never copied. Prompts are packed side by side
    into rows, each followed by the tokens of the answer tree; a mask lets every token see the
    prefix, its own prompt and its own path only. So nothing is padded, and one forward pass of a
    row gives the full distribution for every prompt in it. What the tree leaves open behind a rare
    answer takes a second, tiny pass on the same keys and values.

    Args:
        decoder: The model.
        prefix: Token ids that every prompt starts with.
        tree: The answers.
        row_tokens: Prompts are packed into rows of about this many tokens, and a longer prompt
            has a row of its own. Attention over a row costs its square.
        record: How rows are recorded, if they are; on CUDA they always are.
    """

    def __init__(
        self,
        decoder: Decoder,
        prefix: Sequence[int],
        tree: TokenTree,
        *,
        row_tokens: int,
        record: Record | None = None,
    ) -> None:
        self._decoder = decoder
        self._past = len(prefix)
        self._packed = PackedTree(tree)
        self._row_tokens = row_tokens
        self._tokens = torch.tensor(tree.forks, device=decoder.device)
        self._column = {token: i for i, token in enumerate(tree.forks)}
        self._second = max(map(len, tree.remainders.values()))
        lengths = lengths_up_to(row_tokens)
        room = self._room(lengths[-1], row_tokens // len(self._packed) + 1)
        self._behind = decoder.keys_values(room)
        if record is None and decoder.device.type == "cuda":
            record = cuda_recorder(decoder.device)
        self._graphs = (
            GraphedDecoder(decoder, self._past, self._behind, lengths, record) if record else None
        )
        if prefix:
            self._run(chunk_row(list(prefix), 0), 0, self._behind)

    def size(self, prompt: Sequence[int]) -> int:
        """Tokens that a prompt, given without the prefix, takes in a row."""
        return len(prompt) + len(self._packed)

    def warm_up(self) -> None:
        """Record what a GPU runs from recordings, which otherwise the first rows do."""
        if self._graphs:
            self._graphs.warm_up()

    def __call__(self, prompts: Sequence[Sequence[int]]) -> list[Scored | OffFormat | NotFinite]:
        """Score prompts, given without the prefix; one result for each, in the same order."""
        results: dict[int, Scored | OffFormat | NotFinite] = {}
        for indices in plan(list(map(self.size, prompts)), self._row_tokens):
            scored = self._score_row([prompts[i] for i in indices])
            if len(indices) > 1 and any(isinstance(one, NotFinite) for one in scored):
                # What is masked out is multiplied by 0, and NaN times 0 is NaN.
                scored = [self._score_row([prompts[i]])[0] for i in indices]
            results.update(zip(indices, scored, strict=True))
        return [results[i] for i in range(len(prompts))]

    def _room(self, tokens: int, prompts: int) -> int:
        """Positions that a row of so many tokens and prompts takes, with its second pass."""
        return self._past + tokens + prompts * self._second

    def _score_row(self, prompts: Sequence[Sequence[int]]) -> list[Scored | OffFormat | NotFinite]:
        past = self._past
        sizes = list(map(self.size, prompts))
        behind = self._roomy(self._room(sum(sizes), len(prompts)))
        piece = _PIECE_ROWS * self._row_tokens
        if len(prompts) == 1 and len(prompts[0]) > piece:
            *chunks, rest = _chunks(prompts[0], piece)
            for chunk in chunks:
                self._run(chunk_row(chunk, past), past, behind)
                past += len(chunk)
            prompts = [rest]
        row, slots = first_row(prompts, self._packed, past)
        nodes = self._packed.tree.reads
        flat = self._reads(self._run(row, past, behind), nodes * len(slots))
        starts = range(0, len(flat), len(nodes))
        reads = [dict(zip(nodes, flat[i : i + len(nodes)], strict=True)) for i in starts]
        ends = [self._greedy(own) for own in reads]
        undecided = [i for i, end in enumerate(ends) if end.children]
        if undecided:
            chains = [(slots[i], self._remainder(ends[i])) for i in undecided]
            second = second_row(chains, self._packed, past, len(row.ids))
            forks = [chain[-1] for _, chain in chains]
            extra = self._reads(self._run(second, past + len(row.ids), behind), forks)
            for i, fork, read in zip(undecided, forks, extra, strict=True):
                reads[i][fork] = read
                ends[i] = self._greedy(reads[i])
        return [
            self._scored(end, own, size) for end, own, size in zip(ends, reads, sizes, strict=True)
        ]

    def _roomy(self, room: int) -> KeysValues:
        """Keys and values of the prefix, with so much room."""
        if room <= self._behind.room:
            return self._behind
        larger = self._decoder.keys_values(room)
        larger.copy(self._behind, self._past)
        return larger

    def _run(self, row: Row, past: int, behind: KeysValues) -> Tensor:
        graphs = self._graphs if (past, behind) == (self._past, self._behind) else None
        if graphs and graphs.fits(row):
            return graphs(row)
        return self._decoder(row.to(self._decoder.device), past, behind)

    def _remainder(self, end: Node) -> list[Node]:
        [head] = end.heads
        return self._packed.tree.remainders[head]

    def _greedy(self, reads: dict[Node, _Read]) -> Node:
        return self._packed.tree.greedy({node: read.children for node, read in reads.items()})

    def _scored(
        self, end: Node, reads: dict[Node, _Read], size: int
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
            last=last_field(end, logits),
            tokens=size,
        )

    def _reads(self, hidden: Tensor, nodes: Sequence[Node]) -> list[_Read]:
        """Logits behind nodes, from hidden states [nodes, width], in one transfer."""
        parts = range(0, len(nodes), _LOGIT_ROWS)
        tops = [self._decoder.likeliest(hidden[part : part + _LOGIT_ROWS]) for part in parts]
        logits = self._decoder.logits(hidden, self._tokens)
        both = torch.cat([logits, torch.cat(tops)[:, None].float()], dim=1)  # exact below 2**24
        rows = cast("list[list[float]]", both.tolist())  # pyright: ignore[reportUnknownMemberType]
        return [
            _Read({token: own[self._column[token]] for token in node.children}, int(own[-1]))
            for node, own in zip(nodes, rows, strict=True)
        ]


def _chunks(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
