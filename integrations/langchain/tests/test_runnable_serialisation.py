"""Guards and chains of them, dumped and loaded: everything but the engine comes back."""

import json
import warnings
from typing import Any

import pytest
from langchain_core._api import LangChainBetaWarning
from langchain_core.load import dumpd, dumps, load, loads
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, Runnable, RunnablePassthrough

from guardrails_qwen import Action, Guard, GuardError, GuardViolation, OnError, Policy, Stage
from guardrails_qwen.streaming import Debounce, HoldBack, Streaming
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.doubles import SCRIPT, Door
from langchain_guardrails_qwen import GuardRunnable
from langchain_guardrails_qwen.serialisation import ENGINE_KEY, LOADING

PROMPT = ChatPromptTemplate.from_messages([("human", "{question}")])
STREAMING = Streaming(
    hold_back=HoldBack.SENTENCE, debounce=Debounce.OFF, closing="No.", tokens=2, stride=9, growth=2
)
SECRET = "https://user:secret@judge.example/v1"


class SecretEngine(ScriptedEngine):
    """An engine that would give something away."""

    def __repr__(self) -> str:
        return f"SecretEngine({SECRET!r})"


def loaded(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangChainBetaWarning)
        return loads(text, allowed_objects="core", **LOADING)


def guarding(**fields: Any) -> GuardRunnable:
    return GuardRunnable(Guard(SecretEngine(SCRIPT)), **fields)


def with_engine(runnable: Any) -> Runnable[Any, Any]:
    return runnable.with_config(configurable={ENGINE_KEY: ScriptedEngine(SCRIPT)})


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"stage": Stage.TOOL_RESULT, "key": "answer", "name": "doorman"}, id="names"),
        pytest.param({"streaming": STREAMING, "trace_text": True}, id="settings"),
        pytest.param({"policy": Policy.loose(action=Action.REDACT)}, id="policy"),
    ],
)
def test_a_guard_comes_back_as_it_was(fields: dict[str, Any]) -> None:
    guard = guarding(**fields)
    back = loaded(dumps(guard))
    assert isinstance(back, GuardRunnable)
    assert back.policy == (fields.get("policy") or Policy.strict())
    for name in ("stage", "key", "name", "streaming", "trace_text"):
        assert getattr(back, name) == getattr(guard, name)
    assert back.guard is back.engine is None
    assert dumpd(back) == dumpd(guard)


def test_a_dumped_guard_is_plain_data_without_its_engine() -> None:
    for runnable in [
        guarding(streaming=STREAMING),
        guarding(engine=SecretEngine()),
        guarding().wrap(RunnablePassthrough()),
        PROMPT | guarding(),
        guarding().configurable_fields(engine=ConfigurableField(id="engine")),
    ]:
        text = dumps(runnable)
        assert SECRET not in text
        assert "Engine(" not in text
        assert "not_implemented" not in text
        assert json.loads(text) == dumpd(runnable)


@pytest.mark.parametrize(
    "runnable",
    [
        pytest.param(guarding(), id="guard"),
        pytest.param(PROMPT | guarding(), id="sequence"),
        pytest.param(guarding().with_config(tags=["a"]), id="bound"),
        pytest.param(guarding().wrap(RunnablePassthrough()), id="pair"),
        pytest.param(guarding().wrap(RunnablePassthrough(), beside=True), id="pair beside"),
        pytest.param(
            guarding().configurable_fields(policy=ConfigurableField(id="policy")), id="configurable"
        ),
        pytest.param(PROMPT | guarding() | guarding(stage=Stage.INPUT), id="longer sequence"),
    ],
)
async def test_what_was_loaded_judges_with_an_engine_and_not_without(
    runnable: Any, door: Door
) -> None:
    back = loaded(dumps(runnable))
    assert dumpd(back) == dumpd(runnable)
    value = {"question": "hi", "messages": ["hi"]}
    with pytest.raises(GuardError, match="no engine") as caught:
        await door(back, value)
    assert not isinstance(caught.value, GuardViolation)
    assert await door(with_engine(back), value) == await door(runnable, value)
    for bad in (["a bomb"], ["hi", "a bomb"]):
        with pytest.raises(GuardViolation):
            await door(with_engine(back), {"question": bad[-1], "messages": bad})


async def test_a_policy_that_lets_failures_pass_does_not_let_this_one_pass(door: Door) -> None:
    policy = Policy.strict(on_error=OnError.ALLOW)
    back = loaded(dumps(guarding(policy=policy)))
    with pytest.raises(GuardError, match="no engine"):
        await door(back, "hi")


async def test_a_loaded_guard_is_given_an_engine(door: Door) -> None:
    back = loaded(dumps(guarding())).with_engine(ScriptedEngine(SCRIPT))
    assert await door(back, "hi") == ["hi"]
    with pytest.raises(GuardViolation):
        await door(back, "a bomb")


async def test_a_guard_with_an_engine_takes_no_other_from_a_config(door: Door) -> None:
    config: Any = {"configurable": {ENGINE_KEY: ScriptedEngine()}}
    with pytest.raises(GuardViolation):
        await door(guarding(), "a bomb", config)


@pytest.mark.parametrize("method", ["batch", "abatch"])
async def test_each_value_of_a_batch_may_have_its_engine(method: str) -> None:
    engines = [ScriptedEngine(), ScriptedEngine(SCRIPT)]
    back = loaded(dumps(guarding()))
    configs: Any = [{"configurable": {ENGINE_KEY: engines[index // 2]}} for index in range(4)]
    if method == "batch":
        results = back.batch(["a bomb"] * 4, configs, return_exceptions=True)
    else:
        results = await back.abatch(["a bomb"] * 4, configs, return_exceptions=True)
    assert [isinstance(r, GuardViolation) for r in results] == [False, False, True, True]
    assert [engine.batches for engine in engines] == [[2], [2]]


def test_data_can_be_loaded_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangChainBetaWarning)
        back = load(dumpd(guarding(stage=Stage.INPUT)), allowed_objects="core", **LOADING)
        named = load(
            dumpd(guarding()),
            allowed_objects=[GuardRunnable],
            valid_namespaces=["langchain_guardrails_qwen"],
        )
    assert back.stage is Stage.INPUT
    assert isinstance(named, GuardRunnable)


def test_a_policy_that_is_wrong_is_refused() -> None:
    data: Any = dumpd(guarding())
    data["kwargs"]["policy"]["stages"]["default"]["rules"][0]["action"] = "ignore"
    with pytest.raises(ValueError, match="policy"):
        loaded(json.dumps(data))
