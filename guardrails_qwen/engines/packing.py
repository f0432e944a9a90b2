"""Several conversations in one row, each with its token tree, behind one shared prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guardrails_qwen.dialects.token_tree import Node, TokenTree


class PackedTree:
    """What a token tree looks like at the end of a conversation's tokens."""

    def __init__(self, tree: TokenTree) -> None:
        self.tree = tree
        self.index = {node: i for i, node in enumerate(tree.nodes)}
        self.tokens = [node.token for node in tree.nodes]
        self.depths = [node.depth for node in tree.nodes]
        self.visible = torch.zeros(len(tree.nodes), len(tree.nodes), dtype=torch.bool)
        """Which node sees which: itself and its path."""
        for i, node in enumerate(tree.nodes):
            self.visible[i, [self.index[ancestor] for ancestor in node.path()]] = True
        self.offsets = [self.index[node] if node.depth else -1 for node in tree.reads]
        """Where logits are read, from the first token of the tree: -1 is the prompt's last."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of tokens to run behind `past` tokens of cache.

    `ids` and `positions` have the shape [1, tokens]; `mask` [1, 1, tokens, past + tokens] is true
    where a token may look.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where one conversation lies in a row: its own tokens from `start`, then its tree."""

    start: int
    tokens: int

    @property
    def tree(self) -> int:
        """Where the tree starts."""
        return self.start + self.tokens


def plan(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of conversations, grouped into rows of at most `budget` tokens; shortest first.

    A conversation longer than the budget has a row of its own.
    """
    rows = list[list[int]]()
    room = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not rows or lengths[i] > room:
            rows.append([])
            room = budget
        rows[-1].append(i)
        room -= lengths[i]
    return rows


def first_row(
    prompts: Sequence[list[int]], packed: PackedTree, past: int
) -> tuple[Row, list[Slot]]:
    """Conversations side by side, each seeing the prefix and itself only."""
    slots, ids, positions = list[Slot](), list[int](), list[int]()
    for prompt in prompts:
        slots.append(Slot(start=len(ids), tokens=len(prompt)))
        ids += [*prompt, *packed.tokens]
        end = past + len(prompt)
        positions += [*range(past, end), *(end - 1 + depth for depth in packed.depths)]
    mask = torch.zeros(len(ids), past + len(ids), dtype=torch.bool)
    mask[:, :past] = True
    for slot in slots:
        tree, end = slot.tree, slot.tree + len(packed)
        own = torch.ones(end - slot.start, slot.tokens, dtype=torch.bool).tril_()
        mask[slot.start : end, past + slot.start : past + tree] = own
        mask[tree:end, past + tree : past + end] = packed.visible
    return _row(ids, positions, mask), slots


def second_row(
    chains: Sequence[tuple[Slot, list[Node]]], packed: PackedTree, past: int, first: int
) -> Row:
    """Tokens that go on where the first pass stopped, for some of its conversations.

    Args:
        chains: For each, where it lies and the nodes to run, in order.
        packed: The tree of the first pass.
        past: Length of the shared prefix, in tokens.
        first: Length of the first row, in tokens.
    """
    ids, positions = list[int](), list[int]()
    total = sum(len(nodes) for _, nodes in chains)
    mask = torch.zeros(total, past + first + total, dtype=torch.bool)
    mask[:, :past] = True
    for slot, nodes in chains:
        rows = slice(len(ids), len(ids) + len(nodes))
        mask[rows, past + slot.start : past + slot.tree] = True
        path = [packed.index[node] for node in nodes[0].path() if node in packed.index]
        mask[rows, [past + slot.tree + i for i in path]] = True
        own = torch.ones(len(nodes), len(nodes), dtype=torch.bool).tril_()
        mask[rows, past + first + rows.start : past + first + rows.stop] = own
        ids += [node.token for node in nodes]
        positions += [past + slot.tokens - 1 + node.depth for node in nodes]
    return _row(ids, positions, mask)


def chunk_row(ids: list[int], past: int) -> Row:
    """Plain tokens behind `past` others, all of which they see."""
    mask = torch.ones(len(ids), past + len(ids), dtype=torch.bool).tril_(past)
    return _row(ids, list(range(past, past + len(ids))), mask)


def _row(ids: list[int], positions: list[int], mask: Tensor) -> Row:
    return Row(
        ids=torch.tensor([ids]),
        positions=torch.tensor([positions]),
        mask=mask[None, None],
    )
