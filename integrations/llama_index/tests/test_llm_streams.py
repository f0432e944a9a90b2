"""Streams of a guarded model: what leaves, in which form the model may write, and how they end."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    CitationBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
)
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.llms import MockLLM
from pydantic import PrivateAttr

from guardrails_qwen import Action, Conversation, Guard, GuardViolation, Policy
from guardrails_qwen.streaming import HoldBack, Streaming
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine
from integrations.llama_index.tests.doubles import REPLACED, SCRIPT, WritingLLM, call, heard
from integrations.llama_index.tests.llm_doors import (
    HARMFUL,
    HARMLESS,
    STREAMS,
    Response,
    ask,
    assistant,
    outcome,
    read_by,
    text_of,
    user,
)
from llama_index_guardrails_qwen import GuardCheckEndEvent, GuardCheckStartEvent, GuardedLLM

streams = pytest.mark.parametrize("door", STREAMS)
chats = pytest.mark.parametrize("door", ["stream_chat", "astream_chat"])
ENGINES = [ScriptedStreamEngine, ScriptedEngine]
engines = pytest.mark.parametrize("kind", ENGINES, ids=["tokens", "texts"])


def guarded(
    pieces: Sequence[Any],
    action: Action = Action.BLOCK,
    kind: Callable[..., ScriptedEngine] = ScriptedStreamEngine,
    **fields: Any,
) -> GuardedLLM:
    """A guarded model that writes such pieces."""
    return GuardedLLM(
        inner=WritingLLM(replies=[list(pieces)]),
        guard=Guard(kind(SCRIPT), Policy.strict(action=action)),
        **{"streaming": Streaming(stride=1), **fields},
    )


async def stopped(inner: WritingLLM, words: int) -> bool:
    """Whether a model has stopped before its end; the loop closes what LlamaIndex leaves to it."""
    for _ in range(5):
        gc.collect()
        await asyncio.sleep(0)
    written = inner.log.count("wrote")
    for _ in range(5):
        await asyncio.sleep(0)
    return inner.log.count("wrote") == written < words


def chunk(content: str | None, delta: str | None = None, **fields: Any) -> ChatResponse:
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content=content), delta=delta, **fields
    )


def inner_of(llm: GuardedLLM) -> WritingLLM:
    return cast("WritingLLM", llm.inner)


def kinds_of(response: ChatResponse) -> list[str]:
    return [block.block_type for block in response.message.blocks]


def cut(text: str, places: Sequence[int]) -> list[str]:
    """A text in pieces."""
    ends = sorted({place % (len(text) + 1) for place in places})
    return [text[i:j] for i, j in zip([0, *ends], [*ends, len(text)], strict=True)]


def written(pieces: Sequence[str], form: str) -> list[ChatResponse]:
    """Pieces as models write them: with deltas, with the text so far, or with both."""
    out, text = list[ChatResponse](), ""
    for piece in pieces:
        text += piece
        out.append(
            chunk(
                {"deltas": None, "contents": text, "both": text, "whole": "".join(pieces)}[form],
                None if form == "contents" else piece,
            )
        )
    return out


@engines
@pytest.mark.parametrize("action", [Action.BLOCK, Action.REDACT], ids=["block", "redact"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    places=st.lists(st.integers(0, 100), max_size=12),
    form=st.sampled_from(["deltas", "contents", "both", "whole"]),
    text=st.sampled_from([HARMFUL, HARMLESS, "A \U0001f600 smile. A bomb!", ""]),
)
def test_what_leaves_does_not_depend_on_how_a_reply_is_cut(
    kind: Callable[..., ScriptedEngine], action: Action, places: list[int], form: str, text: str
) -> None:
    def left(pieces: Sequence[Any]) -> tuple[str, str]:
        llm = guarded(pieces, action, kind, on_violation="reply")
        out: list[Response] = list(llm.stream_chat([user("how?")]))
        return read_by(out), text_of(out[-1]) if out else ""

    assert left(written(cut(text, places), form)) == left([text])


@chats
async def test_characters_may_come_in_halves(door: str) -> None:
    pieces = [chunk("", "Good \ud83d"), chunk("Good \U0001f600 day", "\ude00 day")]
    out = await ask(door, guarded(pieces))
    assert read_by(out) == text_of(out[-1]) == "Good \U0001f600 day"


@chats
async def test_half_a_character_is_no_text(door: str) -> None:
    out, error = await outcome(door, guarded([chunk("", "Good \ud83d")]))
    assert isinstance(error, GuardViolation)
    assert read_by(out) in ("", "Good", "Good ")


@streams
async def test_a_text_that_is_there_from_the_start_is_not_released_at_once(door: str) -> None:
    """LlamaIndex's own mock gives the whole text with each delta."""
    llm = GuardedLLM(inner=MockLLM(), guard=Guard(ScriptedStreamEngine(SCRIPT)))
    out = await ask(door, llm, "Say tea, tea and tea.")
    assert "Say tea, tea and tea." in text_of(out[-1])
    assert len(text_of(out[0])) < len(text_of(out[-1]))


