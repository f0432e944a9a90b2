"""What handlers are told of guards: in order, for every component, and never a text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, cast

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool
from llama_index_instrumentation.dispatcher import instrument_tags

from guardrails_qwen import (
    Action,
    Conversation,
    Decision,
    EngineError,
    Guard,
    GuardError,
    GuardViolation,
    OnError,
    Policy,
    Stage,
)
from guardrails_qwen.engines.base import Outcome
from guardrails_qwen.testing import FailingEngine, ScriptedEngine, ScriptedStreamEngine
from integrations.llama_index.tests.doubles import SCRIPT, NGramEmbedding, WritingLLM, heard
from llama_index_guardrails_qwen import (
    GuardCheckEndEvent,
    GuardCheckStartEvent,
    GuardedChatEngine,
    GuardedLLM,
    GuardedQueryEngine,
    GuardPostprocessor,
    GuardTransform,
    GuardViolationEvent,
    SafetyEvaluator,
    guard_chat_engine,
    guard_query_engine,
    guarded_tool,
)

GUARDS = (GuardCheckStartEvent, GuardCheckEndEvent, GuardViolationEvent)
KINDS = {kind.__name__: kind for kind in GUARDS}

ASK = "What is in the park?"
SECRET = "Zanzibar keeps a bomb there"
"""Unsafe, and found again wherever it is told."""


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


def found(*texts: str) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text), score=0.5) for text in texts]


def engine_over(text: str, reply: str, streaming: bool = False) -> Any:
    index: Any = VectorStoreIndex.from_documents(
        [Document(text=text)], embed_model=NGramEmbedding()
    )
    return index.as_query_engine(llm=WritingLLM(replies=[reply]), streaming=streaming)


@dataclass(frozen=True, kw_only=True)
class Use:
    """A component in use: it judges one text that is unsafe, after others that are not."""

    component: str
    stage: Stage
    sync: Callable[[Guard], object]
    door: Callable[[Guard], Awaitable[object]]


async def _read(stream: Awaitable[Any]) -> list[Any]:
    return [item async for item in await stream]


async def _aquery_stream(guard: Guard) -> list[str]:
    engine = GuardedQueryEngine(engine_over("Ducks.", SECRET, streaming=True), guard)
    response: Any = await engine.aquery(ASK)
    return [text async for text in response.async_response_gen()]


def _query_stream(guard: Guard) -> list[str]:
    engine = GuardedQueryEngine(engine_over("Ducks.", SECRET, streaming=True), guard)
    response: Any = engine.query(ASK)
    return list(response.response_gen)


def _chat(guard: Guard, reply: str = "Yes.") -> GuardedChatEngine:
    llm = WritingLLM(replies=[reply])
    memory = ChatMemoryBuffer(token_limit=3000)
    return GuardedChatEngine(SimpleChatEngine.from_defaults(llm=llm, memory=memory), guard)


async def _achat_stream(guard: Guard) -> list[str]:
    response = await _chat(guard, SECRET).astream_chat(ASK)
    return [text async for text in response.async_response_gen()]


def _llm(guard: Guard) -> GuardedLLM:
    return GuardedLLM(inner=WritingLLM(replies=[SECRET]), guard=guard)


def _tell(text: str = "") -> str:
    """Tells."""
    return SECRET


def _tool(guard: Guard) -> Any:
    return guarded_tool(FunctionTool.from_defaults(_tell, name="tell"), guard)


USES = {
    "evaluator": Use(
        component="evaluator",
        stage=Stage.OUTPUT,
        sync=lambda guard: SafetyEvaluator(guard).evaluate(ASK, SECRET),
        door=lambda guard: SafetyEvaluator(guard).aevaluate(ASK, SECRET),
    ),
    "postprocessor": Use(
        component="postprocessor",
        stage=Stage.CONTEXT,
        sync=lambda guard: GuardPostprocessor(guard=guard).postprocess_nodes(
            found("Ducks", SECRET)
        ),
        door=lambda guard: GuardPostprocessor(guard=guard).apostprocess_nodes(
            found("Ducks", SECRET)
        ),
    ),
    "transform": Use(
        component="transform",
        stage=Stage.CONTEXT,
        sync=lambda guard: GuardTransform(guard=guard)([TextNode(text=SECRET)]),
        door=lambda guard: GuardTransform(guard=guard).acall([TextNode(text=SECRET)]),
    ),
    "a model's input": Use(
        component="llm",
        stage=Stage.INPUT,
        sync=lambda guard: _llm(guard).chat(user(SECRET)),
        door=lambda guard: _llm(guard).achat(user(SECRET)),
    ),
    "a model's reply": Use(
        component="llm",
        stage=Stage.OUTPUT,
        sync=lambda guard: _llm(guard).chat(user(ASK)),
        door=lambda guard: _llm(guard).achat(user(ASK)),
    ),
    "a model's stream": Use(
        component="llm",
        stage=Stage.OUTPUT,
        sync=lambda guard: list(_llm(guard).stream_chat(user(ASK))),
        door=lambda guard: _read(_llm(guard).astream_chat(user(ASK))),
    ),
    "a query": Use(
        component="query_engine",
        stage=Stage.INPUT,
        sync=lambda guard: GuardedQueryEngine(engine_over("Ducks.", "Yes."), guard).query(SECRET),
        door=lambda guard: GuardedQueryEngine(engine_over("Ducks.", "Yes."), guard).aquery(SECRET),
    ),
    "an answer": Use(
        component="query_engine",
        stage=Stage.OUTPUT,
        sync=lambda guard: GuardedQueryEngine(engine_over("Ducks.", SECRET), guard).query(ASK),
        door=lambda guard: GuardedQueryEngine(engine_over("Ducks.", SECRET), guard).aquery(ASK),
    ),
    "an answer that streams": Use(
        component="query_engine",
        stage=Stage.OUTPUT,
        sync=_query_stream,
        door=_aquery_stream,
    ),
    "a message to a chat engine": Use(
        component="chat_engine",
        stage=Stage.INPUT,
        sync=lambda guard: _chat(guard).chat(SECRET),
        door=lambda guard: _chat(guard).achat(SECRET),
    ),
    "a chat engine's reply": Use(
        component="chat_engine",
        stage=Stage.OUTPUT,
        sync=lambda guard: _chat(guard, SECRET).chat(ASK),
        door=lambda guard: _chat(guard, SECRET).achat(ASK),
    ),
    "a chat engine's stream": Use(
        component="chat_engine",
        stage=Stage.OUTPUT,
        sync=lambda guard: list(_chat(guard, SECRET).stream_chat(ASK).response_gen),
        door=_achat_stream,
    ),
    "a tool's arguments": Use(
        component="tool",
        stage=Stage.TOOL_CALL,
        sync=lambda guard: _tool(guard).call(text=SECRET),
        door=lambda guard: _tool(guard).acall(text=SECRET),
    ),
    "a tool's result": Use(
        component="tool",
        stage=Stage.TOOL_RESULT,
        sync=lambda guard: _tool(guard).call(),
        door=lambda guard: _tool(guard).acall(),
    ),
}

Run = Callable[[Use, Guard], Coroutine[Any, Any, GuardError | None]]


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    """Both doors of a component; what it raises of ours is returned."""

    async def use(component: Use, guard: Guard) -> GuardError | None:
        try:
            if request.param == "sync":
                component.sync(guard)
            else:
                await component.door(guard)
        except GuardError as error:
            return error
        return None

    return use


@pytest.fixture(params=USES.values(), ids=list(USES))
def use(request: pytest.FixtureRequest) -> Use:
    return request.param


def checks(events: Sequence[Any]) -> list[list[Any]]:
    """The events of guards, those of each check by themselves."""
    by_check: dict[str, list[Any]] = {}
    for event in events:
        if isinstance(event, GUARDS):
            by_check.setdefault(event.check_id, []).append(event)
    return list(by_check.values())


def names(events: Sequence[BaseEvent]) -> list[str]:
    return [event.class_name() for event in events]


def dumped(events: Sequence[BaseEvent]) -> str:
    """All that anybody can read of events: their data, and what printing them shows."""
    data = [event.model_dump(mode="json") for event in events]
    return json.dumps(data) + repr(events) + str(events)


async def test_a_violation_is_told_after_the_check_in_which_it_was_found(
    use: Use, guard: Guard, run: Run
) -> None:
    with heard() as (hearing, _):
        await run(use, guard)
    *harmless, last = checks(hearing.events)
    assert names(last) == ["GuardCheckStartEvent", "GuardCheckEndEvent", "GuardViolationEvent"]
    assert all(names(check) == ["GuardCheckStartEvent", "GuardCheckEndEvent"] for check in harmless)


async def test_all_events_of_a_check_say_whose_it_is(use: Use, guard: Guard, run: Run) -> None:
    with heard() as (hearing, _):
        await run(use, guard)
    *_, (start, end, violation) = checks(hearing.events)
    assert {event.component for event in (start, end, violation)} == {use.component}
    assert {event.fingerprint for event in (start, end, violation)} == {guard.fingerprint}
    assert start.texts == len(end.decisions)
    assert violation.decision in end.decisions
    decision = Decision.from_dict(violation.decision)
    assert (decision.stage, decision.allowed, decision.text) == (use.stage, False, None)
    assert end.seconds >= 0
    assert end.error is None


@pytest.mark.parametrize("action", [Action.BLOCK, Action.REDACT, Action.REPLACE, Action.DROP])
async def test_no_event_says_what_was_judged(
    use: Use, action: Action, guarding: Callable[..., Guard], run: Run
) -> None:
    with heard() as (hearing, _):
        await run(use, guarding(action))
    events = hearing.of(*GUARDS)
    assert GuardViolationEvent.__name__ in names(events)
    for word in ("Zanzibar", "bomb", "park"):
        assert word not in dumped(events)


async def test_what_passes_is_no_violation(use: Use, run: Run) -> None:
    with heard() as (hearing, _):
        assert await run(use, Guard(ScriptedEngine())) is None
    assert checks(hearing.events)
    assert not hearing.of(GuardViolationEvent)


async def test_what_is_flagged_is_no_violation(run: Run) -> None:
    guard = Guard(ScriptedEngine(SCRIPT), Policy.strict(action=Action.FLAG))
    with heard() as (hearing, _):
        await run(USES["evaluator"], guard)
    [end] = hearing.of(GuardCheckEndEvent)
    assert [decision["action"] for decision in end.decisions] == ["flag"]
    assert not hearing.of(GuardViolationEvent)


async def test_an_event_handler_is_told_the_name_of_the_class(guard: Guard) -> None:
    with heard() as (hearing, _):
        SafetyEvaluator(guard).evaluate(ASK, SECRET)
    for event in hearing.of(*GUARDS):
        assert event.model_dump()["class_name"] == KINDS[event.class_name()].__name__
        assert KINDS[event.class_name()].model_validate(event.model_dump(mode="json"))


async def test_decisions_are_told_in_the_order_of_what_was_judged(guard: Guard, run: Run) -> None:
    texts = ["Ducks", SECRET, "Swans", f"{SECRET} too"]
    nodes = Use(
        component="postprocessor",
        stage=Stage.CONTEXT,
        sync=lambda guard: GuardPostprocessor(guard=guard).postprocess_nodes(found(*texts)),
        door=lambda guard: GuardPostprocessor(guard=guard).apostprocess_nodes(found(*texts)),
    )
    with heard() as (hearing, _):
        await run(nodes, guard)
    [(start, end, *violations)] = checks(hearing.events)
    assert (start.texts, start.stage) == (4, "context")
    assert [decision["action"] for decision in end.decisions] == ["allow", "drop", "allow", "drop"]
    assert [violation.decision for violation in violations] == [end.decisions[1], end.decisions[3]]


async def test_events_stand_in_the_span_of_the_call_that_is_guarded(guard: Guard, run: Run) -> None:
    with heard() as (hearing, spans):
        await run(USES["an answer"], guard)
    ids = {event.span_id for event in hearing.of(*GUARDS)}
    [span] = ids
    assert str(span).startswith("GuardedQueryEngine.")
    assert any(told.startswith(str(span)) for told in spans.told)


async def test_tags_are_carried(use: Use, guard: Guard, run: Run) -> None:
    with heard() as (hearing, _), instrument_tags({"tenant": "north"}):
        await run(use, guard)
    events = hearing.of(*GUARDS)
    assert len(events) >= 3
    assert all(event.tags == {"tenant": "north"} for event in events)


def test_threads_have_tags_of_their_own(guard: Guard) -> None:
    evaluator = SafetyEvaluator(guard)

    def tagged(tenant: int) -> None:
        with instrument_tags({"tenant": tenant}):
            evaluator.evaluate(ASK, SECRET)

    with heard() as (hearing, _), ThreadPoolExecutor(8) as threads:
        for tenant in range(40):
            threads.submit(copy_context().run, tagged, tenant)
    assert_told_apart(checks(hearing.events), 40)


async def test_tasks_have_tags_of_their_own(use: Use, guard: Guard) -> None:
    async def tagged(tenant: int) -> None:
        with instrument_tags({"tenant": tenant}):
            await asyncio.gather(use.door(guard), return_exceptions=True)

    with heard() as (hearing, _):
        await asyncio.gather(*(tagged(tenant) for tenant in range(20)))
    violations = [check for check in checks(hearing.events) if len(check) == 3]
    assert_told_apart(violations, 20)


def assert_told_apart(told: Sequence[Sequence[Any]], tenants: int) -> None:
    assert sorted(check[0].tags["tenant"] for check in told) == list(range(tenants))
    for check in told:
        assert names(check) == [kind.__name__ for kind in GUARDS]
        assert len({event.tags["tenant"] for event in check}) == 1


async def test_what_could_not_be_judged_is_told_as_decided(use: Use, run: Run) -> None:
    guard = Guard(FailingEngine(), Policy.strict(on_error=OnError.BLOCK))
    with heard() as (hearing, _):
        await run(use, guard)
    ends = hearing.of(GuardCheckEndEvent)
    assert ends
    assert all(end.decisions for end in ends)
    assert all(decision["error"] for end in ends for decision in end.decisions)


async def test_a_check_that_raises_ends_with_the_type_of_the_error(run: Run) -> None:
    guard = Guard(
        FailingEngine(EngineError(f"gone with {SECRET}")), Policy.strict(on_error=OnError.RAISE)
    )
    with heard() as (hearing, _):
        assert isinstance(await run(USES["evaluator"], guard), EngineError)
    [(_, end)] = checks(hearing.events)
    assert (end.error, end.decisions) == ("EngineError", [])
    assert "Zanzibar" not in dumped(hearing.of(*GUARDS))


class Hanging(ScriptedEngine):
    """Judges nothing, ever, once it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        self.asked.set()
        await asyncio.Event().wait()
        return []


