"""What a guard does around a tool: what goes to it, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from langchain.agents.middleware.types import ToolCallRequest
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolMessage
from langgraph.types import Command

from guardrails_qwen import Action, Decision, GuardViolation, Message
from langchain_guardrails_qwen.agents.results import messages_of, with_ledgers, with_messages
from langchain_guardrails_qwen.agents.tools import guarded_tool
from langchain_guardrails_qwen.steps import Ask, Forward, Steps, arun, run
from langchain_guardrails_qwen.thread_settings import ThreadSettings, thread_of
from langchain_guardrails_qwen.threads import (
    Record,
    asked,
    context_of,
    decided,
    decision_about,
    digest_of,
    knows,
    reading_of,
    record_of,
    unblocked,
)

ToolResult = ToolMessage | Command[Any]


def tool_call(settings: ThreadSettings, request: ToolCallRequest) -> Steps[Any]:
    """Call a tool with arguments that were judged, and judge what it answers.

    Raises:
        GuardViolation: Something is blocked, and that is an error.
        GuardError: Something could not be judged, and the policy says to raise.
    """
    if settings.check_tool_calls and not _is_judged(settings, request):
        asks, context = _asks(request)
        [result] = yield Ask([asked(context, reading_of(asks))])
        decision = settings.tolerated(decision_about(asks, result, settings.guard))
        if not decision.allowed:
            return _refused(settings, request, decision)
    if not settings.check_tool_results:
        return (yield Forward(request))
    results = _Results(settings=settings, thread=thread_of(request.state))
    result = yield Forward(results.guarding(request))
    if results.violation:  # somebody made an answer of the error
        raise GuardViolation(results.violation)
    passed = yield from results.passed(messages_of(result))
    results.record(passed)
    return with_ledgers(with_messages(result, passed), {settings.name: results.records})


def _is_judged(settings: ThreadSettings, request: ToolCallRequest) -> bool:
    """Whether a call is part of a reply that the guard let through, word for word."""
    reply = _asking(request)
    return reply is not None and knows(settings.ledger(request.state), reply, settings.guard)


def _asking(request: ToolCallRequest) -> AIMessage | None:
    """The reply that asks for this very call."""
    call = {key: request.tool_call.get(key) for key in ("id", "name", "args")}
    for message in reversed(thread_of(request.state)):
        if isinstance(message, AIMessage):
            asked = any(call.items() <= dict(other).items() for other in message.tool_calls)
            return message if asked else None
    return None


def _asks(request: ToolCallRequest) -> tuple[AIMessage, Sequence[Message]]:
    """The call as a message, and what the model was told before."""
    thread = list(thread_of(request.state))
    while thread and not isinstance(thread[-1], AIMessage):
        thread.pop()
    asks = AIMessage(content="", tool_calls=[request.tool_call])
    return asks, context_of(map(reading_of, thread[:-1]))


def _refused(settings: ThreadSettings, request: ToolCallRequest, decision: Decision) -> Any:
    """What the model is told instead of an answer. The tool does not run."""
    said = unblocked(settings.guard, decision).text or ""
    if decision.action is Action.REDACT:
        said = settings.guard.policy.at(decision.stage).replacement
    call = request.tool_call
    message = ToolMessage(
        said, name=call["name"], tool_call_id=call["id"] or "", status="error", id=str(uuid4())
    )
    record = record_of(message, settings.guard, decision)
    return with_ledgers(message, {settings.name: {message.id or "": record}})


@dataclass(slots=True, kw_only=True, repr=False)
class _Results:
    """What a tool answers, as far as it is known. It is filled in while the tool runs."""

    settings: ThreadSettings
    thread: Sequence[AnyMessage]
    records: dict[str, Record | None] = field(default_factory=dict[str, "Record | None"])
    violation: Decision | None = None
    decisions: dict[str | None, Decision] = field(default_factory=dict[str | None, Decision])
    """By the digests of the messages that passed."""

    def guarding(self, request: ToolCallRequest) -> ToolCallRequest:
        """The call, with a tool whose answer is judged before anybody hears of it."""
        if request.tool is None:
            return request
        guard = self.settings.guard

        def judge(messages: list[BaseMessage]) -> list[BaseMessage]:
            return run(self.passed(messages), guard)

        async def ajudge(messages: list[BaseMessage]) -> list[BaseMessage]:
            return await arun(self.passed(messages), guard)

        tool = guarded_tool(request.tool, request.tool_call["id"], judge, ajudge)
        return request.override(tool=tool)

    def passed(self, messages: list[BaseMessage]) -> Steps[list[BaseMessage]]:
        """What may pass of messages, each in its place. What passed already is not judged again."""
        new = [m for m in messages if digest_of(m, self.settings.guard) not in self.decisions]
        if not new:
            return messages
        context = context_of(map(reading_of, self.thread))
        results = yield Ask([asked(context, reading_of(message)) for message in new])
        decisions = [
            self._tolerated(decision_about(message, result, self.settings.guard))
            for message, result in zip(new, results, strict=True)
        ]
        after = {
            id(message): self._settled(message, decision)
            for message, decision in zip(new, decisions, strict=True)
        }
        return [after.get(id(message), message) for message in messages]

    def _tolerated(self, decision: Decision) -> Decision:
        try:
            return self.settings.tolerated(decision)
        except GuardViolation as violation:
            self.violation = violation.decision
            raise

    def _settled(self, message: BaseMessage, decision: Decision) -> BaseMessage:
        guard = self.settings.guard
        passed = decided(message, unblocked(guard, decision))
        self.decisions[digest_of(passed, guard)] = decision
        return passed

    def record(self, messages: Sequence[BaseMessage]) -> None:
        """Note what goes to the thread. Its messages have ids from here on."""
        guard = self.settings.guard
        for message in messages:
            message.id = message.id or str(uuid4())
            decision = self.decisions.get(digest_of(message, guard))
            self.records[message.id] = record_of(message, guard, decision)
