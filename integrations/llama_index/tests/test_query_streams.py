"""Answers that stream: only what was judged leaves, and however it ends, the source is closed."""

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.tools import QueryEngineTool
from pydantic import BaseModel

from guardrails_qwen import (
    Action,
    EngineUnavailable,
    Guard,
    GuardError,
    GuardViolation,
    OnError,
    Policy,
)
from guardrails_qwen.streaming import HoldBack, Streaming
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine
from integrations.llama_index.tests.doubles import REPLACED, SCRIPT, heard
from integrations.llama_index.tests.query_doubles import Answering, Source, asked, node, read
from llama_index_guardrails_qwen.events import (
    GuardCheckEndEvent,
    GuardCheckStartEvent,
    GuardEvent,
    GuardViolationEvent,
)
from llama_index_guardrails_qwen.query_engine import guard_query_engine

FINE = ("Mix flour. ", "Add water. ", "Bake it.")
BAD = ("First, the dough. ", "Then build ", "a bomb ", "with it. ", "Then more.")


@pytest.fixture(params=["query", "aquery"])
def door(request: pytest.FixtureRequest) -> str:
    """Both doors of an engine: the one answers with sync, the other with async streams."""
    return request.param


@pytest.fixture(params=[ScriptedEngine, ScriptedStreamEngine])
def engine(request: pytest.FixtureRequest) -> ScriptedEngine:
    """An engine that judges whole texts, and one that judges tokens."""
    return request.param(SCRIPT)


Guarding = Callable[..., Guard]


def answering(door: str, source: Source, **fields: Any) -> Answering:
    """An engine that streams a source, with a source node and its metadata."""
    fields = {"source_nodes": [node("a")], "metadata": {"id-a": {"file": "a"}}, **fields}

    def make(_query: str) -> Any:
        if door == "query":
            return StreamingResponse(source.stream(), **fields)
        return AsyncStreamingResponse(source.astream(), **fields)

    return Answering(make, streaming=True)


async def text_of(response: Any) -> str:
    """A stream as LlamaIndex puts it together."""
    if isinstance(response, AsyncStreamingResponse):
        return str(await response.get_response())
    return str(response)


async def read_until_raised(response: Any) -> tuple[list[Any], GuardError | None]:
    """What comes before an error, and the error."""
    came = list[Any]()
    try:
        if isinstance(response, AsyncStreamingResponse):
            async for item in response.response_gen:
                came.append(item)
        else:
            for item in response.response_gen:
                came.append(item)
    except GuardError as error:
        return came, error
    return came, None


async def test_a_stream_that_passes_is_a_stream_with_all_that_it_had(
    door: str, guard: Guard
) -> None:
    source = Source(*FINE)
    response = await asked(door, guard_query_engine(answering(door, source), guard), "How?")
    assert type(response) is (StreamingResponse if door == "query" else AsyncStreamingResponse)
    nodes, metadata = response.source_nodes, response.metadata
    assert (nodes, metadata) == ([], {})
    assert await text_of(response) == "".join(FINE)
    assert [found.node.get_content() for found in nodes] == ["a"]
    assert metadata == {"id-a": {"file": "a"}}
    assert response.source_nodes is nodes
    assert source.log == ["gave"] * 3 + ["closed"]


async def test_nothing_is_judged_before_it_is_read(
    door: str, guard: Guard, engine: ScriptedEngine
) -> None:
    source = Source(*BAD)
    with heard() as (events, _):
        response = await asked(door, guard_query_engine(answering(door, source), guard), "How?")
        assert len(events.of(GuardCheckStartEvent)) == 1  # that of the query
    assert source.log == []
    assert response.source_nodes == []


async def test_it_comes_while_it_is_written(door: str, guard: Guard) -> None:
    source = Source(*(f"Sentence number {number} is about bread. " for number in range(50)))
    response = await asked(door, guard_query_engine(answering(door, source), guard), "How?")
    if door == "query":
        first = next(response.response_gen)
    else:
        first = await anext(response.response_gen)
    assert first.startswith("Sentence")
    assert 0 < len(source.log) < 50
    assert response.source_nodes == []


