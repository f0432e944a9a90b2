"""What LangChain promises of every chat model holds of a guarded one."""

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from langchain_openai import ChatOpenAI
from pydantic import Field, SecretStr

from guardrails_qwen import Action, EngineError, Guard, GuardViolation, OnError, Policy
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.testing import FailingEngine, ScriptedEngine, ScriptedStreamEngine
from integrations.langchain.tests.doubles import REPLACED, SCRIPT, Door, EchoModel, writing
from langchain_guardrails_qwen import GuardedChatModel

HARMFUL = "Sure, here it is. Take a bomb and light it. Goodbye."
HARMLESS = "Take flour and water. Bake until brown."

pytestmark = pytest.mark.filterwarnings("ignore:.*beta")

Way = Callable[..., Any]


def guarded(
    inner: BaseChatModel, action: Action = Action.REPLACE, engine: Any = None, **policy: Any
) -> GuardedChatModel:
    return GuardedChatModel(
        inner=inner,
        guard=Guard(engine or ScriptedEngine(SCRIPT), Policy.strict(action=action, **policy)),
        streaming=Streaming(stride=1),
    )


async def events_v2(model: Runnable[Any, Any], value: Any, config: Any = None) -> list[Any]:
    return [event async for event in model.astream_events(value, config)]


async def events_v3(model: Any, value: Any, config: Any = None) -> list[Any]:
    return list(model.stream_events(value, config, version="v3"))


async def aevents_v3(model: Any, value: Any, config: Any = None) -> list[Any]:
    stream = await model.astream_events(value, config, version="v3")
    events = [event async for event in stream]
    await stream  # until the run has ended as well
    return events


@pytest.fixture(params=[events_v2, events_v3, aevents_v3], ids=lambda way: way.__name__)
def events(request: pytest.FixtureRequest) -> Way:
    """The ways to get the events of a model."""
    return request.param


class Tracer(BaseTracer):
    """Keeps the runs that ended, and the events inside."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []
        self.events: list[tuple[str, Any]] = []

    def _persist_run(self, run: Run) -> None:
        self.runs.append(run)

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.events.append((name, data))

    @property
    def notes(self) -> list[Any]:
        [run] = self.runs
        extra: Any = run.model_dump(include={"extra"})["extra"]
        notes: list[dict[str, Any]] = extra["metadata"]["guardrails_qwen"]
        return [note["action"] for note in notes]


@pytest.mark.parametrize(
    ("text", "action", "expected"),
    [
        (HARMLESS, Action.BLOCK, ["allow", "allow"]),
        (HARMFUL, Action.REPLACE, ["allow", "replace"]),
        (HARMFUL, Action.BLOCK, ["allow", "block"]),
    ],
    ids=["allowed", "replaced", "blocked"],
)
@pytest.mark.parametrize("engine", [ScriptedEngine, ScriptedStreamEngine])
async def test_the_run_of_the_model_says_what_was_decided(
    text: str, action: Action, expected: list[str], engine: Any, door: Door
) -> None:
    tracer = Tracer()
    model = guarded(writing(text), action, engine(SCRIPT))
    if expected[-1] == "block":
        with pytest.raises(GuardViolation):
            await door(model, "how?", {"callbacks": [tracer]})
    else:
        await door(model, "how?", {"callbacks": [tracer]})
    assert tracer.notes == expected
    assert [data["action"] for _, data in tracer.events] == expected
    assert "bomb" not in f"{tracer.runs} {tracer.events}"


async def test_so_do_its_events(events: Way) -> None:
    tracer = Tracer()
    out = await events(guarded(writing(HARMFUL)), "how?", {"callbacks": [tracer]})
    assert tracer.notes == ["allow", "replace"]
    assert "bomb" not in str(out)


async def test_a_blocked_prompt_is_told_as_well(door: Door) -> None:
    tracer = Tracer()
    with pytest.raises(GuardViolation):
        await door(guarded(EchoModel(), Action.BLOCK), "a bomb", {"callbacks": [tracer]})
    assert tracer.notes == ["block"]


async def test_own_callbacks_of_the_model_are_told_once(door: Door) -> None:
    tracer = Tracer()
    inner = writing(HARMLESS)
    inner.callbacks = [tracer]
    await door(guarded(inner), "bread?")
    assert len(tracer.runs) == 1
    assert len(tracer.events) == 2


@pytest.fixture
def cache() -> Iterator[InMemoryCache]:
    """LangChain's cache, set for all models."""
    cache = InMemoryCache()
    set_llm_cache(cache)
    yield cache
    set_llm_cache(None)


