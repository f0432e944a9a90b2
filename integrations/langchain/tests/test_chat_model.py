"""What a guarded chat model does not let through reaches nobody."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any
from uuid import UUID

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnablePassthrough
from langchain_core.tools import tool
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from pydantic import BaseModel

from guardrails_qwen import Action, Guard, GuardViolation, Policy
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine
from integrations.langchain.tests.doubles import (
    FILTERED,
    REPLACED,
    SCRIPT,
    EchoModel,
    WritingModel,
    writing,
)
from langchain_guardrails_qwen import GuardedChatModel

HARMFUL = "Sure, here it is. Take a bomb and light it. Then run away. Goodbye."
HARMLESS = "Take flour and water. Knead for ten minutes. Bake until brown. Enjoy it!"

Run_ = Callable[..., AsyncIterator[Any]]


@pytest.fixture(params=["invoke", "ainvoke", "stream", "astream", "astream_events"])
def door(request: pytest.FixtureRequest) -> Run_:
    """The ways to call a model: an asynchronous iterator of what comes out."""

    async def run(model: Runnable[Any, Any], value: Any, config: Any = None):
        if request.param == "invoke":
            yield model.invoke(value, config)
        elif request.param == "ainvoke":
            yield await model.ainvoke(value, config)
        elif request.param == "stream":
            for chunk in model.stream(value, config):
                yield chunk
        elif request.param == "astream":
            async for chunk in model.astream(value, config):
                yield chunk
        else:
            async for event in model.astream_events(value, config):
                if event["event"] == "on_chat_model_stream":
                    yield event["data"].get("chunk")

    return run


@pytest.fixture(params=[ScriptedStreamEngine, ScriptedEngine], ids=["tokens", "texts"])
def engine(request: pytest.FixtureRequest) -> ScriptedEngine:
    """One that judges tokens, and one that judges the text so far again and again."""
    return request.param(SCRIPT)


@pytest.fixture(params=[False, True], ids=["after", "beside"])
def beside(request: pytest.FixtureRequest) -> bool:
    """Whether the prompt is judged while the model writes."""
    return request.param


def guarded(
    inner: BaseChatModel,
    engine: ScriptedEngine,
    action: Action = Action.BLOCK,
    *,
    beside: bool = False,
    closing: str | None = None,
) -> GuardedChatModel:
    return GuardedChatModel(
        inner=inner,
        guard=Guard(engine, Policy.strict(action=action)),
        streaming=Streaming(stride=1, closing=closing),
        beside=beside,
    )


class Spy(BaseTracer):
    """Keeps all that callbacks and tracers of a model are told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> Any:
        self.told.append(f"{token} {kwargs}")
        return super().on_llm_new_token(token, **kwargs)

    def _persist_run(self, run: Run) -> None:
        self.told.append(run.model_dump_json(exclude={"parent_run", "serialized"}))


async def outcome(out: AsyncIterator[Any]) -> tuple[list[Any], Exception | None]:
    """What comes out until the end, or until an error."""
    seen = list[Any]()
    try:
        async for chunk in out:
            seen.append(chunk)
    except Exception as error:  # noqa: BLE001
        return seen, error
    return seen, None


@pytest.mark.parametrize(
    "action",
    [Action.BLOCK, Action.REPLACE, Action.REDACT, Action.DROP],
    ids=lambda action: action.label,
)
@pytest.mark.parametrize("size", [0, 3, 1000], ids=["words", "pieces", "whole"])
async def test_nothing_that_is_blocked_can_be_seen_or_heard(
    action: Action, size: int, door: Run_, engine: ScriptedEngine, beside: bool
) -> None:
    spy, own = Spy(), Spy()
    inner = writing(HARMFUL, size)
    inner.callbacks = [own]
    model = guarded(inner, engine, action, beside=beside)
    out, error = await outcome(door(model, "how?", {"callbacks": [spy]}))
    assert "bomb" not in f"{out} {error} {spy.told} {own.told}"
    assert isinstance(error, GuardViolation) is (action is Action.BLOCK)
    assert spy.told
    assert own.told


