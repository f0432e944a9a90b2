"""What leaves a guard is what was judged: its order, its metadata, its traces, its closing text."""

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any, cast

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run

from guardrails_qwen import Action, ConversationError, Guard, GuardError, GuardViolation, Policy
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine
from integrations.langchain.tests.doubles import FILTERED, SCRIPT, Door, WritingModel, writing
from langchain_guardrails_qwen import GuardedChatModel, GuardRunnable

HARMFUL = "Take a bomb and light it."
CLOSING = "That is all."


def in_a_pipe(llm: BaseChatModel, guard: Guard, streaming: Streaming) -> Runnable[Any, Any]:
    runnable = GuardRunnable(guard, streaming=streaming)
    return runnable | llm | runnable


def in_a_wrap(llm: BaseChatModel, guard: Guard, streaming: Streaming) -> Runnable[Any, Any]:
    return GuardRunnable(guard, streaming=streaming).wrap(llm)


def in_a_model(llm: BaseChatModel, guard: Guard, streaming: Streaming) -> Runnable[Any, Any]:
    return GuardedChatModel(inner=llm, guard=guard, streaming=streaming)


Way = Callable[[BaseChatModel, Guard, Streaming], Runnable[Any, Any]]


@pytest.fixture(params=[in_a_pipe, in_a_wrap, in_a_model], ids=lambda way: way.__name__)
def way(request: pytest.FixtureRequest) -> Way:
    return request.param


@pytest.fixture(params=[ScriptedStreamEngine, ScriptedEngine], ids=["tokens", "texts"])
def guard(request: pytest.FixtureRequest) -> Guard:
    return Guard(request.param(SCRIPT), Policy.strict())


def block(text: str, index: int = 0) -> AIMessageChunk:
    return AIMessageChunk(content=[{"type": "text", "text": text, "index": index}])


def arguments(text: str, index: int) -> AIMessageChunk:
    return AIMessageChunk(
        content="",
        tool_call_chunks=[{"name": None, "id": None, "args": text, "index": index}],
    )


def of_calls(chunks: list[AIMessageChunk]) -> str:
    return "".join(piece["args"] or "" for c in chunks for piece in c.tool_call_chunks)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        pytest.param(
            [block("a bo"), block("mb here", 1), block("ok ")], "a book mb here", id="goes back"
        ),
        pytest.param(
            [
                AIMessageChunk(content="", additional_kwargs={"note": "hm"}),
                *[block("a bo"), block("mb here", 1), block("ok ")],
            ],
            "a book mb here",
            id="goes back behind more",
        ),
        pytest.param([block("a bo"), block("ok here")], "a book here", id="goes on"),
    ],
)
async def test_a_reader_has_the_words_in_the_order_that_was_judged(
    written: list[AIMessageChunk], read: str, way: Way, guard: Guard, door: Door
) -> None:
    out = await door(way(WritingModel(chunks=written), guard, Streaming()), "a word?")
    assert "".join(piece.text for piece in out) == read


def test_what_was_released_is_never_continued_with_what_was_not_judged(way: Way) -> None:
    written = [block("Hello. "), block("A bo. ", 1), block("By the way. "), block("It is mb. ", 1)]
    guard = Guard(ScriptedStreamEngine(SCRIPT), Policy.strict())
    out, error = told(way(WritingModel(chunks=written), guard, Streaming()))
    assert isinstance(error, ConversationError)
    said = "".join(piece.text for piece in out)
    assert said
    assert "Hello. A bo. ".startswith(said)


def told(runnable: Runnable[Any, Any]) -> tuple[list[Any], GuardError | None]:
    """What a stream gives until its end or an error, and that."""
    out = list[Any]()
    try:
        for piece in runnable.stream("how?"):
            out.append(piece)
    except GuardError as error:
        return out, error
    return out, None


def test_arguments_leave_in_the_order_that_was_judged(way: Way, guard: Guard) -> None:
    written = [arguments('{"q": "a bo', 0), arguments('mb"}', 1), arguments('ok"}', 0)]
    out, _ = told(way(WritingModel(chunks=written), guard, Streaming()))
    assert of_calls(out) == '{"q": "a book"}mb"}'


@pytest.mark.parametrize("parsed", [False, True], ids=["message", "text"])
async def test_a_closing_text_replaces_a_blocked_reply_in_every_method(
    parsed: bool, way: Way, guard: Guard, door: Door
) -> None:
    chain = way(writing(HARMFUL), guard, Streaming(closing=CLOSING))
    *_, last = await door(chain | StrOutputParser() if parsed else chain, "how?")
    if parsed:
        assert last == CLOSING
        return
    assert (last.text, last.response_metadata) == (CLOSING, FILTERED)