def cached(cache: InMemoryCache) -> dict[Any, Any]:
    return cache._cache  # pyright: ignore[reportPrivateUsage]  # it tells nobody


@pytest.mark.parametrize("method", ["invoke", "ainvoke", "events"])
@pytest.mark.parametrize(
    ("script", "judged"),
    [
        ({}, True),
        ({"Take flour": EngineError("out of order")}, False),
        ({"bread?": EngineError("out of order")}, False),
    ],
    ids=["judged", "reply", "prompt"],
)
async def test_only_what_was_judged_is_cached(
    script: Any, judged: bool, method: str, cache: InMemoryCache
) -> None:
    inner = writing(HARMLESS)
    model = guarded(inner, engine=ScriptedEngine(script), on_error=OnError.ALLOW)
    for _ in range(2):
        if method == "invoke":
            out: Any = model.invoke("bread?")
        elif method == "ainvoke":
            out = await model.ainvoke("bread?")
        else:
            asked: Any = RunnableLambda(model.invoke)
            [out] = [
                event["data"]["output"]
                for event in await events_v2(asked, "bread?")
                if event["event"] == "on_chat_model_end"
            ]
        assert out.text == HARMLESS
    assert bool(cached(cache)) is judged
    assert len(inner.sent) == (1 if judged else 2)


@pytest.mark.parametrize("method", ["invoke", "ainvoke"])
async def test_an_outage_is_not_remembered(method: str, cache: InMemoryCache) -> None:
    engine = ScriptedEngine({"Take flour": EngineError("out of order")})
    model = guarded(writing(HARMLESS), engine=engine)
    model.streaming = Streaming(closing="Later.")

    async def ask() -> str:
        message = await model.ainvoke("bread?") if method == "ainvoke" else model.invoke("bread?")
        return message.text

    assert await ask() == "Later."
    engine.script = {}
    assert await ask() == HARMLESS
    engine.script = {"Take flour": EngineError("out of order")}
    assert await ask() == HARMLESS  # from the cache, where it is by now


def test_a_cache_is_shared_and_cleared(cache: InMemoryCache) -> None:
    models = [guarded(writing(HARMLESS)) for _ in range(2)]
    assert [model.invoke("bread?").text for model in models] == [HARMLESS] * 2
    assert len(cached(cache)) == 1


class Counting(BaseRateLimiter):
    """Counts what it lets through."""

    def __init__(self) -> None:
        self.acquired = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self.acquired += 1
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire()


async def test_the_rate_limiter_is_asked_once(door: Door) -> None:
    inner, limiter = writing(HARMLESS), Counting()
    inner.rate_limiter = limiter
    await door(guarded(inner), "bread?")
    assert limiter.acquired == 1


class Crowded(EchoModel):
    """Knows how many ask it at once."""

    most: list[int] = Field(default_factory=lambda: [0, 0])
    lock: Any = Field(default_factory=threading.Lock)

    async def _agenerate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        self._enter(1)
        await asyncio.sleep(0.001)
        self._enter(-1)
        return super()._generate(messages)

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        self._enter(1)
        result = super()._generate(messages)
        self._enter(-1)
        return result

    def _enter(self, change: int) -> None:
        with self.lock:
            self.most[0] += change
            self.most[1] = max(self.most)


@pytest.mark.parametrize("method", ["batch", "abatch", "as_completed", "aas_completed"])
async def test_batches_keep_their_order_and_their_limit(method: str) -> None:
    inner = Crowded(seconds=0.001)
    model = guarded(inner)
    values: list[Any] = [f"{n} {'bomb' if n % 5 == 4 else 'bread'}" for n in range(20)]
    config: Any = {"max_concurrency": 3}
    if method == "batch":
        out = model.batch(values, config, return_exceptions=True)
    elif method == "abatch":
        out = await model.abatch(values, config, return_exceptions=True)
    elif method == "as_completed":
        pairs = list(model.batch_as_completed(values, config, return_exceptions=True))
        out = [reply for _, reply in sorted(pairs, key=_index)]
    else:
        found = model.abatch_as_completed(values, config, return_exceptions=True)
        out = [reply for _, reply in sorted([pair async for pair in found], key=_index)]
    texts = [reply.text if isinstance(reply, AIMessage) else repr(reply) for reply in out]
    expected = [f"re: {REPLACED}" if "bomb" in value else f"re: {value}" for value in values]
    assert texts == expected
    assert 0 < inner.most[1] <= 3


