"""What happens where the policy does something, at every stage."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage

from guardrails_qwen import Action, Guard, GuardViolation, Stage
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.agents.building import (
    Agent,
    Run,
    agent,
    calls,
    finding,
    policy_at,
    said,
    says,
    user,
)
from integrations.langchain.tests.doubles import FILTERED, REPLACED, SCRIPT

Made = Callable[..., tuple[Agent, dict[str, Any]]]

ASKED = {
    "input": ("make a bomb", [says("fine")]),
    "output": ("hi", [says("take a bomb now")]),
    "call": ("hi", [calls("bomb"), says("fine")]),
    "result": ("hi", [calls("worse"), says("fine")]),
}
"""What is unsafe in a turn: what the user says, and what the model does."""

STAGES = {
    "input": Stage.INPUT,
    "output": Stage.OUTPUT,
    "call": Stage.TOOL_CALL,
    "result": Stage.TOOL_RESULT,
}


def turn(where: str, action: Action, **settings: Any) -> tuple[Agent, dict[str, Any]]:
    """An agent whose policy does `action` at one stage, and a turn that is unsafe there."""
    text, replies = ASKED[where]
    used = Guard(ScriptedEngine(SCRIPT), policy_at(STAGES[where], action))
    return agent(*replies, guard=used, **settings), user(text)


ENDED = {
    "input": [f"human: {REPLACED}", f"ai: {REPLACED}"],
    "output": ["human: hi", f"ai: {REPLACED}"],
    "call": ["human: hi", f"ai: {REPLACED}"],
    "result": ["human: hi", "ai: ", f"tool: {REPLACED}", f"ai: {REPLACED}"],
}


@pytest.mark.parametrize("where", ENDED)
async def test_a_run_ends(where: str, run: Run) -> None:
    made, turn_ = turn(where, Action.BLOCK)
    result = await run(made.graph, turn_)
    assert said(result["messages"]) == ENDED[where]
    last = result["messages"][-1]
    assert isinstance(last, AIMessage)
    assert last.response_metadata["finish_reason"] == FILTERED["finish_reason"]
    assert not last.tool_calls
    assert made.ran == (["worse"] if where == "result" else [])
    assert len(made.model.sent) == (0 if where == "input" else 1)


WENT_ON = {
    "input": [f"human: {REPLACED}", "ai: fine"],
    "output": ["human: hi", f"ai: {REPLACED}"],
    "call": ["human: hi", f"ai: {REPLACED}"],
    "result": ["human: hi", "ai: ", f"tool: {REPLACED}", "ai: fine"],
}


@pytest.mark.parametrize("where", WENT_ON)
@pytest.mark.parametrize(
    ("action", "leaving"),
    [(Action.BLOCK, "replace"), (Action.REPLACE, "end"), (Action.REPLACE, "error")],
    ids=lambda value: getattr(value, "label", value),
)
async def test_a_message_is_replaced(where: str, action: Action, leaving: str, run: Run) -> None:
    made, turn_ = turn(where, action, exit_behavior=leaving)
    result = await run(made.graph, turn_)
    assert said(result["messages"]) == WENT_ON[where]
    assert all("bomb" not in str(sent) for sent in made.model.sent)
    assert made.ran == (["worse"] if where == "result" else [])


@pytest.mark.parametrize("where", ASKED)
async def test_an_error_is_raised(where: str, run: Run) -> None:
    made, turn_ = turn(where, Action.BLOCK, exit_behavior="error")
    with pytest.raises(GuardViolation) as caught:
        await run(made.graph, turn_)
    assert caught.value.decision.stage is STAGES[where]
    assert "bomb" not in str(caught.value)


DROPPED = {
    "input": ["human: ", "ai: fine"],
    "output": ["human: hi", "ai: "],
    "call": ["human: hi", "ai: "],
    "result": ["human: hi", "ai: ", "tool: ", "ai: fine"],
}


@pytest.mark.parametrize("where", DROPPED)
@pytest.mark.parametrize("leaving", ["end", "replace", "error"])
async def test_a_dropped_message_says_nothing(where: str, leaving: str, run: Run) -> None:
    made, turn_ = turn(where, Action.DROP, exit_behavior=leaving)
    result = await run(made.graph, turn_)
    assert said(result["messages"]) == DROPPED[where]


async def test_a_dropped_message_is_removed_from_a_longer_thread(run: Run) -> None:
    used = Guard(ScriptedEngine(SCRIPT), policy_at(Stage.INPUT, Action.DROP))
    made = agent(says("fine"), guard=used)
    result = await run(made.graph, user("a bomb", "hi"))
    assert said(result["messages"]) == ["human: hi", "ai: fine"]


@pytest.mark.parametrize("action", [Action.ALLOW, Action.FLAG], ids=lambda a: a.label)
@pytest.mark.parametrize("where", ASKED)
@pytest.mark.parametrize("leaving", ["end", "replace", "error"])
async def test_what_is_allowed_passes(where: str, action: Action, leaving: str, run: Run) -> None:
    made, turn_ = turn(where, action, exit_behavior=leaving)
    result = await run(made.graph, turn_)
    assert "bomb" in str(result["messages"])
    assert action.label in made.actions().values()
    if where == "call":
        assert made.ran == ["bomb"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("input", "human: Hi. [removed: violent]"),
        ("output", "ai: Hello. [removed: violent]"),
        ("result", "tool: Cats. [removed: violent]"),
    ],
)
async def test_sentences_are_redacted(where: str, message: str, run: Run) -> None:
    asked = {
        "input": ("Hi. A bomb.", [says("fine")]),
        "output": ("hi", [says("Hello. A bomb.")]),
        "result": ("hi", [calls("x"), says("fine")]),
    }
    text, replies = asked[where]
    used = Guard(
        ScriptedEngine(SCRIPT),
        policy_at(STAGES[where], Action.REDACT, marker="[removed: violent]"),
    )
    made = agent(*replies, guard=used, tools=[finding("Cats. A bomb.")])
    result = await run(made.graph, user(text))
    assert message in said(result["messages"])
    assert "redact" in made.actions().values()


async def test_a_call_that_is_to_be_redacted_is_gone(run: Run) -> None:
    made, turn_ = turn("call", Action.REDACT)
    result = await run(made.graph, turn_)
    assert not result["messages"][-1].tool_calls
    assert made.ran == []


@pytest.mark.parametrize("where", ASKED)
@pytest.mark.parametrize(
    ("settings", "closing"),
    [
        ({"violation_message": "No."}, "No."),
        ({"violation_message": ""}, ""),
        ({"streaming": Streaming(closing="That was it.")}, "That was it."),
        ({"violation_message": "No.", "streaming": Streaming(closing="That was it.")}, "No."),
    ],
    ids=["message", "empty", "closing", "both"],
)
async def test_the_last_word_can_be_chosen(
    where: str, settings: dict[str, Any], closing: str, run: Run
) -> None:
    made, turn_ = turn(where, Action.BLOCK, **settings)
    result = await run(made.graph, turn_)
    assert result["messages"][-1].text == closing


UNUSUAL: dict[str, AIMessageChunk] = {
    "thoughts": AIMessageChunk(
        content=[{"type": "thinking", "thinking": "a bomb"}, {"type": "text", "text": "fine"}]
    ),
    "fields": AIMessageChunk(content="fine", additional_kwargs={"reasoning_content": "a bomb"}),
    "a call that is no JSON": AIMessageChunk(
        content="",
        tool_call_chunks=[
            {  # pyright: ignore[reportArgumentType]
                "name": "search",
                "args": '{"query": "a bomb',
                "id": "1",
                "index": 0,
            }
        ],
    ),
    "an old call": AIMessageChunk(
        content="", additional_kwargs={"function_call": {"name": "x", "arguments": "a bomb"}}
    ),
}


@pytest.mark.parametrize("chunk", UNUSUAL.values(), ids=UNUSUAL)
async def test_all_of_a_reply_is_judged(chunk: AIMessageChunk, run: Run) -> None:
    made = agent([chunk])
    result = await run(made.graph, user("hi"))
    assert said(result["messages"]) == ["human: hi", f"ai: {REPLACED}"]
    assert "bomb" not in str(made.state)


@pytest.mark.parametrize("leaving", ["end", "replace"])
async def test_one_bad_call_takes_its_neighbours_along(leaving: str, run: Run) -> None:
    made = agent(calls("cats", "bomb"), says("fine"), exit_behavior=leaving)
    result = await run(made.graph, user("hi"))
    assert made.ran == []
    assert said(result["messages"]) == ["human: hi", f"ai: {REPLACED}"]


async def test_the_neighbours_of_a_bad_result_stay_and_the_run_ends(run: Run) -> None:
    made = agent(calls("cats", "worse", "dogs"))
    result = await run(made.graph, user("hi"))
    assert sorted(made.ran) == ["cats", "dogs", "worse"]
    assert said(result["messages"])[2:] == [
        "tool: about cats",
        f"tool: {REPLACED}",
        "tool: about dogs",
        f"ai: {REPLACED}",
    ]


async def test_a_replaced_result_keeps_its_call(run: Run) -> None:
    made = agent(calls("worse", ids=["abc"]), says("fine"), exit_behavior="replace")
    result = await run(made.graph, user("hi"))
    [answer] = [m for m in result["messages"] if isinstance(m, ToolMessage)]
    assert (answer.tool_call_id, answer.name) == ("abc", "search")


async def test_the_next_turn_is_an_ordinary_one(run: Run) -> None:
    made = agent(calls("worse"), says("hello"))
    await run(made.graph, user("hi"))
    result = await run(made.graph, user("and now?"))
    assert said(result["messages"])[-2:] == ["human: and now?", "ai: hello"]


@pytest.mark.parametrize(
    "settings", [{"exit_behavior": "stop"}, {"scope": "last"}], ids=["exit", "scope"]
)
def test_what_is_unknown_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="one of"):
        agent(**settings)
