"""Reading a token tree through a server, which tells the next token only. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from guardrails_qwen.dialects.token_tree import (
    Answer,
    Logits,
    Node,
    OffFormat,
    Scored,
    TokenTree,
    last_field,
    shares,
)

NEGLIGIBLE = 0.01
"""The probability that all those beginnings of answers may have together of which nobody asks how
they go on. No probability of a category is wrong by more."""

_NEVER = -30.0
"""The log-probability of what cannot be."""
_TIE = 0.05
"""How far a likeliest token may be behind another for rounding, in log-probability."""


@dataclass(slots=True)
class TreeWalk:
    """Which forks of a tree have to be read to know the verdict, and what they make of it.

    What all answers begin with (`Safety:`) is taken as written. Behind it, forks are read on the
    way that greedy decoding would take, and elsewhere until what is left is `NEGLIGIBLE`. Where the
    first field is as expected (Safe), so is the next (None), unread: that is what makes a safe
    prompt cost a single token. Forks that can be read at once come together.
    """

    tree: TokenTree
    _read: dict[Node, Logits] = field(default_factory=dict[Node, Logits])

    @property
    def wanted(self) -> list[Node]:
        """The forks to read next; none when all is known."""
        unread = sorted(self._unread(self.tree.root, 1.0), key=lambda item: item[1])
        below = accumulate(p for _, p in unread)
        likely = [
            node for (node, _), total in zip(unread, below, strict=True) if total > NEGLIGIBLE
        ]
        end = self._greedy()
        return list(dict.fromkeys([*likely, *([end] if end.children else [])]))

    def tell(self, node: Node, logprobs: Mapping[int, float], likeliest: int) -> None:
        """What the model holds likely behind a node.

        Args:
            node: A fork that was wanted.
            logprobs: Log-probabilities by token id, of the node's children at least as far as they
                are not negligible.
            likeliest: The likeliest of all tokens.

        A child that is not listed counts as likely as it can be: no likelier than the least likely
        that is, and than what all that are listed leave over.

        Raises:
            OffFormat: On the way of greedy decoding, the likeliest is none that an answer goes on
                with, or not the likeliest of those listed.
        """
        over = 1 - sum(map(math.exp, logprobs.values()))
        rest = max(_NEVER, min([*logprobs.values(), math.log(max(over, math.exp(_NEVER)))]))
        known = {token: max(logprobs.get(token, rest), _NEVER) for token in node.children}
        if self._greedy() is node:
            top = max([*known.values(), *logprobs.values()])
            if likeliest not in known or logprobs.get(likeliest, -math.inf) < top - _TIE:
                raise OffFormat
            known[likeliest] = top + 1e-9
        self._read[node] = known

    def scored(self) -> Scored:
        """The verdict, when nothing is wanted any more."""
        end = self._greedy()
        [answer] = end.answers
        return Scored(
            answer=answer,
            distribution=self._distribution(),
            last=last_field(end, self._read) if len(answer) > self.tree.resolve else {},
        )

    def _next(self, node: Node) -> Mapping[Node, float] | None:
        """P(child) for each child; None where that is not known."""
        assumed = self.tree.assumed.get(node)
        if assumed is not None:
            return {assumed: 1.0}
        if len(node.children) > 1 and node not in self._read:
            return None
        return shares(node, self._read)

    def _greedy(self) -> Node:
        """Where greedy decoding arrives: at a whole answer, or at the first fork not read."""
        node = self.tree.root
        while node.children and (following := self._next(node)) is not None:
            node = max(following.items(), key=lambda item: item[1])[0]
        return node

    def _unread(self, node: Node, p: float) -> Sequence[tuple[Node, float]]:
        """Forks that are not read and tell first fields apart, each with its probability."""
        if len(node.heads) == 1:
            return []
        following = self._next(node)
        if following is None:
            return [(node, p)]
        return [one for child, share in following.items() for one in self._unread(child, p * share)]

    def _distribution(self) -> dict[Answer, float]:
        """P(first fields); what was negligible, and so not read, is shared evenly."""
        found = dict[Answer, float]()

        def visit(node: Node, p: float) -> None:
            if len(node.heads) == 1:
                [head] = node.heads
                found[head] = found.get(head, 0.0) + p
                return
            even = dict.fromkeys(node.children.values(), 1 / max(1, len(node.children)))
            for child, share in (self._next(node) or even).items():
                visit(child, p * share)

        visit(self.tree.root, 1.0)
        return found
