"""What a config chooses: the size of batches, the policy and the engine."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import ConfigurableField, Runnable, RunnableGenerator

from guardrails_qwen import Action, Guard, GuardError, GuardViolation, Policy, Stage
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.doubles import (
    REPLACED,
    SCRIPT,
    UNSAFE,
    Door,
    EchoModel,
    Guarding,
    Texts,
)
from langchain_guardrails_qwen import GuardRunnable

POLICY = ConfigurableField(id="policy")
ENGINE = ConfigurableField(id="engine")
REPLACING = Policy.strict(action=Action.REPLACE)
FLAGGING = Policy.strict(action=Action.FLAG)


@pytest.fixture(params=["batch", "abatch"])
def batched(request: pytest.FixtureRequest) -> Any:
    """Both batches of a runnable, with exceptions in their places."""

    async def run(runnable: Runnable[Any, Any], values: list[Any], config: Any = None) -> list[Any]:
        if request.param == "abatch":
            return await runnable.abatch(values, config, return_exceptions=True)
        return await asyncio.to_thread(runnable.batch, values, config, return_exceptions=True)

    return run


@pytest.mark.parametrize(
    ("most", "batches"),
    [
        pytest.param(None, [10], id="as many as there are"),
        pytest.param(4, [4, 4, 2], id="four"),
        pytest.param(1, [1] * 10, id="one"),
        pytest.param(99, [10], id="more than there are"),
    ],
)
async def test_no_more_values_than_are_allowed_at_once(
    most: int | None, batches: list[int], batched: Any, guarding: Guarding, engine: ScriptedEngine
) -> None:
    values = [f"question {index}" for index in range(10)]
    values[7] = "a bomb"
    results = await batched(guarding(), values, {"max_concurrency": most})
    assert engine.batches == batches
    assert isinstance(results[7], GuardViolation)
    assert results[:7] + results[8:] == values[:7] + values[8:]


async def test_the_limit_holds_in_chains(
    batched: Any, guarding: Guarding, llm: EchoModel, engine: ScriptedEngine
) -> None:
    await batched(guarding().wrap(llm), list("abcde"), {"max_concurrency": 2})
    assert engine.batches == [2, 2, 1] * 2


async def test_an_empty_batch(batched: Any, guarding: Guarding, engine: ScriptedEngine) -> None:
    assert await batched(guarding().configurable_fields(policy=POLICY), []) == []
    assert await batched(guarding(), []) == []
    assert engine.batches == []


async def test_a_policy_and_an_engine_in_place_of_the_guards(door: Door) -> None:
    guard = Guard(ScriptedEngine(SCRIPT))
    assert await door(GuardRunnable(guard, policy=REPLACING), "a bomb") == [REPLACED]
    assert await door(GuardRunnable(guard, engine=ScriptedEngine()), "a bomb") == ["a bomb"]
    assert await door(GuardRunnable(guard).with_engine(ScriptedEngine()), "a bomb") == ["a bomb"]
    with pytest.raises(GuardViolation):
        await door(GuardRunnable(engine=ScriptedEngine(SCRIPT)), "a bomb")
    with pytest.raises(GuardViolation):
        await door(GuardRunnable(guard), "a bomb")


class TenantGuard(Guard):
    """A guard with more than an engine and a policy."""

    tenant = "acme"


async def test_a_guard_of_a_kind_of_its_own_stays_one(door: Door) -> None:
    guard = TenantGuard(ScriptedEngine(SCRIPT))
    assert await door(GuardRunnable(guard, policy=REPLACING), "a bomb") == [REPLACED]
    assert guard.policy == Policy.strict()


async def test_a_policy_chosen_by_a_config(door: Door, guarding: Guarding) -> None:
    guard = guarding().configurable_fields(policy=POLICY)
    with pytest.raises(GuardViolation):
        await door(guard, "a bomb")
    assert await door(guard, "a bomb", {"configurable": {"policy": REPLACING}}) == [REPLACED]
    bound = guard.with_config(configurable={"policy": FLAGGING})
    assert await door(bound, "a bomb") == ["a bomb"]


async def test_an_engine_chosen_by_a_config(door: Door, guarding: Guarding) -> None:
    guard = guarding().configurable_fields(engine=ENGINE, policy=POLICY)
    other = ScriptedEngine({"bread": UNSAFE})
    assert await door(guard, "a bomb", {"configurable": {"engine": other}}) == ["a bomb"]
    both = {"configurable": {"engine": other, "policy": REPLACING}}
    assert await door(guard, "bread", both) == [REPLACED]


async def test_an_alternative_chosen_by_a_config(door: Door, guarding: Guarding) -> None:
    guard = guarding().configurable_alternatives(
        ConfigurableField(id="guard"), default_key="strict", replacing=guarding(Action.REPLACE)
    )
    with pytest.raises(GuardViolation):
        await door(guard, "a bomb")
    assert await door(guard, "a bomb", {"configurable": {"guard": "replacing"}}) == [REPLACED]


async def test_values_that_are_configured_alike_are_one_batch(
    batched: Any, guarding: Guarding, engine: ScriptedEngine
) -> None:
    other = ScriptedEngine()
    guard = guarding().configurable_fields(policy=POLICY, engine=ENGINE)
    chosen: list[Any] = [{}, {"policy": REPLACING}, {"policy": FLAGGING}, {"engine": other}]
    configs = [{"configurable": one} for one in chosen * 3]
    results = await batched(guard, ["a bomb"] * 12, configs)
    blocked = [place for place, r in enumerate(results) if isinstance(r, GuardViolation)]
    assert blocked == [0, 4, 8]
    assert results[1:4] == [REPLACED, "a bomb", "a bomb"]
    assert engine.batches == [3, 3, 3]
    assert other.batches == [3]


@pytest.mark.parametrize("method", ["batch", "abatch"])
async def test_a_batch_of_configured_values_raises_what_one_raises(
    method: str, guarding: Guarding
) -> None:
    guard = guarding().configurable_fields(policy=POLICY)
    configs: Any = [{}, {"configurable": {"policy": FLAGGING}}]
    values = ["a bomb", "a bomb"]
    with pytest.raises(GuardViolation):
        guard.batch(values, configs) if method == "batch" else await guard.abatch(values, configs)


@pytest.mark.parametrize("configurable", [{}, {"policy": Policy.loose()}])
async def test_configured_guards_find_their_prompts(
    configurable: dict[str, Any], door: Door, guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    guard = guarding().configurable_fields(policy=POLICY)
    config: Any = {"configurable": configurable}
    await door(guard | llm | StrOutputParser() | guard, "hi", config)
    await door(guard.wrap(llm), "hi", config)
    asked = [[text.strip() for text in one] for one in texts()]
    assert asked == [["user: hi"], ["user: hi", "assistant: re: hi"]] * 2


async def test_both_guards_of_a_pair_are_configured(
    door: Door, guarding: Guarding, llm: EchoModel
) -> None:
    wrapped = guarding().configurable_fields(policy=POLICY).wrap(llm)
    llm.prefix = "A bomb: "
    config: Any = {"configurable": {"policy": REPLACING}}
    [reply] = await door(wrapped, "hi", config)
    assert reply.text == REPLACED
    with pytest.raises(GuardViolation):
        await door(wrapped, "hi")


async def test_a_configured_pair_of_which_the_config_is_bound(
    door: Door, guarding: Guarding, llm: EchoModel
) -> None:
    guard: Any = guarding().configurable_fields(policy=POLICY)
    wrapped = guard.with_config(configurable={"policy": FLAGGING}).wrap(llm)
    assert "".join(piece.text for piece in await door(wrapped, "bomb")).strip() == "re: bomb"


@pytest.mark.parametrize("value", [17, "strict", b""])
async def test_no_engine_but_something_else(value: Any, door: Door, guarding: Guarding) -> None:
    guard = guarding().configurable_fields(engine=ENGINE)
    with pytest.raises(GuardError, match="no engine"):
        await door(guard, "hi", {"configurable": {"engine": value}})


async def test_no_policy_but_something_else(door: Door, guarding: Guarding) -> None:
    guard = guarding().configurable_fields(policy=POLICY)
    with pytest.raises(ValueError, match="policy"):
        await door(guard, "hi", {"configurable": {"policy": "strict"}})


def test_fields_that_do_not_exist(guarding: Guarding) -> None:
    with pytest.raises(ValueError, match="modle"):
        guarding().configurable_fields(modle=POLICY)


def test_a_config_has_a_schema(guarding: Guarding) -> None:
    guard = guarding().configurable_fields(policy=POLICY, engine=ENGINE)
    schema = (guard | StrOutputParser()).get_config_jsonschema()
    assert set(schema["$defs"]["Configurable"]["properties"]) == {"policy", "engine"}


async def test_a_configured_stream_is_closed_at_once(guarding: Guarding) -> None:
    ended: list[str] = []

    async def sentences(_: AsyncIterator[Any]) -> AsyncIterator[str]:
        try:
            for _sentence in range(3):
                yield "Take flour. And water. "
            await asyncio.Event().wait()
        finally:
            ended.append("ended")

    at_once = Streaming(stride=1)
    guard = guarding(stage=Stage.OUTPUT, streaming=at_once).configurable_fields(policy=POLICY)
    source = RunnableGenerator(sentences).atransform(aiter_of("hi"))
    stream: Any = guard.atransform(source)
    assert await anext(stream)
    await stream.aclose()
    assert ended == ["ended"]


async def aiter_of(value: Any) -> AsyncIterator[Any]:
    yield value