async def test_all_events_hold_guarded_text_only(engine: ScriptedEngine) -> None:
    model = guarded(writing(HARMFUL), engine, Action.REPLACE)
    chain: Runnable[Any, Any] = model | RunnablePassthrough[Any]()
    events = [event async for event in chain.astream_events("how?")]
    kinds = {event["event"] for event in events}
    assert kinds >= {"on_chat_model_stream", "on_chat_model_end", "on_chain_end"}
    assert "bomb" not in str(events)
    assert REPLACED in str(events)


@pytest.mark.filterwarnings("ignore:.*beta")
@pytest.mark.parametrize("action", [Action.REPLACE, Action.REDACT], ids=lambda a: a.label)
async def test_events_of_the_third_version_as_well(action: Action, engine: ScriptedEngine) -> None:
    model: Any = guarded(writing(HARMFUL), engine, action)
    events = str(list(model.stream_events("how?", version="v3")))
    assert "Sure" in events
    assert "bomb" not in events
    aevents = [event async for event in await model.astream_events("how?", version="v3")]
    assert "Sure" in str(aevents)
    assert "bomb" not in str(aevents)


async def test_a_reply_that_passes_comes_as_the_model_gives_it(
    door: Run_, engine: ScriptedEngine, beside: bool
) -> None:
    usage: Any = {"input_tokens": 3, "output_tokens": 9, "total_tokens": 12}
    end: Any = {"usage_metadata": usage, "response_metadata": {"finish_reason": "stop"}}
    inner = writing(HARMLESS, chunk_position="last", **end)
    expected = [m async for m in door(inner, "bread?")]
    out = [m async for m in door(guarded(inner, engine, beside=beside), "bread?")]
    total, whole = _sum(out), _sum(expected)
    for field in ("content", "usage_metadata", "response_metadata", "id", "tool_calls"):
        assert getattr(total, field) == getattr(whole, field), field
    assert type(out[0]) is type(expected[0])


def _sum(messages: list[Any]) -> Any:
    total, *rest = messages
    for message in rest:
        total += message
    return total


async def test_text_is_released_while_the_model_writes(engine: ScriptedEngine) -> None:
    inner = writing(HARMLESS)
    model = guarded(inner, engine)
    next(model.stream("bread?"))
    assert "done" not in inner.log
    inner.log.clear()
    stream: Any = model.astream("bread?")
    async with aclosing(stream):
        await anext(stream)
        assert "done" not in inner.log


@pytest.mark.parametrize(
    ("action", "end"), [(Action.REPLACE, REPLACED), (Action.DROP, "")], ids=["replace", "drop"]
)
async def test_a_reply_that_is_taken_away_says_so(
    action: Action, end: str, door: Run_, engine: ScriptedEngine
) -> None:
    out = [m async for m in door(guarded(writing(HARMFUL), engine, action), "how?")]
    assert out[-1].text == end
    assert out[-1].response_metadata == FILTERED


async def test_a_stream_may_end_with_a_closing_text(engine: ScriptedEngine) -> None:
    inner = writing(HARMFUL + " More." * 50)
    out = list(guarded(inner, engine, closing="That is all.").stream("how?"))
    assert (out[-1].text, out[-1].response_metadata) == ("That is all.", FILTERED)
    assert inner.log[-1] == "closed"


async def test_a_bad_prompt_is_not_answered(door: Run_, engine: ScriptedEngine) -> None:
    inner = writing(HARMLESS)
    out, error = await outcome(door(guarded(inner, engine), "a bomb is what?"))
    assert (out, inner.sent) == ([], [])
    assert isinstance(error, GuardViolation)


