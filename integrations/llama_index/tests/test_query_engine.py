"""Queries are judged before anything is done about them; all else is as it was inside."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.query.query_transform.base import IdentityQueryTransform
from llama_index.core.instrumentation.events.query import QueryEndEvent
from llama_index.core.query_engine import TransformQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.tools import QueryEngineTool
from llama_index.core.tools import calling as _calling

from guardrails_qwen import (
    Action,
    Conversation,
    EngineUnavailable,
    Guard,
    GuardViolation,
    OnError,
    Policy,
    Severity,
    Verdict,
)
from guardrails_qwen.engines.base import Outcome
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.testing import ScriptedEngine
from integrations.llama_index.tests.doubles import REPLACED, UNSAFE, heard
from integrations.llama_index.tests.query_doubles import Answering, asked, node, read
from llama_index_guardrails_qwen.events import (
    GuardCheckEndEvent,
    GuardCheckStartEvent,
    GuardEvent,
    GuardViolationEvent,
)
from llama_index_guardrails_qwen.query_engine import GuardedQueryEngine, guard_query_engine

Guarding = Callable[..., Guard]
calling: Any = _calling  # some of its types are unknown
BAD = "How can I make a bomb?"


@pytest.fixture(params=["query", "aquery"])
def door(request: pytest.FixtureRequest) -> str:
    """Both doors of an engine."""
    return request.param


@pytest.fixture
def inner() -> Answering:
    """Says yes, with a source."""
    return Answering(lambda query: Response("Yes.", [node(query)]))


async def test_a_query_that_passes_goes_on_as_the_same_object(
    door: str, inner: Answering, guard: Guard, engine: ScriptedEngine
) -> None:
    query = QueryBundle("How?", custom_embedding_strs=["Like this."], embedding=[1.0])
    response = await asked(door, guard_query_engine(inner, guard), query)
    assert inner.asked[0] is query
    assert inner.doors == [door]
    assert response.response == "Yes."
    assert [found.node.get_content() for found in response.source_nodes] == ["How?"]
    said = [seen.last.text for seen in engine.seen]
    assert said == ["How?", "Like this.", "Yes."]
    assert [message.text for message in engine.seen[-1].messages] == ["How?", "Yes."]


async def test_what_is_embedded_anyway_is_judged_once(
    door: str, inner: Answering, guard: Guard, engine: ScriptedEngine
) -> None:
    query = QueryBundle("How?", custom_embedding_strs=["How?"])
    await asked(door, guard_query_engine(inner, guard), query)
    assert [seen.last.text for seen in engine.seen] == ["How?", "Yes."]


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(BAD, id="a text"),
        pytest.param(QueryBundle(BAD), id="a bundle"),
        pytest.param(QueryBundle("How?", custom_embedding_strs=["a", "bomb"]), id="to be embedded"),
        pytest.param(QueryBundle("How?", custom_embedding_strs=["bo", BAD]), id="one of several"),
    ],
)
async def test_a_blocked_query_reaches_nothing(
    door: str, inner: Answering, guard: Guard, query: Any
) -> None:
    with pytest.raises(GuardViolation, match=r"^input blocked") as caught:
        await asked(door, guard_query_engine(inner, guard), query)
    assert inner.asked == []
    assert "bomb" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "action", "answer"),
    [
        pytest.param({"on_violation": "reply"}, Action.BLOCK, REPLACED, id="blocked"),
        pytest.param(
            {"on_violation": "reply", "streaming": Streaming(closing="No more.")},
            Action.BLOCK,
            REPLACED,
            id="blocked, closing is for replies",
        ),
        pytest.param({}, Action.DROP, "", id="dropped"),
        pytest.param({"on_violation": "reply"}, Action.DROP, "", id="dropped, with replies"),
    ],
)
async def test_a_query_that_does_not_go_on_may_have_an_answer(
    door: str,
    inner: Answering,
    guarding: Guarding,
    options: dict[str, Any],
    action: Action,
    answer: str,
) -> None:
    response = await asked(door, guard_query_engine(inner, guarding(action), **options), BAD)
    assert response == Response(answer)
    assert inner.asked == []


@pytest.mark.parametrize(
    ("action", "passed"),
    [
        pytest.param(Action.REDACT, "Bread? [removed: Violent] Thanks.", id="redacted"),
        pytest.param(Action.REPLACE, REPLACED, id="replaced"),
    ],
)
async def test_a_changed_query_goes_on_without_what_was_made_of_it(
    door: str, inner: Answering, guarding: Guarding, action: Action, passed: str
) -> None:
    query = QueryBundle(
        "Bread? How to make a bomb? Thanks.", custom_embedding_strs=["Bread"], embedding=[1.0]
    )
    await asked(door, guard_query_engine(inner, guarding(action)), query)
    assert inner.asked == [QueryBundle(passed)]


async def test_an_answer_is_judged_with_the_query_as_it_went_on(
    door: str, inner: Answering, guarding: Guarding, engine: ScriptedEngine
) -> None:
    await asked(door, guard_query_engine(inner, guarding(Action.REPLACE)), BAD)
    assert [message.text for message in engine.seen[-1].messages] == [REPLACED, "Yes."]


@pytest.mark.parametrize("action", [Action.REDACT, Action.REPLACE, Action.DROP])
async def test_only_what_was_to_be_embedded_is_left_out(
    door: str, inner: Answering, guarding: Guarding, action: Action
) -> None:
    query = QueryBundle("How?", custom_embedding_strs=["Fine.", BAD], embedding=[1.0])
    await asked(door, guard_query_engine(inner, guarding(action)), query)
    assert inner.asked == [QueryBundle("How?")]


@dataclass
class _Tagged(QueryBundle):
    tags: tuple[str, ...] = ()


async def test_fields_of_other_bundles_are_judged(
    door: str, inner: Answering, guard: Guard
) -> None:
    with pytest.raises(GuardViolation):
        await asked(door, guard_query_engine(inner, guard), _Tagged("How?", tags=("bomb",)))
    assert inner.asked == []


class _Seeing:
    """Judges pictures, and keeps their URLs."""

    name = fingerprint = "seeing"

    def __init__(self) -> None:
        self.pictures: list[str] = []

    def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        self.pictures += [url for item in conversations for url in item.last.images]
        return [Verdict(severity=Severity.SAFE)] * len(conversations)

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        return self.judge(conversations)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of one point."""
    path = tmp_path / "point.png"
    path.write_bytes(
        base64.b64decode(
            "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
            "rkJggg=="
        )
    )
    return path