async def test_a_closing_text_replaces_texts_and_states_too(guard: Guard, door: Door) -> None:
    runnable = GuardRunnable(guard, streaming=Streaming(closing=CLOSING))
    text = runnable | writing(HARMFUL) | StrOutputParser() | runnable
    assert (await door(text, "how?"))[-1] == CLOSING
    state = runnable | RunnableLambda(_answered) | runnable
    *_, last = await door(state, {"messages": [HumanMessage("how?")]})
    assert [message.text for message in last["messages"]] == ["how?", CLOSING]


def _answered(state: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [*state["messages"], AIMessage(HARMFUL)]}


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param(HARMFUL, id="text"),
        pytest.param([("user", "Go on:"), ("ai", HARMFUL)], id="begun reply"),
    ],
)
async def test_a_blocked_prompt_raises_whatever_closes_replies(
    prompt: Any, way: Way, guard: Guard, door: Door
) -> None:
    llm = writing("Hello.")
    with pytest.raises(GuardViolation):
        await door(way(llm, guard, Streaming(closing=CLOSING)), prompt)
    assert llm.sent == []


class Inputs(BaseTracer):
    """Keeps what the runs of guards had as their input."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def _persist_run(self, run: Run) -> None:
        guards = [child for child in run.child_runs if child.name == "guard"]
        self.seen += [cast("Any", child).inputs for child in guards]


@pytest.mark.parametrize("parsed", [False, True], ids=["message", "text"])
async def test_a_run_of_a_guard_does_not_show_a_reply_before_it_is_judged(
    parsed: bool, guard: Guard, door: Door
) -> None:
    right, llm, spy = GuardRunnable(guard), writing(HARMFUL), Inputs()
    chain = right | (llm | StrOutputParser() if parsed else llm) | right
    with pytest.raises(GuardViolation):
        await door(chain, "how?", {"callbacks": [spy]})
    assert len(spy.seen) == 2
    assert "bomb" not in str(spy.seen)


async def test_a_run_of_a_guard_shows_its_prompt_where_that_is_wanted(guard: Guard) -> None:
    spy = Inputs()
    chain = GuardRunnable(guard, trace_text=True) | writing("Hello.")
    await chain.ainvoke("a greeting?", {"callbacks": [spy]})
    assert spy.seen == [{"input": "a greeting?"}]


@pytest.mark.parametrize("first", ["", " ", "Well. ", "Well, one two three. Then. "])
async def test_metadata_that_may_repeat_text_leaves_behind_what_was_judged(
    first: str, way: Way, guard: Guard
) -> None:
    early = AIMessageChunk(content=first, response_metadata={"raw": HARMFUL, "done": False})
    chunks = [early, *writing(HARMFUL).chunks]
    out, error = told(way(WritingModel(chunks=chunks), guard, Streaming(stride=1)))
    assert isinstance(error, GuardViolation)
    assert "bomb" not in str(out)


async def test_metadata_that_may_repeat_text_is_complete_in_the_end(way: Way, guard: Guard) -> None:
    chunks = [
        AIMessageChunk(content="Take ", response_metadata={"raw": "Take ", "model_name": "m"}),
        AIMessageChunk(content="flour.", response_metadata={"raw": "flour."}),
    ]
    out = list(way(WritingModel(chunks=chunks), guard, Streaming()).stream("how?"))
    total = reduce(operator.add, out)
    assert total.text == "Take flour."
    assert total.response_metadata == {"raw": "Take flour.", "model_name": "m"}


async def test_a_redaction_keeps_marks_and_no_sentences(way: Way, door: Door) -> None:
    metadata = {"finish_reason": HARMFUL, "model_name": "a bomb", "id": "chatcmpl-1", "created": 7}
    guard = Guard(ScriptedEngine(SCRIPT), Policy.strict(action=Action.REDACT))
    llm = writing(f"Hello. {HARMFUL} Bye.", response_metadata=metadata)
    out = await door(way(llm, guard, Streaming()), "how?")
    assert "bomb" not in str(out)
    kept = reduce(operator.add, out) if isinstance(out[0], AIMessageChunk) else out[0]
    assert kept.response_metadata.items() >= {"id": "chatcmpl-1", "created": 7}.items()
