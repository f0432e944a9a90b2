"""Nothing that a guard does not let through can be observed anywhere. What peers leak is seen."""

from __future__ import annotations

import pytest

from integrations.langchain.tests.leaks.doors import DOORS, Door
from integrations.langchain.tests.leaks.observing import observed
from integrations.langchain.tests.leaks.results import SURFACES, places, unexplained
from integrations.langchain.tests.leaks.subjects import (
    BESIDE,
    MODELS,
    OURS,
    PEERS,
    UNGUARDED,
    Subject,
)
from integrations.langchain.tests.leaks.threats import (
    ARTIFACT,
    HARMLESS_SCENARIOS,
    SCENARIOS,
    Scenario,
    Threat,
)

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
ASKED = [s for s in SCENARIOS if s.threat is Threat.INPUT]
SAID = [s for s in SCENARIOS if s.threat in (Threat.OUTPUT, Threat.ARGUMENTS)]
BEHIND = {
    *("result", "state", "next turn", "stream: updates", "stream: messages"),
    *("events v3: messages", "callbacks: chain end", "error", "logs"),
}
"""Where only what comes behind the model's answer is observed."""


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
@pytest.mark.parametrize("subject", OURS, ids=str)
async def test_nothing_unsafe_can_be_observed(subject: Subject, scenario: Scenario) -> None:
    found = await places(subject, scenario)
    assert unexplained(found, subject, scenario) == {}


@pytest.mark.parametrize("scenario", SAID, ids=str)
@pytest.mark.parametrize("subject", MODELS, ids=str)
async def test_a_guarded_model_says_nothing_unsafe(subject: Subject, scenario: Scenario) -> None:
    assert await places(subject, scenario) == {}


@pytest.mark.parametrize(
    ("subject", "nested", "remembers"),
    [
        pytest.param(OURS[0], True, True, id="subgraph"),
        pytest.param(OURS[0], False, False, id="no checkpointer"),
        pytest.param(BESIDE, False, True, id="beside"),
    ],
)
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
async def test_nothing_unsafe_can_be_observed_elsewhere(
    subject: Subject, door: Door, nested: bool, remembers: bool
) -> None:
    for scenario in SCENARIOS:
        if scenario.threat is not Threat.INPUT:
            sink = await observed(subject, scenario, door, nested=nested, remembers=remembers)
            assert sink.places(scenario.word) == {}, str(scenario)


@pytest.mark.parametrize("scenario", ASKED, ids=str)
async def test_an_input_judged_beside_the_model_is_gone_when_the_model_has_answered(
    scenario: Scenario,
) -> None:
    found = await places(BESIDE, scenario)
    assert "model" in found
    assert found.keys().isdisjoint(BEHIND)


@pytest.mark.parametrize("nested", [False, True], ids=["alone", "subgraph"])
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
async def test_every_door_shows_what_nobody_guards(door: Door, nested: bool) -> None:
    sink = await observed(UNGUARDED, SCENARIOS[0], door, nested=nested)
    own = {"invoke": "result", "ainvoke": "result", "stream": "stream", "astream": "stream"}
    seen = {surface.split(":")[0].split(" v")[0] for surface in sink.places(SCENARIOS[0].word)}
    assert seen >= {own.get(door.__name__, "events"), "callbacks", "tracer", "history", "saver"}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
@pytest.mark.parametrize("peer", PEERS, ids=str)
async def test_the_leaks_of_peers_are_seen(peer: Subject, scenario: Scenario) -> None:
    assert await places(peer, scenario) != {}


@pytest.mark.parametrize("scenario", HARMLESS_SCENARIOS, ids=str)
@pytest.mark.parametrize("subject", [*OURS, *MODELS], ids=str)
async def test_what_is_harmless_can_be_observed_everywhere(
    subject: Subject, scenario: Scenario
) -> None:
    unguarded = await places(UNGUARDED, scenario)
    assert (await places(subject, scenario)).keys() == unguarded.keys()


async def test_all_surfaces_are_known() -> None:
    for scenario in SCENARIOS:
        assert (await places(UNGUARDED, scenario)).keys() <= SURFACES.keys()


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
async def test_an_artifact_is_not_judged(door: Door) -> None:
    sink = await observed(OURS[0], ARTIFACT, door)
    assert "saver" in sink.places(ARTIFACT.word)
