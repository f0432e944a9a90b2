"""What the runs showed, surface by surface."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from integrations.llama_index.tests.leaks.runs import Run, doors
from integrations.llama_index.tests.leaks.subjects import Subject
from integrations.llama_index.tests.leaks.threats import Scenario
from tests.leak_tables import Cell

SURFACES = {
    "result": "the result",
    "result: tool_calls": "the result, its `tool_calls`",
    "result: raw": "the result, its `raw`",
    "tokens": "the tokens of the result",
    "sources": "sources, source nodes and metadata of the result",
    "AgentStream: text": "`AgentStream`: `delta`, `response`",
    "AgentStream: tool_calls": "`AgentStream`: `tool_calls`",
    "AgentStream: raw": "`AgentStream`: `raw`",
    "AgentStream: thinking_delta": "`AgentStream`: `thinking_delta`",
    "AgentStreamStructuredOutput": "`AgentStreamStructuredOutput`",
    "AgentOutput": "`AgentOutput`",
    "AgentOutput: tool_calls": "`AgentOutput`: `tool_calls`",
    "AgentOutput: raw": "`AgentOutput`: `raw`",
    "AgentInput": "`AgentInput`",
    "ToolCall": "`ToolCall`",
    "ToolCallResult": "`ToolCallResult`",
    "WorkflowFailedEvent": "`WorkflowFailedEvent`",
    "memory": "memory",
    "history": "`chat_history`",
    "context": "`ctx.to_dict()`",
    "model": "what the model is sent",
    "tool": "what a tool is run with",
    "next turn": "what the model is sent in the next turn",
    "events: model": "events of the model",
    "events: query": "events of queries",
    "events: retrieval": "events of retrieval",
    "events: synthesis": "events of synthesis",
    "events: chat": "events of chat engines",
    "events: tool": "events of tools",
    "events: step": "events of steps",
    "events: error": "events of errors",
    "events: guard": "events of guards",
    "events: others": "other events",
    "spans: start": "spans: arguments",
    "spans: end": "spans: results",
    "spans: error": "spans: errors",
    "callbacks": "callback managers",
    "logs": "log records, from debug on",
    "warnings": "warnings",
    "error": "errors",
}
"""All that is observed, and how the documentation calls it."""

HANDLERS = frozenset({
    *(surface for surface in SURFACES if surface.startswith(("events: ", "spans: "))),
    *("callbacks", "logs"),
})  # fmt: skip
"""What is told to those who observe a process, and to nobody who talks to it."""

_seen: dict[tuple[Subject, Scenario], frozenset[str]] = {}


async def places(subject: Subject, scenario: Scenario) -> frozenset[str]:
    """Where the unsafe word of a scenario is observed, whatever door is taken. Runs once."""
    key = (subject, scenario)
    if key not in _seen:
        found = set[str]()
        for door in doors(scenario):
            sink = await Run(subject=subject, scenario=scenario, door=door).observed()
            assert sink.heard.keys() <= SURFACES.keys()
            found |= sink.places(scenario.word).keys()
        _seen[key] = frozenset(found)
    return _seen[key]


async def column(subjects: Sequence[Subject], scenarios: Sequence[Scenario]) -> dict[str, Cell]:
    """What is to be said of every surface where any of the subjects guards."""
    leaks = Counter[str]()
    for scenario in scenarios:
        found = [await places(subject, scenario) for subject in subjects]
        leaks.update(frozenset[str]().union(*found))
    return {surface: Cell(scenarios=len(scenarios), leaks=leaks[surface]) for surface in SURFACES}
