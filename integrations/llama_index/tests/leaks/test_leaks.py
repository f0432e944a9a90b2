"""Nothing that a guard does not let through can be observed where it guards. The rest is seen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest

from integrations.llama_index.tests.leaks.results import HANDLERS, places
from integrations.llama_index.tests.leaks.runs import Run, doors
from integrations.llama_index.tests.leaks.subjects import (
    AGENTS,
    BESIDE,
    BOTH,
    ENGINES,
    MODELS,
    PII,
    POSTPROCESSORS,
    UNGUARDED,
    Subject,
)
from integrations.llama_index.tests.leaks.threats import (
    AGENT_PLACES,
    HARMLESS_SCENARIOS,
    SCENARIOS,
    Place,
    Scenario,
    Threat,
)

SAID = [s for s in SCENARIOS if s.threat in (Threat.OUTPUT, Threat.ARGUMENTS)]
RESULTS = [s for s in SCENARIOS if s.threat is Threat.RESULT]
NODES = [s for s in SCENARIOS if s.threat is Threat.CHUNK]
OF_ENGINES = [s for s in SCENARIOS if s.place not in AGENT_PLACES and s.threat is not Threat.CHUNK]
ASKED = [s for s in OF_ENGINES if s.threat is Threat.INPUT]
[LOOKED_UP] = [s for s in RESULTS if s.name == "nodes behind an answer"]
[CONDENSED] = [s for s in OF_ENGINES if s.name == "condensed question"]

NOTHING = frozenset[str]()
INSIDE = HANDLERS - {"events: guard"}
"""Where handlers are told of what is inside of a guarded engine."""
COMES_IN = {"events: query", "spans: start"}
"""Where a guarded engine itself is asked: handlers are told what it is asked."""
FOUND = {"events: retrieval", "spans: start", "spans: end", "logs"}
"""What handlers are told of nodes before they come to a postprocessor."""

RAW = {"AgentStream: raw", "AgentOutput: raw", "result: raw"}
"""A provider's own answer, of which a guarded model passes on ids and counts."""


def _each(
    subjects: Sequence[Subject], scenarios: Sequence[Scenario], allowed: Collection[str]
) -> list[object]:
    return [
        pytest.param(subject, scenario, allowed, id=f"{subject}, {scenario}")
        for subject in subjects
        for scenario in scenarios
    ]


@pytest.mark.parametrize(
    ("subject", "scenario", "allowed"),
    [
        *_each(MODELS, SAID, NOTHING),
        *_each([BESIDE], SAID, NOTHING),
        *_each(AGENTS, [s for s in RESULTS if s is not LOOKED_UP], NOTHING),
        *_each(AGENTS, [LOOKED_UP], {"logs"}),  # of the retriever that the tool uses
        *_each(ENGINES, [s for s in OF_ENGINES if s is not CONDENSED], INSIDE),
        *_each(ENGINES, [CONDENSED], INSIDE | {"model"}),  # what the engine inside asks
        *_each(BOTH, [s for s in OF_ENGINES if s not in ASKED], NOTHING),
        *_each(BOTH, ASKED, COMES_IN),
        *_each(POSTPROCESSORS, NODES, FOUND),
    ],
)
async def test_nothing_unsafe_can_be_observed(
    subject: Subject, scenario: Scenario, allowed: Collection[str]
) -> None:
    assert await places(subject, scenario) - {*allowed} == NOTHING


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
async def test_a_guarded_model_reads_nothing_unsafe(scenario: Scenario) -> None:
    for subject in MODELS:
        found = await places(subject, scenario)
        assert found.isdisjoint({"model", "next turn", "tool"})
        assert found.isdisjoint({"error", "warnings", "events: guard"})


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
async def test_what_nobody_guards_is_seen(scenario: Scenario) -> None:
    found = await places(UNGUARDED, scenario)
    assert found & HANDLERS
    assert found - HANDLERS


@pytest.mark.parametrize("scenario", NODES, ids=str)
async def test_the_leaks_of_a_peer_are_seen(scenario: Scenario) -> None:
    assert "sources" in await places(PII, scenario)


@pytest.mark.parametrize("place", [Place.FUNCTION, Place.CHAT], ids=lambda place: place.value)
async def test_what_a_model_raises_passes_as_it_is(place: Place) -> None:
    quoting = RuntimeError(f"no answer to {Threat.OUTPUT.value}")
    raising: dict[str, Any] = {"threat": Threat.OUTPUT, "replies": [[quoting]], "mode": "simple"}
    scenario = Scenario(name="error", place=place, **raising)
    for door in doors(scenario):
        with pytest.raises(RuntimeError) as caught:
            await Run(subject=MODELS[0], scenario=scenario, door=door).observed()
        assert caught.value is quoting


@pytest.mark.parametrize("scenario", HARMLESS_SCENARIOS, ids=str)
@pytest.mark.parametrize(
    "subject", [*MODELS[:1], *AGENTS[:1], *ENGINES[:1], *BOTH[:1], *POSTPROCESSORS[:1]], ids=str
)
async def test_what_is_harmless_can_be_observed_everywhere(
    subject: Subject, scenario: Scenario
) -> None:
    assert await places(subject, scenario) >= await places(UNGUARDED, scenario) - RAW
