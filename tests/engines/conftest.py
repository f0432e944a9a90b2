"""The bundled checkpoint, loaded once, and the model card's recipe on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guardrails_qwen.engines.transformers import TransformersEngine
from tests.engines.recipe import Recipe


@pytest.fixture(scope="session")
def tiny() -> Iterator[TransformersEngine]:
    with TransformersEngine.from_pretrained("tiny", device="cpu", dtype="float32") as engine:
        yield engine


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return Recipe()
