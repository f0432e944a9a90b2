"""The token tree against what it stands for: scoring every answer by itself."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails_qwen import Category, Scores, Severity
from guardrails_qwen.dialects.qwen3guard import EXPECTED, PROMPT_ANSWER, RESPONSE_ANSWER
from guardrails_qwen.dialects.token_tree import Answer, Logits, Node, TokenTree, build

END = 0
Encode = Callable[[str], list[int]]


def tokenizer(pattern: str) -> Encode:
    """A toy tokenizer: every piece that the pattern finds is a token."""
    ids: dict[str, int] = {}

    def encode(text: str) -> list[int]:
        pieces = re.findall(pattern, text, re.DOTALL)
        assert "".join(pieces) == text
        return [ids.setdefault(piece, len(ids) + 1) for piece in pieces]

    return encode


TOKENIZERS = {
    "characters": r".",
    "words": r" ?\w+|\n|\W",
    "words and their endings": r" ?\w{1,2}|\n|\W",
    "a shared beginning": r" Un|\n|[ :]|[^\s:]+?(?=safe|ethical)|[^\s:]+",
    "the space apart": r" |\w+|\n|[^\w\s]",
    "lines": r"[^\n]*\n|[^\n]+",
    "one token": r".+",
}
FORMATS = {"prompt": PROMPT_ANSWER, "response": RESPONSE_ANSWER}


def tree_of(split: str, of: str) -> TokenTree:
    answers = {values: FORMATS[of].write(values) for values in FORMATS[of].answers}
    return build(answers, tokenizer(TOKENIZERS[split]), end=END, resolve=2, expected=EXPECTED)


TREES = {(split, of): tree_of(split, of) for split in TOKENIZERS for of in FORMATS}
each_tree = pytest.mark.parametrize("tree", TREES.values(), ids=["-".join(key) for key in TREES])


def nodes_below(node: Node) -> list[Node]:
    return [node, *(n for child in node.children.values() for n in nodes_below(child))]


def some_logits(tree: TokenTree, seed: int) -> dict[Node, Logits]:
    """Logits for every node, as one forward pass over everything would give."""
    chance = random.Random(seed)
    return {
        node: {token: chance.uniform(-8, 8) for token in node.children}
        for node in nodes_below(tree.root)
    }


def walked(tree: TokenTree, answer: Answer) -> list[Node]:
    """The nodes of an answer, the root first."""
    path = [tree.root]
    while path[-1].children:
        path.append(next(n for n in path[-1].children.values() if answer in n.answers))
    return path


def step(node: Node, logits: Mapping[Node, Logits], child: Node) -> float:
    """P(child), with a softmax over the documented continuations."""
    weights = {token: math.exp(value) for token, value in logits[node].items()}
    return weights[child.token] / sum(weights.values())


def brute_force(tree: TokenTree, logits: Mapping[Node, Logits]) -> dict[Answer, float]:
    """P of every whole answer, each scored token by token."""
    scored: dict[Answer, float] = {}
    for answer in tree.root.answers:
        path = walked(tree, answer)
        scored[answer] = math.prod(step(parent, logits, child) for parent, child in pairwise(path))
    return scored


@each_tree
def test_a_tree_holds_every_answer_once(tree: TokenTree) -> None:
    leaves = [node for node in nodes_below(tree.root) if not node.children]
    assert all(len(leaf.answers) == 1 and leaf.token == END for leaf in leaves)
    assert len(leaves) == len(tree.root.answers)


@each_tree
def test_parents_come_before_their_children(tree: TokenTree) -> None:
    seen = {tree.root}
    for node in tree.nodes:
        assert node.parent in seen
        assert node not in seen
        assert node.parent is not None
        assert node.depth == node.parent.depth + 1
        assert node.path()[-1] is node
        assert len(node.path()) == node.depth
        seen.add(node)


@each_tree
def test_the_first_pass_reads_at_every_fork(tree: TokenTree) -> None:
    assert tree.reads[0] is tree.root
    assert set(tree.reads) - {tree.root} == {n for n in tree.nodes if len(n.children) > 1}


@each_tree
def test_first_pass_and_remainder_cover_every_fork_of_every_path(tree: TokenTree) -> None:
    first = {tree.root, *tree.nodes}
    for answer in tree.root.answers:
        remainder = tree.remainders[answer[: tree.resolve]]
        assert not first & set(remainder)
        path = walked(tree, answer)
        covered = first | set(remainder)
        for node in path:
            assert len(node.children) < 2 or node in tree.reads or node in remainder
            if node in covered and node.parent:
                assert node.parent in covered
        for above, below in pairwise(remainder):
            assert below.parent is above


@each_tree
def test_the_expected_answer_needs_no_second_pass(tree: TokenTree) -> None:
    assert tree.remainders[EXPECTED] == []


def test_only_responses_need_a_second_pass() -> None:
    for (split, of), tree in TREES.items():
        unsafe = tree.remainders["Unsafe", "Violent"]
        assert bool(unsafe) == (of == "response" and split != "one token")


def test_one_word_a_token_takes_few_tokens() -> None:
    tree = TREES["words", "response"]
    assert len(tree.nodes) < 30


@settings(max_examples=25)
@given(st.sampled_from(list(TREES)), st.integers(0, 10**6))
def test_the_distribution_is_that_of_scoring_every_answer(key: tuple[str, str], seed: int) -> None:
    tree = TREES[key]
    logits = some_logits(tree, seed)
    found = tree.distribution({node: logits[node] for node in tree.reads})
    assert sum(found.values()) == pytest.approx(1)
    expected: dict[Answer, float] = {}
    for answer, p in brute_force(tree, logits).items():
        expected[answer[:2]] = expected.get(answer[:2], 0.0) + p
    assert found == pytest.approx(expected, abs=1e-9)


@settings(max_examples=25)
@given(st.sampled_from(list(TREES)), st.integers(0, 10**6))
def test_the_greedy_path_is_that_of_decoding_step_by_step(key: tuple[str, str], seed: int) -> None:
    tree = TREES[key]
    logits = some_logits(tree, seed)
    node = tree.root
    while node.children:
        token = max(logits[node], key=lambda token, at=node: logits[at][token])
        node = node.children[token]
    [answer] = node.answers

    arrived = tree.greedy({n: logits[n] for n in tree.reads})
    heads = {a[: tree.resolve] for a in arrived.answers}
    assert heads == {answer[: tree.resolve]}
    second = tree.remainders[answer[: tree.resolve]]
    both = {n: logits[n] for n in [*tree.reads, *second]}
    assert tree.greedy(both) is node


@each_tree
def test_a_constant_added_to_all_logits_changes_nothing(tree: TokenTree) -> None:
    logits = some_logits(tree, 7)
    shifted = {n: {t: v + 5000.0 for t, v in values.items()} for n, values in logits.items()}
    assert tree.distribution(shifted) == pytest.approx(tree.distribution(logits))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_never_become_scores(bad: float) -> None:
    tree = TREES["words", "prompt"]
    logits = {n: dict.fromkeys(n.children, bad) for n in tree.reads}
    by_severity = dict.fromkeys(Severity, 0.0)
    for (severity, _), p in tree.distribution(logits).items():
        by_severity[Severity.from_label(severity)] += p
    with pytest.raises(ValueError, match="probability"):
        Scores(severity=by_severity)


def test_a_missing_read_is_an_error() -> None:
    tree = TREES["words", "prompt"]
    with pytest.raises(KeyError):
        tree.distribution({})


def test_categories_of_one_beginning_are_told_apart() -> None:
    tree = TREES["a shared beginning", "prompt"]
    logits = {n: dict.fromkeys(n.children, 0.0) for n in tree.reads}
    heads = set(tree.distribution(logits))
    assert heads == {(s.label, c) for s in Severity for c in ["None", *(c.label for c in Category)]}
