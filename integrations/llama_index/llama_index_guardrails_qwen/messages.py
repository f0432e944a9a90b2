"""LlamaIndex messages: reading them for a guard, and putting a decision back into them. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock

from guardrails_qwen import (
    Action,
    Conversation,
    ConversationError,
    Decision,
    GuardError,
    Message,
    Role,
    Stage,
)
from guardrails_qwen.fields import is_token
from llama_index_guardrails_qwen.content import (
    hidden,
    images,
    is_words,
    read_otherwise,
    tool_calls,
    words,
)
from llama_index_guardrails_qwen.gate import Asked, Unjudgeable

_ROLES = {
    MessageRole.SYSTEM: Role.SYSTEM,
    MessageRole.DEVELOPER: Role.DEVELOPER,
    MessageRole.USER: Role.USER,
    MessageRole.ASSISTANT: Role.ASSISTANT,
    MessageRole.CHATBOT: Role.ASSISTANT,
    MessageRole.MODEL: Role.ASSISTANT,
    MessageRole.FUNCTION: Role.TOOL,
    MessageRole.TOOL: Role.TOOL,
}

_STAGES = {Role.ASSISTANT: Stage.OUTPUT, Role.TOOL: Stage.TOOL_RESULT}
"""At which stage something counts that cannot be judged; all other roles ask for something."""

_KEPT = defaultdict[Role, tuple[str, ...]](tuple, {Role.TOOL: ("tool_call_id", "name")})
"""Additional arguments that a changed message keeps, if they are no more than ids."""


def role_of(message: ChatMessage) -> Role:
    """Who says a message."""
    return _ROLES[message.role]


def read_message(message: ChatMessage) -> Message:
    """A message as the guard reads it: what is beside its words first, then these, then its calls.

    Raises:
        ConversationError: It holds what cannot be judged.
    """
    preface = hidden(message)
    return Message(
        role=role_of(message),
        text=f"{preface}\n{words(message)}" if preface else words(message),
        tool_calls=tool_calls(message),
        images=images(message),
    )


def asked_about(messages: Sequence[ChatMessage], before: Sequence[Message] = ()) -> list[Asked]:
    """What is asked about each of messages, which are one conversation.

    Args:
        messages: The messages.
        before: What was said before them, and is not judged.
    """
    read, asked = list(before), list[Asked]()
    for message in messages:
        try:
            read.append(read_message(message))
        except GuardError as error:
            asked.append(unjudgeable(error, role_of(message)))
        else:
            asked.append(Conversation(tuple(read)))
    return asked


def unjudgeable(error: GuardError, role: Role) -> Unjudgeable:
    """What a guard is told of something that it cannot be asked about."""
    return Unjudgeable(error=error, stage=_STAGES.get(role, Stage.INPUT))


def decided_message(message: ChatMessage, decision: Decision) -> ChatMessage:
    """The message that a decision passes on: the same one where it is allowed.

    A changed one keeps its role and ids, and loses everything else that may say what was decided
    against: tool calls, thoughts, pictures, additional arguments.
    """
    if decision.allowed:
        return message
    return ChatMessage(
        role=message.role,
        content=_own_text(message, decision),
        additional_kwargs={
            key: value
            for key, value in message.additional_kwargs.items()
            if key in _KEPT[role_of(message)] and isinstance(value, str) and is_token(value)
        },
    )


def said(role: MessageRole, text: str) -> ChatMessage:
    """A text as a message, and nothing else."""
    return ChatMessage(role=role, blocks=[TextBlock(text=text)])


def _own_text(message: ChatMessage, decision: Decision) -> str:
    """The decision's text without what was read before the words, where that can be told apart."""
    text = decision.text or ""
    if decision.action is not Action.REDACT or is_words(message):
        return text
    try:
        preface, own = hidden(message), words(message)
    except ConversationError:
        return ""
    if any(read_otherwise(message)):
        return ""  # it cannot be told in which of the readings the offence is
    if own and text.endswith(own):
        return own
    return text.removeprefix(f"{preface}\n") if preface else text
