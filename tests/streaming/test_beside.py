"""A prompt that is judged while the language model answers it already."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar

import pytest

from guardrails_qwen import (
    Action,
    Conversation,
    ConversationError,
    Guard,
    GuardViolation,
    Outcome,
    Policy,
    Rule,
    Severity,
    Stage,
    StagePolicy,
    Verdict,
)
from guardrails_qwen.streaming import HoldBack, Streaming, abeside, beside
from guardrails_qwen.testing import ScriptedEngine
from tests.streaming.doors import StreamDoors

BOMB = "Safety: Unsafe\nCategories: Violent"


class BadPromptError(Exception):
    """The judgement in these tests."""


class Source:
    """An LLM's reply that records what becomes of it; None hangs."""

    def __init__(self, *chunks: str | None, error: BaseException | None = None) -> None:
        self.chunks = chunks
        self.error = error
        self.taken = 0
        self.closed = 0
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.steps = set[object]()
        """Tasks that it ran in."""

    async def __aiter__(self) -> AsyncIterator[str]:
        self.started.set()
        try:
            for chunk in self.chunks:
                self.steps.add(asyncio.current_task())
                if chunk is None:
                    await asyncio.Event().wait()
                    continue
                self.taken += 1
                yield chunk
            if self.error:
                raise self.error
        finally:
            self.steps.add(asyncio.current_task())
            await asyncio.sleep(0)
            self.closed += 1
            self.ended.set()


async def fine() -> None:
    await asyncio.sleep(0)


async def bad() -> None:
    await asyncio.sleep(0)
    raise BadPromptError


@pytest.fixture
async def alone() -> AsyncIterator[None]:
    """No task is left behind."""
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}


async def read(
    judging: Awaitable[object], source: AsyncIterable[str], shown: list[str] | None = None
) -> list[str]:
    shown = [] if shown is None else shown
    async for chunk in abeside(judging, source):
        shown.append(chunk)
    return shown


pytestmark = pytest.mark.usefixtures("alone")


async def test_a_good_prompt_changes_nothing() -> None:
    source = Source("a", "b", "c")
    assert await read(fine(), source) == ["a", "b", "c"]
    assert source.closed == 1
    assert len(source.steps) == 1


async def test_the_source_runs_at_once_and_nothing_is_shown_before_the_verdict() -> None:
    source, verdict = Source("a", "b"), asyncio.Event()
    reading = asyncio.create_task(read(verdict.wait(), source))
    await source.started.wait()
    await asyncio.sleep(0)
    assert source.taken == 2
    assert not reading.done()
    verdict.set()
    assert await reading == ["a", "b"]


@pytest.mark.parametrize(
    "chunks", [(None,), ("a", None), ("a", "b"), ()], ids=["at once", "later", "never", "empty"]
)
async def test_a_bad_prompt_ends_a_source_wherever_it_hangs(chunks: tuple[str | None, ...]) -> None:
    source, shown = Source(*chunks), list[str]()
    with pytest.raises(BadPromptError):
        await read(bad(), source, shown)
    assert shown == []
    assert source.closed == 1


async def test_a_response_that_nobody_reads_is_closed() -> None:
    verdict = asyncio.get_running_loop().create_future()
    verdict.set_exception(BadPromptError())
    closed = list[bool]()

    class Response(Source):
        async def aclose(self) -> None:
            closed.append(True)

    with pytest.raises(BadPromptError):
        await read(verdict, Response("a"))
    assert closed == [True]


async def test_a_source_that_fails_first_does_not_decide() -> None:
    verdict = asyncio.Event()

    async def late() -> None:
        await verdict.wait()
        raise BadPromptError

    source = Source("a", error=ConnectionError("gone"))
    reading = asyncio.create_task(read(late(), source))
    await source.ended.wait()
    verdict.set()
    with pytest.raises(BadPromptError):
        await reading


@pytest.mark.parametrize(
    "error", [ConnectionError("gone"), asyncio.CancelledError()], ids=["error", "cancelled"]
)
async def test_a_source_that_fails_fails_behind_its_chunks(error: BaseException) -> None:
    shown = list[str]()
    with pytest.raises(type(error)):
        await read(fine(), Source("a", error=error), shown)
    assert shown == ["a"]


@pytest.mark.parametrize("judged", [True, False], ids=["behind the verdict", "before it"])
async def test_a_reader_who_is_cancelled_ends_both(judged: bool) -> None:
    source, ended = Source("a", None), asyncio.Event()

    async def judging() -> None:
        try:
            if not judged:
                await asyncio.Event().wait()
        finally:
            ended.set()

    reading = asyncio.create_task(read(judging(), source))
    await source.started.wait()
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert ended.is_set()
    assert source.closed == 1


