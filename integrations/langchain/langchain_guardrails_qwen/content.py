"""What a LangChain message says: its words, its thoughts and its tool calls. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage

from guardrails_qwen import ConversationError, ToolCall
from guardrails_qwen.calls import calls_in, openai_forms
from guardrails_qwen.fields import is_token, texts_in

_WORDS = {
    "text": "text",
    "text-plain": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
"""Content blocks that are read aloud, and where their words are."""

_THOUGHTS = frozenset({"thinking", "reasoning", "reasoning_content", "redacted_thinking"})
"""Content blocks of reasoning. What is encrypted in them nobody can read, users included."""

_CALLS = frozenset(
    {"tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "function_call"}
    | {"custom_tool_call", "server_tool_call", "server_tool_use", "input_json_delta"}
)
"""Content blocks that ask for a tool, mostly the same calls that `tool_calls` has."""

_RESULTS = frozenset(
    {"server_tool_result", "tool_result", "mcp_tool_result", "mcp_call", "mcp_list_tools"}
    | {"web_search_call", "web_search_tool_result", "web_fetch_tool_result", "file_search_call"}
    | {"code_interpreter_call", "code_execution_tool_result", "executable_code"}
    | {"code_execution_result", "bash_code_execution_tool_result", "compaction"}
    | {"text_editor_code_execution_tool_result", "mcp_approval_request", "mcp_tool_use"}
)
"""Content blocks of tools that the provider runs: what they were asked, and what they answered."""

_POINTERS = ("url", "file_id", "source")
"""Fields of a text block that say where the model finds another text."""

_STANDARD = frozenset(
    {"content", "additional_kwargs", "response_metadata", "type", "name", "example", "role"}
    | {"tool_calls", "invalid_tool_calls", "tool_call_chunks", "usage_metadata", "artifact"}
    | {"chunk_position"}
)
"""Declared fields of messages that are read elsewhere, or that no model is sent."""


def words(message: BaseMessage) -> str:
    """The text of a message as its reader sees it: text and refusal blocks in one piece.

    Raises:
        ConversationError: A block is something that a text model cannot judge, an image say.
    """
    if isinstance(message.content, str):
        return message.content
    return "".join(_words_of(block) for block in message.content)


def says_only_words(message: BaseMessage) -> bool:
    """Whether all that its content consists of is read aloud."""
    return isinstance(message.content, str) or all(map(is_words, message.content))


def is_words(block: str | dict[Any, Any]) -> bool:
    """Whether a content block is read aloud."""
    return isinstance(block, str) or _kind(block) in _WORDS


def word_field(block: Mapping[str, Any]) -> str:
    """Where the words of a block are that is read aloud."""
    return _WORDS[_kind(block)]


def thoughts(message: BaseMessage) -> str:
    """What else can be read of a message: reasoning, quotations, refusals, fields of any name.

    Raises:
        ConversationError: A field holds something that a text model cannot judge.
    """
    hidden = {
        key: value
        for key, value in message.additional_kwargs.items()
        if key not in ("tool_calls", "function_call")
    }
    readable = _THOUGHTS.union(_WORDS, _RESULTS)
    blocks = [_beside_words(block) for block in _blocks(message) if _kind(block) in readable]
    return "\n".join(text for part in (hidden, *blocks, others(message)) for text in texts_in(part))


def others(message: BaseMessage) -> dict[str, Any]:
    """The fields of a message that not every message of its kind has, and its ids."""
    own = {key: value for key, value in vars(message).items() if key not in _STANDARD}
    return own | (message.model_extra or {})


def tool_calls(message: BaseMessage) -> tuple[ToolCall, ...]:
    """All tool calls of a message, also invalid and legacy ones, each once.

    Raises:
        ConversationError: One of them is of no known form.
    """
    return calls_in(_call_fields(message))


def _words_of(block: str | dict[Any, Any]) -> str:
    if isinstance(block, str):
        return block
    kind = _kind(block)
    if kind in _THOUGHTS or kind in _CALLS or kind in _RESULTS:
        return ""
    said = block.get(_WORDS.get(kind, ""))
    if not isinstance(said, str) or any(block.get(key) for key in _POINTERS):
        shown = repr(kind) if re.fullmatch(r"[A-Za-z0-9_.-]{1,24}", kind) else "unknown"
        raise ConversationError(
            f"a content block of type {shown} cannot be judged by a text model: take it out and "
            "judge it by other means"
        )
    return said


def _blocks(message: BaseMessage) -> list[dict[str, Any]]:
    content = [] if isinstance(message.content, str) else message.content
    return [cast("dict[str, Any]", block) for block in content if isinstance(block, dict)]


def _kind(block: Mapping[str, Any]) -> str:
    kind = block.get("type")
    return kind if isinstance(kind, str) else ""


def _beside_words(block: Mapping[str, Any]) -> dict[str, Any]:
    """A block without its words, and without what is encrypted in it."""
    kind, encrypted = _kind(block), block.get("data")
    known = _WORDS.get(kind)
    if kind == "redacted_thinking" and isinstance(encrypted, str) and is_token(encrypted):
        known = "data"
    return {key: value for key, value in block.items() if key != known}


def _call_fields(message: BaseMessage) -> Iterator[object]:
    if isinstance(message, AIMessage):
        yield from message.tool_calls
        yield from message.invalid_tool_calls
    if isinstance(message, AIMessageChunk):
        yield from message.tool_call_chunks
    yield from (block for block in _blocks(message) if _kind(block) in _CALLS)
    yield from openai_forms(message.additional_kwargs.get("tool_calls"))
    if legacy := message.additional_kwargs.get("function_call"):
        yield legacy