@streams
async def test_a_text_that_lags_behind_its_deltas(door: str) -> None:
    llm = GuardedLLM(inner=MockLLM(max_tokens=3), guard=Guard(ScriptedStreamEngine(SCRIPT)))
    out = await ask(door, llm)
    assert read_by(out) == text_of(out[-1]) == "text text text"


HIDDEN: dict[str, list[Any]] = {
    "thoughts": [
        ChatResponse(
            message=ChatMessage(
                role=MessageRole.ASSISTANT, blocks=[ThinkingBlock(content="A bomb, perhaps.")]
            ),
            delta="",
            additional_kwargs={"thinking_delta": "A bomb, perhaps."},
        ),
        ChatResponse(
            message=ChatMessage(
                role=MessageRole.ASSISTANT,
                blocks=[ThinkingBlock(content="A bomb, perhaps."), TextBlock(text="Hello there.")],
            ),
            delta="Hello there.",
        ),
    ],
    "call": ["Hello there.", call("search", query="bomb")],
    "openai-dicts": [
        chunk("Hello there.", "Hello there."),
        ChatResponse(
            message=assistant(
                "Hello there.",
                additional_kwargs={
                    "tool_calls": [{"function": {"name": "search", "arguments": '{"q": "bomb"}'}}]
                },
            )
        ),
    ],
    "additional": [
        ChatResponse(
            message=assistant("Hello there.", additional_kwargs={"reasoning": "A bomb."}),
            delta="Hello there.",
        )
    ],
    "citation": [
        ChatResponse(
            message=ChatMessage(
                role=MessageRole.ASSISTANT,
                blocks=[
                    TextBlock(text="Hello there."),
                    CitationBlock(
                        cited_content=TextBlock(text="A bomb."),
                        source="a",
                        title="b",
                        additional_location_info={},
                    ),
                ],
            ),
            delta="Hello there.",
        )
    ],
    "more-text": [chunk("Hello there. And a bomb.", "Hello there.")],
    "other-text": [chunk("A bomb.", "Hello there.")],
}


@chats
@engines
@pytest.mark.parametrize("action", [Action.BLOCK, Action.REPLACE, Action.REDACT, Action.DROP])
@pytest.mark.parametrize("pieces", HIDDEN.values(), ids=HIDDEN)
async def test_what_else_a_reply_says_is_judged_before_anybody_has_it(
    door: str, kind: Any, action: Action, pieces: list[Any]
) -> None:
    with heard() as (events, spans):
        out, error = await outcome(door, guarded(pieces, action, kind))
    assert "bomb" not in f"{out!r} {error!r} {events.events!r} {spans.told}"
    assert "Hello there.".startswith(read_by(out)) or action is not Action.BLOCK
    assert read_by(out)
    if action is Action.BLOCK:
        assert isinstance(error, GuardViolation)
    else:
        assert error is None
        assert text_of(out[-1]) == read_by(out)


@chats
@pytest.mark.parametrize("action", [Action.BLOCK, Action.FLAG])
async def test_pictures_are_for_engines_that_see(door: str, action: Action) -> None:
    picture = ImageBlock(url="https://a.example/b.png")
    message = ChatMessage(
        role=MessageRole.ASSISTANT, blocks=[TextBlock(text="Hello there."), picture]
    )
    pieces = [ChatResponse(message=message, delta="Hello there.")]
    out, error = await outcome(door, guarded(pieces, action))
    assert isinstance(error, GuardViolation)
    assert error.decision.degraded
    assert "a.example" not in f"{out!r}"


@chats
@pytest.mark.parametrize("form", ["deltas", "contents"])
async def test_thoughts_and_calls_come_at_the_end(door: str, form: str) -> None:
    blocks = [
        ThinkingBlock(content="Tea."),
        TextBlock(text="Hello there."),
        call("search", q="tea"),
    ]
    if form == "deltas":
        blocks.pop(1)
    pieces = [
        *written(["Hello ", "there."], form),
        ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks), delta=""),
    ]
    out: Any = await ask(door, guarded(pieces))
    assert kinds_of(out[-1]) == ["thinking", "text", "tool_call"]
    assert all(len(one.message.blocks) <= 1 for one in out[:-1])
    assert read_by(out) == text_of(out[-1]) == "Hello there."