def _index(pair: tuple[int, Any]) -> int:
    return pair[0]


class Unsteady(EchoModel):
    """Fails at first."""

    failures: list[int] = Field(default_factory=lambda: [1])

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        if self.failures:
            self.failures.pop()
            raise ConnectionError("reset")
        return super()._generate(messages)

    def _stream(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        if self.failures:
            self.failures.pop()
            raise ConnectionError("reset")
        yield from super()._stream(messages)


@pytest.mark.parametrize("door_name", ["invoke", "ainvoke"])
async def test_a_call_is_tried_again(door_name: str) -> None:
    model = guarded(Unsteady()).with_retry(
        retry_if_exception_type=(ConnectionError,), wait_exponential_jitter=False
    )
    out = model.invoke("hi") if door_name == "invoke" else await model.ainvoke("hi")
    assert out.text == "re: hi"


async def test_another_model_takes_over_behind_its_own_guard(door: Door) -> None:
    first = guarded(Unsteady(failures=[1] * 9))
    model = first.with_fallbacks([guarded(writing(HARMFUL))])
    out = await door(model, "how?")
    assert "bomb" not in str(out)
    assert "Sure" in str(out) or REPLACED in str(out)


async def test_what_is_bound_reaches_the_inner_model(door: Door) -> None:
    class Stopping(EchoModel):
        def _reply(self, messages: Any) -> str:
            return "ok"

        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
            self.events.append(f"{kwargs}")
            return super()._generate(messages)

        def _stream(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            self.events.append(f"{kwargs}")
            yield from super()._stream(messages)

        async def _agenerate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
            return self._generate(messages, *args, **kwargs)

        async def _astream(self, messages: Any, *args: Any, **kwargs: Any):
            for chunk in self._stream(messages, *args, **kwargs):
                yield chunk

    inner = Stopping()
    bound = guarded(inner).bind(stop=["x"], seed=7).with_config(tags=["t"])
    await door(bound, "hi")
    assert "'stop': ['x'], 'seed': 7" in inner.events[0]


async def test_fields_are_configurable(door: Door) -> None:
    model = guarded(writing(HARMFUL)).configurable_fields(guard=ConfigurableField(id="guard"))
    loose = Guard(ScriptedEngine({}))
    assert "bomb" not in str(await door(model, "how?"))
    assert "bomb" in str(await door(model, "how?", {"configurable": {"guard": loose}}))


async def test_alternatives_are_configurable(door: Door) -> None:
    model = guarded(writing(HARMFUL)).configurable_alternatives(
        ConfigurableField(id="llm"), default_key="a", b=guarded(EchoModel())
    )
    assert "bomb" not in str(await door(model, "how?"))
    assert "re:" in str(await door(model, "how?", {"configurable": {"llm": "b"}}))


def test_what_is_said_of_the_inner_model_holds_of_it() -> None:
    inner = ChatOpenAI(model="gpt-4o", api_key=SecretStr("sk-secret"), name="writer")
    model = guarded(inner)
    assert model.profile == inner.profile
    assert model.get_name() == "writer"
    assert model.asdict() == {**inner.asdict(), "_type": f"guarded-{inner.asdict()['_type']}"}
    assert "sk-secret" not in f"{model!r} {dumps(model)}"


@pytest.mark.parametrize(
    "engine", [FailingEngine(), ScriptedEngine(SCRIPT)], ids=["failing", "scripted"]
)
def test_it_can_be_pickled_where_the_inner_model_can(engine: Any) -> None:
    model = guarded(EchoModel(), Action.BLOCK, engine)
    again = pickle.loads(pickle.dumps(model))
    assert again.inner == model.inner
    assert again.guard.policy == model.guard.policy
    with pytest.raises(GuardViolation):
        again.invoke("a bomb")


def test_a_copy_is_guarded() -> None:
    model = guarded(EchoModel()).model_copy(update={"inner": writing(HARMFUL)})
    assert model.invoke("how?").text == REPLACED


class Silent(BaseChatModel):
    """Cannot stream."""

    text: str = HARMFUL

    @property
    def _llm_type(self) -> str:
        return "silent"

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        usage = UsageMetadata(input_tokens=1, output_tokens=2, total_tokens=3)
        message = AIMessage(self.text, usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])


async def test_a_model_that_cannot_stream_answers_at_once(door: Door) -> None:
    [out] = await door(guarded(Silent()), "how?")
    assert out.text == REPLACED
    assert out.usage_metadata["total_tokens"] == 3
    [out] = await door(guarded(Silent(text=HARMLESS)), "bread?")
    assert out.text == HARMLESS


async def test_its_events_are_those_of_the_inner_model(events: Way) -> None:
    model = guarded(Silent())
    try:
        expected = _kinds(await events(Silent(), "how?"))
    except NotImplementedError:
        with pytest.raises(NotImplementedError):
            await events(model, "how?")
        return
    out = await events(model, "how?")
    assert _kinds(out) == expected
    assert "bomb" not in str(out)


def _kinds(events: list[Any]) -> list[str]:
    return [event["event"] for event in events if event["event"] != "on_custom_event"]


@pytest.mark.parametrize("disabled", ["inner", "guarded"])
async def test_streaming_that_is_disabled_stays_so(disabled: str, door: Door, events: Way) -> None:
    inner = writing(HARMFUL)
    model = guarded(inner)
    (inner if disabled == "inner" else model).disable_streaming = True
    [out] = await door(model, "how?")
    assert out.text == REPLACED
    assert "bomb" not in str(await events(model, "how?"))


class Native(Silent):
    """Streams in events of the third version only."""

    def _stream_chat_model_events(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        return message_events(self.text)

    async def _astream_chat_model_events(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        for event in message_events(self.text):
            yield event


def message_events(text: str) -> Iterator[Any]:
    """A text as events, word by word."""
    yield {"event": "message-start", "role": "ai", "id": "msg-1"}
    start = {"type": "text", "text": ""}
    yield {"event": "content-block-start", "index": 0, "content": start}
    for word in text.split(" "):
        delta = {"type": "text-delta", "text": f"{word} "}
        yield {"event": "content-block-delta", "index": 0, "delta": delta}
    done = {"type": "text", "text": f"{text} "}
    yield {"event": "content-block-finish", "index": 0, "content": done}
    yield {"event": "message-finish", "reason": "stop"}


class NativeCalls(Native):
    """The same, of a tool call."""

    def _stream_chat_model_events(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        yield {"event": "message-start", "role": "ai", "id": "msg-1"}
        call = {"type": "tool_call_chunk", "id": "1", "name": "search", "args": "", "index": 0}
        yield {"event": "content-block-start", "index": 0, "content": call}
        done = {"type": "tool_call", "id": "1", "name": "search", "args": {"q": self.text}}
        yield {"event": "content-block-finish", "index": 0, "content": done}


@pytest.mark.parametrize(("text", "calls"), [("bread", 1), ("a bomb", 0)], ids=["good", "bad"])
def test_native_tool_calls_are_guarded(text: str, calls: int) -> None:
    model: Any = guarded(NativeCalls(text=text))
    stream = model.stream_events("how?", version="v3")
    assert "bomb" not in str(list(stream))
    assert [call["args"] for call in stream.output.tool_calls] == [{"q": text}] * calls


async def test_native_events_are_guarded(events: Way) -> None:
    out = await events(guarded(Native()), "how?")
    assert "bomb" not in str(out)
    assert REPLACED in str(out)
    out = await events(guarded(Native(text=HARMLESS)), "bread?")
    assert "flour" in str(out)


class Told(BaseCallbackHandler):
    """Keeps the tokens that handlers are told."""

    def __init__(self) -> None:
        self.tokens: list[Any] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.tokens.append(token)


async def test_handlers_hear_the_tokens_that_are_released() -> None:
    told = Told()
    chunks = list(guarded(writing(HARMLESS)).stream("bread?", {"callbacks": [told]}))
    assert told.tokens == [chunk.content for chunk in chunks]
    assert isinstance(chunks[0], AIMessageChunk)
    assert "".join(told.tokens) == HARMLESS
