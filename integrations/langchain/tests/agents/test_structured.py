"""Structured output of a guarded agent: what was released, or nothing."""

import json
from typing import Any

import pytest
from langchain.agents.middleware import AgentMiddleware
from langchain.agents.middleware.types import ModelResponse
from langchain.agents.structured_output import (
    ProviderStrategy,
    StructuredOutputValidationError,
    ToolStrategy,
)
from langchain_core.messages import AIMessage, AIMessageChunk
from pydantic import BaseModel

from guardrails_qwen import Action, Guard, GuardViolation, Stage
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.agents.building import (
    Agent,
    Run,
    agent,
    calls,
    policy_at,
    said,
    user,
)
from integrations.langchain.tests.doubles import REPLACED, SCRIPT
from integrations.langchain.tests.leaks.models import Reply


class Plan(BaseModel):
    """A plan."""

    query: str


def written(text: str) -> Reply:
    """A plan as a provider writes it."""
    return [AIMessageChunk(content=json.dumps({"query": text}))]


def called(text: str) -> Reply:
    """A plan as the arguments of a tool."""
    return calls(text, name="Plan", ids=[f"plan-{len(text)}"])


WAYS: dict[str, tuple[Any, Any]] = {
    "tool": (ToolStrategy(Plan), called),
    "provider": (ProviderStrategy(Plan), written),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A strategy, and how the model gives a plan by it."""
    return WAYS[request.param]


def planning(way: tuple[Any, Any], *texts: str, **settings: Any) -> Agent:
    strategy, plan = way
    options = {"response_format": strategy}
    return agent(*map(plan, texts), tools=[], options=options, **settings)


async def test_a_safe_plan_is_released(way: Any, run: Run) -> None:
    made = planning(way, "cats")
    result = await run(made.graph, user("hi"))
    assert result["structured_response"] == Plan(query="cats")
    assert len(made.judged) == 2


@pytest.mark.parametrize("leaving", ["end", "replace"])
@pytest.mark.parametrize("action", [Action.BLOCK, Action.REPLACE, Action.DROP, Action.REDACT])
async def test_an_unsafe_plan_is_none(way: Any, leaving: str, action: Action, run: Run) -> None:
    stages = [Stage.OUTPUT, Stage.TOOL_CALL]
    for stage in stages:
        used = Guard(ScriptedEngine(SCRIPT), policy_at(stage, action))
        if (stage is Stage.TOOL_CALL) != (way is WAYS["tool"]):
            continue
        made = planning(way, "a bomb", exit_behavior=leaving, guard=used)
        result = await run(made.graph, user("hi"))
        assert result.get("structured_response") is None
        assert "bomb" not in str(made.state)
        assert [message.type for message in result["messages"]] == ["human", "ai"]


async def test_an_unsafe_plan_raises(way: Any, run: Run) -> None:
    made = planning(way, "a bomb", exit_behavior="error")
    with pytest.raises(GuardViolation) as caught:
        await run(made.graph, user("hi"))
    assert "bomb" not in str(caught.value)


async def test_no_plan_is_left_of_the_turn_before(way: Any, run: Run) -> None:
    made = planning(way, "cats", "a bomb", "dogs")
    assert (await run(made.graph, user("hi")))["structured_response"]
    assert (await run(made.graph, user("and?"))).get("structured_response") is None
    result = await run(made.graph, user("and now?"))
    assert result["structured_response"] == Plan(query="dogs")


@pytest.mark.parametrize("beside", [False, True], ids=["before", "beside"])
async def test_nor_where_the_input_is_blocked(way: Any, beside: bool, run: Run) -> None:
    made = planning(way, "cats", "dogs", beside=beside)
    assert (await run(made.graph, user("hi")))["structured_response"]
    result = await run(made.graph, user("a bomb"))
    assert result.get("structured_response") is None
    assert said(result["messages"])[-1] == f"ai: {REPLACED}"


async def test_a_plan_that_is_none_stays_an_error(run: Run) -> None:
    made = agent(
        [AIMessageChunk(content="no JSON")],
        tools=[],
        options={"response_format": ProviderStrategy(Plan)},
    )
    with pytest.raises(StructuredOutputValidationError):
        await run(made.graph, user("hi"))


async def test_the_model_may_try_again(run: Run) -> None:
    wrong: Reply = [
        AIMessageChunk(
            content="",
            tool_call_chunks=[
                {  # pyright: ignore[reportArgumentType]
                    "name": "Plan",
                    "args": '{"wrong": 1}',
                    "id": "p",
                    "index": 0,
                }
            ],
        )
    ]
    made = agent(wrong, called("cats"), tools=[], options={"response_format": ToolStrategy(Plan)})
    result = await run(made.graph, user("hi"))
    assert result["structured_response"] == Plan(query="cats")


class Inventing(AgentMiddleware[Any, Any, Any]):
    """Answers in place of the model, with a plan."""

    def __init__(self, text: str, plan: str) -> None:
        super().__init__()
        self.response = lambda: ModelResponse(
            result=[AIMessage(text)], structured_response=Plan(query=plan)
        )

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return self.response()

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return self.response()


async def test_a_plan_that_other_middleware_made_goes_with_its_message(run: Run) -> None:
    made = agent(after=[Inventing("a bomb", "cats")], tools=[])
    result = await run(made.graph, user("hi"))
    assert said(result["messages"])[-1] == f"ai: {REPLACED}"
    assert result.get("structured_response") is None
