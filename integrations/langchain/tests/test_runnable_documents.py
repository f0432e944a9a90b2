"""Documents that pass a guard in a chain."""

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda

from guardrails_qwen import Action, ConversationError, Guard, GuardViolation, OnError, Policy, Stage
from guardrails_qwen.errors import EngineError
from guardrails_qwen.testing import FailingEngine, ScriptedEngine
from integrations.langchain.tests.doubles import REPLACED, Door, Guarding
from langchain_guardrails_qwen import GuardRunnable

GOOD, BAD = Document("Take flour.", id="1"), Document("Take a bomb.", id="2")
HIDDEN = Document("Take water.", metadata={"title": "a bomb"})


@pytest.fixture
def guard(guarding: Guarding) -> GuardRunnable:
    return guarding(Action.BLOCK, stage=Stage.CONTEXT)


async def test_those_that_are_not_dropped_pass_with_their_verdict(
    door: Door, guard: GuardRunnable, engine: ScriptedEngine
) -> None:
    [passed] = await door(guard, [GOOD, BAD, HIDDEN, GOOD])
    assert [document.page_content for document in passed] == ["Take flour.", "Take flour."]
    assert passed[0].metadata["guardrails_qwen"]["action"] == "allow"
    assert GOOD.metadata == {}
    assert len(engine.batches) == 1


@pytest.mark.parametrize(
    ("value", "passed_on"),
    [
        pytest.param(GOOD, "Take flour.", id="passes"),
        pytest.param(BAD, "", id="dropped"),
        pytest.param(HIDDEN, "", id="dropped for its metadata"),
    ],
)
async def test_a_single_one(
    value: Document, passed_on: str, door: Door, guard: GuardRunnable
) -> None:
    [passed] = await door(guard, value)
    assert passed.page_content == passed_on
    assert "bomb" not in str(passed)


async def test_none_at_all(door: Door, guard: GuardRunnable, engine: ScriptedEngine) -> None:
    assert await door(guard, []) == [[]]
    assert engine.batches == []


@pytest.mark.parametrize("value", [[GOOD, BAD], BAD], ids=["list", "single"])
async def test_a_policy_that_blocks(value: Any, door: Door, engine: ScriptedEngine) -> None:
    default = Policy.strict()
    blocking = Policy(name="mine", default=default.at(Stage.INPUT))
    guard = GuardRunnable(Guard(engine, blocking), stage=Stage.CONTEXT)
    with pytest.raises(GuardViolation) as caught:
        await door(guard, value)
    assert caught.value.decision.stage is Stage.CONTEXT


async def test_a_policy_that_replaces(door: Door, engine: ScriptedEngine) -> None:
    policy = Policy.strict(action=Action.REPLACE)
    guard = GuardRunnable(Guard(engine, policy), stage=Stage.CONTEXT)
    [[good, bad]] = await door(guard, [GOOD, BAD])
    assert [good.page_content, bad.page_content] == ["Take flour.", REPLACED]


@pytest.mark.parametrize(
    ("on_error", "error"),
    [
        pytest.param(OnError.BLOCK, GuardViolation, id="block"),
        pytest.param(OnError.RAISE, EngineError, id="raise"),
    ],
)
async def test_what_could_not_be_judged_does_not_pass(
    on_error: OnError, error: type[Exception], door: Door
) -> None:
    failing = Guard(FailingEngine(), Policy.strict(on_error=on_error))
    with pytest.raises(error):
        await door(GuardRunnable(failing, stage=Stage.CONTEXT), [GOOD])


@pytest.mark.parametrize("stage", [None, Stage.INPUT, Stage.OUTPUT])
@pytest.mark.parametrize("value", [BAD, [BAD]], ids=["single", "list"])
async def test_they_need_their_stage(
    value: Any, stage: Stage | None, door: Door, guarding: Guarding
) -> None:
    with pytest.raises(ConversationError, match=r"stage=Stage\.CONTEXT"):
        await door(guarding(stage=stage), value)


@pytest.mark.parametrize("value", [[GOOD, "a bomb"], [17, GOOD]])
async def test_documents_among_other_things(value: Any, door: Door, guard: GuardRunnable) -> None:
    with pytest.raises(ConversationError):
        await door(guard, value)


@pytest.mark.parametrize("method", ["batch", "abatch"])
async def test_several_lists_are_one_batch(
    method: str, guard: GuardRunnable, engine: ScriptedEngine
) -> None:
    lists: list[Any] = [[GOOD, BAD], [BAD], "Take salt.", GOOD]
    passed = guard.batch(lists) if method == "batch" else await guard.abatch(lists)
    assert [len(passed[0]), len(passed[1])] == [1, 0]
    assert passed[2] == "Take salt."
    assert len(engine.batches) == 1


async def test_in_a_chain(door: Door, guard: GuardRunnable) -> None:
    def found(_: object) -> list[Document]:
        return [BAD, GOOD]

    def joined(documents: list[Document]) -> str:
        return " ".join(document.page_content for document in documents)

    chain = RunnableLambda(found) | guard | joined
    assert await door(chain, "bread?") == ["Take flour."]


def test_the_schema_names_them(guard: GuardRunnable) -> None:
    assert "Document" in str(guard.get_input_jsonschema()["$defs"])
