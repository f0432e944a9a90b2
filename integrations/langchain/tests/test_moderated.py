"""A reply that streams through a guard is moderated while it is written."""

import asyncio
import operator
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, suppress
from functools import reduce
from types import NoneType
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import Runnable
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run

from guardrails_qwen import (
    Action,
    EngineError,
    Guard,
    GuardError,
    GuardViolation,
    OnError,
    Policy,
)
from guardrails_qwen.streaming import HoldBack, Streaming
from guardrails_qwen.testing import FailingEngine, ScriptedEngine, ScriptedStreamEngine
from integrations.langchain.tests.doubles import FILTERED, REPLACED, SCRIPT, WritingModel, writing
from langchain_guardrails_qwen import GuardedChatModel, GuardRunnable

HARMFUL = "Sure, here it is. Take a bomb and light it. Then run away. Goodbye."
HARMLESS = "Take flour and water. Knead for ten minutes. Bake until brown. Enjoy it!"

Chunks = Callable[..., AsyncIterator[Any]]


@pytest.fixture(params=["stream", "astream", "transform", "atransform", "astream_events"])
def chunks(request: pytest.FixtureRequest) -> Chunks:
    """The methods that stream: an asynchronous iterator of what comes out."""

    async def run(runnable: Runnable[Any, Any], value: Any, config: Any = None):
        if request.param == "stream":
            for chunk in runnable.stream(value, config):
                yield chunk
        elif request.param == "transform":
            for chunk in runnable.transform(iter([value]), config):
                yield chunk
        elif request.param == "astream_events":
            async for event in runnable.astream_events(value, config):
                if event["event"] == "on_chain_stream" and not event["parent_ids"]:
                    yield event["data"].get("chunk")
        elif request.param == "astream":
            async for chunk in runnable.astream(value, config):
                yield chunk
        else:
            async for chunk in runnable.atransform(_only(value), config):
                yield chunk

    return run


async def _only(value: Any) -> AsyncIterator[Any]:
    yield value


async def _released(out: AsyncIterator[Any], into: list[Any]) -> Exception | None:
    """What comes out until the end, or until an error, which is returned."""
    try:
        async for chunk in out:
            into.append(chunk)  # noqa: PERF401  what came before the error counts
    except Exception as error:  # noqa: BLE001
        return error
    return None


ENGINES = {"tokens": ScriptedStreamEngine, "texts": ScriptedEngine}


@pytest.fixture(params=list(ENGINES))
def engine(request: pytest.FixtureRequest) -> ScriptedEngine:
    """One that judges tokens, and one that judges the text so far again and again."""
    return ENGINES[request.param](SCRIPT)


def guarding(
    engine: ScriptedEngine | FailingEngine,
    action: Action = Action.BLOCK,
    on_error: OnError = OnError.BLOCK,
    **settings: Any,
) -> GuardRunnable:
    guard = Guard(engine, Policy.strict(action=action, on_error=on_error))
    settings.setdefault("stride", 1)
    return GuardRunnable(guard, streaming=Streaming(**settings))


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk if isinstance(chunk, str) else chunk.text for chunk in chunks)


async def test_text_is_released_while_the_model_writes(
    chunks: Chunks, engine: ScriptedEngine
) -> None:
    llm, seen = writing(HARMLESS), list[tuple[int, str]]()
    async for chunk in chunks(guarding(engine) | llm | guarding(engine), "bread?"):
        seen.append((len(llm.log), chunk.text))
    assert seen[0][0] < len(list(llm.chunks))
    assert "".join(text for _, text in seen) == HARMLESS


@pytest.mark.parametrize("hold_back", list(HoldBack), ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    "action",
    [Action.BLOCK, Action.REPLACE, Action.REDACT, Action.DROP],
    ids=lambda action: action.label,
)
@pytest.mark.parametrize("size", [0, 3, 1000], ids=["words", "pieces", "whole"])
async def test_nothing_that_is_blocked_can_be_seen(
    hold_back: HoldBack, action: Action, size: int, chunks: Chunks, engine: ScriptedEngine
) -> None:
    guard = guarding(engine, action, hold_back=hold_back)
    spy, out = Spy(), list[Any]()
    stream = chunks(guard | writing(HARMFUL, size) | guard, "how?", {"callbacks": [spy]})
    error = await _released(stream, out)
    assert "bomb" not in f"{out} {error} {spy.seen}"
    assert isinstance(error, GuardViolation) is (action is Action.BLOCK)
    assert len(spy.seen) == 3  # the chain and both guards


