"""LangChain messages: reading them for a guard, and putting a decision back into them. Pure."""

from __future__ import annotations

from typing import Any, cast

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)

from guardrails_qwen import Action, ConversationError, Decision, Message, Role
from guardrails_qwen.fields import is_token
from langchain_guardrails_qwen.content import others, thoughts, tool_calls, words
from langchain_guardrails_qwen.refusals import taken_back

_ROLES: dict[type[BaseMessage], Role] = {
    HumanMessage: Role.USER,
    AIMessage: Role.ASSISTANT,
    SystemMessage: Role.SYSTEM,
    ToolMessage: Role.TOOL,
    FunctionMessage: Role.TOOL,
}
_PLAIN = frozenset({HumanMessage, AIMessage, SystemMessage, ToolMessage})
"""Classes of which every field is known."""

_ROLE_NAMES = {
    "human": Role.USER,
    "ai": Role.ASSISTANT,
    "function": Role.TOOL,
    **{role.value: role for role in Role},
}
_METADATA = frozenset(
    {"model_name", "model_provider", "model", "finish_reason", "stop_reason", "created"}
    | {"created_at", "system_fingerprint", "service_tier", "id"}
)
"""Response metadata that a changed message keeps. In any other, providers may repeat the text."""

_USAGE = ("token_usage", "usage")
"""Response metadata of which a changed message keeps the numbers."""

_IDENTITY = ("id", "tool_call_id", "status")
_CALLS = ("tool_calls", "invalid_tool_calls", "tool_call_chunks")


def normalized(element: object) -> BaseMessage:
    """A message from one of the forms in which LangChain takes them.

    Raises:
        ConversationError: It is none of them. LangChain's own error would quote the text.
    """
    if isinstance(element, BaseMessage):
        return element
    try:
        [message] = convert_to_messages([cast("Any", element)])
    except Exception as error:  # noqa: BLE001 - whatever it is, it may quote the text
        cause = type(error).__name__
    else:
        return message
    raise ConversationError(
        f"a message cannot be made of this {type(element).__name__} ({cause}): pass a LangChain "
        "message, a text, a (role, content) pair or a dict with 'role' and 'content'"
    )


def read_message(message: BaseMessage) -> Message:
    """A message as the guard reads it: reasoning first, then its words, then its tool calls.

    Raises:
        ConversationError: The role is unknown, or it holds what a text model cannot judge.
    """
    if _is_plain(message):  # as most are, and threads are long
        return Message(role=_ROLES[type(message)], text=cast("str", message.content))
    return Message(
        role=_role(message),
        text=_preface(message) + words(message),
        tool_calls=tool_calls(message),
        name=message.name or None,
    )


def _is_plain(message: BaseMessage) -> bool:
    """Whether the content is all that a message says."""
    fields = vars(message)
    return (
        type(message) in _PLAIN
        and isinstance(message.content, str)
        and not (message.name or message.additional_kwargs or message.model_extra)
        and not (fields.get("tool_calls") or fields.get("invalid_tool_calls"))
        and fields.get("status", "success") in ("success", "error")
        and is_token(message.id or "")
        and is_token(fields.get("tool_call_id", ""))
    )


def decided_message(message: BaseMessage, decision: Decision) -> BaseMessage:
    """The message that a decision passes on: the same one where it is allowed.

    A changed one keeps type, metadata and id, if that is no more than an id, and loses everything
    else that may say what was decided against: tool calls, reasoning, artifacts, additional
    arguments, log-probabilities, and the name of a user, who may have chosen it. Names of agents
    and tools and ids of calls are the application's, as long as they are no more than that. A reply
    that was replaced or dropped says so.
    """
    if decision.allowed:
        return message
    fields = type(message).model_fields
    update: dict[str, Any] = {
        "content": _own_text(message, decision),
        "additional_kwargs": {},
        "response_metadata": _finished(message, decision),
        **{call: list[Any]() for call in _CALLS if call in fields},
        **_emptied(message),
        **({"artifact": None} if "artifact" in fields else {}),
        "name": None if isinstance(message, HumanMessage) else _token(message.name),
        "id": identity(message),
    }
    if isinstance(message, ToolMessage):
        update["tool_call_id"] = _token(message.tool_call_id) or ""
    changed = message.model_copy(update=update)
    (changed.model_extra or {}).clear()
    return changed


def kept_metadata(given: dict[str, Any]) -> dict[str, Any]:
    """Response metadata without what may repeat a text."""
    kept = {key: value for key, value in given.items() if key in _METADATA and _is_mark(value)}
    usage = {key: _numbers(given[key]) for key in _USAGE if isinstance(given.get(key), dict)}
    return kept | usage


def identity(message: BaseMessage) -> str | None:
    """The id of a message, if it says nothing."""
    return _token(message.id)


def _token(text: str | None) -> str | None:
    return text if text is not None and is_token(text) else None


def _finished(message: BaseMessage, decision: Decision) -> dict[str, Any]:
    """The metadata that is kept; a reply that was replaced or dropped says so."""
    replaced = isinstance(message, AIMessage) and decision.action is not Action.REDACT
    kept = kept_metadata(message.response_metadata)
    return taken_back(kept) if replaced else kept


def _emptied(message: BaseMessage) -> dict[str, Any]:
    """The defaults of the fields that a message's own class adds."""
    fields = type(message).model_fields
    added = [key for key in others(message) if key in fields and key not in _IDENTITY]
    if any(fields[key].is_required() for key in added):
        raise ConversationError(
            f"a {type(message).__name__} cannot be changed: give defaults to its own fields"
        )
    return {key: fields[key].get_default(call_default_factory=True) for key in added}


def _is_mark(value: object) -> bool:
    """Whether a value is a number or a token: a provider may put any text anywhere."""
    if isinstance(value, str):
        return is_token(value)
    return value is None or isinstance(value, (int, float))


def _numbers(usage: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in usage.items() if isinstance(value, (int, float))}


def _own_text(message: BaseMessage, decision: Decision) -> str:
    """The decision's text without the reasoning before it, where that can be told apart."""
    text = decision.text or ""
    if decision.action is not Action.REDACT:
        return text
    said = words(message)
    return said if said and text.endswith(said) else text.removeprefix(_preface(message))


def _preface(message: BaseMessage) -> str:
    reasoning = thoughts(message)
    return f"{reasoning}\n" if reasoning else ""


def _role(message: BaseMessage) -> Role:
    if isinstance(message, ChatMessage):
        role = _ROLE_NAMES.get(message.role)
    else:
        role = next((role for kind, role in _ROLES.items() if isinstance(message, kind)), None)
    if role is None:
        raise ConversationError(
            f"the role of a {type(message).__name__} is not known: use one of "
            f"{', '.join(_ROLE_NAMES)}"
        )
    return role