@chats
async def test_calls_go_with_a_text_of_which_something_was_taken_out(door: str) -> None:
    """The call alone would pass; what stands beside it would not."""
    pieces = ["Hi. A bomb. ", "Bye.", call("search", q="tea")]
    out: Any = await ask(door, guarded(pieces, Action.REDACT))
    assert kinds_of(out[-1]) == ["text"]
    assert "bomb" not in text_of(out[-1])
    assert read_by(out) == text_of(out[-1])


@streams
@pytest.mark.parametrize("beside", [False, True], ids=["after", "beside"])
async def test_the_model_stops_where_its_reply_is_blocked(door: str, beside: bool) -> None:
    words = [f"{word} " for word in (HARMFUL * 100).split(" ")]
    llm = guarded(words, beside=beside)
    _, error = await outcome(door, llm)
    assert isinstance(error, GuardViolation)
    assert await stopped(inner_of(llm), len(words))


@streams
@pytest.mark.parametrize("beside", [False, True], ids=["after", "beside"])
async def test_the_model_stops_where_nobody_reads_on(door: str, beside: bool) -> None:
    words = [f"{word} " for word in (HARMLESS * 100).split(" ")]
    llm = guarded(words, beside=beside)
    given: Any = "how?" if "complete" in door else [user("how?")]
    answer: Any = getattr(llm, door)(given)
    if door.startswith("a"):
        answer = await answer
        await anext(answer)
        await answer.aclose()
    else:
        next(answer)
        answer.close()
    del answer
    assert await stopped(inner_of(llm), len(words))


@streams
async def test_it_is_closed_though_a_handler_keeps_what_ended_it(door: str) -> None:
    """LlamaIndex itself closes nothing; what is kept keeps it open."""
    words = [f"{word} " for word in (HARMLESS * 100).split(" ")]
    llm = guarded(words)
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm.callback_manager = CallbackManager([debug])
    given: Any = "how?" if "complete" in door else [user("how?")]
    with heard() as (events, _):
        answer: Any = getattr(llm, door)(given)
        if door.startswith("a"):
            answer = await answer
            await anext(answer)
            await answer.aclose()
        else:
            next(answer)
            answer.close()
    assert await stopped(inner_of(llm), len(words))
    assert len(events.of(GuardCheckEndEvent)) == len(events.of(GuardCheckStartEvent)) == 2
    engine = cast("ScriptedStreamEngine", llm.guard.engine)
    assert [session.closed for session in engine.sessions] == [True]


@streams
@pytest.mark.parametrize("beside", [False, True], ids=["after", "beside"])
async def test_an_error_of_the_model_comes_after_what_was_cleared(door: str, beside: bool) -> None:
    llm = guarded(["Hello there. ", "How are you? ", RuntimeError("no more")], beside=beside)
    out, error = await outcome(door, llm)
    assert isinstance(error, RuntimeError)
    assert "Hello there. How are you? ".startswith(read_by(out))


@streams
async def test_until_the_end_nothing_leaves_where_all_is_held_back(door: str) -> None:
    llm = guarded(HARMFUL.split(" "), streaming=Streaming(hold_back=HoldBack.REPLY))
    out, error = await outcome(door, llm)
    assert isinstance(error, GuardViolation)
    assert out == []


@streams
async def test_a_reply_that_goes_on_with_what_the_assistant_said_waits(door: str) -> None:
    llm = guarded(["Hello ", "there."])
    messages = [user("Hi."), assistant("Well, ")]
    out = await ask(door, llm, messages if "chat" in door else "Hi.")
    assert text_of(out[-1]) == read_by(out) == "Hello there."
    engine: Any = llm.guard.engine
    if "chat" in door:
        assert len(out) == 1
        read = [message.text for message in engine.seen[-1].messages]
        assert read == ["Hi.", "Well, ", "Hello there."]


class Waiting(ScriptedStreamEngine):
    """Judges prompts only when it may, and whole texts slowly."""

    def __init__(self) -> None:
        super().__init__(SCRIPT)
        self.may = asyncio.Event()
        self.asked = asyncio.Event()

    async def ajudge(self, conversations: Sequence[Conversation]) -> Any:
        self.asked.set()
        await self.may.wait()
        return self.judge(conversations)