async def test_a_blocked_stream_raises_and_stops_the_model(door: str, guard: Guard) -> None:
    source = Source(*BAD, *["More. "] * 500)
    response = await asked(door, guard_query_engine(answering(door, source), guard), "How?")
    came, error = await read_until_raised(response)
    assert isinstance(error, GuardViolation)
    assert "bomb" not in "".join(came) + str(error)
    assert source.log[-1] == "closed"
    assert len(source.log) < 500
    assert (response.source_nodes, response.metadata) == ([], {})


@pytest.mark.parametrize(
    ("action", "options", "end"),
    [
        pytest.param(Action.BLOCK, {"on_violation": "reply"}, REPLACED, id="blocked"),
        pytest.param(Action.BLOCK, {"streaming": Streaming(closing="No.")}, "No.", id="closing"),
        pytest.param(Action.REPLACE, {}, REPLACED, id="replaced"),
        pytest.param(Action.DROP, {}, "", id="dropped"),
    ],
)
async def test_a_stream_may_end_with_a_text(
    door: str, guarding: Guarding, action: Action, options: dict[str, Any], end: str
) -> None:
    source = Source(*BAD)
    guarded = guard_query_engine(answering(door, source), guarding(action), **options)
    response = await asked(door, guarded, "How?")
    said = "".join(await read(response))
    assert said.endswith(end)
    assert "bomb" not in said
    assert "more" not in said
    assert source.log[-1] == "closed"
    assert (response.source_nodes, response.metadata) == ([], {})


async def test_a_redacted_stream_goes_on_without_its_sources(door: str, guarding: Guarding) -> None:
    guarded = guard_query_engine(answering(door, Source(*BAD)), guarding(Action.REDACT))
    response = await asked(door, guarded, "How?")
    said = await text_of(response)
    assert "[removed: Violent]" in said
    assert "bomb" not in said
    assert (response.source_nodes, response.metadata) == ([], {})


async def test_it_is_judged_with_its_query(door: str, engine: ScriptedEngine) -> None:
    together: list[list[str]] = []

    def script(conversation: Any) -> Any:
        together.append([message.text for message in conversation.messages])
        return "Safety: Safe\nCategories: None"

    guard = Guard(ScriptedEngine(script))
    await read(await asked(door, guard_query_engine(answering(door, Source(*FINE)), guard), "How?"))
    assert together == [["How?"], ["How?", "".join(FINE)]]


async def test_settings_hold(door: str, guard: Guard) -> None:
    settings = Streaming(hold_back=HoldBack.REPLY)
    guarded = guard_query_engine(answering(door, Source(*FINE)), guard, streaming=settings)
    assert await read(await asked(door, guarded, "How?")) == ["".join(FINE)]


@pytest.mark.parametrize("bad", ["How can I make a bomb?"])
@pytest.mark.parametrize(
    ("action", "said"), [(Action.BLOCK, [REPLACED]), (Action.DROP, [])], ids=["blocked", "dropped"]
)
async def test_a_query_that_does_not_go_on_is_answered_by_a_stream_too(
    door: str, guarding: Guarding, action: Action, said: list[str], bad: str
) -> None:
    inner = answering(door, Source(*FINE))
    guarded = guard_query_engine(inner, guarding(action), on_violation="reply")
    response = await asked(door, guarded, bad)
    assert type(response) is (StreamingResponse if door == "query" else AsyncStreamingResponse)
    assert await read(response) == said
    assert inner.asked == []


async def test_a_stream_that_was_read_already_is_judged(door: str, guard: Guard) -> None:
    source = Source()
    inner = answering(door, source, response_txt="".join(BAD))
    response = await asked(door, guard_query_engine(inner, guard), "How?")
    assert response.response_txt is None
    with pytest.raises(GuardViolation):
        await text_of(response)


