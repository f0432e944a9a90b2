"""A transform by itself: what names it, what it puts aside, how it gets into other processes."""

import asyncio
import json
import pickle
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import pytest
from llama_index.core.schema import BaseNode, IndexNode, MetadataMode, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore

from guardrails_qwen import (
    Action,
    EngineError,
    EngineUnavailable,
    Guard,
    GuardError,
    GuardViolation,
    OnError,
    Policy,
    TextTooLong,
    UnreadableVerdict,
)
from guardrails_qwen.testing import FailingEngine, ScriptedEngine
from integrations.llama_index.tests.doubles import SCRIPT
from llama_index_guardrails_qwen.guard_source import guard_of
from llama_index_guardrails_qwen.transform import GuardTransform
from llama_index_guardrails_qwen.verdict_notes import guard_note

TEA, BOMB = "Tea is served at four.", "Take a bomb. Tea is served at four."

Passing = Callable[[GuardTransform, Sequence[BaseNode]], Awaitable[Sequence[BaseNode]]]


async def called(transform: GuardTransform, nodes: Sequence[BaseNode]) -> Sequence[BaseNode]:
    return transform(nodes)


async def acalled(transform: GuardTransform, nodes: Sequence[BaseNode]) -> Sequence[BaseNode]:
    return await transform.acall(nodes)


@pytest.fixture(params=[called, acalled], ids=["call", "acall"])
def passing(request: pytest.FixtureRequest) -> Passing:
    """Both doors of a transform."""
    return request.param


def made_guard(name: str = "scripted") -> Guard:
    """A guard that is made where it is needed."""
    return Guard(ScriptedEngine(SCRIPT, name=name))


