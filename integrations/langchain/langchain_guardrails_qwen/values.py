"""The values that travel through chains: reading them for a guard, and putting decisions back.

A value is read as messages, of which those of the last turn are judged: the last, and those before
it of the same side, which is the assistant's or everybody else's. A model is asked about a turn as
a whole, so a decision has to reach every message of it. A changed value is a new one of the same
kind; none is changed in place. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any, cast

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue
from pydantic import InstanceOf

from guardrails_qwen import Action, ConversationError, Decision, Message, Role
from langchain_guardrails_qwen.messages import decided_message, normalized, read_message

STATE_KEY = "messages"

_INSTRUCTING = (Role.SYSTEM, Role.DEVELOPER)
"""Who says what an application tells its model."""

_AnyMessage = InstanceOf[BaseMessage]  # the validators of its classes fail on anything else

Value = (
    str
    | _AnyMessage
    | list[_AnyMessage | str | tuple[str, Any] | dict[str, Any]]
    | InstanceOf[StringPromptValue]
    | InstanceOf[ChatPromptValue]
    | dict[str, Any]
)
"""What a guard judges, as schemas describe it."""

DocumentValue = InstanceOf[Document] | list[InstanceOf[Document]]
"""… and what else, at `Stage.CONTEXT`."""

Put = Callable[[Sequence[Decision]], Any]
"""From one decision for each judged message, some of them not allowed, to the value to pass on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A value as a guard reads it, and the way back."""

    messages: tuple[Message, ...]
    judged: int = 1
    """How many of the messages are judged, counted from the end."""
    put: Put

    def trusting(self) -> Reading:
        """The same without the system messages that begin it, unless there is nothing else."""
        system = sum(1 for _ in takewhile(lambda m: m.role in _INSTRUCTING, self.messages))
        others = self.messages[system:]
        if not others:
            return self
        return replace(self, messages=others, judged=min(self.judged, len(others)))


def read(value: object, *, key: str | None = None, speaker: Role = Role.USER) -> Reading:
    """Read a value of a chain.

    Args:
        value: A text, message, prompt value, list of messages in any form, or a dict of one.
        key: The field to judge of a dict, which has to be there; by default that of a state dict,
            "messages".
        speaker: Who said a plain text.

    Raises:
        ConversationError: It is something else, or holds what a text model cannot judge.
    """
    if isinstance(value, str):
        return Reading(messages=(Message(role=speaker, text=value),), put=_text)
    if isinstance(value, BaseMessage):
        return Reading(messages=(read_message(value),), put=partial(_message, value))
    if isinstance(value, list):
        return _read_list(cast("list[object]", value))
    if isinstance(value, dict):
        return _read_dict(cast("dict[str, object]", value), key, speaker)
    if isinstance(value, StringPromptValue):
        return Reading(
            messages=(Message(role=Role.USER, text=value.text),),
            put=lambda decisions: value.model_copy(update={"text": _text(decisions)}),
        )
    if isinstance(value, ChatPromptValue):
        inner = _read_list(list(value.messages))
        return _within(inner, lambda messages: value.model_copy(update={"messages": messages}))
    raise ConversationError(
        f"a guard cannot judge {type(value).__name__}: pass a text, a message, a prompt value, a "
        "list of messages or a dict of one"
    )


def _read_list(elements: list[object], *, emptied: bool = False) -> Reading:
    if not elements:
        raise ConversationError("there is no message to judge in an empty list")
    messages = tuple(_numbered(index, element) for index, element in enumerate(elements))
    side = _is_assistants(messages[-1])
    turn = takewhile(lambda message: _is_assistants(message) is side, reversed(messages))
    judged = sum(1 for _ in turn)
    put = partial(_list, elements, emptied=emptied)
    return Reading(messages=messages, judged=judged, put=put)


def _is_assistants(message: Message) -> bool:
    return message.role is Role.ASSISTANT


def _read_dict(fields: dict[str, object], key: str | None, speaker: Role) -> Reading:
    field = STATE_KEY if key is None else key
    if field not in fields:
        wanted = "is not a state, for it has no 'messages'" if key is None else f"has no {key!r}"
        raise ConversationError(
            f"this dict {wanted}: say which of its fields to judge, GuardRunnable(guard, key=...)"
        )

    def rewritten(inner: object) -> dict[str, object]:
        changed = copy(fields)  # keeps the class of a dict that can be added up
        changed[field] = inner
        return changed

    if field == STATE_KEY and isinstance(fields[field], list):
        elements = cast("list[object]", fields[field])
        return _within(_read_list(elements, emptied=True), rewritten)
    return _within(read(fields[field], speaker=speaker), rewritten)


def _within(inner: Reading, wrap: Callable[[Any], Any]) -> Reading:
    """The reading of a value that consists of another one and a shell."""
    return Reading(
        messages=inner.messages,
        judged=inner.judged,
        put=lambda decisions: wrap(inner.put(decisions)),
    )


def _numbered(index: int, element: object) -> Message:
    try:
        return read_message(normalized(element))
    except ConversationError as error:
        raise ConversationError(f"message {index}: {error}") from error


def _text(decisions: Sequence[Decision]) -> str:
    return decisions[0].text or ""


def _message(message: BaseMessage, decisions: Sequence[Decision]) -> BaseMessage:
    return decided_message(message, decisions[0])


def _list(
    elements: list[object], decisions: Sequence[Decision], *, emptied: bool = False
) -> list[object]:
    """A list after decisions about its last elements.

    With `emptied`, what is dropped stays as a message without text: the list is that of a state,
    whose graph keeps messages that a node does not return.
    """
    before = len(elements) - len(decisions)
    decided = [
        _element(element, decision)
        for element, decision in zip(elements[before:], decisions, strict=True)
    ]
    pairs = zip(decided, decisions, strict=True)
    kept = [element for element, decision in pairs if emptied or _stays(element, decision)]
    return [*elements[:before], *kept] or decided[-1:]


def _element(element: object, decision: Decision) -> object:
    return element if decision.allowed else decided_message(normalized(element), decision)


def _stays(element: object, decision: Decision) -> bool:
    """Dropped messages go; a tool's is emptied, since models refuse a call without an answer."""
    return decision.action is not Action.DROP or isinstance(element, ToolMessage)
