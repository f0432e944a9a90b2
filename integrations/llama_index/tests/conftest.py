"""Guards by script, and both colours of everything."""

from collections.abc import Callable
from typing import Any

import pytest

from guardrails_qwen import Action, Guard, OnError, Policy
from guardrails_qwen.testing import ScriptedEngine
from integrations.llama_index.tests.doubles import SCRIPT


@pytest.fixture
def engine() -> ScriptedEngine:
    """Unsafe is what contains "bomb"; it records what it is asked."""
    return ScriptedEngine(SCRIPT)


@pytest.fixture
def guarding(engine: ScriptedEngine) -> Callable[..., Guard]:
    """Makes a guard on the engine that does `action`, at context too."""

    def make(
        action: Action = Action.BLOCK, on_error: OnError = OnError.BLOCK, **policy: Any
    ) -> Guard:
        return Guard(engine, Policy.strict(action=action, on_error=on_error, **policy))

    return make


@pytest.fixture
def guard(guarding: Callable[..., Guard]) -> Guard:
    """Blocks; chunks are dropped."""
    return guarding()
