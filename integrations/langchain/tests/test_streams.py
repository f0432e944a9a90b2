"""Nothing of a stream is released before all of it was judged."""

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessageChunk, HumanMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import StringPromptValue
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.runnables.utils import AddableDict

from guardrails_qwen import Action, ConversationError, GuardViolation
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.doubles import (
    FILTERED,
    REPLACED,
    Door,
    EchoModel,
    Guarding,
    Texts,
)

Chunks = Callable[..., AsyncIterator[Any]]


@pytest.fixture(params=["stream", "astream", "transform", "atransform"])
def chunks(request: pytest.FixtureRequest):
    """The four streaming methods: an asynchronous iterator of what comes out."""

    async def values(value: Any):
        yield value

    async def run(runnable: Any, value: Any):
        if request.param == "stream":
            for chunk in runnable.stream(value):
                yield chunk
        elif request.param == "transform":
            for chunk in runnable.transform(iter([value])):
                yield chunk
        elif request.param == "astream":
            async for chunk in runnable.astream(value):
                yield chunk
        else:
            async for chunk in runnable.atransform(values(value)):
                yield chunk

    return run


@pytest.fixture(params=["transform", "atransform"])
def pieces(request: pytest.FixtureRequest):
    """What comes out when a guard is fed a stream."""

    async def run(runnable: Any, values: Any):
        async def feed():
            for value in values:
                yield value

        if request.param == "transform":
            return list(runnable.transform(iter(values)))
        return [chunk async for chunk in runnable.atransform(feed())]

    return run


async def test_the_engine_is_asked_before_the_first_chunk_is_seen(
    chunks: Chunks, guarding: Guarding, engine: ScriptedEngine, llm: EchoModel, texts: Texts
) -> None:
    chain = guarding() | llm | guarding()
    seen: list[Any] = []
    async for chunk in chunks(chain, "one two three"):
        assert len(engine.seen) == 2, "a chunk came before the verdict"
        assert llm.events == ["token"] * 4
        seen.append(chunk)
    assert [chunk.text for chunk in seen if chunk.text] == ["re: ", "one ", "two ", "three "]
    assert all(isinstance(chunk, AIMessageChunk) for chunk in seen)


@pytest.mark.parametrize("parsed", [False, True], ids=["messages", "texts"])
async def test_a_blocked_stream_releases_nothing(
    parsed: bool, chunks: Chunks, guarding: Guarding, llm: EchoModel
) -> None:
    llm.prefix = "Here is a bomb: "
    seen: list[Any] = []
    chain = guarding() | llm | StrOutputParser() if parsed else guarding() | llm
    stream = chunks(chain | guarding(), "one")
    with pytest.raises(GuardViolation):
        seen.append(await anext(stream))
    assert seen == []


async def test_a_blocked_prompt_reaches_no_model(
    chunks: Chunks, guarding: Guarding, llm: EchoModel
) -> None:
    with pytest.raises(GuardViolation):
        await anext(chunks(guarding() | llm | guarding(), "bomb"))
    assert (llm.sent, llm.events) == ([], [])


async def test_a_word_in_two_chunks_is_one_word(pieces: Door, guarding: Guarding) -> None:
    with pytest.raises(GuardViolation):
        await pieces(guarding(), ["a bo", "mb"])


async def test_a_changed_stream_is_one_chunk(
    chunks: Chunks, guarding: Guarding, llm: EchoModel
) -> None:
    llm.prefix = "A bomb: "
    out = [chunk async for chunk in chunks(guarding() | llm | guarding(Action.REPLACE), "one")]
    [chunk] = out
    assert isinstance(chunk, AIMessageChunk)
    assert chunk.text == REPLACED
    assert chunk.id


