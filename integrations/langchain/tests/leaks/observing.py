"""One scenario, run on an agent in one way, with all that can be observed of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent  # pyright: ignore[reportUnknownVariableType]
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AnyMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph, add_messages  # pyright: ignore[reportMissingTypeStubs]

from integrations.langchain.tests.leaks.doors import Door, Watch
from integrations.langchain.tests.leaks.models import (
    NativeModel,
    ScriptedModel,
    StreamingModel,
    in_turn,
)
from integrations.langchain.tests.leaks.probe import Ears, Sink
from integrations.langchain.tests.leaks.subjects import Subject
from integrations.langchain.tests.leaks.threats import Recipe, Scenario, structured
from integrations.langchain.tests.leaks.tools import recorded

FORMATS = {None: None, "tool": ToolStrategy(Recipe), "provider": ProviderStrategy(Recipe)}


class Outer(TypedDict):
    """The state of a graph that has the agent as a node."""

    messages: Annotated[list[AnyMessage], add_messages]


def model_of(scenario: Scenario, callbacks: Sequence[BaseCallbackHandler] = ()) -> ScriptedModel:
    """The language model of a scenario."""
    kind = StreamingModel if scenario.streams else ScriptedModel
    script = in_turn(scenario.replies, structured(scenario, "All is well."))
    kind = NativeModel if scenario.native else kind
    return kind(script=script, callbacks=[*callbacks])


def agent_of(
    subject: Subject, scenario: Scenario, model: ScriptedModel, *, saver: Any, nested: bool = False
) -> Any:
    """The agent of a scenario, alone or as a node of another graph."""
    agent: Any = create_agent(
        subject.model(model),
        scenario.tools,
        middleware=subject.middleware(),
        response_format=FORMATS[scenario.response_format],
        checkpointer=None if nested else saver,
    )
    if not nested:
        return agent
    graph: Any = StateGraph(Outer)
    outer = graph.add_node("agent", agent).add_edge(START, "agent")
    return outer.compile(checkpointer=saver)


async def observed(
    subject: Subject,
    scenario: Scenario,
    door: Door,
    *,
    remembers: bool = True,
    nested: bool = False,
) -> Sink:
    """Everything that could be observed; what the model and the tools got, too."""
    watch, saver = Watch(), InMemorySaver() if remembers else None
    model = model_of(scenario, [Ears(watch.sink)])
    agent = agent_of(subject, scenario, model, saver=saver, nested=nested)
    with recorded() as runs:
        await watch.run(door, agent, {"messages": [*scenario.question]})
    watch.sink.hear("tool", runs)
    for messages in model.sent:
        watch.sink.hear("model", messages)
    if remembers:
        watch.look(agent, saver)
        await watch.again(agent, model.sent)
    return watch.sink