async def test_a_picture_is_judged_where_the_model_sees(
    door: str, inner: Answering, picture: Path
) -> None:
    seeing = _Seeing()
    query = QueryBundle("", image_path=str(picture))
    await asked(door, guard_query_engine(inner, Guard(seeing)), query)
    assert inner.asked == [query]
    assert [url[:22] for url in seeing.pictures] == ["data:image/png;base64,"]


@pytest.mark.parametrize("on_error", [OnError.BLOCK, OnError.ALLOW])
@pytest.mark.parametrize("path", [None, "/nowhere/secret.png", "http://a.example/b.png"])
async def test_a_picture_that_nobody_judged_goes_nowhere(
    door: str,
    inner: Answering,
    guarding: Guarding,
    picture: Path,
    path: str | None,
    on_error: OnError,
) -> None:
    query = QueryBundle("What is this?", image_path=path or str(picture))
    with pytest.raises(GuardViolation) as caught:
        await asked(door, guard_query_engine(inner, guarding(on_error=on_error)), query)
    assert inner.asked == []
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("query", [None, 3, {"query_str": BAD}, QueryBundle(cast("Any", [BAD]))])
def test_what_is_no_text_is_no_query(inner: Answering, guarding: Guarding, query: Any) -> None:
    guarded = guard_query_engine(inner, guarding(on_error=OnError.ALLOW))
    with pytest.raises(GuardViolation, match=r"a query is (NoneType|int|dict|list)") as caught:
        guarded.retrieve(query)
    assert inner.asked == []
    assert "bomb" not in str(caught.value)


async def test_checks_can_be_left_out(
    door: str, guarding: Guarding, engine: ScriptedEngine
) -> None:
    inner = Answering(lambda _: Response("A bomb."))
    without_input = guard_query_engine(inner, guarding(Action.REPLACE), check_input=False)
    assert (await asked(door, without_input, BAD)).response == REPLACED
    assert [item.query_str for item in inner.asked] == [BAD]
    assert len(engine.seen) == 1
    without_output = guard_query_engine(inner, guarding(), check_output=False)
    assert (await asked(door, without_output, "How?")).response == "A bomb."


