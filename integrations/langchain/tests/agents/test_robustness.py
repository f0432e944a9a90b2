"""Many calls at once, long threads, and runs side by side."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig

from guardrails_qwen import Conversation, Guard, Policy
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.agents.building import (
    NAME,
    Run,
    agent,
    calls,
    said,
    says,
    user,
)
from integrations.langchain.tests.agents.frameworks import tool
from integrations.langchain.tests.doubles import REPLACED, SCRIPT


async def test_a_hundred_calls_at_once(run: Run) -> None:
    names = [f"q{index}" if index != 50 else "worse" for index in range(100)]
    made = agent(calls(*names), says("fine"), exit_behavior="replace")
    result = await run(made.graph, user("hi"))
    answers = [m for m in result["messages"] if isinstance(m, ToolMessage)]
    assert [m.tool_call_id for m in answers] == [f"call-{index}" for index in range(100)]
    assert [m.text == REPLACED for m in answers] == [index == 50 for index in range(100)]
    assert len(made.ran) == 100
    assert len(made.judged) == 103
    assert set(made.state["guardrails"][NAME]) == {m.id for m in made.state["messages"]}


def long_thread(count: int) -> list[AnyMessage]:
    """Turns of user and assistant, with ids."""
    messages = list[AnyMessage]()
    for index in range(0, count, 2):
        messages.append(HumanMessage(f"question {index}", id=f"h{index}"))
        messages.append(AIMessage(f"answer {index}", id=f"a{index}"))
    return [*messages, HumanMessage("hi", id="last")]


async def test_a_thread_of_two_thousand_messages(run: Run) -> None:
    made = agent(says("fine"), says("bye"), scope="all")
    await run(made.graph, {"messages": long_thread(2000)})
    assert len(made.judged) == 2002
    await run(made.graph, user("and now?"))
    assert made.judged[2002:] == ["user: and now?", "assistant: bye"]
    assert len(made.state["guardrails"][NAME]) == 2004


def in_thread(name: str) -> RunnableConfig:
    return {"configurable": {"thread_id": name}}


TEXTS = {f"t{index}": "a bomb" if index % 3 == 0 else "hi" for index in range(30)}


async def test_threads_of_one_agent_do_not_mix() -> None:
    made = agent()
    made.model.script = lambda messages: says(f"re {messages[-1].text}")
    results = await asyncio.gather(
        *(made.graph.ainvoke(user(text), in_thread(name)) for name, text in TEXTS.items())
    )
    replies = [said(result["messages"])[-1] for result in results]
    assert replies == [
        f"ai: {REPLACED}" if text == "a bomb" else "ai: re hi" for text in TEXTS.values()
    ]


def test_nor_do_they_in_system_threads() -> None:
    made = agent()
    made.model.script = lambda messages: says(f"re {messages[-1].text}")

    def ask(item: tuple[str, str]) -> Any:
        return made.graph.invoke(user(item[1]), in_thread(item[0]))

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(ask, TEXTS.items()))
    replies = [said(result["messages"])[-1] for result in results]
    assert replies == [
        f"ai: {REPLACED}" if text == "a bomb" else "ai: re hi" for text in TEXTS.values()
    ]


class Coloured(ScriptedEngine):
    """An engine that notes by which door it was asked, and on which thread."""

    def __init__(self) -> None:
        super().__init__(SCRIPT)
        self.asked: set[tuple[str, bool]] = set()

    def judge(self, conversations: Sequence[Conversation]) -> Any:
        self._note("judge")
        return super().judge(conversations)

    async def ajudge(self, conversations: Sequence[Conversation]) -> Any:
        self._note("ajudge")
        return super().judge(conversations)

    def _note(self, door: str) -> None:
        self.asked.add((door, threading.current_thread() is threading.main_thread()))


@tool("search")
async def aside(query: str) -> str:
    """Search."""
    return f"about {query}"


@pytest.mark.parametrize("asynchronous", [True, False], ids=["coroutine", "function"])
async def test_the_event_loop_is_never_blocked(asynchronous: bool) -> None:
    engine = Coloured()
    used = Guard(engine, Policy.strict())
    made = agent(calls("cats"), says("fine"), guard=used, tools=[aside] if asynchronous else None)
    await made.graph.ainvoke(user("hi"), in_thread("1"))
    assert ("judge", True) not in engine.asked
    assert ("ajudge", True) in engine.asked


def test_the_synchronous_door_is_used_without_an_event_loop() -> None:
    engine = Coloured()
    made = agent(calls("cats"), says("fine"), guard=Guard(engine, Policy.strict()))
    made.graph.invoke(user("hi"), in_thread("1"))
    assert {door for door, _ in engine.asked} == {"judge"}


async def test_an_old_checkpoint_can_be_gone_back_to(run: Run) -> None:
    made = agent(says("one"), says("two"), says("other"))
    await run(made.graph, user("a"))
    await run(made.graph, user("b"))
    history = list(made.graph.get_state_history(in_thread("1")))
    first = next(step for step in history if len(step.values.get("messages", [])) == 2)
    before = len(made.judged)
    result = await run(made.graph, user("c"), first.config)
    assert said(result["messages"]) == ["human: a", "ai: one", "human: c", "ai: other"]
    assert made.judged[before:] == ["user: c", "assistant: other"]


async def test_a_state_that_is_edited_is_judged(run: Run) -> None:
    made = agent(says("one"), says("two"), exit_behavior="replace")
    state = await run(made.graph, user("a"))
    edited = AIMessage("a bomb", id=state["messages"][-1].id)
    made.graph.update_state(in_thread("1"), {"messages": [edited]})
    result = await run(made.graph, user("b"))
    assert said(result["messages"]) == ["human: a", f"ai: {REPLACED}", "human: b", "ai: two"]
    assert "bomb" not in str(made.model.sent)


async def test_a_run_that_failed_goes_on_where_it_was(run: Run) -> None:
    made = agent(says("fine"))
    script = made.model.script
    failures = iter([ConnectionError("down")])

    def unsure(messages: Any) -> Any:
        for failure in failures:
            raise failure
        return script(messages)

    made.model.script = unsure
    with pytest.raises(ConnectionError):
        await run(made.graph, user("hi"))
    result = await run(made.graph, None)
    assert said(result["messages"]) == ["human: hi", "ai: fine"]
    assert made.judged == ["user: hi", "assistant: fine"]
