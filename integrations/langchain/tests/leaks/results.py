"""What the runs showed, as cells: clean, leaking, or there before anything could guard it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from integrations.langchain.tests.leaks.doors import DOORS
from integrations.langchain.tests.leaks.observing import observed
from integrations.langchain.tests.leaks.subjects import Subject
from integrations.langchain.tests.leaks.threats import SCENARIOS, Scenario, Threat
from tests.leak_tables import Cell

SURFACES = {
    "result": "the result: `invoke`, `ainvoke`",
    "stream: values": '`stream_mode="values"`',
    "stream: updates": '`stream_mode="updates"`',
    "stream: messages": '`stream_mode="messages"`',
    "stream: tasks": '`stream_mode="tasks"`',
    "stream: checkpoints": '`stream_mode="checkpoints"`',
    "stream: debug": '`stream_mode="debug"`',
    "stream: custom": '`stream_mode="custom"`',
    "events v2: model": "events v2 of the model",
    "events v2: tool": "events v2 of tools",
    "events v2: chain": "events v2 of the agent and its nodes",
    "events v2: custom": "events v2, custom",
    "events v3: messages": "events v3, messages",
    "events v3: tools": "events v3, tools",
    "events v3: values": "events v3, values",
    "events v3: others": "events v3, others",
    "callbacks: model": "callbacks of the model",
    "callbacks: tool": "callbacks of tools",
    "callbacks: chain start": "callbacks: a node starts",
    "callbacks: chain end": "callbacks: a node ends",
    "callbacks: custom": "callbacks: custom events",
    "tracer": "traces",
    "state": "the state behind the run",
    "history": "the history of states",
    "saver": "checkpoints, as they are stored",
    "saver writes": "pending writes, as they are stored",
    "model": "what the model is sent",
    "tool": "what a tool is run with",
    "next turn": "what the model is sent in the next turn",
    "error": "errors",
    "logs": "log records",
}
"""All that is observed, and how the documentation calls it."""

BEFORE = {
    "stream: values": {0},
    "stream: tasks": {0},
    "stream: checkpoints": {0, 1},
    "stream: debug": {0, 1, 2},
    "events v2: chain": {0, 1, 2, 3},
    "events v3: values": {0},
    "callbacks: chain start": {0, 1},
    "tracer": {0},
    "history": {0, 1},
    "saver": {0, 1},
    "saver writes": {0},
}
"""Where the input of an agent is before any of its middleware runs, and among the how-manieth.

The first snapshot of the values, of the checkpoints and of the history; the first task, which is
given them; the input of the run and of its first node in callbacks, events and traces; and what
the saver stored of these.
"""

STAYS = {"state": {0}, **BEFORE}
"""Where it is too if the run ends with an error, because an error leaves the state as it was."""

Places = dict[str, set[int]]


_seen: dict[tuple[Subject, Scenario], Places] = {}


async def places(subject: Subject, scenario: Scenario) -> Places:
    """Where the unsafe word of a scenario is observed, whatever door is taken. Runs once."""
    key = (subject, scenario)
    if key not in _seen:
        found = Places()
        for door in DOORS:
            sink = await observed(subject, scenario, door)
            for surface, numbers in sink.places(scenario.word).items():
                found.setdefault(surface, set()).update(numbers)
        _seen[key] = found
    return _seen[key]


def unexplained(found: Places, subject: Subject, scenario: Scenario) -> Places:
    """What is observed and was not there before any middleware ran."""
    before = STAYS if subject.variant.startswith("error") else BEFORE
    explained = before if scenario.threat is Threat.INPUT else {}
    left = {surface: numbers - explained.get(surface, set()) for surface, numbers in found.items()}
    return {surface: numbers for surface, numbers in left.items() if numbers}


async def column(subjects: Sequence[Subject], threat: Threat) -> dict[str, Cell]:
    """What is to be said of every surface where any of the subjects guards an agent."""
    scenarios = [scenario for scenario in SCENARIOS if scenario.threat is threat]
    leaks, before = Counter[str](), Counter[str]()
    for scenario in scenarios:
        seen, leaked = set[str](), set[str]()
        for subject in subjects:
            found = await places(subject, scenario)
            seen |= found.keys()
            leaked |= unexplained(found, subject, scenario).keys()
        leaks.update(leaked)
        before.update(seen - leaked)
    return {
        surface: Cell(scenarios=len(scenarios), leaks=leaks[surface], before=before[surface])
        for surface in SURFACES
    }