class Log(list[str]):
    """Says when five things are in it."""

    def __init__(self, busy: asyncio.Event) -> None:
        super().__init__()
        self._busy = busy

    def append(self, item: str) -> None:
        super().append(item)
        if len(self) == 5:
            self._busy.set()


class Busy(WritingLLM):
    """Says when it has written five words."""

    _busy: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)

    @property
    def busy(self) -> asyncio.Event:
        return self._busy

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self.log = Log(self._busy)


@pytest.mark.parametrize("door", ["astream_chat", "astream_complete"])
async def test_beside_the_verdict_nothing_is_released_before_it(door: str) -> None:
    engine, inner = Waiting(), Busy(replies=[HARMLESS])
    llm = GuardedLLM(inner=inner, guard=Guard(engine), beside=True)
    out = list[Response]()

    async def read() -> None:
        given: Any = "how?" if "complete" in door else [user("how?")]
        async for one in await getattr(llm, door)(given):
            out.append(one)

    reading = asyncio.create_task(read())
    await engine.asked.wait()
    await inner.busy.wait()
    assert out == []
    engine.may.set()
    await reading
    assert text_of(out[-1]) == HARMLESS


@pytest.mark.parametrize("door", ["astream_chat", "astream_complete"])
async def test_beside_the_verdict_a_model_is_closed_that_answers_what_is_blocked(door: str) -> None:
    engine, inner = Waiting(), Busy(replies=[HARMLESS * 100])
    llm = GuardedLLM(inner=inner, guard=Guard(engine), beside=True)
    reading = asyncio.create_task(outcome(door, llm, "What is a bomb?"))
    await inner.busy.wait()
    engine.may.set()
    out, error = await reading
    assert isinstance(error, GuardViolation)
    assert out == []
    assert await stopped(inner, len(HARMLESS.split(" ")) * 100)


@pytest.mark.parametrize("door", ["astream_chat", "astream_complete", "achat", "acomplete"])
@pytest.mark.parametrize("beside", [False, True], ids=["after", "beside"])
async def test_the_event_loop_goes_on_while_the_guard_judges(door: str, beside: bool) -> None:
    engine, ticks = Waiting(), 0
    llm = GuardedLLM(inner=WritingLLM(replies=[HARMLESS]), guard=Guard(engine), beside=beside)
    reading = asyncio.create_task(ask(door, llm))
    await engine.asked.wait()
    for _ in range(50):
        await asyncio.sleep(0)
        ticks += not reading.done()
    engine.may.set()
    assert text_of((await reading)[-1]) == HARMLESS
    assert ticks == 50


@pytest.mark.parametrize("door", ["astream_chat", "astream_complete", "achat", "acomplete"])
@pytest.mark.parametrize("beside", [False, True], ids=["after", "beside"])
async def test_a_task_that_is_cancelled_ends_all_of_it(door: str, beside: bool) -> None:
    engine, inner = Waiting(), WritingLLM(replies=[HARMLESS * 100])
    llm = GuardedLLM(inner=inner, guard=Guard(engine), beside=beside)
    reading = asyncio.create_task(ask(door, llm))
    await engine.asked.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await stopped(inner, len(HARMLESS.split(" ")) * 100)
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


class Slow(WritingLLM):
    """Never goes on after its first words."""

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        async def written() -> ChatResponseAsyncGen:
            try:
                yield chunk("Hello there. You ", "Hello there. You ")
                await asyncio.Event().wait()
            finally:
                self.log.append("ended")

        return written()


@pytest.mark.parametrize("beside", [False, True], ids=["after", "beside"])
async def test_a_model_that_hangs_is_closed_by_who_stops_waiting(
    beside: bool, guard: Guard
) -> None:
    llm = GuardedLLM(inner=Slow(replies=[""]), guard=guard, beside=beside)
    answer: AsyncIterator[Any] = await llm.astream_chat([user("Hi.")])

    async def read() -> None:
        async for _ in answer:
            pass

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(read(), 0.05)
    inner: Any = llm.inner
    assert inner.log == ["ended"]


@streams
async def test_many_streams_at_once(door: str) -> None:
    llm = guarded(HARMFUL.split(" "), Action.REPLACE)
    outs = await asyncio.gather(*(ask(door, llm) for _ in range(30)))
    assert {text_of(out[-1]) for out in outs} == {text_of(outs[0][-1])}
    assert text_of(outs[0][-1]).endswith(REPLACED)
