"""All answers of a format as a tree of tokens, for scoring them in one forward pass.

With the Qwen3 tokenizer the first pass over a Qwen3Guard-Gen answer takes 20 tokens: `Safety:`,
behind it the three severities, behind each of them ` … Categories:`, and behind Safe and None the
refusal. Nothing here knows a token id: all of them come from the tokenizer that is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

Answer = tuple[str, ...]
Logits = Mapping[int, float]
"""Logits of the tokens that may follow a node, by token id."""


@dataclass(eq=False, slots=True)
class Node:
    """A token of an answer, with what may follow it. The root stands for the end of the prompt."""

    token: int
    parent: Node | None = None
    depth: int = 0
    """Tokens from the root: the root has 0, the first token of the answer 1."""
    children: dict[int, Node] = field(default_factory=dict[int, "Node"])
    answers: set[Answer] = field(default_factory=set[Answer])
    """The answers that begin with the path to this node."""
    heads: frozenset[Answer] = frozenset()
    """The first fields of these, as far as the first pass tells answers apart."""

    def path(self) -> list[Node]:
        """The nodes from the first token to this one."""
        return [*(self.parent.path() if self.parent else []), *([self] if self.parent else [])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What the model would answer to one prompt, and how likely it holds each answer."""

    answer: Answer
    """The answer that greedy decoding would have written, one choice a field."""
    distribution: dict[Answer, float]
    """P(first fields) over the documented answers."""
    last: dict[str, float]
    """P(last field), given the fields before it as in `answer`; empty where it was not read."""
    tokens: int = 0
    """Tokens that were computed for it."""


class OffFormat(Exception):
    """The model would have written something else than a documented answer."""


class TokenTree:
    """The answers of one format, and which part of them the first pass has to see.

    The first pass tells apart the first `resolve` fields of an answer, and every field behind the
    answers that begin with `expected`, the commonest. Other answers need a second pass
    (`remainder`) for the fields that are left.

    Args:
        answers: Every answer, with its tokens; the end-of-turn token last, so that none is the
            beginning of another.
        resolve: How many fields the first pass tells apart.
        expected: The first `resolve` values of the answer that the first pass resolves whole.
    """

    def __init__(
        self, answers: Mapping[Answer, Sequence[int]], *, resolve: int, expected: Answer
    ) -> None:
        self.resolve = resolve
        self.expected = expected
        self.root = Node(token=-1)
        for answer, tokens in answers.items():
            node = self.root
            node.answers.add(answer)
            for token in tokens:
                child = Node(token=token, parent=node, depth=node.depth + 1)
                node = node.children.setdefault(token, child)
                node.answers.add(answer)
        for node in _walk(self.root):
            node.heads = frozenset(answer[:resolve] for answer in node.answers)
        self.nodes = [node for node in _walk(self.root) if self._undecided(node)]
        """Tokens of the first pass; a parent always comes before its children."""
        self.longest = max(map(len, answers.values()))
        """Tokens of the longest answer, the end of the turn included."""
        self.reads = [self.root, *(node for node in self.nodes if len(node.children) > 1)]
        """Where the first pass needs logits: the end of the prompt, and every fork."""
        self.remainders = {head: self._remainder(head) for head in sorted(self.root.heads)}
        """By first fields, the tokens of a second pass, which decides what the first left open.

        They follow the last first-pass node on the path; logits are needed behind the last of them.
        """
        self.forks = sorted({token for node in _walk(self.root) for token in _choices(node)})
        """Every token that some logits are needed of."""

    @cached_property
    def assumed(self) -> dict[Node, Node]:
        """Forks that need not be read, with their child that is as expected.

        They tell apart what follows a first field as expected: of a safe text, the category.
        """
        first, *_ = self.expected
        return {
            node: next(one for one in node.children.values() if self.expected in one.heads)
            for node in _walk(self.root)
            if len(node.heads) > 1
            and self.expected in node.heads
            and all(head[0] == first for head in node.heads)
        }

    def distribution(self, logits: Mapping[Node, Logits]) -> dict[Answer, float]:
        """P(first `resolve` fields), over the documented answers only, from logits at `reads`."""
        probabilities = dict[Answer, float]()

        def visit(node: Node, p: float) -> None:
            if len(node.heads) == 1:
                [head] = node.heads
                probabilities[head] = probabilities.get(head, 0.0) + p
                return
            for child, share in shares(node, logits).items():
                visit(child, p * share)

        visit(self.root, 1.0)
        return probabilities

    def greedy(self, logits: Mapping[Node, Logits]) -> Node:
        """Where greedy decoding arrives: at a whole answer, or at the first fork without logits."""
        node = self.root
        while len(node.children) == 1 or node in logits:
            node = max(shares(node, logits).items(), key=lambda item: item[1])[0]
        return node

    def _remainder(self, head: Answer) -> list[Node]:
        below = [node for node in _walk(self.root) if node.heads == frozenset({head})]
        return [node for node in below if len(node.answers) > 1 and not self._undecided(node)]

    def _undecided(self, node: Node) -> bool:
        whole = node.heads == frozenset({self.expected}) and len(node.answers) > 1
        return node is not self.root and (len(node.heads) > 1 or whole)


def shares(node: Node, logits: Mapping[Node, Logits]) -> dict[Node, float]:
    """P(child) for each child of a node, over the children only."""
    if len(node.children) == 1:
        return dict.fromkeys(node.children.values(), 1.0)
    values = logits[node]
    top = max(values[token] for token in node.children)
    weights = {child: math.exp(values[token] - top) for token, child in node.children.items()}
    total = sum(weights.values())
    return {child: weight / total for child, weight in weights.items()}


def last_field(end: Node, logits: Mapping[Node, Logits]) -> dict[str, float]:
    """P(last field) at the fork that decided it; empty where that was not read."""
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


def build(
    answers: Mapping[Answer, str],
    encode: Callable[[str], list[int]],
    *,
    end: int,
    resolve: int,
    expected: Answer,
) -> TokenTree:
    """A tree from answers as texts. `end` is the id of the token that ends a turn."""
    tokens = {answer: [*encode(text), end] for answer, text in answers.items()}
    return TokenTree(tokens, resolve=resolve, expected=expected)


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children.values():
        yield from _walk(child)


def _choices(node: Node) -> Iterable[int]:
    return node.children if len(node.children) > 1 or node.parent is None else ()
