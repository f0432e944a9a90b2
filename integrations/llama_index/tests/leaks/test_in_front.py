"""A guard in front: what it does not let in, an agent writes nowhere."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.workflow import Context

from guardrails_qwen import Action, Guard, GuardViolation, Policy
from guardrails_qwen.testing import ScriptedEngine
from integrations.llama_index.tests.doubles import WritingLLM
from integrations.llama_index.tests.leaks.probe import Sink, listening
from integrations.llama_index.tests.leaks.subjects import SCRIPT
from integrations.llama_index.tests.leaks.threats import HARMLESS, Threat
from llama_index_guardrails_qwen import GuardedLLM

QUESTION = f"Well. Where is a {Threat.INPUT.value}?"


@pytest.mark.parametrize(
    "action", [Action.BLOCK, Action.REPLACE, Action.REDACT], ids=lambda one: one.name
)
async def test_an_agent_never_has_what_is_stopped_in_front_of_it(action: Action) -> None:
    guard = Guard(ScriptedEngine(SCRIPT), Policy.strict(action=action))
    model, sink = WritingLLM(replies=[HARMLESS]), Sink()
    memory: Any = ChatMemoryBuffer.from_defaults()  # pyright: ignore[reportUnknownMemberType]
    with listening(sink):
        agent: Any = FunctionAgent(llm=GuardedLLM(inner=model, guard=guard))
        context = Context(agent)
        try:
            question = await guard.aenforce(QUESTION)
            handler = agent.run(user_msg=question, ctx=context, memory=memory)
            async for event in handler.stream_events():
                sink.hear("stream", event)
            sink.hear("result", await handler)
        except GuardViolation as violation:
            sink.hear("error", violation)
        if model.seen:  # there is nothing to be had of a context in which nothing ever ran
            sink.hear("left", context.to_dict())
        sink.hear("left", memory.get_all())
    assert sink.places(Threat.INPUT.value) == {}
    assert bool(model.seen) is (action is not Action.BLOCK)
