"""What LangChain makes of runnables, made of guards."""

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnablePassthrough

from guardrails_qwen import EngineError, Guard, GuardViolation, OnError, Policy
from guardrails_qwen.testing import FailingEngine, ScriptedEngine
from integrations.langchain.tests.doubles import Door, EchoModel, Guarding, Texts
from langchain_guardrails_qwen import GuardRunnable

RAISING = Policy.strict(on_error=OnError.RAISE)


@pytest.mark.parametrize("method", ["invoke", "ainvoke", "batch", "abatch"])
async def test_a_violation_is_not_tried_again(
    method: str, guarding: Guarding, engine: ScriptedEngine
) -> None:
    guard: Any = guarding().with_retry()
    value = ["a bomb"] if "batch" in method else "a bomb"

    async def run() -> Any:
        return await asyncio.to_thread(getattr(guard, method), value)

    async def arun() -> Any:
        return await getattr(guard, method)(value)

    with pytest.raises(GuardViolation):
        await (arun() if method.startswith("a") else run())
    assert engine.batches == [1]


async def test_a_violation_is_not_asked_about_elsewhere(door: Door, guarding: Guarding) -> None:
    open_ = GuardRunnable(Guard(ScriptedEngine()))
    with pytest.raises(GuardViolation):
        await door(guarding().with_fallbacks([open_]), "a bomb")


async def test_another_engine_where_one_failed(door: Door, guarding: Guarding) -> None:
    failing = GuardRunnable(Guard(FailingEngine(), RAISING))
    guard = failing.with_fallbacks([guarding()])
    assert await door(guard, "hi") == ["hi"]
    with pytest.raises(GuardViolation):
        await door(guard, "a bomb")


async def test_no_engine_at_all(door: Door) -> None:
    failing = GuardRunnable(Guard(FailingEngine(), RAISING))
    with pytest.raises(EngineError):
        await door(failing.with_fallbacks([failing]), "hi")


async def test_a_chain_with_fallbacks_has_to_name_what_they_are_for(
    door: Door, guarding: Guarding, llm: EchoModel
) -> None:
    guarded = guarding() | llm
    named = guarded.with_fallbacks([llm], exceptions_to_handle=(EngineError,))
    with pytest.raises(GuardViolation):
        await door(named, "a bomb")
    assert llm.sent == []
    unnamed = guarded.with_fallbacks([llm])
    assert "bomb" in str(await door(unnamed, "a bomb")), "LangChain's default, as documented"


async def test_with_listeners(door: Door, guarding: Guarding) -> None:
    heard: list[str] = []
    guard = guarding().with_listeners(
        on_start=lambda run: heard.append("start"),
        on_end=lambda run: heard.append("end"),
        on_error=lambda run: heard.append("error"),
    )
    await door(guard, "hi")
    with pytest.raises(GuardViolation):
        await door(guard, "a bomb")
    assert heard == ["start", "end", "start", "error"]


async def test_with_config_bind_and_types(door: Door, guarding: Guarding) -> None:
    for guard in [
        guarding().with_config(tags=["a"], run_name="doorman"),
        guarding().bind(stop=["x"]),
        guarding().with_types(input_type=str),
    ]:
        assert await door(guard, "hi") == ["hi"]
        with pytest.raises(GuardViolation):
            await door(guard, "a bomb")


async def test_map(door: Door, guarding: Guarding, engine: ScriptedEngine) -> None:
    assert await door(guarding().map(), ["hi", "hello"]) == [["hi", "hello"]]
    assert engine.batches == [2]
    with pytest.raises(GuardViolation):
        await door(guarding().map(), ["hi", "a bomb"])


async def test_assign_and_pick(door: Door, guarding: Guarding) -> None:
    state = {"messages": [("human", "hi")]}
    assigned = guarding().assign(count=lambda fields: len(fields["messages"]))
    total = dict[str, Any]()
    for chunk in await door(assigned, state):
        total |= chunk
    assert total == {**state, "count": 1}
    [picked] = await door(guarding().pick("messages"), state)
    assert picked == state["messages"]
    for chain in (assigned, guarding().pick("messages")):
        with pytest.raises(GuardViolation):
            await door(chain, {"messages": [("human", "a bomb")]})


async def test_in_an_assignment(door: Door, guarding: Guarding, texts: Texts) -> None:
    def reply(fields: dict[str, str], config: RunnableConfig) -> AIMessage:
        return AIMessage(fields["question"])

    chain = RunnablePassthrough.assign(answer=RunnableLambda(reply) | guarding())
    await door(chain, {"question": "hi"})
    assert texts() == [["assistant: hi"]]
    with pytest.raises(GuardViolation):
        await door(chain, {"question": "a bomb"})
