"""What of a message is judged, and what is left of one that was changed."""

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    ToolMessage,
)
from pydantic import BaseModel

from guardrails_qwen import Action, ConversationError, GuardViolation
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.doubles import FILTERED, REPLACED, Door, Guarding


class Parsed(BaseModel):
    answer: str


def block(**fields: object) -> AIMessage:
    return AIMessage([{"type": "text", "text": "Well. "}, fields])


@pytest.mark.parametrize(
    ("message", "judged"),
    [
        pytest.param(AIMessage(""), "", id="empty"),
        pytest.param(AIMessage(["bo", {"type": "text", "text": "mb"}]), "bomb", id="split text"),
        pytest.param(block(type="refusal", refusal="No bomb."), "Well. No bomb.", id="refusal"),
        pytest.param(
            block(type="thinking", thinking="bomb", signature="x"), "bomb\nWell. ", id="thinking"
        ),
        pytest.param(block(type="reasoning", reasoning="bomb"), "bomb\nWell. ", id="reasoning"),
        pytest.param(
            block(type="reasoning", summary=[{"type": "summary_text", "text": "bomb"}]),
            "bomb\nWell. ",
            id="reasoning summary",
        ),
        pytest.param(
            block(type="reasoning_content", reasoning_content={"text": "bomb", "signature": "x"}),
            "bomb\nWell. ",
            id="reasoning content",
        ),
        pytest.param(
            AIMessage("Well.", additional_kwargs={"reasoning_content": "bomb"}),
            "bomb\nWell.",
            id="reasoning in additional_kwargs",
        ),
        pytest.param(
            AIMessage("", additional_kwargs={"function_call": {"name": "f", "arguments": "bomb"}}),
            "f(bomb)",
            id="legacy function call",
        ),
        pytest.param(
            AIMessage("", tool_calls=[{"name": "f", "args": {"q": "bömb"}, "id": "1"}]),
            'f({"q": "bömb"})',
            id="tool call",
        ),
        pytest.param(
            AIMessage(
                "",
                invalid_tool_calls=[
                    {"name": None, "args": '{"q": bomb', "id": "1", "error": None, "type": "x"}
                ],
            ),
            '({"q": bomb)',
            id="invalid tool call",
        ),
        pytest.param(
            AIMessage(
                [{"type": "tool_use", "id": "1", "name": "f", "input": {"q": "bomb"}}],
                tool_calls=[{"name": "f", "args": {"q": "bomb"}, "id": "1"}],
                additional_kwargs={
                    "tool_calls": [
                        {"id": "1", "function": {"name": "f", "arguments": '{"q":"bomb"}'}}
                    ]
                },
            ),
            'f({"q": "bomb"})',
            id="the same tool call thrice",
        ),
        pytest.param(
            block(type="tool_use", id="1", name="f", input={"q": "bomb"}),
            'Well. \nf({"q": "bomb"})',
            id="tool call in content only",
        ),
        pytest.param(
            AIMessageChunk(
                content="",
                tool_call_chunks=[
                    {"name": "f", "args": '{"q": "bomb"}', "id": "1", "index": 0},
                ],
            ),
            'f({"q": "bomb"})',
            id="tool call chunk",
        ),
        pytest.param(
            AIMessage(
                "",
                tool_calls=[{"name": "f", "args": {"q": "ok"}, "id": "1"}],
                additional_kwargs={
                    "tool_calls": [
                        {"function": {"name": "f", "arguments": '{"q":"bomb","q":"ok"}'}}
                    ]
                },
            ),
            'f({"q": "ok"})\nf({"q":"bomb","q":"ok"})',
            id="a field given twice",
        ),
        pytest.param(
            AIMessage([{"type": "text", "text": "See.", "citations": [{"cited_text": "bomb"}]}]),
            "bomb\nSee.",
            id="citation",
        ),
        pytest.param(HumanMessage("hi", name="bomb"), "bomb: hi", id="name"),
        pytest.param(
            HumanMessage([{"type": "text-plain", "text": "do it", "context": "A", "title": "B"}]),
            "A\nB\ndo it",
            id="context and title",
        ),
        pytest.param(
            AIMessage("Hi", additional_kwargs={"thinking_blocks": [{"thinking": "bomb"}]}),
            "bomb\nHi",
            id="additional_kwargs of any name",
        ),
        pytest.param(
            AIMessage("Hi", additional_kwargs={"a bomb": 1, "refusal": None}),
            "a bomb\nHi",
            id="a text for a name",
        ),
        pytest.param(
            block(type="thinking", thought="bomb", signature="x"), "bomb\nWell. ", id="thought"
        ),
        pytest.param(
            block(type="reasoning", extras={"notes": ["bo", "mb"], "signature": "x=="}),
            "bo\nmb\nWell. ",
            id="extras of reasoning",
        ),
        pytest.param(
            block(type="reasoning", id="make a bomb", index=0), "make a bomb\nWell. ", id="id"
        ),
        pytest.param(
            block(type="reasoning", index=["a", "bomb"]), "a\nbomb\nWell. ", id="words for an index"
        ),
        pytest.param(block(type="redacted_thinking", data="Zm9v+/=="), "Well. ", id="encrypted"),
        pytest.param(
            block(type="redacted_thinking", data="a bomb"), "a bomb\nWell. ", id="not encrypted"
        ),
        pytest.param(
            block(type="server_tool_use", id="1", name="s", input={"q": 1}, queries=["bomb"]),
            'Well. \ns({"q": 1})\ns(bomb)',
            id="queries of a server tool",
        ),
        pytest.param(
            block(type="server_tool_call", id="1", name="s", args={}, code="a", outputs=["bomb"]),
            "Well. \ns({})\ns(a\nbomb)",
            id="code of a server tool",
        ),
        pytest.param(
            AIMessage(
                "",
                invalid_tool_calls=[
                    {"name": "f", "args": "x", "id": "1", "error": "bomb", "type": "x"}
                ],
            ),
            "f(x)\nf(bomb)",
            id="error of an invalid call",
        ),
        pytest.param(
            AIMessage(
                "",
                additional_kwargs={
                    "tool_calls": [
                        {"id": "1", "function": {"name": "f", "arguments": "{}"}, "note": "bomb"}
                    ]
                },
            ),
            "f({})\n({})\n(bomb)",
            id="beside the function of a call",
        ),
        pytest.param(HumanMessage("hi", note={"a": ["bomb"]}), "bomb\nhi", id="extra field"),
        pytest.param(HumanMessage("hi", role="bomb"), "bomb\nhi", id="extra field of a known name"),
        pytest.param(
            ToolMessage("hi", tool_call_id="a bomb"), "a bomb\nhi", id="an id that is a text"
        ),
        pytest.param(
            AIMessage("hi", id="run--1", additional_kwargs={"parsed": Parsed(answer="bomb")}),
            "bomb\nhi",
            id="parsed",
        ),
    ],
)
async def test_all_that_a_message_says_is_judged(
    message: BaseMessage, judged: str, door: Door, guarding: Guarding, engine: ScriptedEngine
) -> None:
    await door(guarding(Action.FLAG), message)
    [conversation] = engine.seen
    assert conversation.last.judged_text == judged


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(
            HumanMessage([{"type": "image_url", "image_url": {"url": "https://bomb"}}]), id="image"
        ),
        pytest.param(block(type="audio", base64="bomb"), id="audio"),
        pytest.param(block(type="file", file_id="bomb"), id="file"),
        pytest.param(block(type="text"), id="text block without text"),
        pytest.param(block(type="a bomb of a type, too long to be a name"), id="unknown block"),
        pytest.param(block(text="bomb"), id="block without type"),
        pytest.param(AIMessage("", additional_kwargs={"audio": {"data": "bomb"}}), id="audio out"),
        pytest.param(block(type="make a bomb"), id="a type that is a text"),
        pytest.param(
            HumanMessage([{"type": "text-plain", "text": "hi", "url": "https://bomb"}]),
            id="a text that is somewhere else",
        ),
        pytest.param(AIMessage("", additional_kwargs={"images": ["bomb"]}), id="images out"),
        pytest.param(AIMessage("", additional_kwargs={"raw": b"bomb"}), id="bytes"),
        pytest.param(HumanMessage("hi", image="bomb"), id="an extra field that is an image"),
    ],
)
async def test_what_a_text_model_cannot_judge_does_not_pass(
    message: BaseMessage, door: Door, guarding: Guarding
) -> None:
    with pytest.raises(ConversationError, match="cannot be judged") as caught:
        await door(guarding(), [HumanMessage("hi"), message])
    assert "bomb" not in str(caught.value)


