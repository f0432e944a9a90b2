"""What a guard does around a tool: what goes to it, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from langchain.agents.middleware.types import ToolCallRequest
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolCall, ToolMessage

from guardrails_qwen import Action, Decision, GuardViolation
from langchain_guardrails_qwen.agents.results import messages_of, with_ledgers, with_messages
from langchain_guardrails_qwen.agents.tools import ToolGuard, guarded_tool
from langchain_guardrails_qwen.judging import asked, context_of, decided, decision_about, unblocked
from langchain_guardrails_qwen.ledgers import ENDS, Record, digest_of, knows, reading_of, record_of
from langchain_guardrails_qwen.steps import Ask, Forward, Steps, arun, run
from langchain_guardrails_qwen.thread_settings import ThreadSettings, thread_of


def tool_call(settings: ThreadSettings, request: ToolCallRequest) -> Steps[Any]:
    """Call a tool with arguments that were judged, and judge what it answers.

    Raises:
        GuardViolation: Something is blocked, and that is an error.
        GuardError: Something could not be judged, and the policy says to raise.
    """
    called = _Run(settings=settings, request=request)
    refused = yield from called.refused(request.tool_call)
    result: Any = refused or (yield Forward(called.guarded))
    if called.violation:  # somebody made an answer of the error
        raise GuardViolation(called.violation)
    passed = yield from called.passed(messages_of(result))
    called.record(passed)
    return with_ledgers(with_messages(result, passed), {settings.name: called.records})


@dataclass(slots=True, kw_only=True, repr=False)
class _Run:
    """A run of a tool, as far as it is known. It is filled in while the tool runs."""

    settings: ThreadSettings
    request: ToolCallRequest
    records: dict[str, Record | None] = field(default_factory=dict[str, "Record | None"])
    violation: Decision | None = None
    decisions: dict[str | None, Decision] = field(default_factory=dict[str | None, Decision])
    """By the digests of the messages that passed."""
    approved: ToolCall | None = None
    """The call that may be made."""

    @property
    def guarded(self) -> ToolCallRequest:
        """The request, with a tool of whose run nobody hears what does not pass."""
        if self.request.tool is None:
            return self.request
        guard = self.settings.guard

        def gate(call: ToolCall) -> ToolMessage | None:
            return run(self.refused(call), guard)

        async def agate(call: ToolCall) -> ToolMessage | None:
            return await arun(self.refused(call), guard)

        def judge(messages: list[BaseMessage]) -> list[BaseMessage]:
            return run(self.passed(messages), guard)

        async def ajudge(messages: list[BaseMessage]) -> list[BaseMessage]:
            return await arun(self.passed(messages), guard)

        around = ToolGuard(gate=gate, agate=agate, judge=judge, ajudge=ajudge)
        tool = guarded_tool(self.request.tool, self.request.tool_call["id"], around)
        return self.request.override(tool=tool)

    def refused(self, call: ToolCall) -> Steps[ToolMessage | None]:
        """What the model is told instead of an answer; None where the call may be made.

        A call may be made that is part of a reply which the guard let through, word for word, or
        that was judged here. It may be another one when it comes to the tool.
        """
        if not self.settings.check_tool_calls or self._is_approved(call):
            return None
        asks = AIMessage(content="", tool_calls=[call])
        context = context_of(map(reading_of, self._before))
        [result] = yield Ask([asked(context, reading_of(asks))])
        decision = self._tolerated(decision_about(asks, result, self.settings.guard))
        if decision.allowed:
            self.approved = call
            return None
        return self._refusal(call, decision)

    def _is_approved(self, call: ToolCall) -> bool:
        if self.approved is None and self._is_of_reply(self.request.tool_call):
            self.approved = self.request.tool_call
        if self.approved is None or self.approved["name"] != call["name"]:
            return False
        args = self.approved["args"]
        return all(key in args and args[key] == value for key, value in call["args"].items())

    def _is_of_reply(self, call: ToolCall) -> bool:
        """Whether a reply that the guard let through asks for this very call."""
        asked = {key: call.get(key) for key in ("id", "name", "args")}
        for message in reversed(thread_of(self.request.state)):
            if isinstance(message, AIMessage):
                asks = any(asked.items() <= dict(other).items() for other in message.tool_calls)
                ledger = self.settings.ledger(self.request.state)
                return asks and knows(ledger, message, self.settings.guard)
        return False

    @property
    def _before(self) -> Sequence[AnyMessage]:
        """What the model was told before it asked for a tool."""
        thread = list(thread_of(self.request.state))
        while thread and not isinstance(thread[-1], AIMessage):
            thread.pop()
        return thread[:-1]

    def _refusal(self, call: ToolCall, decision: Decision) -> ToolMessage:
        guard = self.settings.guard
        said = unblocked(guard, decision).text or ""
        if decision.action is Action.REDACT:
            said = guard.policy.at(decision.stage).replacement
        message = ToolMessage(
            said, name=call["name"], tool_call_id=call["id"] or "", status="error"
        )
        self.decisions[digest_of(message, guard.fingerprint)] = decision
        return message

    def passed(self, messages: list[BaseMessage]) -> Steps[list[BaseMessage]]:
        """What may pass of messages, each in its place. What passed already is not judged again."""
        fingerprint = self.settings.guard.fingerprint
        new = [m for m in messages if digest_of(m, fingerprint) not in self.decisions]
        if not new or not self.settings.check_tool_results:
            return messages
        context = context_of(map(reading_of, thread_of(self.request.state)))
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
        self.decisions[digest_of(passed, guard.fingerprint)] = decision
        return passed

    def record(self, messages: Sequence[BaseMessage]) -> None:
        """Note what goes to the thread. Its messages have ids from here on."""
        guard = self.settings.guard
        for message in messages:
            message.id = str(uuid4()) if message.id is None else message.id
            decision = self.decisions.get(digest_of(message, guard.fingerprint))
            blocked = decision is not None and decision.action is Action.BLOCK
            ends = {ENDS: True} if blocked and not self._returns else {}
            self.records[message.id] = {**record_of(message, guard, decision), **ends}

    @property
    def _returns(self) -> bool:
        """Whether the agent's run ends with this tool anyway."""
        return self.request.tool is not None and self.request.tool.return_direct
