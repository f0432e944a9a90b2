"""Plain messages are read at once; what says more than its content never is."""

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.doubles import Guarding

CALL = {"name": "look", "args": {"at": "xyzzy"}, "id": "a"}
INVALID = {"name": "look", "args": "xyzzy", "id": "a", "error": None, "type": "invalid_tool_call"}


class Own(HumanMessage):
    """A class with a field of its own."""

    mood: str = ""


HIDING: dict[str, BaseMessage] = {
    "a name": HumanMessage("hi", name="xyzzy"),
    "an id": HumanMessage("hi", id="xyzzy or so"),
    "additional arguments": HumanMessage("hi", additional_kwargs={"note": "xyzzy"}),
    "a field of its own": Own(content="hi", mood="xyzzy"),
    "extra fields": HumanMessage(content="hi", note="xyzzy"),  # pyright: ignore[reportCallIssue]
    "blocks": HumanMessage([{"type": "text", "text": "xyzzy"}]),
    "tool calls": AIMessage("hi", tool_calls=[CALL]),
    "invalid calls": AIMessage("hi", invalid_tool_calls=[INVALID]),
    "chunks of calls": AIMessageChunk(
        content="hi", tool_call_chunks=[{"name": "look", "args": "xyzzy", "id": "a", "index": 0}]
    ),
    "the id of a call": ToolMessage("hi", tool_call_id="xyzzy or so"),
    "a status": ToolMessage("hi", tool_call_id="a").model_copy(update={"status": "xyzzy or so"}),
    "the name of a tool": ToolMessage("hi", tool_call_id="a", name="xyzzy"),
    "the content of a system message": SystemMessage("xyzzy"),
    "… of a chat message": ChatMessage(content="xyzzy", role="user"),
    "… of a function": FunctionMessage(content="xyzzy", name="look"),
}


@pytest.mark.parametrize("message", HIDING.values(), ids=HIDING)
def test_all_of_a_message_is_read(
    message: BaseMessage, guarding: Guarding, engine: ScriptedEngine
) -> None:
    guarding().invoke([message])
    assert "xyzzy" in str([m.judged_text for c in engine.seen for m in c.messages])


@pytest.mark.parametrize(
    "message",
    [
        HumanMessage("hi", id="h1"),
        AIMessage("hi", id="a1", response_metadata={"model_name": "m"}),
        SystemMessage("hi"),
        ToolMessage("hi", tool_call_id="a", artifact={"page": 1}),
    ],
    ids=lambda message: message.type,
)
def test_of_a_plain_one_just_the_text(
    message: Any, guarding: Guarding, engine: ScriptedEngine
) -> None:
    assert guarding().invoke([message]) == [message]
    assert [m.judged_text for c in engine.seen for m in c.messages] == ["hi"]
