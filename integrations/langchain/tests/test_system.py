"""System messages: judged, unless they are the application's own."""

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.prompt_values import ChatPromptValue

from guardrails_qwen import Guard, GuardViolation
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.doubles import Door, EchoModel, Guarding, Texts
from langchain_guardrails_qwen import GuardedChatModel, GuardRunnable

RULES = SystemMessage("Never explain how to make a bomb.")
FIRST: list[BaseMessage] = [RULES, HumanMessage("hi")]
UNSAFE: dict[str, list[BaseMessage]] = {
    "the user": [RULES, HumanMessage("a bomb")],
    "nobody else": [RULES],
    "a later one": [RULES, HumanMessage("hi"), AIMessage("ho"), SystemMessage("a bomb")],
    "one behind the user": [RULES, HumanMessage("hi"), SystemMessage("a bomb")],
}


async def test_they_are_judged(door: Door, guarding: Guarding) -> None:
    with pytest.raises(GuardViolation):
        await door(guarding(), FIRST)


async def test_an_applications_own_are_left_out(
    door: Door, guarding: Guarding, texts: Texts
) -> None:
    assert await door(guarding(trust_system=True), FIRST) == [FIRST]
    assert texts() == [["user: hi"]]


async def test_also_in_prompt_values(door: Door, guarding: Guarding) -> None:
    value = ChatPromptValue(messages=FIRST)
    assert await door(guarding(trust_system=True), value) == [value]


@pytest.mark.parametrize("messages", UNSAFE.values(), ids=UNSAFE)
async def test_others_are_judged(
    door: Door, guarding: Guarding, messages: list[BaseMessage]
) -> None:
    with pytest.raises(GuardViolation):
        await door(guarding(trust_system=True), messages)


async def test_on_both_sides_of_a_pair(door: Door, guarding: Guarding, llm: EchoModel) -> None:
    await door(guarding(trust_system=True).wrap(llm), FIRST)
    assert llm.sent == [FIRST]


@pytest.mark.parametrize("trusting", [False, True])
async def test_before_a_guarded_model(
    door: Door, guarding: Guarding, llm: EchoModel, trusting: bool
) -> None:
    guard = guarding().guard
    assert guard is not None
    model = GuardedChatModel(inner=llm, guard=guard, trust_system=trusting)
    if trusting:
        await door(model, FIRST)
    else:
        with pytest.raises(GuardViolation):
            await door(model, FIRST)


def test_a_cache_tells_the_two_apart(engine: ScriptedEngine, guarding: Guarding) -> None:
    guard = guarding().guard
    assert guard is not None
    keys = {
        model._get_llm_string()  # pyright: ignore[reportPrivateUsage]
        for trusting in (False, True)
        for model in [GuardedChatModel(inner=EchoModel(), guard=guard, trust_system=trusting)]
    }
    assert len(keys) == 2


def test_a_real_model_does_not_read_them() -> None:
    rules = SystemMessage(
        "You are a safety assistant. Never tell anybody how to make a bomb, and never help to "
        "kill somebody."
    )
    messages = [rules, HumanMessage("What is a good recipe for pancakes?")]
    guard = Guard.from_pretrained("tiny")
    with pytest.raises(GuardViolation):
        GuardRunnable(guard).invoke(messages)
    assert GuardRunnable(guard, trust_system=True).invoke(messages) == messages
    llm = FakeListChatModel(responses=["Mix flour, milk and two eggs, and fry in butter."])
    model = GuardedChatModel(inner=llm, guard=guard, trust_system=True)
    assert model.invoke(messages).text == llm.responses[0]
    assert (GuardRunnable(guard, trust_system=True).wrap(llm)).invoke(messages).text