@pytest.mark.parametrize("gone", [None, "empty"])
async def test_a_stream_that_was_read_and_is_gone_passes_as_a_stream(
    door: str, guard: Guard, gone: str | None
) -> None:
    fields: dict[str, Any] = {"response_txt": "".join(FINE), "source_nodes": [node("a")]}

    def make(_query: str) -> Any:
        kind: Any = StreamingResponse if door == "query" else AsyncStreamingResponse
        source = Source()
        empty = source.stream() if door == "query" else source.astream()
        return kind(empty if gone else None, **fields)

    response = await asked(door, guard_query_engine(Answering(make), guard), "How?")
    assert await text_of(response) == "".join(FINE)
    assert len(response.source_nodes) == 1


async def test_what_was_read_already_and_what_comes_is_one_text(door: str, guard: Guard) -> None:
    inner = answering(door, Source("mb is built so."), response_txt="A bo")
    response = await asked(door, guard_query_engine(inner, guard), "How?")
    with pytest.raises(GuardViolation):
        await text_of(response)


async def test_a_word_in_pieces_is_found(door: str, guard: Guard) -> None:
    inner = answering(door, Source(*"Then build a bomb. Then more."))
    came, error = await read_until_raised(
        await asked(door, guard_query_engine(inner, guard), "How?")
    )
    assert isinstance(error, GuardViolation)
    assert "bomb" not in "".join(came)


@given(
    text=st.sampled_from(["".join(FINE), "".join(BAD)]),
    cuts=st.lists(st.integers(0, 60), max_size=12),
    tokens=st.booleans(),
)
def test_however_it_is_cut_the_same_is_decided(text: str, cuts: list[int], tokens: bool) -> None:
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[start:end] for start, end in pairwise(places)]
    guard = Guard(ScriptedStreamEngine(SCRIPT) if tokens else ScriptedEngine(SCRIPT))
    inner = answering("query", Source(*pieces))
    response = guard_query_engine(inner, guard, on_violation="reply").query("How?")
    said = str(response)
    if "bomb" in text:
        assert said.endswith(REPLACED)
        assert "bomb" not in said
        assert response.source_nodes == []
    else:
        assert said == text
        assert len(response.source_nodes) == 1


class _Part(BaseModel):
    title: str = ""
    text: str = ""


class _Deep(BaseModel):
    inner: Any


def _deep(levels: int) -> Any:
    return "bread" if levels == 0 else [_deep(levels - 1)]


GROWING = (_Part(), _Part(title="Bread"), _Part(title="Bread", text="Mix it."))
GROWN_BAD = (_Part(), _Part(title="Bread"), _Part(title="Bread", text="A bomb."))


@pytest.mark.parametrize(
    "items",
    [
        pytest.param(GROWING, id="objects"),
        pytest.param(("Mix. ", "Bake. ", *GROWING, "Eat."), id="texts and objects"),
        pytest.param((None, "", "Mix.", None), id="nothing in between"),
    ],
)
async def test_objects_come_at_the_end(door: str, guard: Guard, items: tuple[Any, ...]) -> None:
    response = await asked(door, guard_query_engine(answering(door, Source(*items)), guard), "How?")
    came = await read(response)
    begin = next((at for at, item in enumerate(items) if isinstance(item, _Part)), len(items))
    assert came[len(came) - len(items[begin:]) :] == list(items[begin:])
    texts = [item for item in items if isinstance(item, str)]
    assert "".join(item for item in came if isinstance(item, str)) == "".join(texts)
    assert len(response.source_nodes) == 1


@pytest.mark.parametrize(
    "items",
    [
        pytest.param(GROWN_BAD, id="objects"),
        pytest.param((*GROWN_BAD, _Part(title="Bread", text="Mix.")), id="taken back"),
        pytest.param(
            (_Part(text="A bomb."), _Part(text="Mix."), _Part(text="Bake.")), id="long ago"
        ),
        pytest.param(("Mix. ", *GROWING, "A bomb."), id="a text behind them"),
        pytest.param((*GROWING, 3.5, {"text": "bomb"}), id="something else"),
        pytest.param(("How to make a bo", _Part(), "mb"), id="around an object"),
        pytest.param((_Deep(inner=_deep(40)), *GROWING), id="too deep"),
    ],
)
async def test_objects_are_judged_together(door: str, guard: Guard, items: tuple[Any, ...]) -> None:
    source = Source(*items)
    response = await asked(door, guard_query_engine(answering(door, source), guard), "How?")
    came, error = await read_until_raised(response)
    assert isinstance(error, GuardViolation)
    assert not [item for item in came if not isinstance(item, str)]
    assert response.source_nodes == []
    assert source.log[-1] == "closed"


