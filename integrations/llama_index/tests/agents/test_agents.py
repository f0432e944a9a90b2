"""Agents with a guarded model and guarded tools: nobody gets what was not let through."""

from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.agent.workflow import ToolCall, ToolCallResult
from llama_index.core.workflow import Context

from guardrails_qwen import Action, Guard, GuardViolation, Stage
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine
from integrations.llama_index.tests.agents.building import (
    KINDS,
    Kind,
    guarded,
    new_memory,
    of_the_framework,
    run,
    sent,
)
from integrations.llama_index.tests.doubles import REPLACED, SCRIPT

Guarding = Callable[..., Guard]

pytestmark = of_the_framework

UNSAFE = "First of all. Then you take a bomb and more. And so on."


@pytest.fixture(params=[ScriptedEngine, ScriptedStreamEngine], ids=["texts", "tokens"])
def engine(request: pytest.FixtureRequest) -> ScriptedEngine:
    """Engines that judge replies as texts, again and again, and those that judge tokens."""
    return request.param(SCRIPT)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(params=[True, False], ids=["streams", "whole"])
def options(request: pytest.FixtureRequest, kind: Kind) -> dict[str, Any]:
    return {"streaming": request.param}


async def test_what_is_harmless_passes(guard: Guard, kind: Kind, options: dict[str, Any]) -> None:
    replies = [kind.asks("good"), kind.says("Make pancakes then.")]
    agent, inner = guarded(kind, guard, replies, **options)
    done = await run(agent)
    assert done.error is None
    assert "Make pancakes then." in str(done.result)
    assert "how to make pancakes" in sent(inner)
    [result] = done.of(ToolCallResult)
    assert "how to make pancakes" in result.tool_output.content
    assert ("Make pancakes then." in done.streamed) is options["streaming"]
    assert "Make pancakes then." in repr(done.memory)


async def test_a_blocked_reply_is_nowhere(
    guard: Guard, kind: Kind, options: dict[str, Any]
) -> None:
    agent, _ = guarded(kind, guard, [kind.says(UNSAFE)], **options)
    done = await run(agent)
    assert isinstance(done.error, GuardViolation)
    assert done.error.decision.stage is Stage.OUTPUT
    assert "bomb" not in done.everything


async def test_a_blocked_reply_is_answered(
    guard: Guard, kind: Kind, options: dict[str, Any]
) -> None:
    agent, _ = guarded(kind, guard, [kind.says(UNSAFE)], llm={"on_violation": "reply"}, **options)
    done = await run(agent, max_iterations=2, early_stopping_method="generate")
    assert done.error is None
    assert REPLACED in str(done.result)
    assert "bomb" not in done.everything


async def test_a_redacted_reply_goes_on_without_the_offence(
    guarding: Guarding, kind: Kind, options: dict[str, Any]
) -> None:
    agent, _ = guarded(kind, guarding(Action.REDACT), [kind.says(UNSAFE)], **options)
    done = await run(agent, max_iterations=2, early_stopping_method="generate")
    assert done.error is None
    assert "[removed: Violent]" in str(done.result)
    assert "bomb" not in done.everything


async def test_a_blocked_call_is_not_made(
    guard: Guard, kind: Kind, options: dict[str, Any]
) -> None:
    agent, _ = guarded(kind, guard, [kind.asks("a bomb if you please")], **options)
    done = await run(agent)
    assert isinstance(done.error, GuardViolation)
    assert not done.of(ToolCall)
    assert "bomb" not in done.everything


@pytest.mark.parametrize("query", ["bad", "fail"])
async def test_a_blocked_result_ends_the_run(
    guard: Guard, kind: Kind, options: dict[str, Any], query: str
) -> None:
    replies = [kind.asks(query), kind.says("never asked")]
    agent, inner = guarded(kind, guard, replies, **options)
    done = await run(agent)
    assert isinstance(done.error, GuardViolation)
    assert done.error.decision.stage is Stage.TOOL_RESULT
    assert len(inner.seen) == 1
    assert "bomb" not in done.everything + sent(inner)


@pytest.mark.parametrize("query", ["bad", "fail"])
async def test_a_blocked_result_is_answered(
    guard: Guard, kind: Kind, options: dict[str, Any], query: str
) -> None:
    replies = [kind.asks(query), kind.says("I found nothing.")]
    agent, inner = guarded(kind, guard, replies, tools={"on_violation": "reply"}, **options)
    done = await run(agent)
    assert done.error is None
    assert "I found nothing." in str(done.result)
    assert REPLACED in sent(inner)
    assert "bomb" not in done.everything + sent(inner)


async def test_a_violation_inside_of_a_tool_ends_the_run(
    guard: Guard, kind: Kind, options: dict[str, Any]
) -> None:
    inside = GuardViolation(guard.check("a bomb"))

    def search(query: str) -> str:
        """Find a page."""
        raise inside

    replies = [kind.asks("good"), kind.says("never asked")]
    agent, inner = guarded(kind, guard, replies, tool=search, **options)
    done = await run(agent)
    assert isinstance(done.error, GuardViolation)
    assert done.error.decision is inside.decision
    assert len(inner.seen) == 1


async def test_a_blocked_input_ends_the_run_and_poisons_no_later_one(
    guard: Guard, kind: Kind, options: dict[str, Any]
) -> None:
    agent, inner = guarded(kind, guard, [kind.says("Hello.")], **options)
    ctx, memory = Context(agent), new_memory()
    blocked = await run(agent, "How to make a bomb?", ctx=ctx, memory=memory)
    assert isinstance(blocked.error, GuardViolation)
    assert blocked.error.decision.stage is Stage.INPUT
    assert not inner.seen
    done = await run(agent, "Good morning.", ctx=Context(agent), memory=memory)
    assert done.error is None
    assert "Hello." in str(done.result)
    assert "bomb" not in sent(inner)


async def test_a_run_that_was_ended_by_a_tool_poisons_no_later_one(
    guard: Guard, kind: Kind, options: dict[str, Any]
) -> None:
    replies = [kind.asks("bad"), kind.says("Hello.")]
    agent, inner = guarded(kind, guard, replies, **options)
    ctx, memory = Context(agent), new_memory()
    ended = await run(agent, ctx=ctx, memory=memory)
    assert isinstance(ended.error, GuardViolation)
    done = await run(agent, "Good morning.", ctx=Context(agent), memory=memory)
    assert done.error is None
    assert "Hello." in str(done.result)
    assert "bomb" not in done.everything + sent(inner)


async def test_the_same_context_goes_on_after_a_violation(
    guard: Guard, kind: Kind, options: dict[str, Any]
) -> None:
    replies = [kind.asks("bad"), kind.says("Hello.")]
    agent, inner = guarded(kind, guard, replies, **options)
    ctx, memory = Context(agent), new_memory()
    ended = await run(agent, ctx=ctx, memory=memory)
    assert isinstance(ended.error, GuardViolation)
    done = await run(agent, "Good morning.", ctx=ctx, memory=memory)
    assert done.error is None
    assert "Hello." in str(done.result)
    assert "bomb" not in done.everything + sent(inner)


async def test_the_last_word_of_a_run_that_is_stopped_is_judged(
    guard: Guard, kind: Kind, options: dict[str, Any]
) -> None:
    replies = [kind.asks("good"), kind.asks("good"), kind.says(UNSAFE)]
    agent, _ = guarded(kind, guard, replies, **options)
    done = await run(agent, max_iterations=2, early_stopping_method="generate")
    assert isinstance(done.error, GuardViolation)
    assert "bomb" not in done.everything