@pytest.mark.parametrize(
    "name", ["evaluator", "postprocessor", "a model's input", "a query", "a tool's arguments"]
)
async def test_a_check_that_is_cancelled_has_an_end(name: str) -> None:
    engine = Hanging()
    with heard() as (hearing, _):
        task = asyncio.ensure_future(USES[name].door(Guard(engine)))
        await engine.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    [(_, end)] = checks(hearing.events)
    assert (end.error, end.decisions) == ("CancelledError", [])


def stream_guard() -> Guard:
    return Guard(ScriptedStreamEngine(SCRIPT))


async def test_a_stream_that_is_left_has_an_end() -> None:
    inner = engine_over("Ducks.", "One two three four five six", streaming=True)
    engine = GuardedQueryEngine(inner, stream_guard())
    with heard() as (hearing, _):
        with closing(cast("Any", engine.query(ASK)).response_gen) as stream:
            next(stream)
        response: Any = await engine.aquery(ASK)
        async with aclosing(response.response_gen) as stream:
            await anext(stream)
    streams = [check for check in checks(hearing.events) if check[0].stage == "output"]
    assert [names(check) for check in streams] == [
        ["GuardCheckStartEvent", "GuardCheckEndEvent"]
    ] * 2
    assert [check[1].error for check in streams] == ["GeneratorExit"] * 2