async def test_objects_behind_a_blocked_text_are_not_asked_about(
    door: str, guard: Guard, engine: ScriptedEngine
) -> None:
    inner = answering(door, Source("A bomb is built so", *GROWING))
    guarded = guard_query_engine(inner, guard, on_violation="reply")
    came = await read(await asked(door, guarded, "How?"))
    assert "".join(came).removeprefix("A") == REPLACED
    assert "Mix it." not in repr(
        [message.text for item in engine.seen for message in item.messages]
    )


@pytest.mark.parametrize("action", [Action.REDACT, Action.REPLACE])
async def test_changed_objects_are_the_policys_text(
    door: str, guarding: Guarding, action: Action
) -> None:
    guarded = guard_query_engine(answering(door, Source(*GROWN_BAD)), guarding(action))
    assert await read(await asked(door, guarded, "How?")) == [REPLACED]


async def test_what_grows_is_judged_once(door: str, guard: Guard, engine: ScriptedEngine) -> None:
    growing = [_Part(text="word " * count) for count in range(50)]
    await read(await asked(door, guard_query_engine(answering(door, Source(*growing)), guard), "?"))
    assert engine.seen[-1].last.text.count("word") == 49


async def test_what_is_told_beside_a_stream_is_judged_at_its_end(door: str, guard: Guard) -> None:
    told = {"id-a": {"file": "a"}, "selector_result": "It is about a bomb."}
    inner = answering(door, Source(*FINE), metadata=told)
    response = await asked(door, guard_query_engine(inner, guard), "How?")
    assert await text_of(response) == "".join(FINE)
    assert response.metadata == {"id-a": {"file": "a"}}
    assert len(response.source_nodes) == 1


async def _left_early(response: Any, way: str) -> None:
    if way == "never read":
        return
    if isinstance(response, AsyncStreamingResponse):
        if way == "closed":
            await anext(response.response_gen)
            await response.response_gen.aclose()
        else:
            async for _ in response.async_response_gen():
                break
    elif way == "closed":
        next(response.response_gen)
        response.response_gen.close()
    else:
        for _ in response.response_gen:
            break


@pytest.mark.parametrize("way", ["closed", "forgotten", "never read"])
async def test_a_stream_that_nobody_reads_on_closes_its_source(
    door: str, guard: Guard, engine: ScriptedEngine, way: str
) -> None:
    source = Source(*(f"Sentence number {number} is about bread. " for number in range(500)))
    guarded = guard_query_engine(answering(door, source), guard)
    gc.disable()  # nothing here waits for it
    try:
        response = await asked(door, guarded, "How?")
        await _left_early(response, way)
        del response
        for _ in range(100):
            await asyncio.sleep(0)
    finally:
        gc.enable()
    assert source.log[-1:] == ([] if way == "never read" else ["closed"])
    assert len(source.log) < 500
    if isinstance(engine, ScriptedStreamEngine):
        assert bool(engine.sessions) is (way != "never read")
        assert all(session.closed for session in engine.sessions)


async def test_a_cancelled_reader_closes_the_source(guard: Guard) -> None:
    source, waits = Source("Mix. "), asyncio.Event()

    async def hanging() -> AsyncGenerator[str, None]:
        try:
            yield "Mix. "
            waits.set()
            await asyncio.Event().wait()
        finally:
            source.log.append("closed")

    inner = Answering(lambda _: AsyncStreamingResponse(hanging()))
    response = await guard_query_engine(inner, guard).aquery("How?")
    task = asyncio.create_task(read(response))
    await waits.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert source.log == ["closed"]