async def test_a_reader_who_leaves_ends_both() -> None:
    source = Source("a", "b", None)
    chunks = abeside(fine(), source)
    assert await anext(chunks) == "a"
    await chunks.aclose()
    assert source.closed == 1


async def test_a_source_runs_only_so_far_ahead() -> None:
    source = Source(*("a" * 1000))
    verdict = asyncio.Event()
    reading = asyncio.create_task(read(verdict.wait(), source))
    for _ in range(20):
        await asyncio.sleep(0)
    assert source.taken <= 257
    verdict.set()
    assert len(await reading) == 1000


async def test_many_at_once() -> None:
    sources = [Source("a", *([None] if number % 3 == 0 else []), "b") for number in range(300)]

    async def one(number: int) -> list[str]:
        if number % 3 == 0:
            with pytest.raises(BadPromptError):
                await read(bad(), sources[number])
            return []
        if number % 3 == 1:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(read(asyncio.Event().wait(), sources[number]), 0.01)
            return []
        return await read(fine(), sources[number])

    shown = await asyncio.gather(*map(one, range(300)))
    assert [len(chunks) for chunks in shown[:6]] == [0, 0, 2, 0, 0, 2]
    assert all(source.closed == 1 for source in sources)


asked: ContextVar[str] = ContextVar("asked")


class Blocking:
    """A reply without an event loop that records being closed."""

    def __init__(self, *chunks: str, before: Callable[[str], object] = str) -> None:
        self.chunks = chunks
        self.before = before
        self.taken = 0
        self.closed = 0

    def __iter__(self) -> Iterator[str]:
        try:
            for chunk in self.chunks:
                self.before(chunk)
                self.taken += 1
                yield chunk
        finally:
            self.closed += 1


def raises() -> None:
    raise BadPromptError


class TestWithoutAnEventLoop:
    @pytest.fixture(autouse=True)
    def alone(self) -> Iterator[None]:  # no thread is left
        before = set(threading.enumerate())
        yield
        assert set(threading.enumerate()) <= before

    def test_a_good_prompt_changes_nothing(self) -> None:
        source = Blocking("a", "b", "c")
        assert list(beside(lambda: None, source)) == ["a", "b", "c"]
        assert source.closed == 1

    def test_the_source_runs_while_the_prompt_is_judged(self) -> None:
        taken = threading.Event()
        source = Blocking("a", "b", before=lambda chunk: chunk == "b" and taken.set())
        assert list(beside(lambda: taken.wait(10), source)) == ["a", "b"]
        assert taken.is_set()

    def test_a_judge_that_is_slower_than_the_whole_reply(self) -> None:
        closed = threading.Event()

        class Ending(Blocking):
            def __iter__(self) -> Iterator[str]:
                yield from super().__iter__()
                closed.set()

        assert list(beside(lambda: closed.wait(10), Ending("a", "b"))) == ["a", "b"]

    def test_a_bad_prompt_closes_the_source_at_its_next_chunk(self) -> None:
        judged = threading.Event()

        def judge() -> None:
            judged.set()
            raise BadPromptError

        source = Blocking(*("a" * 100_000), before=lambda _: judged.wait(10))
        with pytest.raises(BadPromptError):
            next(beside(judge, source))
        assert source.taken < 100_000
        assert source.closed == 1

    def test_a_source_that_fails_first_does_not_decide(self) -> None:
        failed = threading.Event()

        def fail(_: str) -> None:
            failed.set()
            raise ConnectionError

        def judge() -> None:
            failed.wait(10)
            raise BadPromptError

        with pytest.raises(BadPromptError):
            next(beside(judge, Blocking("a", before=fail)))
        with pytest.raises(ConnectionError):
            next(beside(lambda: None, Blocking("a", before=fail)))

    def test_a_reader_who_leaves_closes_the_source(self) -> None:
        source = Blocking("a", "b")
        chunks = beside(lambda: None, source)
        next(chunks)
        chunks.close()  # type: ignore[attr-defined]  # a generator
        assert source.closed == 1

    def test_the_judge_has_the_callers_context(self) -> None:
        asked.set("by me")
        found = list[str]()
        list(beside(lambda: found.append(asked.get()), Blocking("a")))
        assert found == ["by me"]


