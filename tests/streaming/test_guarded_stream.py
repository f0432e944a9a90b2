"""A reply that is moderated while it is written, by `Guard.stream`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import pytest

from guardrails_qwen import (
    Action,
    Category,
    Conversation,
    ConversationError,
    EngineUnavailable,
    Guard,
    GuardViolation,
    OnError,
    Outcome,
    Policy,
    Severity,
    Stage,
    Verdict,
)
from guardrails_qwen.engines.base import Engine
from guardrails_qwen.streaming import (
    Block,
    GuardedStream,
    Hold,
    HoldBack,
    Release,
    Streaming,
)
from guardrails_qwen.testing import FailingEngine, ScriptedEngine, ScriptedStreamEngine
from tests.streaming.doors import StreamDoors

ASK = "What do I do?"
HARM = Verdict(severity=Severity.UNSAFE, categories=frozenset({Category.VIOLENT}))
CHUNKS = ["Mix it. ", "Build a ", "bomb with ", "many nails. ", "Eat it. ", "Bye."]
READ = ["Mix it. "]
SENTENCE = Streaming(hold_back=HoldBack.SENTENCE, stride=1, growth=1.0001)
ENGINES = [
    pytest.param(lambda: ScriptedStreamEngine(tokens={"bomb": HARM}), id="sessions"),
    pytest.param(lambda: ScriptedEngine({"bomb": HARM}), id="again and again"),
]
engines = pytest.mark.parametrize("engine", ENGINES)


class Source:
    """Chunks from a language model that notices when it is closed, as a generator of httpx does."""

    def __init__(self, chunks: list[str], error: Exception | None = None) -> None:
        self.chunks = chunks
        self.error = error
        self.taken = 0
        self.closed = 0

    def __iter__(self) -> Iterator[str]:
        try:
            for chunk in self.chunks:
                self.taken += 1
                yield chunk
            if self.error:
                raise self.error
        finally:
            self.closed += 1

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            for chunk in self.chunks:
                await asyncio.sleep(0)
                self.taken += 1
                yield chunk
            if self.error:
                raise self.error
        finally:
            await asyncio.sleep(0)
            self.closed += 1


def read(doors: StreamDoors, stream: GuardedStream, source: Source) -> tuple[list[str], object]:
    """What a reader gets, and what ends it."""
    got = list[str]()

    async def aread() -> None:
        async for text in stream.atexts(source):
            got.append(text)

    try:
        if doors.asynchronous:
            asyncio.run(aread())
        else:
            for text in stream.texts(source):
                got.append(text)
    except Exception as error:  # noqa: BLE001  the test looks at it
        return got, error
    return got, None


@engines
def test_a_harmful_reply_is_cut_off_before_its_sentence(
    doors: StreamDoors, engine: Callable[[], Engine]
) -> None:
    stream = Guard(engine()).stream(ASK, settings=SENTENCE)
    source = Source(CHUNKS)
    got, error = read(doors, stream, source)
    assert "".join(got) == "Mix it. "
    assert isinstance(error, GuardViolation)
    assert error.decision.text is None
    assert "bomb" not in str(error)
    assert source.closed == 1
    assert source.taken < len(CHUNKS)
    assert stream.over
    assert stream.decision is not None
    assert stream.decision.action is Action.BLOCK
    assert stream.decision.text == "Mix it. "
    assert stream.decision.seconds is not None


@engines
def test_a_safe_reply_is_read_as_it_came(doors: StreamDoors, engine: Callable[[], Engine]) -> None:
    stream = Guard(engine()).stream(ASK)
    source = Source(["Mix it.", " Bake", " it."])
    got, error = read(doors, stream, source)
    assert ("".join(got), error) == ("Mix it. Bake it.", None)
    assert source.closed == 1
    assert stream.decision is not None
    assert (stream.decision.action, stream.decision.text) == (Action.ALLOW, "Mix it. Bake it.")


def test_the_prompt_is_what_the_engine_is_told(doors: StreamDoors) -> None:
    engine = ScriptedEngine()
    history = [("user", "Hi"), ("assistant", "Hello"), ("user", ASK)]
    read(doors, Guard(engine).stream(history), Source(["Mix it."]))
    assert engine.seen == [Conversation.of([*history, ("assistant", "Mix it.")])]


def test_a_prompt_does_not_end_with_a_reply() -> None:
    with pytest.raises(ConversationError):
        Guard(ScriptedEngine()).stream([ASK, ("assistant", "Mix it.")])


def test_nothing_runs_before_the_first_text() -> None:
    engine = ScriptedStreamEngine()
    with Guard(engine).stream(ASK) as stream:
        assert engine.sessions == []
    assert stream.over


CLOSINGS = [
    pytest.param(Action.BLOCK, " Sorry.", id="closing"),
    pytest.param(Action.REPLACE, "This content was removed by the safety policy.", id="replace"),
]


@pytest.mark.parametrize(("action", "closing"), CLOSINGS)
def test_a_closing_text_ends_a_reply(doors: StreamDoors, action: Action, closing: str) -> None:
    engine = ScriptedStreamEngine(tokens={"bomb": HARM})
    settings = Streaming(hold_back=HoldBack.SENTENCE, closing=" Sorry.")
    stream = Guard(engine, Policy.strict(action=action)).stream(ASK, settings=settings)
    source = Source(CHUNKS)
    assert read(doors, stream, source) == ([*READ, closing], None)
    assert (source.closed, engine.sessions[0].closed) == (1, True)


def test_the_model_stops_before_the_reader_learns_of_it() -> None:
    engine = ScriptedStreamEngine(tokens={"bomb": HARM})
    source = Source(CHUNKS)
    texts = Guard(engine).stream(ASK, settings=Streaming(closing="Sorry.")).texts(source)
    for text in texts:
        if text == "Sorry.":
            assert source.closed == 1
            return
    pytest.fail("nothing was blocked")


async def test_the_model_stops_before_the_reader_learns_of_it_in_an_event_loop() -> None:
    engine = ScriptedStreamEngine(tokens={"bomb": HARM})
    source = Source(CHUNKS)
    texts = Guard(engine).stream(ASK, settings=Streaming(closing="Sorry.")).atexts(source)
    while await anext(texts) != "Sorry.":
        assert source.closed == 0
    assert source.closed == 1
    await texts.aclose()


def test_a_redacted_reply_goes_on(doors: StreamDoors) -> None:
    harm = {"bomb": HARM}
    policy = Policy.strict(action=Action.REDACT)
    stream = Guard(ScriptedStreamEngine(tokens=harm), policy).stream(ASK)
    got, error = read(doors, stream, Source(CHUNKS))
    assert ("".join(got), error) == ("Mix it. [removed: Violent] Eat it. Bye.", None)


def test_what_waits_when_a_source_fails_is_not_released(doors: StreamDoors) -> None:
    engine = ScriptedStreamEngine()
    stream = Guard(engine).stream(ASK, settings=SENTENCE)
    source = Source(["Mix it. Ba", "ke it"], ConnectionError("gone"))
    got, error = read(doors, stream, source)
    assert got == READ
    assert isinstance(error, ConnectionError)
    assert (source.closed, engine.sessions[0].closed) == (1, True)
    assert stream.over
    assert stream.decision is None


def test_a_reader_who_leaves_closes_the_source() -> None:
    engine, source = ScriptedStreamEngine(), Source(CHUNKS)
    texts = iter(Guard(engine).stream(ASK).texts(source))
    next(texts)
    texts.close()  # type: ignore[attr-defined]  # a generator
    assert (source.closed, engine.sessions[0].closed) == (1, True)


async def test_a_task_that_is_cancelled_closes_the_source() -> None:
    engine = ScriptedStreamEngine()
    closed = asyncio.Event()
    hangs = asyncio.Event()

    async def source() -> AsyncIterator[str]:
        try:
            yield "Mix it. Bake"
            hangs.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def read_on() -> None:
        async for _ in Guard(engine).stream(ASK).atexts(source()):
            pass

    task = asyncio.create_task(read_on())
    await hangs.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()
    assert engine.sessions[0].closed


async def test_a_feed_that_is_cancelled_leaves_a_stream_that_releases_nothing() -> None:
    class Slow(ScriptedEngine):
        async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
            await asyncio.Event().wait()
            return []

    stream = Guard(Slow()).stream(ASK, settings=SENTENCE)
    task = asyncio.create_task(stream.afeed("Mix it. Bake"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await stream.afeed(" it.") == []
    assert await stream.afinish() == []
    await stream.aclose()


class Response:
    """What is iterated over, and closed itself: the streams of openai are such."""

    def __init__(self) -> None:
        self.closed = 0

    def __iter__(self) -> Iterator[str]:
        return iter(["Mix it."])

    def close(self) -> None:
        self.closed += 1


class AsyncResponse:
    """The same; its `close` is a coroutine function."""

    def __init__(self) -> None:
        self.closed = 0

    async def __aiter__(self) -> AsyncIterator[str]:
        yield "Mix it."

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed += 1


async def test_a_response_is_closed_itself() -> None:
    sync, asynchronous = Response(), AsyncResponse()
    guard = Guard(ScriptedEngine())
    assert list(guard.stream(ASK).texts(sync)) == ["Mix it."]
    assert [text async for text in guard.stream(ASK).atexts(asynchronous)] == ["Mix it."]
    assert (sync.closed, asynchronous.closed) == (1, 1)


class Stubborn(Source):
    """A source that cannot be closed, or not even read."""

    def __init__(self, chunks: list[str], error: Exception | None = None, *, read: bool = True):
        super().__init__(chunks, error)
        self.read = read

    def __iter__(self) -> Iterator[str]:
        if not self.read:
            raise LookupError
        return super().__iter__()

    def __aiter__(self) -> AsyncIterator[str]:
        if not self.read:
            raise LookupError
        return super().__aiter__()

    def close(self) -> None:
        self.closed += 1
        raise RuntimeError("SECRET")

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.close()


CANNOT_BE_CLOSED = [
    pytest.param(Stubborn(CHUNKS), Streaming(), GuardViolation, id="a block"),
    pytest.param(Stubborn(CHUNKS), Streaming(closing="Sorry."), None, id="a closing text"),
    pytest.param(Stubborn([], ConnectionError()), Streaming(), ConnectionError, id="it fails"),
    pytest.param(Stubborn([], read=False), Streaming(), LookupError, id="it does not even begin"),
]


@pytest.mark.parametrize(("source", "settings", "expected"), CANNOT_BE_CLOSED)
def test_a_source_that_cannot_be_closed_masks_nothing(
    doors: StreamDoors,
    caplog: pytest.LogCaptureFixture,
    source: Stubborn,
    settings: Streaming,
    expected: type[Exception] | None,
) -> None:
    source.closed = 0
    stream = Guard(ScriptedStreamEngine(tokens={"bomb": HARM})).stream(ASK, settings=settings)
    got, error = read(doors, stream, source)
    assert (type(error) if error else None) is expected
    if source.chunks:
        assert "".join(got) == "Mix it. Build a" + (settings.closing or "")
    assert source.closed > 0
    assert "a source could not be closed: RuntimeError" in caplog.text
    assert "SECRET" not in caplog.text


def test_what_closing_a_complete_reply_raises_is_raised(doors: StreamDoors) -> None:
    got, error = read(doors, Guard(ScriptedStreamEngine()).stream(ASK), Stubborn(["Mix it."]))
    assert "".join(got) == "Mix it."
    assert isinstance(error, RuntimeError)


@pytest.mark.parametrize("on_error", OnError)
async def test_a_stream_that_is_closed_meanwhile_releases_nothing(on_error: OnError) -> None:
    go = asyncio.Event()

    class Slow(ScriptedEngine):
        async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
            await go.wait()
            return [EngineUnavailable("closed")] * len(conversations)

    for engine in (Slow(), ScriptedStreamEngine()):
        stream = Guard(engine, Policy.strict(on_error=on_error)).stream(ASK, settings=SENTENCE)
        feeding = asyncio.create_task(stream.afeed("Secret. Text. " * 1000))
        await asyncio.sleep(0)
        stream.close()
        go.set()
        assert await feeding == []
        assert stream.over
        assert stream.decision is None
        assert await stream.afinish() == []


async def test_the_event_loop_has_its_turn_while_a_long_chunk_is_judged() -> None:
    for engine in (ScriptedEngine(), ScriptedStreamEngine()):
        stream = Guard(engine).stream(ASK)
        feeding, turns = asyncio.create_task(stream.afeed("Mix it well. " * 1000)), 0
        while not feeding.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 6
        stream.close()


def test_an_error_is_raised_again_and_logged_once(
    doors: StreamDoors, caplog: pytest.LogCaptureFixture
) -> None:
    engine = FailingEngine(EngineUnavailable("gone"))
    stream = Guard(engine, Policy.strict(on_error=OnError.RAISE)).stream(ASK, settings=SENTENCE)
    for text in ("Mix it. Bake", " it. Eat", ""):
        with pytest.raises(EngineUnavailable):
            doors.feed(stream, text)
    with pytest.raises(EngineUnavailable):
        doors.finish(stream)
    assert len(caplog.records) == 1


def test_events_are_for_who_needs_them(doors: StreamDoors) -> None:
    engine = ScriptedStreamEngine(tokens={"bomb": HARM})
    stream = Guard(engine).stream(ASK, settings=SENTENCE)
    assert doors.feed(stream, "Mix it. Build") == [Hold(characters=13)]
    assert doors.feed(stream, " a ") == [Release(start=0, end=8, text="Mix it. ")]
    [block] = doors.feed(stream, "bomb with nails ")
    assert isinstance(block, Block)
    assert doors.feed(stream, "and") == []
    assert doors.finish(stream) == []


LOGGED = [
    pytest.param(Policy.strict(), "SECRET bomb with nails now", logging.INFO, id="blocked"),
    pytest.param(Policy.strict(), "SECRET cake with nuts", logging.DEBUG, id="allowed"),
]


@pytest.mark.parametrize(("policy", "text", "level"), LOGGED)
def test_one_log_line_without_text(
    doors: StreamDoors,
    caplog: pytest.LogCaptureFixture,
    policy: Policy,
    text: str,
    level: int,
) -> None:
    caplog.set_level(logging.DEBUG, "guardrails_qwen")
    stream = Guard(ScriptedStreamEngine(tokens={"bomb": HARM}), policy).stream(ASK)
    read(doors, stream, Source([text]))
    [record] = [record for record in caplog.records if record.name == "guardrails_qwen"]
    assert record.levelno == level
    assert record.getMessage().startswith("output ")
    decision = record.__dict__["decision"]
    assert "text" not in decision
    assert decision["seconds"] is not None
    assert "SECRET" not in f"{record.getMessage()}{decision}{stream!r}"


def outage() -> Engine:
    return FailingEngine(EngineUnavailable("gone"))


def test_an_outage_follows_the_policy(doors: StreamDoors, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "guardrails_qwen")

    def moderated(on_error: OnError) -> tuple[list[str], object]:
        stream = Guard(outage(), Policy.strict(on_error=on_error)).stream(ASK)
        return read(doors, stream, Source(["Mix it."]))

    got, error = moderated(OnError.BLOCK)
    assert (got, type(error)) == ([], GuardViolation)
    got, error = moderated(OnError.RAISE)
    assert (got, type(error)) == ([], EngineUnavailable)
    assert moderated(OnError.ALLOW) == (["Mix it."], None)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3


def test_another_stage(doors: StreamDoors) -> None:
    policy = Policy(
        name="p",
        default=Policy.strict().default,
        stages={Stage.TOOL_RESULT: Policy.strict(action=Action.DROP).default},
    )
    guard = Guard(ScriptedStreamEngine(tokens={"bomb": HARM}), policy)
    stream = guard.stream(ASK, stage=Stage.TOOL_RESULT, settings=SENTENCE)
    assert read(doors, stream, Source(CHUNKS)) == (READ, None)
    assert stream.decision is not None
    assert stream.decision.stage is Stage.TOOL_RESULT


async def test_many_at_once_do_not_mix() -> None:
    engine = ScriptedStreamEngine(tokens={"bomb": HARM})
    guard = Guard(engine)

    async def one(number: int) -> str:
        chunks = [f"Reply {number}. ", "Bake ", "it. ", "The bomb now " if number % 2 else "Eat."]
        stream = guard.stream(ASK, settings=Streaming(closing="#"))
        return "".join([text async for text in stream.atexts(Source(chunks))])

    texts = await asyncio.gather(*map(one, range(50)))
    for number, text in enumerate(texts):
        end = "The#" if number % 2 else "Eat."
        assert text == f"Reply {number}. Bake it. {end}"
    assert all(session.closed for session in engine.sessions)
