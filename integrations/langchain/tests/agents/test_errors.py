"""Guards that cannot judge: by the policy, and never as if it were safe."""

import asyncio
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from guardrails_qwen import (
    Conversation,
    ConversationError,
    EngineUnavailable,
    Guard,
    GuardError,
    GuardViolation,
    OnError,
    Policy,
)
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.agents.building import (
    Run,
    agent,
    calls,
    guard,
    said,
    says,
    user,
)
from integrations.langchain.tests.doubles import REPLACED

DOWN = EngineUnavailable("the engine is out of order")

REPLIES = [calls("cats"), says("fine")]


def failing(word: str, error: Any = DOWN) -> ScriptedEngine:
    """An engine that fails where the judged text has a word."""
    return ScriptedEngine({word: error})


AT = {"input": "hi", "call": "search", "result": "about", "output": "fine"}


@pytest.mark.parametrize("word", AT.values(), ids=AT)
async def test_what_cannot_be_judged_is_blocked(word: str, run: Run) -> None:
    made = agent(*REPLIES, guard=guard(failing(word)))
    result = await run(made.graph, user("hi"))
    assert said(result["messages"])[-1] == f"ai: {REPLACED}"


@pytest.mark.parametrize("word", AT.values(), ids=AT)
async def test_what_cannot_be_judged_may_pass(word: str, run: Run) -> None:
    made = agent(*REPLIES, guard=guard(failing(word), on_error=OnError.ALLOW))
    result = await run(made.graph, user("hi"))
    assert said(result["messages"]) == ["human: hi", "ai: ", "tool: about cats", "ai: fine"]


@pytest.mark.parametrize("word", AT.values(), ids=AT)
@pytest.mark.parametrize("leaving", ["end", "replace", "error"])
async def test_what_cannot_be_judged_may_be_an_error(word: str, leaving: str, run: Run) -> None:
    used = guard(failing(word), on_error=OnError.RAISE)
    made = agent(*REPLIES, guard=used, exit_behavior=leaving)
    with pytest.raises(EngineUnavailable):
        await run(made.graph, user("hi"))


@pytest.mark.parametrize("word", AT.values(), ids=AT)
async def test_nonsense_is_blocked_whatever_the_policy_allows(word: str, run: Run) -> None:
    made = agent(*REPLIES, guard=guard(failing(word, "I like it!"), on_error=OnError.ALLOW))
    result = await run(made.graph, user("hi"))
    assert said(result["messages"])[-1] == f"ai: {REPLACED}"


class Broken(ScriptedEngine):
    """An engine with a mistake."""

    def judge(self, conversations: Sequence[Conversation]) -> Any:
        raise ZeroDivisionError

    async def ajudge(self, conversations: Sequence[Conversation]) -> Any:
        raise ZeroDivisionError


async def test_an_engine_with_a_mistake_is_no_verdict(run: Run) -> None:
    made = agent(*REPLIES, guard=guard(Broken()))
    result = await run(made.graph, user("hi"))
    assert said(result["messages"]) == [f"human: {REPLACED}", f"ai: {REPLACED}"]
    made = agent(*REPLIES, guard=guard(Broken(), on_error=OnError.RAISE))
    with pytest.raises(GuardError, match="ZeroDivisionError"):
        await run(made.graph, user("hi"))


IMAGE: Any = [
    {"type": "text", "text": "Look at my bomb"},
    {"type": "image_url", "image_url": {"url": "https://example.org/bomb.png"}},
]


@pytest.mark.parametrize("on_error", [OnError.BLOCK, OnError.ALLOW], ids=lambda on: on.value)
@pytest.mark.parametrize("beside", [False, True], ids=["before", "beside"])
async def test_an_image_of_the_user_is_blocked(on_error: OnError, beside: bool, run: Run) -> None:
    made = agent(says("fine"), guard=guard(on_error=on_error), beside=beside)
    made.model.script = lambda _messages: says("fine")
    result = await run(made.graph, {"messages": [HumanMessage(IMAGE)]})
    assert said(result["messages"]) == [f"human: {REPLACED}", f"ai: {REPLACED}"]
    assert "bomb" not in str(made.state)
    result = await run(made.graph, user("hi"))
    assert said(result["messages"])[-1] == "ai: fine"


async def test_an_image_of_the_user_may_be_an_error(run: Run) -> None:
    made = agent(says("fine"), guard=guard(on_error=OnError.RAISE))
    with pytest.raises(ConversationError, match="cannot be judged") as caught:
        await run(made.graph, {"messages": [HumanMessage(IMAGE)]})
    assert "bomb" not in str(caught.value)
    assert made.model.sent == []


async def test_an_image_that_nobody_judges_is_sent(run: Run) -> None:
    made = agent(calls("cats"), says("fine"), check_input=False)
    result = await run(made.graph, {"messages": [HumanMessage(IMAGE)]})
    assert said(result["messages"])[1:] == ["ai: ", "tool: about cats", "ai: fine"]
    assert len(made.judged) == 3


async def test_what_was_let_through_unjudged_is_not_judged_later(run: Run) -> None:
    engine = ScriptedEngine({"hi": DOWN})
    made = agent(says("fine"), says("bye"), guard=guard(engine, on_error=OnError.ALLOW))
    await run(made.graph, user("hi"))
    engine.script = {}
    await run(made.graph, user("hello"))
    assert made.judged == ["user: hi", "assistant: fine", "user: hello", "assistant: bye"]


async def test_violations_can_be_pickled(run: Run) -> None:
    made = agent(exit_behavior="error")
    with pytest.raises(GuardViolation) as caught:
        await run(made.graph, user("a bomb"))
    assert pickle.loads(pickle.dumps(caught.value)).decision == caught.value.decision


class Hanging(ScriptedEngine):
    """An engine that never answers, and says when it was asked and cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.cancelled = 0

    async def ajudge(self, conversations: Sequence[Conversation]) -> Any:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@pytest.mark.parametrize("beside", [False, True], ids=["before", "beside"])
async def test_a_cancelled_run_cancels_its_guard(beside: bool) -> None:
    engine = Hanging()
    made = agent(*REPLIES, guard=Guard(engine, Policy.strict()), beside=beside)
    task = asyncio.create_task(made.graph.ainvoke(user("hi"), {"configurable": {"thread_id": "1"}}))
    await asyncio.wait_for(engine.asked.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.cancelled == 1
    assert made.ran == []
    assert "fine" not in str(made.state)


async def test_a_run_may_time_out() -> None:
    engine = Hanging()
    made = agent(*REPLIES, guard=Guard(engine, Policy.strict()))
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(
            made.graph.ainvoke(user("hi"), {"configurable": {"thread_id": "1"}}), 0.05
        )
    assert engine.cancelled == 1
    assert made.model.sent == []
