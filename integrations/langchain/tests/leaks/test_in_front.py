"""A guard in front of an agent: what it does not let in is written nowhere in the agent."""

from __future__ import annotations

import pytest
from langchain.agents import create_agent  # pyright: ignore[reportUnknownVariableType]
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

from guardrails_qwen import Action, Guard, GuardViolation, Policy
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.leaks.doors import Door, Watch, ainvoke, events_v2, invoke
from integrations.langchain.tests.leaks.probe import Sink
from integrations.langchain.tests.leaks.subjects import SCRIPT, guard
from integrations.langchain.tests.leaks.talk import model
from integrations.langchain.tests.leaks.threats import Threat
from langchain_guardrails_qwen import GuardRunnable
from langchain_guardrails_qwen.agents import GuardrailMiddleware

OUTSIDE = {"callbacks: chain start", "callbacks: chain end", "events v2: chain", "tracer"}
"""What is told of the chain that has both in it: its input."""


@pytest.mark.parametrize("door", [invoke, ainvoke, events_v2], ids=lambda door: door.__name__)
@pytest.mark.parametrize("action", [Action.BLOCK, Action.REPLACE, Action.REDACT])
async def test_an_agent_never_has_what_is_stopped_in_front_of_it(
    action: Action, door: Door
) -> None:
    watch, saver = Watch(), InMemorySaver()
    front = GuardRunnable(Guard(ScriptedEngine(SCRIPT), Policy.strict(action=action)))
    inner = model()
    agent = create_agent(
        inner, middleware=[GuardrailMiddleware(guard("tokens"))], checkpointer=saver
    )
    question = HumanMessage(f"Well. Where is a {Threat.INPUT.word}?")
    await watch.run(door, front | agent, {"messages": [question]})
    watch.look(agent, saver)
    watch.sink.hear("model", inner.sent)
    assert watch.sink.places(Threat.INPUT.word).keys() <= OUTSIDE
    assert bool(inner.sent) is (action is not Action.BLOCK)


@pytest.mark.parametrize("action", [Action.BLOCK, Action.REPLACE])
async def test_what_streams_out_of_it_does_not_have_it_either(action: Action) -> None:
    front = GuardRunnable(Guard(ScriptedEngine(SCRIPT), Policy.strict(action=action)))
    chain = front | create_agent(model())
    sink = Sink()
    try:
        async for chunk in chain.astream({"messages": [HumanMessage(f"A {Threat.INPUT.word}?")]}):
            sink.hear("stream", chunk)
    except GuardViolation as violation:
        sink.hear("error", violation)
    assert sink.heard
    assert sink.places(Threat.INPUT.word) == {}
