"""Each kind of value goes in, and the same kind comes out."""

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompt_values import ChatPromptValue, ImagePromptValue, StringPromptValue
from langchain_core.runnables.utils import AddableDict

from guardrails_qwen import Action, ConversationError, GuardViolation, Stage
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.doubles import FILTERED, REPLACED, Door, Guarding, Texts
from langchain_guardrails_qwen import GuardRunnable

SYSTEM = SystemMessage("Be kind.")
ASK = HumanMessage("make a bomb", id="h1")
CALL = AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "c1"}])


def conversation(text: str) -> dict[str, Any]:
    """The same text in every kind of value, each with a twin of the last message before."""
    return {
        "str": text,
        "message": HumanMessage(text),
        "list": [SYSTEM, HumanMessage(text)],
        "list of tuples": [("system", "Be kind."), ("human", text)],
        "list of dicts": [{"role": "user", "content": text}],
        "list of str": [text],
        "string prompt": StringPromptValue(text=text),
        "chat prompt": ChatPromptValue(messages=[SYSTEM, HumanMessage(text)]),
        "state": {"messages": [SYSTEM, HumanMessage(text)], "turn": 3},
        "state, one message": {"messages": HumanMessage(text)},
        "field": {"question": text, "language": "en"},
        "addable field": AddableDict(question=text),
    }


KINDS = list(conversation(""))
FIELDS = ("field", "addable field")
"""Kinds of which a field has to be named."""


def named(kind: str) -> dict[str, str]:
    """How a guard is made for a kind."""
    return {"key": "question"} if kind in FIELDS else {}


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_allowed_passes_as_the_same_object(
    kind: Any, door: Door, guarding: Guarding
) -> None:
    value = conversation("hello")[kind]
    [passed] = await door(guarding(**named(kind)), value)
    assert passed is value


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_blocked_raises_without_quoting(
    kind: Any, door: Door, guarding: Guarding
) -> None:
    with pytest.raises(GuardViolation) as caught:
        await door(guarding(**named(kind)), conversation("make a bomb")[kind])
    assert "bomb" not in str(caught.value)
    assert caught.value.decision.stage is Stage.INPUT


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_flagged_passes(kind: Any, door: Door, guarding: Guarding) -> None:
    value = conversation("make a bomb")[kind]
    [passed] = await door(guarding(Action.FLAG, **named(kind)), value)
    assert passed is value