async def test_a_stream_is_one_check_with_one_decision(run: Run) -> None:
    with heard() as (hearing, _):
        error = await run(USES["a model's stream"], stream_guard())
    assert isinstance(error, GuardViolation)
    [(start, end, violation)] = [c for c in checks(hearing.events) if c[0].stage == "output"]
    assert (start.texts, end.decisions) == (1, [violation.decision])
    assert violation.decision == {
        **error.decision.to_dict(text=False),
        "seconds": violation.decision["seconds"],
    }


@pytest.mark.parametrize("what", ["llm", "query engine", "chat engine"])
async def test_a_stream_that_is_read_later_is_told_of_as_the_call_it_is_of(what: str) -> None:
    guard = Guard(ScriptedStreamEngine(SCRIPT))
    llm = WritingLLM(replies=["Mix the flour. Bake it."])
    index = VectorStoreIndex.from_documents([Document(text="Bread.")], embed_model=NGramEmbedding())
    ask = ChatMessage(role="user", content="How is bread baked?")
    with heard() as (events, _), instrument_tags({"user": "one"}):
        if what == "llm":
            stream: Any = GuardedLLM(inner=llm, guard=guard).stream_chat([ask])
        elif what == "query engine":
            plain = cast("Any", index).as_query_engine(llm=llm, streaming=True)
            response: Any = guard_query_engine(plain, guard).query("How is bread baked?")
            stream = response.response_gen
        else:
            memory = ChatMemoryBuffer(token_limit=1_000)
            simple = SimpleChatEngine.from_defaults(llm=llm, memory=memory)
            stream = (
                guard_chat_engine(simple, guard).stream_chat("How is bread baked?").response_gen
            )
    with heard() as (later, _):
        list(stream)
    started = [*events.of(GuardCheckStartEvent), *later.of(GuardCheckStartEvent)]
    assert len(started) > 1
    assert {event.tags["user"] for event in [*started, *later.of(GuardCheckEndEvent)]} == {"one"}
    spans = {event.span_id for event in started}
    assert len(spans) == 1