async def test_a_prompt_that_passes_changed_is_answered_as_it_passes(
    door: Run_, engine: ScriptedEngine, beside: bool
) -> None:
    inner = EchoModel()
    model = guarded(inner, engine, Action.REPLACE, beside=beside)
    out = [m async for m in door(model, "a bomb is what?")]
    assert _sum(out).text.strip() == f"re: {REPLACED}"
    assert inner.sent[-1][-1].text == REPLACED
    assert len(inner.sent) == 1 + beside


async def test_the_reply_is_judged_behind_the_messages(door: Run_) -> None:
    engine = ScriptedEngine()
    history = [("system", "Be kind."), ("user", "Hi!"), ("ai", "Hello."), ("user", "Bread?")]
    _ = [m async for m in door(guarded(writing("Take flour."), engine), history)]
    before = ["Be kind.", "Hi!", "Hello.", "Bread?"]
    assert [[m.text for m in c.messages] for c in engine.seen] == [before, [*before, "Take flour."]]


async def test_cancelling_stops_the_model(beside: bool) -> None:
    engine = ScriptedStreamEngine(SCRIPT)
    inner = WritingModel(chunks=[AIMessageChunk(content="Take flour. "), None])
    stream = guarded(inner, engine, beside=beside).astream("bread?")
    task = asyncio.create_task(outcome(stream))
    await inner.hanging.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert inner.log[-1] == "closed"
    assert all(session.closed for session in engine.sessions)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_block_closes_the_model_before_anything_else(beside: bool) -> None:
    engine = ScriptedStreamEngine(SCRIPT)
    inner = writing(HARMFUL + " More." * 1000)
    stream = guarded(inner, engine, beside=beside).astream("how?")
    _, error = await outcome(stream)
    assert isinstance(error, GuardViolation)
    assert "done" not in inner.log
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Candidates(BaseChatModel):
    """Gives several candidates, and says beside them what they say."""

    @property
    def _llm_type(self) -> str:
        return "candidates"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        said = ["Take flour.", "Take a bomb."]
        return ChatResult(
            generations=[
                ChatGeneration(message=AIMessage(text), generation_info={"logprobs": text})
                for text in said
            ],
            llm_output={"model_name": "m", "echo": said},
        )


class Telling(EchoModel):
    """Tells its callbacks itself what it writes, as some models do."""

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        if run_manager:
            run_manager.on_llm_new_token("a bomb")
        return super()._generate(messages)

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Any:
        if run_manager:
            run_manager.on_llm_new_token("a bomb")
        yield from super()._stream(messages)


@pytest.mark.parametrize("method", ["invoke", "stream"])
def test_the_inner_model_has_nobody_to_tell(method: str, engine: ScriptedEngine) -> None:
    spy = Spy()
    model = guarded(Telling(), engine)
    config: Any = {"callbacks": [spy]}
    _ = list(model.stream("hi", config)) if method == "stream" else model.invoke("hi", config)
    assert spy.told
    assert "bomb" not in str(spy.told)


def test_all_candidates_are_judged(engine: ScriptedEngine) -> None:
    model = guarded(Candidates(), engine, Action.REPLACE)
    result = model.generate([[AIMessage("how?")]])
    assert [g.text for g in result.generations[0]] == ["Take flour.", REPLACED]
    assert "bomb" not in str(result)
    assert model.invoke("how?").text == "Take flour."


async def test_a_model_that_cannot_stream(engine: ScriptedEngine) -> None:
    model = guarded(Candidates(), engine, Action.REPLACE)
    assert [m.text for m in model.stream("how?")] == ["Take flour."]
    assert [m.text async for m in model.astream("how?")] == ["Take flour."]


def test_a_cache_does_not_give_what_the_inner_model_left_there(engine: ScriptedEngine) -> None:
    cache = InMemoryCache()
    inner = writing(HARMFUL)
    inner.cache = cache
    assert "bomb" in inner.invoke("how?").text
    model = guarded(inner, engine, Action.REPLACE)
    model.cache = cache
    assert [model.invoke("how?").text for _ in range(2)] == [REPLACED] * 2
    assert len(inner.sent) == 2


@tool
def search(q: str) -> str:
    """Search for something."""
    return q


