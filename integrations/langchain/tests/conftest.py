"""Guards by script, and the fixtures that try all the doors."""

from typing import Any

import pytest

from guardrails_qwen import Action, Guard, OnError, Policy
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.doubles import DOORS, SCRIPT, Door, EchoModel, Guarding, Texts
from langchain_guardrails_qwen import GuardRunnable


@pytest.fixture(params=DOORS, ids=lambda door: door.__name__)
def door(request: pytest.FixtureRequest) -> Door:
    """The eight methods of a runnable, tried in turn; each gives a list of what comes out."""
    return request.param


@pytest.fixture
def engine() -> ScriptedEngine:
    """Unsafe is what contains "bomb"; it records what it is asked."""
    return ScriptedEngine(SCRIPT)


@pytest.fixture
def guarding(engine: ScriptedEngine) -> Guarding:
    """Makes a guard on the engine that does `action`."""

    def make(
        action: Action = Action.BLOCK, on_error: OnError = OnError.BLOCK, **fields: Any
    ) -> GuardRunnable:
        policy = Policy.strict(action=action, on_error=on_error)
        return GuardRunnable(Guard(engine, policy), **fields)

    return make


@pytest.fixture
def llm() -> EchoModel:
    return EchoModel()


@pytest.fixture
def texts(engine: ScriptedEngine) -> Texts:
    """What the engine was asked, as lists of "role: text"."""

    def seen() -> list[list[str]]:
        return [[f"{m.role.value}: {m.judged_text}" for m in c.messages] for c in engine.seen]

    return seen