@pytest.mark.parametrize(
    ("on_error", "raised"),
    [(OnError.BLOCK, GuardViolation), (OnError.RAISE, EngineUnavailable), (OnError.ALLOW, None)],
)
async def test_an_outage_is_what_the_policy_says(
    door: str, inner: Answering, on_error: OnError, raised: type[Exception] | None
) -> None:
    broken = ScriptedEngine(EngineUnavailable("it is out of order"))
    guarded = guard_query_engine(inner, Guard(broken, Policy.strict(on_error=on_error)))
    if raised is None:
        assert (await asked(door, guarded, "How?")).response == "Yes."
        return
    with pytest.raises(raised, match="out of order"):
        await asked(door, guarded, "How?")
    assert inner.asked == []


def test_a_guard_is_asked_for(inner: Answering, guard: Guard, engine: ScriptedEngine) -> None:
    with pytest.raises(TypeError, match="not a Guard"):
        GuardedQueryEngine(inner, cast("Any", engine))
    with pytest.raises(TypeError, match="as_query_engine"):
        guard_query_engine(cast("Any", guard), guard)
    with pytest.raises(ValueError, match="on_violation"):
        guard_query_engine(inner, guard, on_violation=cast("Any", "ignore"))


async def _retrieved(door: str, engine: GuardedQueryEngine, query: Any) -> list[NodeWithScore]:
    return engine.retrieve(query) if door == "query" else await engine.aretrieve(query)


@pytest.mark.parametrize(
    ("query", "found"), [(BAD, []), ("How?", ["How?"]), (QueryBundle("Why?"), ["Why?"])]
)
async def test_retrieval_is_for_queries_that_pass(
    door: str, inner: Answering, guard: Guard, query: Any, found: list[str]
) -> None:
    guarded = guard_query_engine(inner, guard, on_violation="reply")
    nodes = await _retrieved(door, guarded, query)
    assert [item.node.get_content() for item in nodes] == found
    assert len(inner.asked) == len(found)


async def test_retrieval_raises_where_it_shall(door: str, inner: Answering, guard: Guard) -> None:
    guarded = guard_query_engine(inner, guard)
    with pytest.raises(GuardViolation):
        await _retrieved(door, guarded, BAD)
    assert inner.asked == []


async def test_what_the_engine_inside_has_not_is_not_there(inner: Answering, guard: Guard) -> None:
    poor = TransformQueryEngine(inner, IdentityQueryTransform())
    guarded: Any = guard_query_engine(poor, guard)
    with pytest.raises(NotImplementedError):
        await guarded.aretrieve(QueryBundle("How?"))
    assert guarded.inner is poor


def test_nothing_else_of_the_engine_inside_is_reached(inner: Answering, guard: Guard) -> None:
    guarded: Any = guard_query_engine(inner, guard)
    assert not hasattr(guarded, "make")
    assert guarded.inner.make is inner.make


async def _synthesized(door: str, engine: GuardedQueryEngine, query: str) -> Any:
    bundle, nodes = QueryBundle(query), [node("a source")]
    if door == "query":
        return engine.synthesize(bundle, nodes)
    return await engine.asynthesize(bundle, nodes)


@pytest.mark.parametrize(
    ("query", "answer", "stage"), [(BAD, "Yes.", "input"), ("How?", "A bomb.", "output")]
)
async def test_synthesis_is_guarded_on_both_sides(
    door: str, guard: Guard, query: str, answer: str, stage: str
) -> None:
    guarded = guard_query_engine(Answering(lambda _: Response(answer)), guard)
    with pytest.raises(GuardViolation, match=f"^{stage} blocked"):
        await _synthesized(door, guarded, query)


async def test_synthesis_passes(door: str, inner: Answering, guard: Guard) -> None:
    response = await _synthesized(door, guard_query_engine(inner, guard), "How?")
    assert response.response == "Yes."
    assert inner.doors == ["synthesize" if door == "query" else "asynthesize"]


def test_the_callback_manager_is_that_of_the_engine_inside(inner: Answering, guard: Guard) -> None:
    guarded = guard_query_engine(inner, guard)
    assert guarded.callback_manager is inner.callback_manager
    guarded.callback_manager = other = CallbackManager([])
    assert inner.callback_manager is other


async def test_events_tell_of_checks_without_text(
    door: str, inner: Answering, guard: Guard
) -> None:
    with heard() as (events, _), pytest.raises(GuardViolation):
        await asked(door, guard_query_engine(inner, guard), BAD)
    kinds = [GuardCheckStartEvent, GuardCheckEndEvent, GuardViolationEvent]
    told = events.of(GuardEvent)
    assert [type(event) for event in told] == kinds
    assert {event.component for event in told} == {"query_engine"}
    assert "bomb" not in repr(told)


