"""What the benchmark judges has the length that its name says, and is the same in every run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.workloads import HARMFUL, Mode, real_prompts, text, workloads


def words(text: str) -> int:
    """A tokenizer for tests."""
    return len(text.split())


@given(tokens=st.integers(0, 300), seed=st.integers(0, 100))
def test_a_text_is_as_long_as_asked_but_for_a_sentence(tokens: int, seed: int) -> None:
    assert tokens - 16 <= words(text(tokens, seed, words)) <= tokens
    assert text(tokens, seed, words) == text(tokens, seed, words)


def test_workloads_are_what_their_names_say() -> None:
    planned = {workload.name: workload for workload in workloads(words, document=5000)}
    assert len(planned["one short prompt"].conversations) == 1
    [[prompt, reply]] = planned["prompt and reply, 400 tokens"].conversations
    assert [prompt["role"], reply["role"]] == ["user", "assistant"]
    assert 370 < words(prompt["content"]) + words(reply["content"]) <= 400
    chunks = planned["32 chunks of 200 tokens"].texts
    assert len(set(chunks)) == 32
    assert all(175 < words(chunk) <= 200 for chunk in chunks)
    assert sum(HARMFUL in chunk for chunk in chunks) == 4
    assert len(set(planned["64 callers at once"].texts)) == 64
    assert planned["64 callers at once"].mode is Mode.CALLERS
    [document] = planned["document of 5,000 tokens"].texts
    assert 4980 < words(document) <= 5000


def test_without_data_there_are_no_real_prompts(tmp_path: Path) -> None:
    assert real_prompts(tmp_path, 100) == []


@pytest.mark.parametrize("seed", [0, 1])
def test_texts_of_different_seeds_differ(seed: int) -> None:
    assert text(100, seed, words) != text(100, seed + 2, words)
