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


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Tokens to run side by side, behind `past` others."""

    ids: Tensor
    """[tokens]"""
    positions: Tensor
    """[tokens]"""
    mask: Tensor
    """[tokens, past + tokens], true where a token may look."""
    reads: Tensor
    """[reads], indices of the tokens whose hidden states are asked for."""

    def to(self, device: torch.device) -> Row:
        """The row on a device."""
        return Row(
            ids=self.ids.to(device),
            positions=self.positions.to(device),
            mask=self.mask.to(device),
            reads=self.reads.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
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
    prompts: Sequence[Sequence[int]], packed: PackedTree, past: int
) -> tuple[Row, list[Slot]]:
    """Conversations side by side, each seeing the prefix and itself only.

    It is read where the tree is: all its `offsets` in the first conversation, then in the second …
    """
    slots, ids, positions, reads = list[Slot](), list[int](), list[int](), list[int]()
    for prompt in prompts:
        slot = Slot(start=len(ids), tokens=len(prompt))
        slots.append(slot)
        ids += prompt
        ids += packed.tokens
        end = past + len(prompt)
        positions += range(past, end)
        positions += [end - 1 + depth for depth in packed.depths]
        reads += [slot.tree + offset for offset in packed.offsets]
    mask = _prefix_only(len(ids), past)
    for slot in slots:
        end = slot.tree + len(packed)
        own = mask[slot.start : end, past + slot.start : past + end]
        own[: slot.tokens, : slot.tokens] = _triangle(slot.tokens)
        own[slot.tokens :, : slot.tokens] = True
        own[slot.tokens :, slot.tokens :] = packed.visible
    return _row(ids, positions, mask, reads), slots


def second_row(
    chains: Sequence[tuple[Slot, list[Node]]], packed: PackedTree, past: int, first: int
) -> Row:
    """Tokens that go on where the first pass stopped, for some of its conversations.

    It is read at the end of each chain.

    Args:
        chains: For each, where it lies and the nodes to run, in order.
        packed: The tree of the first pass.
        past: Length of the shared prefix, in tokens.
        first: Length of the first row, in tokens.
    """
    ids, positions, reads = list[int](), list[int](), list[int]()
    total = sum(len(nodes) for _, nodes in chains)
    mask = _prefix_only(total, past, first)
    for slot, nodes in chains:
        rows = slice(len(ids), len(ids) + len(nodes))
        mask[rows, past + slot.start : past + slot.tree] = True
        path = [packed.index[node] for node in nodes[0].path() if node in packed.index]
        mask[rows, [past + slot.tree + i for i in path]] = True
        own = past + first
        mask[rows, own + rows.start : own + rows.stop] = _triangle(len(nodes))
        ids += [node.token for node in nodes]
        positions += [past + slot.tokens - 1 + node.depth for node in nodes]
        reads.append(len(ids) - 1)
    return _row(ids, positions, mask, reads)


def chunk_row(ids: Sequence[int], past: int) -> Row:
    """Plain tokens behind `past` others, all of which they see; read at the last."""
    mask = torch.ones(len(ids), past + len(ids), dtype=torch.bool).tril_(past)
    return _row(ids, list(range(past, past + len(ids))), mask, [len(ids) - 1])


def _prefix_only(tokens: int, past: int, between: int = 0) -> Tensor:
    mask = torch.zeros(tokens, past + between + tokens, dtype=torch.bool)
    mask[:, :past] = True
    return mask


def _triangle(tokens: int) -> Tensor:
    if tokens <= len(_TRIANGLE):
        return _TRIANGLE[:tokens, :tokens]
    return torch.ones(tokens, tokens, dtype=torch.bool).tril_()


_TRIANGLE = torch.ones(1024, 1024, dtype=torch.bool).tril_()


def _row(ids: Sequence[int], positions: list[int], mask: Tensor, reads: list[int]) -> Row:
    return Row(
        ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        mask=mask,
        reads=torch.tensor(reads),
    )
