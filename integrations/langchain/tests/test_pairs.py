"""In `guard | llm | guard` each reply is judged with the prompt that the left guard let in."""

import asyncio
import gc
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda

from guardrails_qwen import Action, GuardViolation, Message, Role, Stage
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.doubles import Door, EchoModel, Guarding, Texts

Kept = Callable[[str], int]

RUNS = 200
PROMPTS = [f"question {index}" for index in range(RUNS)]


def replies(engine: ScriptedEngine):
    return [c for c in engine.seen if c.last.role is Role.ASSISTANT]


def assert_all_pairs_belong_together(engine: ScriptedEngine):
    for conversation in replies(engine):
        prompt, reply = conversation.messages
        assert reply.text.strip() == f"re: {prompt.text}"
    asked = Counter(c.messages[0].text for c in replies(engine))
    assert asked == Counter(PROMPTS)


@pytest.mark.parametrize(
    ("value", "context"),
    [
        pytest.param("hi", ["user: hi"], id="str"),
        pytest.param([("system", "Be kind."), "hi"], ["system: Be kind.", "user: hi"], id="list"),
        pytest.param(StringPromptValue(text="hi"), ["user: hi"], id="string prompt"),
        pytest.param(
            ChatPromptValue(messages=[SystemMessage("Be kind."), HumanMessage("hi")]),
            ["system: Be kind.", "user: hi"],
            id="chat prompt",
        ),
        pytest.param(
            [("human", "hi"), ("ai", "Well,")], ["user: hi", "assistant: Well,"], id="prefill"
        ),
    ],
)
async def test_a_reply_is_judged_with_its_prompt(
    value: Any, context: list[str], door: Door, guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    guard = guarding()
    out = await door(guard | llm | guard, value)
    reply = "".join(chunk.text for chunk in out)
    assert texts()[-1] == [*context, f"assistant: {reply}"]


async def test_other_guards_may_stand_on_the_right(
    door: Door, guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    await door(guarding() | llm | guarding(Action.FLAG, stage=Stage.OUTPUT), "hi")
    assert [text.strip() for text in texts()[-1]] == ["user: hi", "assistant: re: hi"]


async def test_a_text_on_the_right_is_the_reply(
    door: Door, guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    guard = guarding()
    chain = guard | llm | StrOutputParser() | guard
    assert "".join(await door(chain, "hi")).strip() == "re: hi"
    assert [text.strip() for text in texts()[-1]] == ["user: hi", "assistant: re: hi"]


async def test_template_variables_are_the_prompt(
    door: Door, guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    guard = guarding(key="question")
    template = ChatPromptTemplate.from_messages([("system", "Be {how}."), ("human", "{question}")])
    await door(guard | template | llm | guard, {"question": "hi", "how": "kind"})
    assert [text.strip() for text in texts()[-1]] == ["user: hi", "assistant: re: hi"]


async def test_the_nearest_guard_on_the_left_counts(
    door: Door, guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    guard = guarding()
    template = ChatPromptTemplate.from_messages([("system", "Be kind."), ("human", "{question}")])
    await door(guarding(key="question") | template | guard | llm | guard, {"question": "hi"})
    assert [text.strip() for text in texts()[-1]] == [
        "system: Be kind.",
        "user: hi",
        "assistant: re: hi",
    ]


@pytest.mark.parametrize(
    ("action", "sent"),
    [
        (Action.REDACT, "Hi. [removed: Violent] Bye."),
        (Action.REPLACE, "This content was removed by the safety policy."),
        (Action.DROP, ""),
    ],
)
async def test_the_prompt_is_what_the_model_was_sent(
    action: Action, sent: str, door: Door, guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    guard = guarding(action)
    await door(guard | llm | guard, "Hi. A bomb. Bye.")
    assert [message.text for message in llm.sent[0]] == [sent]
    said = [text.strip() for text in texts()[-1]]
    assert said == [f"user: {sent}".strip(), f"assistant: re: {sent}".strip()]


async def test_a_reply_with_messages_of_its_own_brings_its_prompt(
    door: Door, guarding: Guarding, texts: Texts
) -> None:
    answer = {"messages": [HumanMessage("rewritten"), AIMessage("reply")]}
    await door(guarding() | RunnableLambda(lambda _: answer) | guarding(), "hi")
    assert texts()[-1] == ["user: rewritten", "assistant: reply"]


async def test_messages_that_an_agent_added_belong_to_the_prompt(
    door: Door, guarding: Guarding, texts: Texts
) -> None:
    call = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])
    added = [call, AIMessage("reply")]
    await door(guarding() | RunnableLambda(lambda _: added) | guarding(), "hi")
    assert texts()[-1] == ["user: hi", "assistant: f({})", "assistant: reply"]


async def test_without_a_guard_on_the_left_a_reply_is_judged_alone(
    door: Door, guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    out = await door(llm | guarding(), "hi")
    assert texts() == [[f"assistant: {''.join(chunk.text for chunk in out)}"]]


async def test_neighbours_in_a_parallel_or_function_are_no_pair(
    door: Door, guarding: Guarding, texts: Texts
) -> None:
    guard = guarding()

    def twice(text: str) -> str:
        return guard.invoke(guard.invoke(text))

    await door({"a": guard, "b": guard} | RunnableLambda(str), "hi")
    await door(RunnableLambda(twice), "hi")
    assert texts() == [["user: hi"]] * 4


async def test_an_unsafe_pair_is_blocked(
    door: Door, guarding: Guarding, engine: ScriptedEngine, llm: EchoModel
) -> None:
    engine.script = lambda c: (
        "Safety: Unsafe\nCategories: Violent"
        if [m.text.strip() for m in c.messages] == ["hi", "re: hi"]
        else "Safety: Safe\nCategories: None"
    )
    with pytest.raises(GuardViolation) as caught:
        await door(guarding() | llm | guarding(), "hi")
    assert caught.value.decision.stage is Stage.OUTPUT


def test_concurrent_invokes(guarding: Guarding, engine: ScriptedEngine, llm: EchoModel) -> None:
    chain = guarding() | llm | guarding()
    llm.seconds = 0.002
    with ThreadPoolExecutor(32) as threads:
        list(threads.map(chain.invoke, PROMPTS))
    assert_all_pairs_belong_together(engine)


def test_concurrent_streams(guarding: Guarding, engine: ScriptedEngine, llm: EchoModel) -> None:
    chain = guarding() | llm | guarding()

    def run(prompt: str) -> list[Any]:
        return list(chain.stream(prompt))

    with ThreadPoolExecutor(32) as threads:
        list(threads.map(run, PROMPTS))
    assert_all_pairs_belong_together(engine)


async def test_concurrent_ainvokes(
    guarding: Guarding, engine: ScriptedEngine, slow: Runnable[str, AIMessage]
) -> None:
    chain = guarding() | slow | guarding()
    await asyncio.gather(*map(chain.ainvoke, PROMPTS))
    assert_all_pairs_belong_together(engine)


async def test_concurrent_astreams(
    guarding: Guarding, engine: ScriptedEngine, slow: Runnable[str, AIMessage]
) -> None:
    chain = guarding() | slow | guarding()

    async def run(prompt: str) -> None:
        async for _ in chain.astream(prompt):
            pass

    await asyncio.gather(*map(run, PROMPTS))
    assert_all_pairs_belong_together(engine)


def test_interleaved_streams(guarding: Guarding, engine: ScriptedEngine, llm: EchoModel) -> None:
    chain = guarding() | llm | guarding()
    streams = [chain.stream(prompt) for prompt in PROMPTS]
    while streams:
        streams = [stream for stream in streams if next(stream, None) is not None]
    assert_all_pairs_belong_together(engine)


@pytest.mark.parametrize("return_exceptions", [False, True])
@pytest.mark.parametrize("method", ["batch", "abatch"])
async def test_batches(
    method: str, return_exceptions: bool, guarding: Guarding, engine: ScriptedEngine, llm: EchoModel
) -> None:
    chain = guarding() | llm | guarding()
    if method == "batch":
        chain.batch(PROMPTS, return_exceptions=return_exceptions)
    else:
        await chain.abatch(PROMPTS, return_exceptions=return_exceptions)
    assert_all_pairs_belong_together(engine)
    assert engine.batches == [RUNS, RUNS]


def test_pairs_belong_together_around_failures(
    guarding: Guarding, engine: ScriptedEngine, llm: EchoModel
) -> None:
    def fail_at_times(reply: AIMessage) -> AIMessage:
        if reply.text.endswith(("3", "7")):
            raise ValueError
        return reply

    prompts = [f"{'bomb' if index % 5 == 0 else 'question'} {index}" for index in range(RUNS)]
    chain = guarding() | llm | fail_at_times | guarding()
    results = chain.batch(prompts, return_exceptions=True)
    failed = [isinstance(result, Exception) for result in results]
    assert failed == [i % 5 == 0 or i % 10 in {3, 7} for i in range(RUNS)]
    for conversation in replies(engine):
        prompt, reply = conversation.messages
        assert reply.text == f"re: {prompt.text}"


@pytest.fixture
def slow():
    """A model that other runs overtake."""

    async def reply(text: str) -> AIMessage:
        await asyncio.sleep(hash(text) % 7 / 1000)
        return AIMessage(f"re: {text}")

    return RunnableLambda(reply)


@pytest.fixture
def kept(engine: ScriptedEngine):
    """How many messages with this word are alive, apart from those that the engine recorded."""

    def count(word: str) -> int:
        engine.seen.clear()
        gc.collect()
        return sum(type(o) is Message and word in o.text for o in gc.get_objects())

    return count


def fail(_: object) -> str:
    raise RuntimeError


@pytest.mark.parametrize(
    ("prompt", "broken"),
    [
        pytest.param("xyzzy", False, id="success"),
        pytest.param("xyzzy bomb", False, id="violation"),
        pytest.param("xyzzy", True, id="model error"),
    ],
)
async def test_nothing_is_kept_after_a_run(
    prompt: str, broken: bool, door: Door, guarding: Guarding, llm: EchoModel, kept: Kept
) -> None:
    during: list[int] = []

    def watch(value: str) -> str:
        during.append(kept("xyzzy"))
        return value

    chain = (
        guarding() | RunnableLambda(watch) | (RunnableLambda(fail) if broken else llm) | guarding()
    )
    with suppress(RuntimeError, GuardViolation):
        await door(chain, prompt)
    assert during == ([] if "bomb" in prompt else [1])
    assert kept("xyzzy") == 0


@pytest.mark.parametrize("method", ["ainvoke", "abatch", "astream"])
async def test_nothing_is_kept_after_a_cancelled_run(
    method: str, guarding: Guarding, kept: Kept
) -> None:
    started = asyncio.Event()

    async def hang(_: str) -> str:
        started.set()
        await asyncio.Event().wait()
        return ""

    async def run() -> None:
        chain = guarding() | RunnableLambda(hang) | guarding()
        if method == "astream":
            async for _ in chain.astream("xyzzy"):
                pass
        else:
            await getattr(chain, method)(["xyzzy"] if method == "abatch" else "xyzzy")

    async def cancel(task: asyncio.Task[None]) -> None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    task = asyncio.create_task(run())
    await started.wait()
    assert kept("xyzzy") > 0
    await cancel(task)
    del task
    # CPython keeps the frames of the task that was cancelled last; this one has none of ours.
    await cancel(asyncio.create_task(asyncio.sleep(60)))
    assert kept("xyzzy") == 0


def test_nothing_is_kept_of_a_stream_that_is_given_up(
    guarding: Guarding, llm: EchoModel, kept: Kept
) -> None:
    stream = (guarding() | llm | guarding()).stream("xyzzy")
    next(stream)
    assert kept("xyzzy") > 0
    del stream
    assert kept("xyzzy") == 0


async def test_a_run_id_of_ones_own(
    door: Door, guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    await door(guarding() | llm | guarding(), "hi", {"run_id": uuid4()})
    assert [text.strip() for text in texts()[-1]] == ["user: hi", "assistant: re: hi"]


async def test_a_run_id_that_cannot_be_kept_under_is_refused(
    door: Door, guarding: Guarding, llm: EchoModel
) -> None:
    with pytest.raises(TypeError, match="run_id of a config is str"):
        await door(guarding() | llm | guarding(), "hi", {"run_id": "abc"})


async def test_a_greeting_does_not_hide_the_prompt(
    door: Door, guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    chain = guarding() | llm | StrOutputParser() | guarding()
    out = await door(chain, [AIMessage("Hello!"), HumanMessage("q?")])
    assert texts()[-1] == ["assistant: Hello!", "user: q?", f"assistant: {''.join(out)}"]