class Calling(WritingModel):
    """Binds tools as models do."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        names = [getattr(tool, "name", None) or tool.__name__ for tool in tools]
        return self.bind(tools=names, **kwargs)

    def _stream(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self.log.append(str(kwargs.get("tools")))
        yield from super()._stream(messages)

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        self.log.append(str(kwargs.get("tools")))
        return super()._generate(messages)


def calling(name: str, args: str) -> Calling:
    call: Any = {"name": name, "id": "1", "args": args, "index": 0}
    text = AIMessageChunk(content="Let me look. ")
    return Calling(chunks=[text, AIMessageChunk(content="", tool_call_chunks=[call])])


@pytest.mark.parametrize("method", ["invoke", "stream"])
def test_tools_are_bound_to_the_inner_model(method: str, engine: ScriptedEngine) -> None:
    inner = calling("search", '{"q": "bread"}')
    bound = guarded(inner, engine).bind_tools([search], tool_choice="any")
    assert isinstance(bound, RunnableBinding)
    out = list(bound.stream("?")) if method == "stream" else [bound.invoke("?")]
    assert _sum(out).tool_calls[0]["args"] == {"q": "bread"}
    assert inner.log[0] == "['search']"


@pytest.mark.parametrize("method", ["invoke", "stream"])
def test_a_bad_tool_call_does_not_get_through(method: str, engine: ScriptedEngine) -> None:
    model = guarded(calling("search", '{"q": "bomb"}'), engine, Action.REPLACE)
    bound = model.bind_tools([search])
    out = list(bound.stream("?")) if method == "stream" else [bound.invoke("?")]
    assert _sum(out).tool_calls == []
    assert "bomb" not in str(out)


class Bread(BaseModel):
    """A recipe."""

    flour: int


def test_structured_output_comes_from_the_guarded_reply(engine: ScriptedEngine) -> None:
    structured = guarded(calling("Bread", '{"flour": 500}'), engine).with_structured_output(Bread)
    assert structured.invoke("?") == Bread(flour=500)


def test_a_model_without_tools_says_so(engine: ScriptedEngine) -> None:
    with pytest.raises(NotImplementedError):
        guarded(writing(HARMLESS), engine).bind_tools([search])


class Listener(BaseCallbackHandler):
    """Notes the runs that begin."""

    def __init__(self) -> None:
        self.runs: list[UUID] = []

    def on_chat_model_start(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        self.runs.append(run_id)


async def test_one_call_is_one_run(door: Run_, engine: ScriptedEngine) -> None:
    inner, listener = writing(HARMLESS), Listener()
    inner.callbacks = [listener]
    _ = [m async for m in door(guarded(inner, engine), "bread?")]
    assert len(listener.runs) == 1


async def test_many_streams_at_once() -> None:
    engine = ScriptedStreamEngine(SCRIPT)
    models = [guarded(writing(text), engine, Action.REPLACE) for text in (HARMLESS, HARMFUL)]

    async def text(model: GuardedChatModel) -> str:
        return "".join([chunk.text async for chunk in model.astream("how?")])

    out = await asyncio.gather(*(text(models[n % 2]) for n in range(200)))
    assert set(out[::2]) == {HARMLESS}
    assert len(set(out[1::2])) == 1
    assert "bomb" not in out[1]
    assert all(session.closed for session in engine.sessions)


def test_a_generation_chunk_keeps_its_information(engine: ScriptedEngine) -> None:
    class Informing(WritingModel):
        def _stream(self, *args: Any, **kwargs: Any) -> Any:
            yield ChatGenerationChunk(message=AIMessageChunk(content="Take flour."))
            yield ChatGenerationChunk(
                message=AIMessageChunk(content=""), generation_info={"finish_reason": "stop"}
            )

    *_, end = guarded(Informing(chunks=[]), engine).stream("bread?")
    out = _sum(list(guarded(Informing(chunks=[]), engine).stream("bread?")))
    assert (out.text, out.response_metadata) == ("Take flour.", {"finish_reason": "stop"})
    assert end.chunk_position == "last"


async def test_what_is_closed_is_closed_at_once(beside: bool) -> None:
    engine = ScriptedStreamEngine(SCRIPT)
    inner = WritingModel(chunks=[AIMessageChunk(content="Take flour. And water. "), None])
    stream: Any = guarded(inner, engine, beside=beside).astream("bread?")
    await anext(stream)
    await stream.aclose()
    assert inner.log[-1] == "closed"
    assert all(session.closed for session in engine.sessions)


class Counting(EchoModel):
    """Counts tokens in its own way."""

    def get_token_ids(self, text: str) -> list[int]:
        return [7] * len(text)

    def get_num_tokens(self, text: str) -> int:
        return 1000 + len(text)

    def get_num_tokens_from_messages(self, messages: Any, tools: Any = None) -> int:
        return 2000 + len(messages) + len(tools or [])


def test_tokens_are_those_of_the_inner_model(engine: ScriptedEngine) -> None:
    model = guarded(Counting(), engine)
    messages: list[BaseMessage] = [AIMessage("a"), AIMessage("b")]
    assert model.get_token_ids("ab") == [7, 7]
    assert model.get_num_tokens("ab") == 1002
    assert model.get_num_tokens_from_messages(messages) == 2002
    assert model.get_num_tokens_from_messages(messages, [search]) == 2003


def two(_: str) -> list[int]:
    return [2]


def test_tokens_as_the_inner_model_was_told_to_count(engine: ScriptedEngine) -> None:
    inner = EchoModel(custom_get_token_ids=lambda text: [1] * len(text))
    assert guarded(inner, engine).get_num_tokens("abc") == 3
    own = GuardedChatModel(inner=Counting(), guard=Guard(engine), custom_get_token_ids=two)
    assert own.get_token_ids("abc") == [2]
    assert own.get_num_tokens("abc") == 1
    assert own.get_num_tokens_from_messages([AIMessage("a")]) == 1


def test_the_cache_of_the_inner_model_is_used_for_guarded_replies(engine: ScriptedEngine) -> None:
    inner = writing(HARMFUL)
    inner.cache = InMemoryCache()
    assert "bomb" in inner.invoke("how?").text
    out = [guarded(inner, engine, Action.REPLACE).invoke("how?").text for _ in range(2)]
    assert out == [REPLACED] * 2
    assert len(inner.sent) == 2
    with pytest.raises(GuardViolation):
        guarded(inner, engine, Action.BLOCK).invoke("how?")


def test_a_model_without_a_cache_stays_so(engine: ScriptedEngine) -> None:
    inner = writing(HARMLESS)
    inner.cache = False
    assert guarded(inner, engine).cache is False


@pytest.mark.parametrize("method", ["stream", "astream"])
async def test_streaming_may_be_disabled(method: str, engine: ScriptedEngine) -> None:
    inner = writing(HARMLESS)
    model = GuardedChatModel(inner=inner, guard=Guard(engine), disable_streaming=True)
    out = list(model.stream("?")) if method == "stream" else [m async for m in model.astream("?")]
    assert [m.text for m in out] == [HARMLESS]
    assert inner.log == []


def test_streaming_may_be_disabled_for_tools(engine: ScriptedEngine) -> None:
    inner = calling("search", '{"q": "bread"}')
    model = GuardedChatModel(inner=inner, guard=Guard(engine), disable_streaming="tool_calling")
    assert len(list(model.bind_tools([search]).stream("?"))) == 1
    assert len(list(model.stream("?"))) > 1


def test_what_is_bound_is_bound_outside(engine: ScriptedEngine) -> None:
    inner: Any = writing(HARMLESS).bind(stop=["secret"])
    with pytest.raises(TypeError, match=r"GuardedChatModel\(.*\)\.bind") as caught:
        guarded(inner, engine)
    assert "secret" not in str(caught.value)