async def test_a_wrapped_model_streams_too(chunks: Chunks, engine: ScriptedEngine) -> None:
    llm, seen = writing(HARMLESS), list[int]()
    async for _ in chunks(guarding(engine).wrap(llm), "bread?"):
        seen.append(len(llm.log))
    assert seen[0] < len(list(llm.chunks))


@pytest.mark.parametrize("action", [Action.REPLACE, Action.REDACT], ids=lambda a: a.label)
async def test_events_of_the_guard_hold_guarded_text_only(
    action: Action, engine: ScriptedEngine
) -> None:
    guard = guarding(engine, action)
    chain = guard | writing(HARMFUL) | guard.with_config(run_name="right")
    events = [event async for event in chain.astream_events("how?")]
    own = [event for event in events if event["name"] in ("right", "RunnableSequence")]
    assert {event["event"] for event in own} >= {"on_chain_stream", "on_chain_end"}
    assert "bomb" not in str(own)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 11, 1000])
@pytest.mark.parametrize("text", [HARMLESS, HARMFUL], ids=["harmless", "harmful"])
@pytest.mark.parametrize("hold_back", list(HoldBack), ids=lambda mode: mode.value)
@pytest.mark.parametrize("action", [Action.REPLACE, Action.REDACT], ids=lambda a: a.label)
def test_chunks_are_cut_as_the_guard_says_however_the_model_cut_them(
    size: int, text: str, hold_back: HoldBack, action: Action, engine: ScriptedEngine
) -> None:
    guard = guarding(engine, action, hold_back=hold_back)
    released = text_of(list((guard | writing(text, size) | guard).stream("how?")))
    judge = guard.guard
    assert judge
    assert released == "".join(judge.stream("how?", settings=guard.streaming).texts([text]))


@pytest.mark.parametrize("size", [0, 1, 7], ids=["words", "characters", "7"])
async def test_the_chunks_add_up_to_what_invoke_gives(
    size: int, chunks: Chunks, engine: ScriptedEngine
) -> None:
    llm = writing(HARMLESS, size, **END)
    chain = guarding(engine) | llm | guarding(engine)
    out = [chunk async for chunk in chunks(chain, "bread?")]
    total, whole = reduce(operator.add, out), chain.invoke("bread?")
    assert all(type(chunk) is AIMessageChunk for chunk in out)
    assert {chunk.id for chunk in out} == {"msg-1"}
    for field in ("content", "usage_metadata", "response_metadata", "id", "tool_calls"):
        assert getattr(total, field) == getattr(whole, field), field
    assert [bool(chunk.usage_metadata) for chunk in out] == [*[False] * (len(out) - 1), True]


END: dict[str, Any] = {
    "usage_metadata": {"input_tokens": 3, "output_tokens": 9, "total_tokens": 12},
    "response_metadata": {"finish_reason": "stop", "model_name": "m"},
    "chunk_position": "last",
}


async def test_chunks_without_text_keep_their_place(chunks: Chunks, engine: ScriptedEngine) -> None:
    def chunk(text: str, **fields: Any) -> AIMessageChunk:
        return AIMessageChunk(content=text, id="msg-1", **fields)

    usage: Any = END["usage_metadata"]
    llm = WritingModel(
        chunks=[
            chunk("", response_metadata={"model_provider": "p"}),
            chunk("Take flour. "),
            chunk("", usage_metadata=usage),
            chunk("And water. "),
            chunk("", response_metadata={"finish_reason": "null"}),
            chunk("", response_metadata={"finish_reason": "stop"}),
            chunk("", response_metadata={"service_tier": "t"}),
            chunk("", chunk_position="last"),
        ]
    )
    guard = guarding(engine)
    out = [piece async for piece in chunks(guard | llm | guard, "bread?")]
    said = [
        piece.text or piece.response_metadata or piece.usage_metadata or piece.chunk_position
        for piece in out
    ]
    marks = [item for item in said if not isinstance(item, str) or item == "last"]
    assert marks == [
        {"model_provider": "p"},
        usage,
        {"finish_reason": "null"},
        {"finish_reason": "stop"},
        {"service_tier": "t"},
        "last",
    ]
    assert text_of(out[: said.index(usage)]) == "Take flour. "
    assert text_of(out) == "Take flour. And water. "