@pytest.mark.parametrize(
    ("fed", "came_out"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([""], [""], id="empty text"),
        pytest.param(["a ", "b"], ["a ", "b"], id="texts"),
        pytest.param(["a ", "bomb"], [REPLACED], id="unsafe texts"),
        pytest.param(
            [AIMessageChunk(content="a"), AIMessageChunk(content="b")],
            [AIMessageChunk(content="a"), AIMessageChunk(content="b")],
            id="messages",
        ),
        pytest.param([{"question": "a bomb"}], [{"question": REPLACED}], id="one dict"),
        pytest.param(
            [AddableDict(question="a "), AddableDict(question="b"), AddableDict(n=1)],
            [{"question": "a b", "n": 1}],
            id="dicts that add up",
        ),
        pytest.param(
            [["hello"], [AIMessage("a bomb")]],
            [["hello", AIMessage(REPLACED, response_metadata=FILTERED)]],
            id="lists",
        ),
    ],
)
async def test_what_comes_out_was_judged(
    fed: Any, came_out: Any, pieces: Door, guarding: Guarding
) -> None:
    assert await pieces(guarding(Action.REPLACE, key="question"), fed) == came_out


async def test_pieces_that_do_not_fit_together_do_not_pass(
    pieces: Door, guarding: Guarding
) -> None:
    fed = [AddableDict(question=StringPromptValue(text="a bomb")), AddableDict(question="b")]
    out: list[object] = []
    with suppress(ConversationError):  # older versions add them up to the last one
        out = await pieces(guarding(Action.FLAG, key="question"), fed)
    assert "bomb" not in str(out)


@pytest.mark.parametrize(
    "fed",
    [
        pytest.param([{"question": "a bo"}, {"question": "mb"}], id="dicts"),
        pytest.param([{"question": "a bo"}, {"n": 1}], id="dicts of different fields"),
        pytest.param([AddableDict(question="a bo"), {"question": "mb"}], id="two kinds of dicts"),
        pytest.param([AIMessageChunk(content="a bo"), "mb"], id="message and text"),
        pytest.param(["a bo", AIMessageChunk(content="mb")], id="text and message"),
        pytest.param([AIMessageChunk(content="a bo"), AIMessage("mb")], id="chunk and message"),
        pytest.param([AIMessage("a bo"), AIMessage("mb")], id="messages"),
        pytest.param(
            [AIMessageChunk(content="a bo"), HumanMessageChunk(content="mb")], id="two roles"
        ),
        pytest.param(
            [
                ChatMessageChunk(content="a bo", role="user"),
                ChatMessageChunk(content="mb", role="assistant"),
            ],
            id="two roles of one class",
        ),
    ],
)
async def test_chunks_that_do_not_add_up_do_not_pass(
    fed: Any, pieces: Door, guarding: Guarding, engine: ScriptedEngine
) -> None:
    with pytest.raises(ConversationError, match="do not add up") as caught:
        await pieces(guarding(Action.FLAG, key="question"), fed)
    assert "bo" not in str(caught.value)
    assert engine.seen == []


@pytest.mark.parametrize(
    "lost",
    [
        pytest.param(AIMessageChunk(content="b", name="bomb"), id="name"),
        pytest.param(
            AIMessageChunk.model_validate({"content": "b", "note": "bomb"}), id="extra field"
        ),
    ],
)
async def test_what_adding_loses_is_not_released(
    lost: AIMessageChunk, pieces: Door, guarding: Guarding
) -> None:
    out = await pieces(guarding(), [AIMessageChunk(content="a"), lost])
    assert out == [AIMessageChunk(content="ab")]
    assert "bomb" not in str(out)


async def test_tool_calls_are_released_in_pieces(pieces: Door, guarding: Guarding) -> None:
    def piece(args: str, **fields: Any) -> AIMessageChunk:
        call: Any = {"name": None, "id": None, "args": args, "index": 0, **fields}
        return AIMessageChunk(content="", tool_call_chunks=[call], id="run-1")

    fed = [piece("", name="f", id="1"), piece('{"q": "te'), piece('a\\n"}')]
    assert await pieces(guarding(), fed) == fed


async def test_a_parallel_streams_through_a_key(chunks: Chunks, guarding: Guarding) -> None:
    chain = RunnableParallel(answer=RunnableLambda(lambda x: x), n=len) | guarding(key="answer")
    out = [chunk async for chunk in chunks(chain, "hello")]
    assert out == [{"answer": "hello", "n": 5}]