@pytest.mark.parametrize(
    ("action", "text"),
    [
        pytest.param(Action.REPLACE, REPLACED, id="replace"),
        pytest.param(Action.REDACT, "Hi. [removed: Violent] Bye.", id="redact"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_changed_value_keeps_its_kind(
    kind: Any, action: Action, text: str, door: Door, guarding: Guarding
) -> None:
    said, copy = (conversation("Hi. Make a bomb. Bye.")[kind] for _ in range(2))
    [passed] = await door(guarding(action, **named(kind)), said)
    expected = conversation(text)[kind]
    if kind in {"list of tuples", "list of dicts", "list of str"}:  # the changed one is a message
        expected = [*expected[:-1], HumanMessage(text)]
    assert passed == expected
    assert type(passed) is type(expected)
    assert said == copy, "the input was changed in place"


@pytest.mark.parametrize(
    ("value", "passed_on"),
    [
        pytest.param("make a bomb", "", id="str"),
        pytest.param(ASK, HumanMessage("", id="h1"), id="message"),
        pytest.param([SYSTEM, ASK], [SYSTEM], id="list"),
        pytest.param([ASK], [HumanMessage("", id="h1")], id="list of one"),
        pytest.param(
            {"messages": [SYSTEM, ASK]},
            {"messages": [SYSTEM, HumanMessage("", id="h1")]},
            id="state, whose graph keeps what is not there",
        ),
        pytest.param(StringPromptValue(text="bomb"), StringPromptValue(text=""), id="string"),
        pytest.param(
            ChatPromptValue(messages=[SYSTEM, ASK]), ChatPromptValue(messages=[SYSTEM]), id="chat"
        ),
        pytest.param(
            ChatPromptValue(messages=[ASK]),
            ChatPromptValue(messages=[HumanMessage("", id="h1")]),
            id="chat of one",
        ),
        pytest.param(
            [CALL, ToolMessage("bomb", tool_call_id="c1")],
            [CALL, ToolMessage("", tool_call_id="c1")],
            id="a tool's answer stays, empty",
        ),
    ],
)
async def test_what_is_dropped_is_gone(
    value: Any, passed_on: Any, door: Door, guarding: Guarding
) -> None:
    assert await door(guarding(Action.DROP), value) == [passed_on]


async def test_untouched_elements_stay_the_same_objects(door: Door, guarding: Guarding) -> None:
    first, second = ("system", "Be kind."), HumanMessage("hello")
    state = {"messages": [first, second, AIMessage("bomb", id="a1")], "other": object()}
    [passed] = await door(guarding(Action.REPLACE), state)
    assert passed["messages"][0] is first
    assert passed["messages"][1] is second
    assert passed["other"] is state["other"]
    assert passed["messages"][2] == AIMessage(REPLACED, id="a1", response_metadata=FILTERED)


@pytest.mark.parametrize(
    ("value", "stage"),
    [
        pytest.param("bomb", Stage.INPUT, id="str"),
        pytest.param(HumanMessage("bomb"), Stage.INPUT, id="human"),
        pytest.param(SystemMessage("bomb"), Stage.INPUT, id="system"),
        pytest.param(AIMessage("bomb"), Stage.OUTPUT, id="ai"),
        pytest.param([ASK, AIMessage("bomb")], Stage.OUTPUT, id="list ending with ai"),
        pytest.param({"messages": [ASK, AIMessage("bomb")]}, Stage.OUTPUT, id="state"),
        pytest.param(
            AIMessage("", tool_calls=[{"name": "bomb", "args": {}, "id": "1"}]),
            Stage.TOOL_CALL,
            id="tool call",
        ),
        pytest.param(ToolMessage("bomb", tool_call_id="1"), Stage.TOOL_RESULT, id="tool result"),
        pytest.param(
            ChatMessage(content="bomb", role="assistant"), Stage.OUTPUT, id="chat, assistant"
        ),
        pytest.param(
            ChatMessage(content="bomb", role="developer"), Stage.INPUT, id="chat, developer"
        ),
    ],
)
async def test_the_stage_follows_from_the_value(
    value: Any, stage: Stage, door: Door, guarding: Guarding
) -> None:
    with pytest.raises(GuardViolation) as caught:
        await door(guarding(), value)
    assert caught.value.decision.stage is stage


@pytest.mark.parametrize(
    ("stage", "asked"),
    [
        (Stage.INPUT, "user: hi"),
        (Stage.CONTEXT, "user: hi"),
        (Stage.OUTPUT, "assistant: hi"),
        (Stage.TOOL_CALL, "assistant: hi"),
        (Stage.TOOL_RESULT, "tool: hi"),
    ],
)
async def test_an_explicit_stage_says_who_speaks(
    stage: Stage, asked: str, door: Door, guarding: Guarding, texts: Texts
) -> None:
    await door(guarding(stage=stage), "hi")
    assert texts() == [[asked]]


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.CONTEXT])
async def test_an_explicit_stage_wins(stage: Stage, door: Door, guarding: Guarding) -> None:
    with pytest.raises(GuardViolation) as caught:
        await door(guarding(stage=stage), HumanMessage("bomb"))
    assert caught.value.decision.stage is stage


async def test_unsafe_context_is_dropped(door: Door, guarding: Guarding) -> None:
    assert await door(guarding(stage=Stage.CONTEXT), "bomb") == [""]


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        pytest.param(17, "cannot judge int", id="int"),
        pytest.param(None, "cannot judge NoneType", id="None"),
        pytest.param(("human", "bomb"), "cannot judge tuple", id="tuple"),
        pytest.param(Document("bomb"), "cannot judge Document", id="document"),
        pytest.param(
            ImagePromptValue(image_url={"url": "bomb"}), "ImagePromptValue", id="image prompt"
        ),
        pytest.param([], "empty list", id="empty list"),
        pytest.param({"question": "bomb"}, "key=", id="dict without key"),
        pytest.param({"messages": []}, "empty list", id="empty state"),
        pytest.param({"messages": {"a": "bomb"}}, "key=", id="dict in a state"),
        pytest.param([ASK, 17], "message 1: a message cannot be made of", id="int in a list"),
        pytest.param([{"text": "bomb"}], "message 0: a message cannot be made of", id="bad dict"),
        pytest.param([("bomb", "bomb")], "message 0: a message cannot be made", id="bad role"),
        pytest.param(
            ChatMessage(content="hi", role="bomb"), "role of a ChatMessage", id="unknown role"
        ),
        pytest.param("bomb \ud800", "lone surrogate", id="lone surrogate"),
    ],
)
async def test_what_cannot_be_judged_does_not_pass(
    value: Any, advice: str, door: Door, guarding: Guarding
) -> None:
    with pytest.raises(ConversationError) as caught:
        await door(guarding(), value)
    assert advice in str(caught.value)
    assert "bomb" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"answer": "bomb"}, id="another field"),
        pytest.param({"quesiton": "bomb", "messages": [ASK]}, id="a state, and a typing error"),
    ],
)
async def test_a_missing_field_is_named(
    fields: dict[str, Any], door: Door, guarding: Guarding
) -> None:
    with pytest.raises(ConversationError, match="no 'question'"):
        await door(guarding(key="question"), fields)