class Locked(ScriptedEngine):
    """An engine that cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("bomb: cannot pickle this engine")


def nodes_of(*texts: str) -> list[BaseNode]:
    return [TextNode(text=text, id_=str(place)) for place, text in enumerate(texts)]


def kept(nodes: Sequence[BaseNode]) -> list[str]:
    return [node.get_content() for node in nodes]


SETTINGS: list[Any] = [
    pytest.param({"on_violation": "annotate"}, id="on_violation"),
    pytest.param({"metadata_mode": "llm"}, id="metadata_mode"),
    pytest.param({"metadata_fields": ["title"]}, id="metadata_fields"),
    pytest.param({"metadata_fields": []}, id="no metadata_fields"),
    pytest.param({"metadata_fields": ["<a b at 0x1>"]}, id="a field that looks like an object"),
    pytest.param({"secret": "open sesame"}, id="secret"),
    pytest.param({"guard": Guard(ScriptedEngine(SCRIPT, name="other"))}, id="model"),
    pytest.param({"guard": Guard(ScriptedEngine(SCRIPT), Policy.loose())}, id="policy"),
    pytest.param({"quarantine": SimpleDocumentStore()}, id="quarantine"),
    pytest.param({"on_outage": "policy"}, id="on_outage"),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_whatever_matters_is_named(engine: ScriptedEngine, settings: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"guard": Guard(engine)}
    told = GuardTransform(**plain).to_dict()
    other = GuardTransform(**{**plain, **settings}).to_dict()
    assert told["fingerprint"] == Guard(engine).fingerprint
    assert told != other
    assert told["settings"] != other["settings"] or told["fingerprint"] != other["fingerprint"]
    assert "sesame" not in json.dumps(other)


def test_how_much_is_remembered_does_not_matter(guard: Guard) -> None:
    few, many = GuardTransform(guard=guard, remember=1), GuardTransform(guard=guard, remember=9)
    assert few.to_dict() == many.to_dict()


def test_it_is_named_the_same_in_every_process() -> None:
    script = (
        "from guardrails_qwen import Guard; from guardrails_qwen.testing import ScriptedEngine;"
        "from llama_index_guardrails_qwen.transform import GuardTransform; import json;"
        "print(json.dumps(GuardTransform(guard=Guard(ScriptedEngine()), secret='s',"
        " metadata_fields=['b', 'a', 'c']).to_dict()))"
    )
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], check=True, capture_output=True, text=True
    )
    here = GuardTransform(
        guard=Guard(ScriptedEngine()), secret="s", metadata_fields=("c", "a", "b")
    )
    assert json.loads(told.stdout) == here.to_dict()


async def test_a_guard_is_made_once_and_not_before_it_is_needed(passing: Passing) -> None:
    made: list[Guard] = []

    def make() -> Guard:
        made.append(made_guard())
        return made[-1]

    transforms = [GuardTransform(guard=make), GuardTransform(guard=make)]
    assert made == []
    for transform in transforms:
        assert kept(await passing(transform, nodes_of(TEA, BOMB))) == [TEA]
        assert transform.to_dict()["fingerprint"] == made[0].fingerprint
    assert len(made) == 1


async def test_the_event_loop_goes_on_while_a_guard_is_made() -> None:
    loop, may = asyncio.get_running_loop(), asyncio.Event()

    def make() -> Guard:
        asyncio.run_coroutine_threadsafe(asyncio.wait_for(may.wait(), 30), loop).result()
        return made_guard()

    loop.call_soon(may.set)
    assert kept(await GuardTransform(guard=make).acall(nodes_of(TEA, BOMB))) == [TEA]


@pytest.mark.parametrize("made", [None, FailingEngine()], ids=["nothing", "an engine"])
async def test_what_was_made_has_to_be_a_guard(passing: Passing, made: Any) -> None:
    with pytest.raises(TypeError, match="not a Guard"):
        await passing(GuardTransform(guard=lambda: made), nodes_of(TEA))


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(partial(made_guard, "made"), id="a function that makes one"),
        pytest.param(Guard(ScriptedEngine(SCRIPT, name="made")), id="a guard that can be"),
    ],
)
async def test_a_pickled_transform_arrives_with_all_that_it_is(
    passing: Passing, source: Any
) -> None:
    transform = GuardTransform(
        guard=source,
        secret="s",
        on_violation="annotate",
        metadata_mode=MetadataMode.LLM,
        metadata_fields=["a"],
    )
    for copy in (pickle.loads(pickle.dumps(transform)), transform.model_copy(deep=True)):
        assert copy.to_dict() == transform.to_dict()
        assert copy.secret == transform.secret
        assert kept(await passing(copy, nodes_of(TEA, BOMB))) == [TEA, BOMB]
        assert guard_of(copy.guard).fingerprint == guard_of(source).fingerprint


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        pytest.param({"guard": Guard(Locked(SCRIPT))}, "give a function", id="a live guard"),
        pytest.param({"guard": lambda: None}, "give a function", id="a local function"),
        pytest.param(
            {"guard": made_guard, "quarantine": SimpleDocumentStore()},
            "without num_workers",
            id="a quarantine",
        ),
    ],
)
def test_what_cannot_get_into_other_processes_says_so(settings: Any, says: str) -> None:
    with pytest.raises(pickle.PicklingError, match=says) as caught:
        pickle.dumps(GuardTransform(**settings))
    assert "bomb" not in str(caught.value)


@pytest.mark.parametrize(
    ("on_violation", "left"),
    [("drop", [TEA]), ("annotate", [TEA, BOMB]), ("raise", None)],
)
async def test_what_does_not_pass_is_put_aside(
    passing: Passing, engine: ScriptedEngine, on_violation: Any, left: list[str] | None
) -> None:
    aside = SimpleDocumentStore()
    guard = Guard(engine, Policy.strict(action=Action.DROP))
    transform = GuardTransform(guard=guard, on_violation=on_violation, quarantine=aside)
    if left is None:
        with pytest.raises(GuardViolation):
            await passing(transform, nodes_of(TEA, BOMB))
    else:
        assert kept(await passing(transform, nodes_of(TEA, BOMB))) == left
    if on_violation == "annotate":
        assert aside.docs == {}
        return
    [put] = aside.docs.values()
    assert (put.id_, put.get_content()) == ("1", BOMB)
    told = guard_note(put)
    assert told is not None
    assert (told["action"], told["fingerprint"]) == ("drop", guard.fingerprint)


async def test_what_could_not_be_read_is_put_aside_as_well(
    passing: Passing, engine: ScriptedEngine
) -> None:
    engine.script = {"long": TextTooLong(9, 5)}
    aside = SimpleDocumentStore()
    transform = GuardTransform(guard=Guard(engine), on_violation="annotate", quarantine=aside)
    assert await passing(transform, nodes_of("so long")) == []
    told = guard_note(aside.docs["0"])
    assert told is not None
    assert told["degraded"] is True


async def test_a_quarantine_that_takes_nothing_is_an_error_without_text(
    passing: Passing, engine: ScriptedEngine
) -> None:
    harmful = IndexNode(text=BOMB, index_id="i", obj={"a", "bomb"})  # not to be stored as JSON
    transform = GuardTransform(guard=Guard(engine), quarantine=SimpleDocumentStore())
    with pytest.raises(GuardError, match="quarantine") as caught:
        await passing(transform, [harmful])
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "bomb" not in str(caught.value)


@pytest.mark.parametrize("on_error", [OnError.BLOCK, OnError.ALLOW])
@pytest.mark.parametrize("error", [EngineError("gone"), EngineUnavailable("gone")])
async def test_an_outage_loses_nothing_and_lets_nothing_through(
    passing: Passing, on_error: OnError, error: EngineError
) -> None:
    aside = SimpleDocumentStore()
    guard = Guard(ScriptedEngine({"bomb": error}), Policy.strict(on_error=on_error))
    transform = GuardTransform(guard=guard, quarantine=aside)
    with pytest.raises(EngineError, match="1 of 2 nodes"):
        await passing(transform, nodes_of(TEA, BOMB))
    assert aside.docs == {}


@pytest.mark.parametrize("error", [UnreadableVerdict("?"), TextTooLong(9, 5)], ids=repr)
async def test_what_a_text_brings_about_is_no_outage(passing: Passing, error: GuardError) -> None:
    guard = Guard(ScriptedEngine({"bomb": error}), Policy.strict(on_error=OnError.ALLOW))
    assert kept(await passing(GuardTransform(guard=guard), nodes_of(TEA, BOMB))) == [TEA]
