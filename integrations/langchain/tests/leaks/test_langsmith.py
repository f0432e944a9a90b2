"""What LangSmith would be sent, the spans of middleware included, has nothing unsafe in it."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.tracers.langchain import LangChainTracer, wait_for_all_tracers
from langgraph.checkpoint.memory import InMemorySaver
from langsmith import Client, tracing_context  # pyright: ignore[reportUnknownVariableType]
from typing_extensions import override

from integrations.langchain.tests.leaks.doors import Door, Watch, ainvoke, invoke, stream
from integrations.langchain.tests.leaks.observing import agent_of, model_of
from integrations.langchain.tests.leaks.probe import Sink
from integrations.langchain.tests.leaks.subjects import OURS, UNGUARDED, Subject
from integrations.langchain.tests.leaks.threats import SCENARIOS, Scenario, Threat

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")


class Recorder(Client):
    """A client that keeps what it is to send, and sends nothing."""

    def __init__(self, sink: Sink) -> None:
        nowhere: dict[str, Any] = {"api_url": "http://127.0.0.1:9", "api_key": "none"}
        super().__init__(**nowhere, auto_batch_tracing=False)  # pyright: ignore[reportUnknownMemberType]
        self.sink = sink

    @override
    def create_run(self, *args: Any, **kwargs: Any) -> None:
        self.sink.hear("langsmith", args, kwargs)

    @override
    def update_run(self, *args: Any, **kwargs: Any) -> None:
        self.sink.hear("langsmith", args, kwargs)


async def _traced(subject: Subject, scenario: Scenario, door: Door) -> Sink:
    sink, saver = Sink(), InMemorySaver()
    client = Recorder(sink)
    agent = agent_of(subject, scenario, model_of(scenario), saver=saver)
    traced = agent.with_config(callbacks=[LangChainTracer(client=client)])
    with tracing_context(enabled=True, client=client):
        await Watch(sink=Sink()).run(door, traced, {"messages": [*scenario.question]})
    wait_for_all_tracers()
    return sink


@pytest.mark.parametrize("door", [ainvoke, stream], ids=lambda door: door.__name__)
@pytest.mark.parametrize("subject", OURS[:3], ids=str)
async def test_a_trace_has_nothing_unsafe(subject: Subject, door: Door) -> None:
    for scenario in SCENARIOS:
        if scenario.threat is not Threat.INPUT:
            sink = await _traced(subject, scenario, door)
            assert "langsmith" in sink.places("guardrailmiddleware")
            assert sink.places(scenario.word) == {}, str(scenario)


@pytest.mark.parametrize("door", [invoke, ainvoke], ids=lambda door: door.__name__)
async def test_a_trace_has_what_nobody_guards(door: Door) -> None:
    for scenario in SCENARIOS:
        assert (await _traced(UNGUARDED, scenario, door)).places(scenario.word)