class Model:
    """A language model that repeats what it is asked, and records what becomes of it."""

    def __init__(self) -> None:
        self.asked = list[str]()
        self.ended = 0

    def __call__(self, prompt: str) -> Iterator[str]:
        self.asked.append(prompt)
        return self._reply(prompt)

    def _reply(self, prompt: str) -> Iterator[str]:
        try:
            yield "You said: "
            yield from prompt.split(" ")
        finally:
            self.ended += 1


early = pytest.mark.parametrize("early", [False, True], ids=["before", "beside"])


def guard(action: Action, replacement: str = "What is baking") -> Guard:
    prompts = StagePolicy(rules=(Rule(action=action),), replacement=replacement)
    policy = Policy(name="p", default=Policy.strict().default, stages={Stage.INPUT: prompts})
    return Guard(ScriptedEngine({"bomb": BOMB}), policy)


@early
class TestAnswers:
    def test_a_good_prompt_is_answered(self, doors: StreamDoors, early: bool) -> None:
        model = Model()
        texts = doors.answer(guard(Action.BLOCK), "How to bake", model, beside=early)
        assert "".join(texts) == "You said: Howtobake"
        assert (model.asked, model.ended) == (["How to bake"], 1)

    def test_a_blocked_prompt_is_not_answered(self, doors: StreamDoors, early: bool) -> None:
        model = Model()
        with pytest.raises(GuardViolation) as caught:
            doors.answer(guard(Action.BLOCK), "How to bomb", model, beside=early)
        assert caught.value.decision.stage is Stage.INPUT
        assert model.asked in ([], ["How to bomb"] if early else [])

    def test_a_changed_prompt_is_what_the_model_is_asked(
        self, doors: StreamDoors, early: bool
    ) -> None:
        model = Model()
        texts = doors.answer(guard(Action.REPLACE), "How to bomb", model, beside=early)
        assert "".join(texts) == "You said: Whatisbaking"
        assert model.asked == ["How to bomb", "What is baking"][0 if early else 1 :]

    def test_a_redacted_prompt_is_what_the_reply_is_judged_with(
        self, doors: StreamDoors, early: bool
    ) -> None:
        redacting = guard(Action.REDACT)
        doors.answer(redacting, "Bake. Then bomb. Eat.", Model(), beside=early)
        engine = redacting.engine
        assert isinstance(engine, ScriptedEngine)
        assert engine.seen[-1].messages[0].text == "Bake. [removed: Violent] Eat."

    def test_a_dropped_prompt_has_no_reply(self, doors: StreamDoors, early: bool) -> None:
        model = Model()
        assert doors.answer(guard(Action.DROP), "How to bomb", model, beside=early) == []
        assert len(model.asked) == (1 if early else 0)

    def test_the_reply_is_moderated(self, doors: StreamDoors, early: bool) -> None:
        def model(_: str) -> Iterator[str]:
            yield "Build a bomb."

        settings = Streaming(closing="Sorry.", hold_back=HoldBack.REPLY)
        texts = doors.answer(guard(Action.BLOCK), "Hi", model, beside=early, settings=settings)
        assert texts == ["Sorry."]

    def test_a_history_is_context(self, doors: StreamDoors, early: bool) -> None:
        model = Model()
        history = [("user", "A bomb?"), ("assistant", "No."), ("user", "A cake?")]
        assert doors.answer(guard(Action.BLOCK), history, model, beside=early)
        assert model.asked == ["A cake?"]
        with pytest.raises(ConversationError):
            doors.answer(guard(Action.BLOCK), history[:2], model, beside=early)


async def test_a_blocked_prompt_ends_a_model_that_hangs() -> None:
    source = Source(None)
    with pytest.raises(GuardViolation):
        await anext(guard(Action.BLOCK).aanswer("A bomb?", lambda _: source, beside=True))
    assert source.closed == 1


async def test_the_model_answers_while_its_prompt_is_judged() -> None:
    source = Source("Mix ", "it.")

    class Waiting(ScriptedEngine):
        async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
            if conversations[-1].last.text == "A cake?":
                await source.started.wait()
            return [Verdict(severity=Severity.SAFE)] * len(conversations)

    answer = Guard(Waiting()).aanswer("A cake?", lambda _: source, beside=True)
    assert "".join([text async for text in answer]) == "Mix it."


def test_a_call_that_blocks_is_made_while_its_prompt_is_judged() -> None:
    """Clients mostly wait for the first byte in the call itself."""
    called = threading.Event()

    class Judge(ScriptedEngine):
        def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
            assert called.wait(30), "the prompt was judged before the model was called"
            return super().judge(conversations)

    def call(_: str) -> list[str]:
        called.set()
        return ["Sure."]

    assert "".join(Guard(Judge()).answer("Hello?", call, beside=True)) == "Sure."