async def test_what_the_source_raises_is_raised(door: str, guard: Guard) -> None:
    source = Source("Mix. ", OSError("gone"), "More.")
    response = await asked(door, guard_query_engine(answering(door, source), guard), "How?")
    with pytest.raises(OSError, match="gone"):
        await read(response)
    assert response.source_nodes == []
    assert source.log[-1] == "closed"


@pytest.mark.parametrize(
    ("on_error", "raised"),
    [(OnError.BLOCK, GuardViolation), (OnError.RAISE, EngineUnavailable), (OnError.ALLOW, None)],
)
async def test_an_outage_is_what_the_policy_says(
    door: str, on_error: OnError, raised: type[Exception] | None
) -> None:
    guard = Guard(
        ScriptedEngine(EngineUnavailable("out of order")), Policy.strict(on_error=on_error)
    )
    guarded = guard_query_engine(answering(door, Source(*FINE)), guard, check_input=False)
    response = await asked(door, guarded, "How?")
    if raised is None:
        assert await text_of(response) == "".join(FINE)
        return
    with pytest.raises(raised):
        await text_of(response)
    assert response.source_nodes == []


async def test_half_a_character_is_not_waved_through(door: str, guarding: Guarding) -> None:
    inner = answering(door, Source("Mix \ud800 it."))
    guarded = guard_query_engine(inner, guarding(on_error=OnError.ALLOW))
    came, error = await read_until_raised(await asked(door, guarded, "How?"))
    assert isinstance(error, GuardViolation)
    assert "".join(came) in {"", "Mix"}


async def test_events_tell_what_was_decided_when_it_was(door: str, guard: Guard) -> None:
    with heard() as (events, _):
        guarded = guard_query_engine(answering(door, Source(*BAD)), guard, check_input=False)
        response = await asked(door, guarded, "How?")
        assert events.of(GuardEvent) == []
        await read_until_raised(response)
    told = events.of(GuardEvent)
    kinds = [GuardCheckStartEvent, GuardCheckEndEvent, GuardViolationEvent]
    assert [type(event) for event in told] == kinds
    assert {(event.component, event.check_id) for event in told} == {
        ("query_engine", told[0].check_id)
    }
    assert [data["action"] for data in told[1].decisions] == ["block"]
    assert "bomb" not in repr(told)


@pytest.mark.parametrize(
    ("items", "texts"),
    [
        pytest.param((), [], id="nothing"),
        pytest.param((None, ""), [], id="nothing that is said"),
        pytest.param(GROWING, [1], id="objects"),
        pytest.param(FINE, [1], id="texts"),
        pytest.param(("Mix. ", *GROWING), [1, 1], id="texts and objects"),
    ],
)
async def test_events_tell_of_checks_of_what_was_said(
    door: str, guard: Guard, items: tuple[Any, ...], texts: list[int]
) -> None:
    with heard() as (events, _):
        guarded = guard_query_engine(answering(door, Source(*items)), guard, check_input=False)
        await read(await asked(door, guarded, "How?"))
    assert [start.texts for start in events.of(GuardCheckStartEvent)] == texts
    assert [len(end.decisions) for end in events.of(GuardCheckEndEvent)] == texts


async def test_a_guarded_engine_may_be_guarded_again(door: str, guard: Guard) -> None:
    once = guard_query_engine(answering(door, Source(*FINE)), guard)
    twice = guard_query_engine(once, guard, on_violation="reply")
    response = await asked(door, twice, "How?")
    assert await text_of(response) == "".join(FINE)
    assert len(response.source_nodes) == 1
    assert response.metadata == {"id-a": {"file": "a"}}
    refused = await asked(door, guard_query_engine(once, guard, on_violation="reply"), "A bomb?")
    assert not isinstance(refused, Response)
    assert await text_of(refused) == REPLACED


def test_a_tool_raises_for_a_blocked_stream(guard: Guard) -> None:
    guarded = guard_query_engine(answering("query", Source(*BAD)), guard)
    tool = QueryEngineTool.from_defaults(guarded, name="search")
    with pytest.raises(GuardViolation) as caught:
        tool.call("How?")
    assert "bomb" not in str(caught.value)