async def test_texts_stay_texts(chunks: Chunks, engine: ScriptedEngine) -> None:
    guard = guarding(engine, Action.REPLACE)
    chain = guard | writing(HARMFUL) | StrOutputParser() | guard
    out = [chunk async for chunk in chunks(chain, "how?")]
    assert all(type(chunk) is str for chunk in out)
    assert text_of(out).startswith("Sure, here it is.")
    assert text_of(out).endswith(REPLACED)


@pytest.mark.parametrize(
    ("action", "closing", "end"),
    [
        (Action.BLOCK, "That is all.", "That is all."),
        (Action.REPLACE, None, REPLACED),
        (Action.DROP, None, ""),
    ],
    ids=["closing", "replace", "drop"],
)
async def test_a_reply_that_ends_early_says_so(
    action: Action, closing: str | None, end: str, chunks: Chunks, engine: ScriptedEngine
) -> None:
    guard = guarding(engine, action, closing=closing)
    out = [c async for c in chunks(guard | writing(HARMFUL, **END) | guard, "how?")]
    assert (out[-1].text, out[-1].id, out[-1].chunk_position) == (end, "msg-1", "last")
    assert out[-1].response_metadata == FILTERED
    assert text_of(out[:-1]).startswith("Sure, here it is.")
    assert HARMFUL.startswith(text_of(out[:-1]))


async def test_usage_that_was_held_back_is_told_at_the_end(
    chunks: Chunks, engine: ScriptedEngine
) -> None:
    guard = guarding(engine, Action.REPLACE, hold_back="reply")
    llm = writing("A bomb is here.", usage_metadata=END["usage_metadata"])
    out = [chunk async for chunk in chunks(guard | llm | guard, "how?")]
    assert [(c.text, c.usage_metadata) for c in out] == [(REPLACED, END["usage_metadata"])]


async def test_a_redaction_keeps_the_rest_and_loses_what_may_repeat_it(
    chunks: Chunks, engine: ScriptedEngine
) -> None:
    guard = guarding(engine, Action.REDACT)
    last: dict[str, Any] = {
        "usage_metadata": END["usage_metadata"],
        "response_metadata": {"finish_reason": "stop", "logprobs": ["bomb"]},
    }
    out = [c async for c in chunks(guard | writing(HARMFUL, **last) | guard, "how?")]
    total = reduce(operator.add, out)
    assert total.text == "Sure, here it is. [removed: Violent] Then run away. Goodbye."
    assert total.response_metadata == {"finish_reason": "stop"}
    assert total.usage_metadata == END["usage_metadata"]
    assert "bomb" not in str(out)


@pytest.mark.parametrize("action", [Action.BLOCK, Action.REPLACE], ids=lambda a: a.label)
async def test_a_block_stops_the_model(action: Action, chunks: Chunks) -> None:
    engine = ScriptedStreamEngine(SCRIPT)
    llm, guard = writing(HARMFUL + " More." * 100), guarding(engine, action)
    await _released(chunks(guard | llm | guard, "how?"), [])
    await _settled()
    assert llm.log[-1] == "closed"
    assert len(llm.log) < 20
    assert all(session.closed for session in engine.sessions)


async def test_a_reader_who_leaves_stops_the_model() -> None:
    engine = ScriptedStreamEngine(SCRIPT)
    llm, guard = writing(HARMLESS), guarding(engine)
    chain = guard | llm | guard
    stream: Any = chain.stream("bread?")
    next(stream)
    stream.close()
    assert llm.log[-1] == "closed"
    astream: Any = chain.astream("bread?")
    async with aclosing(astream):
        await anext(astream)
    await _settled()
    assert llm.log.count("closed") == 2
    assert len(engine.sessions) == 2
    assert all(session.closed for session in engine.sessions)


