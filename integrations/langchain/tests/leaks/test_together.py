"""Many agents at once: nobody is judged with, or hears, what belongs to somebody else."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from langchain.agents import create_agent  # pyright: ignore[reportUnknownVariableType]
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver

from guardrails_qwen import Guard, Policy
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine
from integrations.langchain.tests.leaks.models import Reply, StreamingModel
from integrations.langchain.tests.leaks.subjects import SCRIPT
from integrations.langchain.tests.leaks.threats import call, said
from integrations.langchain.tests.leaks.tools import TOOLS
from langchain_guardrails_qwen.agents import GuardrailMiddleware

PEOPLE = 200


def _reply(messages: list[BaseMessage]) -> Reply:
    """Calls a tool with the number of whom it talks to; every third gets an unsafe answer."""
    number = _numbers(messages[0].text).pop()
    if len(messages) == 1:
        return call("shout", f"tea for n{number}")
    unsafe = "a kablout for" if int(number) % 3 == 0 else "some tea for"
    return said(f"Here is {unsafe} n{number} to have. Enjoy.")


def _numbers(text: str) -> set[str]:
    return set(re.findall(r"[nN](\d+)", text))


async def _talk(agent: Any, number: int) -> str:
    """What is heard of an agent that a person talks to, token by token."""
    config: RunnableConfig = {"configurable": {"thread_id": str(number)}}
    question = {"messages": [HumanMessage(f"I am n{number}.")]}
    heard = ""
    async for chunk, _ in agent.astream(question, config, stream_mode="messages"):
        await asyncio.sleep(0)
        heard += chunk.text
    return heard


@pytest.mark.parametrize(
    ("engine", "shared"),
    [
        pytest.param(ScriptedStreamEngine, True, id="one agent, tokens"),
        pytest.param(ScriptedEngine, False, id="an agent each, texts"),
    ],
)
async def test_two_hundred_people_at_once(engine: type[ScriptedEngine], shared: bool) -> None:
    judge = engine(SCRIPT)
    model = StreamingModel(script=_reply)

    def make() -> Any:
        middleware = [GuardrailMiddleware(Guard(judge, Policy.strict()))]
        return create_agent(model, TOOLS, middleware=middleware, checkpointer=InMemorySaver())

    agents = [make()] * PEOPLE if shared else [make() for _ in range(PEOPLE)]
    heard = await asyncio.gather(*map(_talk, agents, range(PEOPLE)))
    for number, text in enumerate(heard):
        assert _numbers(text) == {str(number)}
        assert "kablout" not in text
        assert ("was removed" in text) is (number % 3 == 0)
    for conversation in judge.seen:
        said_there = " ".join(message.judged_text for message in conversation.messages)
        assert len(_numbers(said_there)) == 1