@pytest.mark.parametrize("query", [BAD, "Where is my answer?"])
def test_a_tool_never_quotes_what_was_blocked(guard: Guard, query: str) -> None:
    guarded = guard_query_engine(Answering(lambda _: Response("Build a bomb.")), guard)
    tool = QueryEngineTool.from_defaults(guarded, name="search")
    outputs = [
        calling.call_tool(tool, {"input": query}),
        asyncio.run(calling.acall_tool(tool, {"input": query})),
    ]
    assert [output.is_error for output in outputs] == [True, True]
    assert "bomb" not in repr([(output.content, output.raw_output) for output in outputs])


def _told(query: str) -> Response:
    number = int(query.rpartition(" ")[2])
    return Response(f"Build a bomb {number}." if number % 3 == 0 else f"Bake {number}.")


def _expected(number: int) -> str:
    if number % 5 == 0:
        return "input"
    return "output" if number % 3 == 0 else f"Bake {number}."


def _query(number: int) -> str:
    return f"{'bomb' if number % 5 == 0 else 'bread'} {number}"


def test_threads_share_nothing(guard: Guard) -> None:
    guarded = guard_query_engine(Answering(_told), guard)

    def ask(number: int) -> str:
        try:
            return str(guarded.query(_query(number)))
        except GuardViolation as violation:
            return violation.decision.stage.value

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(100)))
    assert answers == [_expected(number) for number in range(100)]


class _Waiting(ScriptedEngine):
    """Judges when it is told to, and never in the way of the event loop."""

    def __init__(self) -> None:
        super().__init__({"bomb": UNSAFE})
        self.may = asyncio.Event()
        self.all_wait = asyncio.Event()
        self._waiting = 0

    def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        raise AssertionError("the event loop is blocked")

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        self._waiting += 1
        if self._waiting == 100:
            self.all_wait.set()
        await self.may.wait()
        return super().judge(conversations)


@pytest.mark.parametrize("streaming", [False, True])
async def test_tasks_share_nothing_and_wait_for_each_other_nowhere(streaming: bool) -> None:
    async def words(text: str) -> AsyncGenerator[str, None]:
        for word in text.split(" "):
            yield f"{word} "

    def make(query: str) -> Any:
        told = _told(query)
        return AsyncStreamingResponse(words(str(told))) if streaming else told

    engine = _Waiting()
    guarded = guard_query_engine(Answering(make), Guard(engine))

    async def ask(number: int) -> str:
        try:
            return "".join(await read(await guarded.aquery(_query(number)))).strip()
        except GuardViolation as violation:
            return violation.decision.stage.value

    tasks = [asyncio.create_task(ask(number)) for number in range(100)]
    await engine.all_wait.wait()  # all are under way, and none keeps this one from running
    engine.may.set()
    assert await asyncio.gather(*tasks) == [_expected(number) for number in range(100)]


async def test_its_own_events_have_only_what_passed(
    door: str, inner: Answering, guarding: Guarding
) -> None:
    with heard() as (events, _):
        guarded = guard_query_engine(
            Answering(lambda _: Response("A bomb.")), guarding(Action.REPLACE)
        )
        response = await asked(door, guarded, "How?")
    assert response.response == REPLACED
    ends = events.of(QueryEndEvent)
    assert ends[-1].response is response


@pytest.mark.parametrize(("streaming", "streams"), [([True, True], True), ([True, False], False)])
async def test_a_reply_is_of_the_kind_that_engines_inside_give(
    door: str, guard: Guard, streaming: list[bool], streams: bool
) -> None:
    outer: Any = TransformQueryEngine(Answering(Response), IdentityQueryTransform())
    outer._query_engines = [Answering(Response, streaming=each) for each in streaming]
    response = await asked(door, guard_query_engine(outer, guard, on_violation="reply"), BAD)
    assert isinstance(response, Response) is not streams
    assert await read(response) == [REPLACED]


def test_an_engine_that_has_itself_inside_is_no_riddle(guard: Guard) -> None:
    outer: Any = TransformQueryEngine(Answering(Response), IdentityQueryTransform())
    outer._query_engine = outer
    guarded = guard_query_engine(outer, guard, on_violation="reply")
    assert guarded.query(BAD) == Response(REPLACED)