async def test_cancelling_stops_the_model() -> None:
    engine = ScriptedStreamEngine(SCRIPT)
    chunks = [AIMessageChunk(content="Take flour. "), None]
    llm, guard, seen = WritingModel(chunks=chunks), guarding(engine), list[Any]()
    task = asyncio.create_task(_released((guard | llm | guard).astream("bread?"), seen))
    await llm.hanging.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert llm.log[-1] == "closed"
    assert [session.closed for session in engine.sessions] == [True]
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Torn(WritingModel):
    """Its connection breaks when it is closed."""

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        try:
            yield from super()._stream(*args, **kwargs)
        except GeneratorExit:
            raise OSError("torn") from None

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        try:
            async for chunk in super()._astream(*args, **kwargs):
                yield chunk
        except GeneratorExit:
            raise OSError("torn") from None


@pytest.mark.parametrize(
    ("closing", "ends"), [(None, GuardViolation), ("That is all.", NoneType)], ids=["raise", "say"]
)
@pytest.mark.parametrize("method", ["stream", "astream"])
async def test_a_block_stays_one_where_the_model_cannot_be_closed(
    method: str, closing: str | None, ends: type[object], engine: ScriptedEngine
) -> None:
    torn = Torn(chunks=writing(HARMFUL).chunks)
    guard = Guard(engine, Policy.strict())
    model = GuardedChatModel(inner=torn, guard=guard, streaming=Streaming(closing=closing))

    async def stream() -> AsyncIterator[Any]:
        for chunk in model.stream("how?"):
            yield chunk

    out = list[Any]()
    error = await _released(stream() if method == "stream" else model.astream("how?"), out)
    assert type(error) is ends
    assert text_of(out).endswith(closing or "")
    assert "bomb" not in text_of(out)


async def _settled() -> None:
    """Generators that LangChain left are closed by tasks of the loop."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_model_that_fails_releases_nothing_that_waits(
    chunks: Chunks, engine: ScriptedEngine
) -> None:
    failing = [AIMessageChunk(content="A start. And a bo"), ValueError("broken")]
    guard, out = guarding(engine), list[Any]()
    error = await _released(chunks(guard | WritingModel(chunks=failing) | guard, "how?"), out)
    assert isinstance(error, ValueError)
    assert "bo" not in text_of(out)


@pytest.mark.parametrize(
    ("on_error", "released", "error"),
    [
        (OnError.BLOCK, "", GuardViolation),
        (OnError.RAISE, "", GuardError),
        (OnError.ALLOW, HARMLESS, None),
    ],
    ids=["block", "raise", "allow"],
)
async def test_an_engine_that_fails(
    on_error: OnError, released: str, error: type[Exception] | None, chunks: Chunks
) -> None:
    out = list[Any]()
    right = guarding(FailingEngine(EngineError("down")), on_error=on_error)
    chain = guarding(ScriptedEngine()) | writing(HARMLESS) | right
    caught = await _released(chunks(chain, "bread?"), out)
    assert text_of(out) == released
    assert isinstance(caught, error) if error else caught is None


async def test_the_reply_is_judged_behind_the_prompt_that_was_let_in(chunks: Chunks) -> None:
    engine = ScriptedEngine()
    guard = guarding(engine)
    history = [("system", "Be kind."), ("user", "Hi!"), ("ai", "Hello."), ("user", "Bread?")]
    await _released(chunks(guard | writing("Take flour. Bake.") | guard, history), [])
    said = [[m.text for m in c.messages] for c in engine.seen]
    before = ["Be kind.", "Hi!", "Hello.", "Bread?"]
    assert said == [before, [*before, "Take flour. "], [*before, "Take flour. Bake."]]


async def test_many_streams_at_once() -> None:
    guard = guarding(ScriptedStreamEngine(SCRIPT), Action.REPLACE)
    safe, unsafe = guard | writing(HARMLESS) | guard, guard | writing(HARMFUL) | guard

    async def text(chain: Runnable[Any, Any]) -> str:
        return text_of([chunk async for chunk in chain.astream("how?")])

    out = await asyncio.gather(*(text(unsafe if n % 2 else safe) for n in range(200)))
    assert set(out[::2]) == {HARMLESS}
    assert set(out[1::2]) == {text_of(list(unsafe.stream("how?")))}


class Spy(BaseTracer):
    """Keeps what the runs of guards say: inputs, outputs, errors, and streamed chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def _persist_run(self, run: Run) -> None:
        guards = [child for child in run.child_runs if child.name == "guard"]
        for child in [run, *guards]:
            self.seen.append(child.model_dump_json(exclude={"child_runs", "parent_run"}))