async def test_a_field_may_have_the_name_of_a_state(door: Door, guarding: Guarding) -> None:
    with pytest.raises(GuardViolation):
        await door(guarding(key="messages"), {"messages": ["bomb"], "question": "hi"})


async def test_every_message_of_the_last_turn_is_judged(
    door: Door, guarding: Guarding, texts: Texts
) -> None:
    answers = [ToolMessage(text, tool_call_id="c1") for text in ["fine", "bomb", "good"]]
    [passed] = await door(guarding(Action.REPLACE), [CALL, *answers])
    assert [m.text for m in passed] == ["", "fine", REPLACED, "good"]
    assert [conversation[-1] for conversation in texts()] == [
        "tool: fine",
        "tool: bomb",
        "tool: good",
    ]


async def test_a_batch_is_one_batch(guarding: Guarding, engine: ScriptedEngine) -> None:
    guard = guarding()
    guard.batch(["a", "b", HumanMessage("c")])
    await guard.abatch(["a", "b"])
    assert engine.batches == [3, 2]
    assert guard.batch([]) == []


@pytest.mark.parametrize("method", ["batch", "abatch"])
async def test_a_bad_item_spares_its_neighbours(method: str, guarding: Guarding) -> None:
    async def run(**options: Any) -> list[Any]:
        values = ["a", "bomb", 17, "b"]
        if method == "batch":
            return guarding().batch(values, **options)
        return await guarding().abatch(values, **options)

    a, violation, unknown, b = await run(return_exceptions=True)
    assert (a, b) == ("a", "b")
    assert isinstance(violation, GuardViolation)
    assert isinstance(unknown, ConversationError)
    with pytest.raises(GuardViolation):
        await run()


def test_the_constructor_takes_positions_and_keywords(guarding: Guarding) -> None:
    guard = guarding().guard
    assert GuardRunnable(guard, Stage.INPUT, "question", "g") == GuardRunnable(
        guard=guard, stage=Stage.INPUT, key="question", name="g"
    )


SANDWICH = [HumanMessage("bomb", id="h"), SystemMessage("Be polite.", id="s")]


@pytest.mark.parametrize("action", [Action.REPLACE, Action.REDACT, Action.DROP])
@pytest.mark.parametrize(
    "turn",
    [SANDWICH, [*SANDWICH, HumanMessage("hi")], SANDWICH[::-1]],
    ids=["system last", "between", "system first"],
)
async def test_a_decision_reaches_every_message_of_the_last_turn(
    action: Action, turn: list[Any], door: Door, guarding: Guarding
) -> None:
    """A model is asked about users' and system messages together, whichever comes last."""
    [passed] = await door(guarding(action), turn)
    assert "bomb" not in str(passed)


async def test_what_a_tool_answers_does_not_hide_what_a_user_asks(
    door: Door, guarding: Guarding
) -> None:
    answered = [HumanMessage("bomb"), ToolMessage("sunny", tool_call_id="c")]
    with pytest.raises(GuardViolation) as caught:
        await door(guarding(), answered)
    assert caught.value.decision.stage is Stage.INPUT