async def test_what_is_nested_too_deeply_does_not_pass(door: Door, guarding: Guarding) -> None:
    nested: list[Any] = ["bomb"]
    nested.append(nested)
    with pytest.raises(ConversationError, match="too deeply") as caught:
        await door(guarding(), HumanMessage("hi", note=nested))
    assert "bomb" not in str(caught.value)


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        pytest.param(["bomb"], "a tool call is str", id="a text"),
        pytest.param(7, "tool calls are int", id="a number"),
        pytest.param([{"function": "bomb"}], "a tool call is str", id="a function that is a text"),
        pytest.param([{"name": 7}], "name of a tool call is int", id="a name that is a number"),
        pytest.param([{"name": "f", "args": {("bomb",): 1}}], "as JSON", id="no JSON"),
    ],
)
async def test_a_malformed_call_spares_its_neighbours(
    calls: Any, reason: str, guarding: Guarding
) -> None:
    message = AIMessage("", additional_kwargs={"tool_calls": calls})
    good, bad = await guarding().abatch(["hi", message], return_exceptions=True)
    assert good == "hi"
    assert isinstance(bad, ConversationError)
    assert reason in str(bad)
    assert "bomb" not in str(bad)


@pytest.mark.parametrize("kind", [AIMessage, AIMessageChunk])
async def test_a_changed_message_keeps_metadata_and_loses_its_calls(
    kind: Any, door: Door, guarding: Guarding
) -> None:
    message = kind(
        [{"type": "text", "text": "bomb"}],
        id="a1",
        name="bot",
        tool_calls=[{"name": "order", "args": {"what": "bomb"}, "id": "c1"}],
        invalid_tool_calls=[
            {"name": "order", "args": "bomb", "id": "c2", "error": "", "type": "invalid_tool_call"}
        ],
        usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        response_metadata={
            "model_name": "m",
            "stop_reason": {"bomb": 1},
            "token_usage": {"total_tokens": 3, "details": "bomb"},
            "logprobs": {"content": [{"token": "bomb"}]},
            "content_filter": "bomb",
        },
        additional_kwargs={"reasoning_content": "bomb", "function_call": {"name": "bomb"}},
        extra="bomb",
    )
    before = message.model_copy(deep=True)
    [passed] = await door(guarding(Action.REPLACE), message)
    assert type(passed) is kind
    assert (passed.id, passed.name, passed.content) == ("a1", "bot", REPLACED)
    assert (passed.tool_calls, passed.invalid_tool_calls) == ([], [])
    assert passed.usage_metadata == message.usage_metadata
    assert passed.response_metadata == {
        "model_name": "m",
        "token_usage": {"total_tokens": 3},
        **FILTERED,
    }
    assert passed.text == REPLACED
    refusal = ["refusal"] if "model_provider" in FILTERED else []
    assert [block["type"] for block in passed.content_blocks] == ["text", *refusal]
    assert "bomb" not in passed.model_dump_json()
    assert message == before


