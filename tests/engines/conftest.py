"""The bundled checkpoint, loaded once, and the model card's recipe on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guardrails_qwen.engines.transformers import TransformersEngine
from guardrails_qwen.longtext import Windows
from tests.engines.recipe import Recipe


@pytest.fixture(scope="session")
def tiny() -> Iterator[TransformersEngine]:
    with TransformersEngine.from_pretrained("tiny", device="cpu", dtype="float32") as engine:
        yield engine


@pytest.fixture(scope="session")
def whole() -> Iterator[TransformersEngine]:
    """It cuts nothing that fits the context, as the model card's recipe does not."""
    with TransformersEngine.from_pretrained(
        "tiny", device="cpu", dtype="float32", windows=Windows(tokens=2048)
    ) as engine:
        yield engine


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return Recipe()
