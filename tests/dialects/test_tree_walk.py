"""Walking a tree fork by fork finds what reading all of it at once does."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails_qwen.dialects.qwen3guard import EXPECTED
from guardrails_qwen.dialects.token_tree import (
    Answer,
    Logits,
    Node,
    OffFormat,
    Scored,
    TokenTree,
    last_field,
)
from guardrails_qwen.dialects.tree_walk import NEGLIGIBLE, TreeWalk
from tests.dialects.test_token_tree import TREES, nodes_below

OTHER = 10**6
"""A token that no answer has."""

keys = st.sampled_from(list(TREES))
seeds = st.integers(0, 10**6)


def model(tree: TokenTree, seed: int, *, sure: float) -> dict[Node, Logits]:
    """Log-probabilities behind every node, over the documented tokens; `sure` makes them peaked."""
    chance = random.Random(seed)
    found: dict[Node, Logits] = {}
    for node in filter(lambda one: one.children, nodes_below(tree.root)):
        raw = {token: chance.gauss(0, sure) for token in node.children}
        total = math.log(sum(map(math.exp, raw.values())))
        found[node] = {token: value - total for token, value in raw.items()}
    return found


def likeliest(logits: Logits) -> int:
    return max(logits, key=lambda token: logits[token])


def walked(
    tree: TokenTree, logits: Mapping[Node, Logits], shuffled: random.Random | None = None
) -> tuple[Scored, int]:
    """The verdict of a walk, and how many forks it read."""
    walk, reads = TreeWalk(tree), 0
    while wanted := walk.wanted:
        if shuffled:
            shuffled.shuffle(wanted)
        for node in wanted:
            walk.tell(node, logits[node], likeliest(logits[node]))
        reads += len(wanted)
        assert reads < 500
    return walk.scored(), reads


def assumed(tree: TokenTree, logits: Mapping[Node, Logits]) -> dict[Node, Logits]:
    """The same, but for what a walk assumes: behind Safe comes None, and nothing else."""
    first = EXPECTED[0]

    def sure(node: Node) -> bool:
        return len(node.heads) > 1 and all(head[0] == first for head in node.heads)

    return {
        node: {
            token: 0.0 if EXPECTED in child.heads else -1e9
            for token, child in node.children.items()
        }
        if sure(node)
        else logits[node]
        for node in logits
    }


def reference(tree: TokenTree, logits: Mapping[Node, Logits]) -> Scored:
    """What reading every node at once makes of the same."""
    end = tree.greedy(logits)
    [answer] = end.answers
    return Scored(
        answer=answer,
        distribution=tree.distribution(logits),
        last=last_field(end, logits) if len(answer) > tree.resolve else {},
    )


def by_first(distribution: Mapping[Answer, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for head, p in distribution.items():
        found[head[0]] = found.get(head[0], 0.0) + p
    return found


@settings(max_examples=30)
@given(key=keys, seed=seeds, sure=st.sampled_from([0.5, 3.0, 8.0, 30.0]))
def test_a_walk_finds_what_reading_everything_does(
    key: tuple[str, str], seed: int, sure: float
) -> None:
    tree = TREES[key]
    logits = assumed(tree, model(tree, seed, sure=sure))
    found, _ = walked(tree, logits)
    expected = reference(tree, logits)
    assert found.answer == expected.answer
    assert found.last == pytest.approx(expected.last, abs=1e-6)
    assert sum(found.distribution.values()) == pytest.approx(1)
    found_or_none = dict.fromkeys(expected.distribution, 0.0) | found.distribution
    assert found_or_none == pytest.approx(expected.distribution, abs=NEGLIGIBLE)


@settings(max_examples=30)
@given(key=keys, seed=seeds, sure=st.sampled_from([0.5, 3.0, 8.0]))
def test_severities_are_exact_where_one_token_tells_them_apart(
    key: tuple[str, str], seed: int, sure: float
) -> None:
    tree = TREES[key]
    logits = assumed(tree, model(tree, seed, sure=sure))
    found, _ = walked(tree, logits)
    expected = by_first(tree.distribution(logits))
    assert by_first(found.distribution) == pytest.approx(expected, abs=NEGLIGIBLE)


@settings(max_examples=30)
@given(key=keys, seed=seeds, order=seeds, sure=st.sampled_from([0.5, 3.0, 8.0]))
def test_the_order_within_a_round_does_not_matter(
    key: tuple[str, str], seed: int, order: int, sure: float
) -> None:
    tree = TREES[key]
    logits = model(tree, seed, sure=sure)
    found, reads = walked(tree, logits)
    other, others = walked(tree, logits, random.Random(order))
    assert (other, others) == (found, reads)


@settings(max_examples=30)
@given(key=keys, seed=seeds, loss=seeds)
def test_what_a_server_left_out_because_it_is_unlikely_does_not_matter(
    key: tuple[str, str], seed: int, loss: int
) -> None:
    """Servers list the likeliest tokens only: here, none below a thousandth.

    What is left out counts as likely as it can be, so the others are a little less.
    """
    tree = TREES[key]
    logits = model(tree, seed, sure=8.0)
    listed = {
        node: {token: p for token, p in told.items() if p > math.log(1e-3)}
        for node, told in logits.items()
    }
    found, _ = walked(tree, listed)
    whole, _ = walked(tree, logits)
    assert found.answer == whole.answer
    assert found.distribution == pytest.approx(whole.distribution, abs=0.1)


def test_a_clearly_safe_prompt_takes_one_read() -> None:
    tree = TREES["words", "prompt"]
    logits = model(tree, 1, sure=1.0)
    fork = next(node for node in nodes_below(tree.root) if len(node.children) == 3)
    safe = next(t for t, c in fork.children.items() if {h[0] for h in c.heads} == {"Safe"})
    logits[fork] = {token: math.log(0.998 if token == safe else 0.001) for token in fork.children}
    found, reads = walked(tree, logits)
    assert reads == 1
    assert found.answer == EXPECTED
    assert by_first(found.distribution)["Safe"] == pytest.approx(0.998)


def test_a_safe_reply_takes_two_reads() -> None:
    tree = TREES["words", "response"]
    logits = model(tree, 1, sure=1.0)
    fork = next(node for node in nodes_below(tree.root) if len(node.children) == 3)
    safe = next(t for t, c in fork.children.items() if {h[0] for h in c.heads} == {"Safe"})
    logits[fork] = {token: math.log(0.998 if token == safe else 0.001) for token in fork.children}
    found, reads = walked(tree, logits)
    assert reads == 2
    assert found.answer[:2] == EXPECTED
    assert sum(found.last.values()) == pytest.approx(1)


@settings(max_examples=15)
@given(key=keys, seed=seeds)
def test_another_likeliest_token_on_the_way_is_off_format(key: tuple[str, str], seed: int) -> None:
    """At every fork on the way of greedy decoding, whichever it is."""
    tree = TREES[key]
    logits = model(tree, seed, sure=8.0)
    found, _ = walked(tree, logits)
    on_way = [node for node in nodes_below(tree.root) if found.answer in node.answers]
    read = list[Node]()
    walk = TreeWalk(tree)
    while wanted := walk.wanted:
        for node in wanted:
            read.append(node)
            walk.tell(node, logits[node], likeliest(logits[node]))
    assert set(read) & set(on_way)
    for culprit in set(read) & set(on_way):
        with pytest.raises(OffFormat):
            _walk_with(tree, logits, culprit)


@settings(max_examples=15)
@given(key=keys, seed=seeds)
def test_another_likeliest_token_elsewhere_does_not_matter(key: tuple[str, str], seed: int) -> None:
    tree = TREES[key]
    logits = model(tree, seed, sure=2.0)
    found, _ = walked(tree, logits)
    aside = [node for node in nodes_below(tree.root) if found.answer not in node.answers]
    for culprit in random.Random(seed).sample(aside, 5):
        assert _walk_with(tree, logits, culprit) == found


def _walk_with(tree: TokenTree, logits: Mapping[Node, Logits], culprit: Node) -> Scored:
    """A walk where the model would write something else behind one node."""
    walk = TreeWalk(tree)
    while wanted := walk.wanted:
        for node in wanted:
            token = OTHER if node is culprit else likeliest(logits[node])
            walk.tell(node, logits[node], token)
    return walk.scored()
