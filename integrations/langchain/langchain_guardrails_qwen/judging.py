"""One message of a thread: what is asked about it, and what becomes of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from guardrails_qwen import (
    Action,
    Conversation,
    ConversationError,
    Decision,
    Guard,
    GuardError,
    Message,
    Role,
    Stage,
)
from langchain_guardrails_qwen.ledgers import Reading, reading_of
from langchain_guardrails_qwen.messages import decided_message

Asked = Conversation | ConversationError
"""What a guard is asked about a message, or why it cannot be."""

_UNREADABLE = Message(role=Role.USER, text="[This message cannot be read here.]")

_REPLIES = frozenset({Stage.OUTPUT, Stage.TOOL_CALL})
"""Stages of what the assistant says."""


def context_of(readings: Iterable[Reading]) -> tuple[Message, ...]:
    """Messages as the context of another one; what cannot be read is known to be there."""
    return tuple(
        _UNREADABLE if isinstance(reading, ConversationError) else reading for reading in readings
    )


def asked(context: Sequence[Message], reading: Reading) -> Asked:
    """What to ask about a message behind others."""
    if isinstance(reading, ConversationError):
        return reading
    return Conversation((*context, reading))


def decision_about(message: BaseMessage, result: Decision | GuardError, guard: Guard) -> Decision:
    """What is done with a message: where it cannot be judged at all, what the policy says.

    Raises:
        GuardError: It could not be judged, and the policy says to raise.
    """
    if isinstance(result, ConversationError):
        stage = Stage.OUTPUT if isinstance(message, AIMessage) else Stage.INPUT
        if isinstance(message, ToolMessage):
            stage = Stage.TOOL_RESULT
        return guard.policy.decide_unjudged(stage, result)
    if isinstance(result, GuardError):
        raise result
    return result


def unblocked(guard: Guard, decision: Decision, closing: str | None = None) -> Decision:
    """The same, with another text in place of a message that is blocked.

    Args:
        guard: It has the policy, whose replacement that text is.
        decision: Any decision.
        closing: That text where the assistant is to say it.
    """
    if decision.action is not Action.BLOCK:
        return decision
    text = guard.policy.at(decision.stage).replacement
    if closing is not None and decision.stage in _REPLIES:
        text = closing
    return replace(decision, action=Action.REPLACE, text=text)


def decided(message: Any, decision: Decision) -> Any:
    """The message that a decision passes on, of the same type if a guard can read that."""
    changed = decided_message(message, decision)
    if changed is message or not isinstance(reading_of(changed), ConversationError):
        return changed
    return HumanMessage(content=changed.content, id=changed.id)
