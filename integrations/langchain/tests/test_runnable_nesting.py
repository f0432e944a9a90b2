"""Where a reply is judged with its prompt: the arrangements of guards, and the eight methods."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    Runnable,
    RunnableBranch,
    RunnableConfig,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langgraph.graph import (  # pyright: ignore[reportMissingTypeStubs]
    START,
    MessagesState,
    StateGraph,
)

from guardrails_qwen import EngineError, GuardViolation, Stage
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.doubles import Door, EchoModel, Guarding, Texts
from langchain_guardrails_qwen import GuardRunnable

PROMPT = ChatPromptTemplate.from_messages([("human", "{question}")])
WITH_ITS_PROMPT = ["user: hi", "assistant: re: hi"]
ALONE = ["assistant: re: hi"]

STREAMS = frozenset({"stream", "astream", "transform", "atransform"})

Chain = Runnable[Any, Any]
Made = Callable[[GuardRunnable, Chain], Chain]


def asks(value: Any) -> dict[str, str]:
    return {"question": value}


def flat(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard | asks | (PROMPT | llm) | guard


def bound(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard | (llm | guard).with_config(tags=["inner"])


def twice_bound(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard | (asks | (PROMPT | (llm | guard).with_config(tags=["a"])).with_config(tags=["b"]))


def left_bound(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard.with_config(tags=["a"]) | llm | guard.bind(stop=["x"])


def in_a_parallel(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard | RunnableParallel(answer=llm | guard)


def alone_in_a_parallel(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard | llm | RunnableParallel(answer=guard)


def in_an_assignment(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard | asks | RunnablePassthrough.assign(answer=PROMPT | llm | guard)


def after_an_assignment(guard: GuardRunnable, llm: Chain) -> Chain:
    last = GuardRunnable(guard.guard, key="answer")
    return guard | asks | RunnablePassthrough.assign(answer=PROMPT | llm) | last


def in_a_branch(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard | RunnableBranch((bool, llm | guard), llm)


def in_the_other_branch(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard | RunnableBranch((lambda text: not text, llm), llm | guard)


def retried(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard | (llm | guard).with_retry(retry_if_exception_type=(EngineError,))


def each_retried(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard.with_retry() | llm.with_retry() | guard.with_retry()


def with_fallbacks(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard | (llm | guard).with_fallbacks([llm | guard])


def each_with_fallbacks(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard.with_fallbacks([guard]) | llm | guard.with_fallbacks([guard])


def returned_by_a_function(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard | RunnableLambda(lambda _: llm | guard)


def around_a_function(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard | RunnableLambda(lambda _: llm) | guard


def wrapped_in_a_function(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard | RunnableLambda(lambda _: guard.wrap(llm))


FOUND: list[Made] = [
    flat,
    bound,
    twice_bound,
    left_bound,
    in_a_parallel,
    alone_in_a_parallel,
    in_an_assignment,
    after_an_assignment,
    in_a_branch,
    in_the_other_branch,
    retried,
    each_retried,
    with_fallbacks,
    each_with_fallbacks,
    around_a_function,
    wrapped_in_a_function,
]
"""Arrangements in which every method finds the prompt."""


@pytest.mark.parametrize("made", FOUND, ids=lambda made: made.__name__)
async def test_a_reply_is_judged_with_its_prompt(
    made: Made, door: Door, guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    await door(made(guarding(), llm), "hi")
    assert stripped(texts)[-1] == WITH_ITS_PROMPT


async def test_a_chain_that_a_function_returns_gets_its_prompt_unless_it_streams(
    door: Door, guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    await door(returned_by_a_function(guarding(), llm), "hi")
    found = door.__name__ not in STREAMS
    assert stripped(texts)[-1] == (WITH_ITS_PROMPT if found else ALONE)


def called_with_something_else(guard: GuardRunnable, llm: Chain) -> Chain:
    async def acall(_: object, config: RunnableConfig) -> Any:
        return await (llm | guard).ainvoke("".join(["h", "i"]), config)

    def call(_: object, config: RunnableConfig) -> Any:
        return (llm | guard).invoke("".join(["h", "i"]), config)

    return guard | RunnableLambda(call, acall)


def left_in_another_sequence(guard: GuardRunnable, llm: Chain) -> Chain:
    first: Chain = guard | RunnableLambda(str)
    return first.with_config(tags=["first"]) | RunnableParallel(answer=llm | guard)


def in_the_branch_beside(guard: GuardRunnable, llm: Chain) -> Chain:
    return RunnableParallel(question=guard | RunnableLambda(len), answer=llm | guard)


def on_each_of_several(guard: GuardRunnable, llm: Chain) -> Chain:
    return guard | (llm | guard).map()


APART: list[Made] = [
    called_with_something_else,
    left_in_another_sequence,
    in_the_branch_beside,
    on_each_of_several,
]
"""Arrangements in which the guard on the right need not belong to the one on the left."""


@pytest.mark.parametrize("made", APART, ids=lambda made: made.__name__)
async def test_a_reply_is_judged_alone_where_its_prompt_is_not_certain(
    made: Made, door: Door, guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    await door(made(guarding(), llm), ["hi"] if made is on_each_of_several else "hi")
    assert ALONE in stripped(texts)
    assert WITH_ITS_PROMPT not in stripped(texts)


@pytest.mark.parametrize("made", [*FOUND, returned_by_a_function, *APART])
async def test_a_blocked_reply_is_blocked_wherever_it_is_judged(
    made: Made, door: Door, guarding: Guarding, llm: EchoModel
) -> None:
    llm.prefix = "A bomb: "
    with pytest.raises(GuardViolation):
        await door(made(guarding(), llm), ["hi"] if made is on_each_of_several else "hi")


@pytest.mark.parametrize(
    ("stage", "asked"),
    [
        pytest.param(Stage.OUTPUT, WITH_ITS_PROMPT, id="output"),
        pytest.param(None, ["user: re: hi"], id="no stage"),
    ],
)
async def test_a_text_in_a_nested_sequence_is_a_reply_where_the_stage_says_so(
    stage: Stage | None,
    asked: list[str],
    door: Door,
    guarding: Guarding,
    llm: EchoModel,
    texts: Texts,
) -> None:
    answer = llm | StrOutputParser() | guarding(stage=stage)
    await door(guarding() | RunnableParallel(answer=answer), "hi")
    assert stripped(texts)[-1] == asked


async def test_a_text_that_enters_a_nested_sequence_is_a_prompt(
    door: Door, guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    guard = guarding()
    await door(guard | str.upper | RunnableParallel(answer=guard | llm | guard), "hi")
    assert stripped(texts) == [["user: hi"], ["user: HI"], ["user: HI", "assistant: re: HI"]]


async def test_the_nearest_prompt_is_the_one(
    door: Door, guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    guard = guarding()
    loud = (str.upper | guard | llm | guard.with_retry()).with_config(tags=["inner"])
    await door(guard | RunnableParallel(loud=loud, plain=llm | guard), "hi")
    asked = stripped(texts)
    assert sorted(pair for pair in asked if len(pair) == 2) == [
        ["user: HI", "assistant: re: HI"],
        WITH_ITS_PROMPT,
    ]


async def test_a_node_of_a_graph_is_not_a_step_of_the_chain_around_it(
    door: Door, guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    chain = llm | guarding()

    async def aanswer(state: MessagesState) -> Any:
        return {"messages": [await chain.ainvoke(state["messages"])]}

    def answer(state: MessagesState) -> Any:
        return {"messages": [chain.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    node = RunnableLambda(answer, aanswer)
    graph.add_node("answer", node)  # pyright: ignore[reportUnknownMemberType]
    graph.add_edge(START, "answer")
    agent = graph.compile()  # pyright: ignore[reportUnknownMemberType]
    await door(guarding() | agent, {"messages": [("human", "hi")]})
    assert stripped(texts) == [["user: hi"], ALONE]


@pytest.mark.parametrize("made", [in_a_parallel, in_an_assignment, each_retried, bound])
async def test_no_prompt_of_another_conversation(
    made: Made, guarding: Guarding, llm: EchoModel, engine: ScriptedEngine
) -> None:
    chain = made(guarding(), llm)
    prompts = [f"question {index}" for index in range(50)]
    await asyncio.gather(*map(chain.ainvoke, prompts))
    await chain.abatch(prompts)
    await asyncio.to_thread(chain.batch, prompts)
    pairs = [c.messages for c in engine.seen if len(c.messages) == 2]
    assert len(pairs) == 150
    assert all(reply.text.strip() == f"re: {prompt.text}" for prompt, reply in pairs)


async def test_several_conversations_in_one_parallel(
    door: Door, guarding: Guarding, llm: EchoModel, engine: ScriptedEngine
) -> None:
    guard = guarding()

    def asking(index: int) -> Chain:
        def ask(_: object) -> str:
            return f"question {index}"

        return RunnableLambda(ask) | guard | RunnableParallel(answer=llm | guard)

    branches = {f"branch {index}": asking(index) for index in range(20)}
    await door(RunnableParallel(branches), "hi")
    pairs = [c.messages for c in engine.seen if len(c.messages) == 2]
    assert len(pairs) == 20
    assert all(reply.text.strip() == f"re: {prompt.text}" for prompt, reply in pairs)


class Watched:
    """An input that tells when it is gone."""

    alive = 0

    def __init__(self) -> None:
        type(self).alive += 1

    def __del__(self) -> None:
        type(self).alive -= 1


async def test_no_input_outlives_its_run(door: Door, guarding: Guarding) -> None:
    def text(_: object) -> AIMessage:
        return AIMessage("hi")

    chain = RunnableLambda(text) | RunnableParallel(a=guarding())
    for _ in range(3):
        await door(chain, Watched())
    gc.collect()
    assert Watched.alive == 0


def stripped(texts: Texts) -> list[list[str]]:
    return [[text.strip() for text in asked] for asked in texts()]
