"""Tool calls in the forms in which providers and frameworks write them. Pure.

For adapters of frameworks; `Message.of` reads what the OpenAI chat format allows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from pydantic import BaseModel

from guardrails_qwen.conversation import ToolCall
from guardrails_qwen.errors import ConversationError
from guardrails_qwen.fields import texts_in

_ARGUMENTS = ("args", "arguments", "input", "partial_json")


def calls_in(forms: Iterable[object]) -> tuple[ToolCall, ...]:
    """Calls as a guard reads them, each once, however often and in however many forms it is given.

    What a call says beside its name and its arguments is read as arguments as well.

    Args:
        forms: Dicts or pydantic models with a "name" and any of "args", "arguments", "input" and
            "partial_json".

    Raises:
        ConversationError: One of them is of no known form.
    """
    distinct = dict[tuple[str, str], ToolCall]()
    for form in forms:
        for call in _readings(_mapping(form)):
            distinct.setdefault((call.name, _canonical(call.arguments)), call)
    return tuple(distinct.values())


def openai_forms(calls: object) -> Iterator[object]:
    """What `calls_in` reads of the "tool_calls" of a message of the OpenAI API, None included.

    Raises:
        ConversationError: They are no list of calls.
    """
    if not isinstance(calls, (list, tuple, type(None))):
        raise ConversationError(f"the tool calls are {type(calls).__name__}, not a list")
    for call in cast("Iterable[object]", calls or ()):
        yield from _unpacked(_mapping(call))


def _unpacked(call: Mapping[str, Any]) -> Iterator[object]:
    """What is inside of a call, and what is around that."""
    inside = [key for key in ("function", "custom") if call.get(key)]
    yield from (call[key] for key in inside)
    around = {key: value for key, value in call.items() if key not in inside}
    if not inside or any(texts_in(around)):
        yield around


def _mapping(call: object) -> Mapping[str, Any]:
    if isinstance(call, BaseModel):
        return vars(call) | (call.model_extra or {})
    if not isinstance(call, Mapping):
        raise ConversationError(f"a tool call is {type(call).__name__}, not a dict")
    return cast("Mapping[str, Any]", call)


def _readings(fields: Mapping[str, Any]) -> Iterator[ToolCall]:
    """The call, once for each form in which its arguments are given, and for what else it says."""
    name = fields.get("name") or ""
    given = [fields[key] for key in _ARGUMENTS if fields.get(key) not in (None, "", {})]
    for arguments in given or [{}]:
        yield ToolCall(name=name, arguments=_json(arguments))
    rest = {key: value for key, value in fields.items() if key not in ("name", *_ARGUMENTS)}
    if more := "\n".join(texts_in(rest)):
        yield ToolCall(name=name, arguments=more)


def _canonical(arguments: str) -> str:
    """The same for the same JSON, also of fields that are given twice."""
    try:
        return repr(json.loads(arguments, object_pairs_hook=tuple))
    except (ValueError, RecursionError):
        return arguments


def _json(arguments: object) -> str:
    if isinstance(arguments, str):
        return arguments
    try:
        return json.dumps(arguments, ensure_ascii=False, default=str)
    except Exception as error:  # noqa: BLE001 - whatever it is, it may quote the arguments
        cause = type(error).__name__
    raise ConversationError(f"the arguments of a tool call cannot be written as JSON ({cause})")
