"""Blocks of tools that the provider runs: what they were asked and answered is judged."""

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from guardrails_qwen import ConversationError, GuardViolation
from integrations.langchain.tests.doubles import Door, Guarding, Texts

BLOCKS: dict[str, dict[str, Any]] = {
    "standard": {
        "type": "server_tool_result",
        "tool_call_id": "a",
        "status": "success",
        "output": [{"title": "TEXT", "url": "https://example.org/"}],
    },
    "web search of OpenAI": {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "search", "query": "TEXT"},
    },
    "code of OpenAI": {
        "type": "code_interpreter_call",
        "id": "ci_1",
        "code": "print(1)",
        "outputs": [{"type": "logs", "logs": "TEXT"}],
    },
    "MCP": {"type": "mcp_call", "id": "m", "name": "look", "arguments": "{}", "output": "TEXT"},
    "web search of Anthropic": {
        "type": "web_search_tool_result",
        "tool_use_id": "srv_1",
        "content": [
            {"type": "web_search_result", "title": "TEXT", "encrypted_content": "Ab+/01=="}
        ],
    },
    "code of Google": {"type": "executable_code", "executable_code": "TEXT", "language": "python"},
    "its result": {"type": "code_execution_result", "code_execution_result": "TEXT", "outcome": 1},
}


def reply(block: dict[str, Any], text: str) -> list[Any]:
    """A list that ends with a reply of this block and a word."""

    written = json.loads(json.dumps(block).replace("TEXT", text))
    return [HumanMessage("hi"), AIMessage(content=[written, {"type": "text", "text": "There."}])]


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
async def test_what_is_harmless_passes(
    door: Door, guarding: Guarding, texts: Texts, block: dict[str, Any]
) -> None:
    messages = reply(block, "about cats")
    assert await door(guarding(), messages) == [messages]
    assert "about cats" in texts()[0][-1]


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
async def test_what_is_not_is_blocked(
    door: Door, guarding: Guarding, block: dict[str, Any]
) -> None:
    with pytest.raises(GuardViolation):
        await door(guarding(), reply(block, "about a bomb"))


async def test_pictures_in_them_are_refused(door: Door, guarding: Guarding) -> None:
    shown = {"type": "server_tool_result", "output": [{"type": "image", "data": "aGk="}]}
    with pytest.raises(ConversationError):
        await door(guarding(), reply(shown, ""))
