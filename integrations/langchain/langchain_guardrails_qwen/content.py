"""What a LangChain message says: its words, its thoughts and its tool calls. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage

from guardrails_qwen import ConversationError, ToolCall

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

_THOUGHT_KEYS = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "refusal")
"""Where providers put words into `additional_kwargs`."""

_QUOTES = ("annotations", "citations")
_READ_IN_THOUGHTS = (
    *("reasoning_content", "reasoning", "thinking", "summary", "content", "text"),
    *("title", "cited_text"),
)
_ARGUMENTS = ("args", "arguments", "input", "partial_json")


def words(message: BaseMessage) -> str:
    """The text of a message as its reader sees it: text and refusal blocks in one piece.

    Raises:
        ConversationError: A block is something that a text model cannot judge, an image say.
    """
    if isinstance(message.content, str):
        return message.content
    return "".join(_words_of(block) for block in message.content)


def thoughts(message: BaseMessage) -> str:
    """What else can be read of a message: reasoning, quotations, refusals outside its content."""
    if message.additional_kwargs.get("audio"):
        raise ConversationError("audio cannot be judged by a text model: judge its transcript")
    hidden = [message.additional_kwargs.get(key) for key in _THOUGHT_KEYS]
    blocks = [block for block in _blocks(message) if _kind(block) in _THOUGHTS]
    quotes = [block.get(key) for block in _blocks(message) for key in _QUOTES]
    parts = [*hidden, *blocks, *quotes]
    return "\n".join(text for part in parts for text in _strings(part) if text)


def tool_calls(message: BaseMessage) -> tuple[ToolCall, ...]:
    """All tool calls of a message, also invalid and legacy ones, each once.

    Raises:
        ConversationError: One of them is of no known form.
    """
    distinct = dict[tuple[str, str], ToolCall]()
    for fields in _call_fields(message):
        for call in _readings(_mapping(fields)):
            distinct.setdefault((call.name, _canonical(call.arguments)), call)
    return tuple(distinct.values())


def _canonical(arguments: str) -> str:
    """The same for the same JSON, also of fields that are given twice."""
    try:
        return repr(json.loads(arguments, object_pairs_hook=tuple))
    except (ValueError, RecursionError):
        return arguments


def _words_of(block: str | dict[Any, Any]) -> str:
    if isinstance(block, str):
        return block
    kind = _kind(block)
    if kind in _THOUGHTS or kind in _CALLS:
        return ""
    said = block.get(_WORDS.get(kind, ""))
    if not isinstance(said, str):
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


def _strings(value: object) -> Iterator[str]:
    """The readable strings of a thought, in whichever of the providers' shapes."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        fields = cast("Mapping[str, object]", value)
        for key in _READ_IN_THOUGHTS:
            yield from _strings(fields.get(key))
    elif isinstance(value, (list, tuple)):
        for item in cast("Iterable[object]", value):
            yield from _strings(item)


def _call_fields(message: BaseMessage) -> Iterator[object]:
    if isinstance(message, AIMessage):
        yield from message.tool_calls
        yield from message.invalid_tool_calls
    if isinstance(message, AIMessageChunk):
        yield from message.tool_call_chunks
    yield from (block for block in _blocks(message) if _kind(block) in _CALLS)
    for raw in message.additional_kwargs.get("tool_calls") or ():
        fields = _mapping(raw)
        yield fields.get("function") or fields.get("custom") or fields
    if legacy := message.additional_kwargs.get("function_call"):
        yield legacy


def _mapping(call: object) -> Mapping[str, Any]:
    if not isinstance(call, Mapping):
        raise ConversationError(f"a tool call is {type(call).__name__}, not a dict")
    return cast("Mapping[str, Any]", call)


def _readings(fields: Mapping[str, Any]) -> Iterator[ToolCall]:
    """The call, once for each form in which its arguments are given."""
    given = [fields[key] for key in _ARGUMENTS if fields.get(key) not in (None, "", {})]
    for arguments in given or [{}]:
        yield ToolCall(name=fields.get("name") or "", arguments=_json(arguments))


def _json(arguments: object) -> str:
    if isinstance(arguments, str):
        return arguments
    try:
        return json.dumps(arguments, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        raise ConversationError("the arguments of a tool call cannot be written as JSON") from None
