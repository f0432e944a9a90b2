"""What calls of tools give: finding its messages, and putting others in their places. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from langchain_core.messages import BaseMessage, RemoveMessage
from langgraph.types import Command, Overwrite

from langchain_guardrails_qwen.ledgers import Ledgers, merged
from langchain_guardrails_qwen.messages import normalized
from langchain_guardrails_qwen.thread_settings import LEDGERS
from langchain_guardrails_qwen.values import STATE_KEY


def is_finished(value: object) -> bool:
    """Whether a tool gave what goes to the thread as it is: messages and commands."""
    if isinstance(value, list):
        items = cast("list[object]", value)
        return bool(items) and all(is_finished(item) for item in items)
    return isinstance(value, (BaseMessage, Command))


def messages_of(result: object) -> list[BaseMessage]:
    """The messages that a result adds to the thread.

    Raises:
        ConversationError: In the place of one stands something that is none.
    """
    if isinstance(result, RemoveMessage):
        return []
    if isinstance(result, BaseMessage):
        return [result]
    if isinstance(result, list):
        return [message for item in cast("list[object]", result) for message in messages_of(item)]
    if isinstance(result, Command):
        return messages_of(_added(cast("Command[Any]", result)))
    return []


def with_messages(result: Any, messages: Sequence[BaseMessage]) -> Any:
    """The same with other messages in the places of its own; the very same where all are."""
    if all(new is old for new, old in zip(messages, messages_of(result), strict=True)):
        return result
    return _with(result, iter(messages))


def with_ledgers(result: Any, ledgers: Ledgers) -> Any:
    """The same, writing ledgers to the state. A command to another graph is left alone."""
    if isinstance(result, BaseMessage):
        return Command(update={STATE_KEY: [result], LEDGERS: ledgers})
    if isinstance(result, list):
        first, *others = cast("list[Any]", result)
        return [with_ledgers(first, ledgers), *others]
    command = cast("Command[Any]", result)
    given: object = command.update or {}
    if command.graph is not None or not isinstance(given, Mapping):
        return command
    fields = cast("Mapping[str, Any]", given)
    return replace(command, update={**fields, LEDGERS: merged(fields.get(LEDGERS), ledgers)})


def _with(result: Any, messages: Iterator[BaseMessage]) -> Any:
    if isinstance(result, list):
        return [_with(item, messages) for item in cast("list[object]", result)]
    if isinstance(result, Command):
        return _commanded(cast("Command[Any]", result), messages)
    return result if isinstance(result, RemoveMessage) else next(messages)


def _added(command: Command[Any]) -> list[object]:
    """What a command adds to the thread, as messages."""
    update: object = command.update
    if isinstance(update, Mapping):
        update = cast("Mapping[str, object]", update).get(STATE_KEY)
    if isinstance(update, Overwrite):
        update = update.value
    elements = cast("list[object]", update) if isinstance(update, list) else [update]
    return [normalized(element) for element in elements if element is not None]


def _commanded(command: Command[Any], messages: Iterator[BaseMessage]) -> Command[Any]:
    added: object = [_with(element, messages) for element in _added(command)]
    update: object = command.update
    fields = cast("Mapping[str, object]", update) if isinstance(update, Mapping) else None
    if isinstance(fields.get(STATE_KEY) if fields else update, Overwrite):
        added = Overwrite(value=added)
    return replace(command, update={**fields, STATE_KEY: added} if fields else added)
