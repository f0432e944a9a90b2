"""The explicit form: a pair that belongs together wherever it stands."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)

from guardrails_qwen import Action, Guard, GuardViolation, Stage
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine
from integrations.langchain.tests.doubles import REPLACED, Door, EchoModel, Guarding, Texts
from langchain_guardrails_qwen import GuardRunnable

TEMPLATE = ChatPromptTemplate.from_messages([("system", "Be kind."), ("human", "{question}")])


@pytest.fixture
def stripped(texts: Texts):
    """What the engine was asked, without white space at the ends."""
    return lambda: [[text.strip() for text in texts_] for texts_ in texts()]


async def test_a_reply_is_judged_with_its_prompt(
    door: Door, guarding: Guarding, llm: EchoModel, stripped: Texts
) -> None:
    out = await door(guarding().wrap(llm), "hi")
    assert "".join(chunk.text for chunk in out).strip() == "re: hi"
    assert stripped() == [["user: hi"], ["user: hi", "assistant: re: hi"]]


def as_text(text: str) -> str:
    return f"re: {text}"


def as_list(text: str) -> list[AIMessage]:
    return [AIMessage(f"re: {text}")]


def upper(text: str) -> str:
    return text.upper()


def as_question(text: str) -> dict[str, str]:
    return {"question": text}


def kindly(text: str) -> list[BaseMessage]:
    return [SystemMessage("Be kind."), HumanMessage(text)]


@pytest.mark.parametrize(
    "wrapped",
    [
        pytest.param(EchoModel(), id="model"),
        pytest.param(EchoModel() | StrOutputParser(), id="sequence"),
        pytest.param(EchoModel().with_retry(), id="binding"),
        pytest.param(as_text, id="function"),
        pytest.param(RunnableLambda(as_list), id="list"),
    ],
)
async def test_anything_can_be_wrapped(
    wrapped: Any, door: Door, guarding: Guarding, stripped: Texts
) -> None:
    await door(guarding().wrap(wrapped), "hi")
    assert stripped() == [["user: hi"], ["user: hi", "assistant: re: hi"]]


async def test_keyword_arguments_reach_what_is_wrapped(door: Door, guarding: Guarding) -> None:
    seen: list[object] = []

    def reply(text: str, **kwargs: object) -> str:
        seen.append(kwargs)
        return as_text(text)

    wrapped = guarding().wrap(reply)
    assert await door(wrapped.bind(stop=["a"]), "hi") == ["re: hi"]
    assert await door(Given(wrapped), "hi") == ["re: hi"]
    assert await door(wrapped, "hi") == ["re: hi"]
    assert seen == [{"stop": ["a"]}, {"stop": ["b"]}, {}]


class Given:
    """Calls every method with a keyword argument."""

    def __init__(self, runnable: Any) -> None:
        self._runnable = runnable

    def __getattr__(self, method: str) -> Any:
        return partial(getattr(self._runnable, method), stop=["b"])


async def test_keyword_arguments_of_a_guard_are_ignored(door: Door, guarding: Guarding) -> None:
    assert await door(Given(guarding()), "hi") == ["hi"]


async def test_dicts_need_keys(
    door: Door, guarding: Guarding, llm: EchoModel, stripped: Texts
) -> None:
    chain = guarding(key="question").wrap(
        RunnablePassthrough.assign(answer=TEMPLATE | llm | StrOutputParser()), output_key="answer"
    )
    await door(chain, {"question": "hi"})
    assert stripped() == [["user: hi"], ["user: hi", "assistant: re: hi"]]


async def test_a_conversation_that_the_assistant_began(
    door: Door, guarding: Guarding, llm: EchoModel, stripped: Texts
) -> None:
    parsed = llm | StrOutputParser()
    await door(guarding().wrap(parsed), [("human", "hi"), ("ai", "Well,")])
    assert stripped()[-1] == ["user: hi", "assistant: Well,", "assistant: re: Well,"]


async def test_the_stages_follow_from_the_values(
    door: Door, guarding: Guarding, llm: EchoModel
) -> None:
    answer = [
        AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}]),
        ToolMessage("bomb", tool_call_id="1"),
    ]
    with pytest.raises(GuardViolation) as caught:
        await door(guarding().wrap(llm), [HumanMessage("hi"), *answer])
    assert caught.value.decision.stage is Stage.TOOL_RESULT


async def test_both_sides_are_guarded(door: Door, guarding: Guarding, llm: EchoModel) -> None:
    with pytest.raises(GuardViolation) as caught:
        await door(guarding().wrap(llm), "bomb")
    assert caught.value.decision.stage is Stage.INPUT
    assert llm.sent == []
    llm.prefix = "A bomb: "
    with pytest.raises(GuardViolation) as caught:
        await door(guarding().wrap(llm), "hi")
    assert caught.value.decision.stage is Stage.OUTPUT
    [reply] = await door(guarding(Action.REPLACE).wrap(llm), "hi")
    assert reply.text == REPLACED


async def test_two_in_one_chain(
    door: Door, guarding: Guarding, llm: EchoModel, stripped: Texts
) -> None:
    guard = guarding()
    parsed = llm | StrOutputParser()
    await door(guard.wrap(parsed) | upper | guard.wrap(parsed), "hi")
    assert stripped() == [
        ["user: hi"],
        ["user: hi", "assistant: re: hi"],
        ["user: RE: HI"],
        ["user: RE: HI", "assistant: re: RE: HI"],
    ]


async def test_guards_inside_and_outside(
    door: Door, guarding: Guarding, llm: EchoModel, stripped: Texts
) -> None:
    guard = guarding()
    inner = TEMPLATE | guard | llm
    outer = guard | as_question | guarding(key="question").wrap(inner) | guard
    await door(outer, "hi")
    assert stripped() == [
        ["user: hi"],
        ["user: hi"],
        ["system: Be kind."],
        ["system: Be kind.", "user: hi"],
        ["user: hi", "assistant: re: hi"],
        ["user: hi", "assistant: re: hi"],
    ]


async def test_in_a_parallel(
    door: Door, guarding: Guarding, llm: EchoModel, stripped: Texts
) -> None:
    guard = guarding()
    branches = RunnableParallel(
        short=guard.wrap(llm),
        kind=kindly | guard.wrap(llm),
    )
    await door(branches, "hi")
    asked = Counter(map(tuple, stripped()))
    assert asked == Counter(
        [
            ("user: hi",),
            ("system: Be kind.",),
            ("system: Be kind.", "user: hi"),
            ("user: hi", "assistant: re: hi"),
            ("system: Be kind.", "user: hi", "assistant: re: hi"),
        ]
    )


async def test_in_a_function_with_a_retry_and_on_a_map(
    guarding: Guarding, llm: EchoModel, engine: ScriptedEngine
) -> None:
    wrapped = guarding().wrap(llm).with_retry()
    prompts = [f"question {index}" for index in range(50)]
    await RunnableLambda(wrapped.invoke).map().ainvoke(prompts)
    pairs = [c.messages for c in engine.seen if len(c.messages) == 2]
    assert all(reply.text == f"re: {prompt.text}" for prompt, reply in pairs)
    assert Counter(prompt.text for prompt, _ in pairs) == Counter(prompts)


@pytest.mark.parametrize("method", ["batch", "abatch"])
async def test_a_batch_is_two_batches(
    method: str, guarding: Guarding, llm: EchoModel, engine: ScriptedEngine
) -> None:
    wrapped = guarding().wrap(llm)
    prompts = [f"question {index}" for index in range(200)]
    prompts[7] = "bomb"
    if method == "batch":
        results = await asyncio.to_thread(wrapped.batch, prompts, return_exceptions=True)
    else:
        results = await wrapped.abatch(prompts, return_exceptions=True)
    assert [i for i, r in enumerate(results) if isinstance(r, GuardViolation)] == [7]
    assert engine.batches == [200, 199]


class Ending:
    """A source that notes its end, and takes a turn of the loop to clean up."""

    def __init__(self) -> None:
        self.ended = False
        self.hanging = asyncio.Event()

    async def astream(self, _: AsyncIterator[Any]) -> AsyncIterator[str]:
        """Gives some sentences, and hangs."""
        try:
            for _sentence in range(3):
                yield "Take flour. And water. "
            self.hanging.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.ended = True


def hanging(beside: bool) -> tuple[Ending, ScriptedStreamEngine, Any]:
    """What is wrapped, the engine, and a stream of both."""
    source, engine = Ending(), ScriptedStreamEngine({})
    guard = GuardRunnable(Guard(engine), streaming=Streaming(stride=1))
    chain = guard.wrap(RunnableGenerator(source.astream), beside=beside)
    return source, engine, chain.astream("bread?")


besides = pytest.mark.parametrize("beside", [False, True], ids=["after", "beside"])


@besides
async def test_what_is_closed_is_closed_at_once(beside: bool) -> None:
    source, engine, stream = hanging(beside)
    assert await anext(stream)
    await stream.aclose()
    assert source.ended
    assert engine.sessions
    assert all(session.closed for session in engine.sessions)


@besides
async def test_what_is_cancelled_is_closed_at_once(beside: bool) -> None:
    source, engine, stream = hanging(beside)

    async def read() -> None:
        async for _ in stream:
            pass

    task = asyncio.create_task(read())
    await source.hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.ended
    assert engine.sessions
    assert all(session.closed for session in engine.sessions)