async def test_a_name_that_a_user_chose_goes_with_the_text(door: Door, guarding: Guarding) -> None:
    [passed] = await door(guarding(Action.REPLACE), HumanMessage("tea", name="bomb", id="h1"))
    assert passed == HumanMessage(REPLACED, id="h1")


class Noted(HumanMessage):
    note: str = ""


class Labelled(HumanMessage):
    label: str


async def test_a_field_of_an_own_class_goes_with_the_text(door: Door, guarding: Guarding) -> None:
    [passed] = await door(guarding(Action.REPLACE), Noted(content="hi", note="bomb"))
    assert passed == Noted(content=REPLACED)
    with pytest.raises(ConversationError, match="give defaults"):
        await door(guarding(Action.REPLACE), Labelled(content="hi", label="bomb"))


async def test_a_changed_tool_message_still_answers_its_call(
    door: Door, guarding: Guarding
) -> None:
    message = ToolMessage("bomb", tool_call_id="c1", artifact={"raw": "bomb"}, name="search")
    [passed] = await door(guarding(Action.REPLACE), message)
    assert passed == ToolMessage(REPLACED, tool_call_id="c1", name="search")


@pytest.mark.parametrize(
    ("reasoning", "content", "passed_on"),
    [
        pytest.param("Hm.", "Hi. A bomb. Bye.", "Hi. [removed: Violent] Bye.", id="reply"),
        pytest.param("Hm. A bomb.", "Hi.", "Hi.", id="reasoning"),
        pytest.param(
            "Hm. A bomb.",
            "Hi. A bomb. Bye.",
            "Hm. [removed: Violent]\nHi. [removed: Violent] Bye.",
            id="both",
        ),
    ],
)
async def test_redaction_leaves_the_reply(
    reasoning: str, content: str, passed_on: Any, door: Door, guarding: Guarding
) -> None:
    message = AIMessage(content, additional_kwargs={"reasoning_content": reasoning})
    assert await door(guarding(Action.REDACT), message) == [AIMessage(passed_on)]


async def test_an_unsafe_call_blocks_harmless_words(door: Door, guarding: Guarding) -> None:
    message = AIMessage("Sure.", tool_calls=[{"name": "f", "args": {"q": "bomb"}, "id": "1"}])
    with pytest.raises(GuardViolation):
        await door(guarding(), message)
    [passed] = await door(guarding(Action.REDACT), message)
    assert (passed.text, passed.tool_calls) == (REPLACED, [])
