"""One use of a tool: what is asked before and after it, and what becomes of both. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.tools import ToolOutput

from guardrails_qwen import (
    Action,
    Conversation,
    ConversationError,
    Decision,
    GuardError,
    GuardViolation,
    Message,
    Role,
    Stage,
)
from guardrails_qwen.calls import calls_in
from guardrails_qwen.fields import written
from llama_index_guardrails_qwen.gate import Asked, Gate, Unjudgeable
from llama_index_guardrails_qwen.incidents import report
from llama_index_guardrails_qwen.messages import asked_about, decided_message
from llama_index_guardrails_qwen.tool_outputs import beside_content, errors_behind, read_through


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ToolUse:
    """A call of a tool by its arguments. What is passed on in its outputs are these."""

    gate: Gate
    name: str
    """What the tool is called."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    own: object
    """What the application gave the tool for every call."""
    handling: BaseException | None = None
    """What its caller is handling meanwhile: Python puts it behind whatever the tool raises."""

    @property
    def asked(self) -> Asked:
        """What is asked about: the call, as an assistant makes it."""
        arguments = {**self.kwargs, "args": list(self.args)} if self.args else self.kwargs
        try:
            calls = calls_in([{"name": self.name, "arguments": arguments}])
        except GuardError as error:
            return Unjudgeable(error=error, stage=Stage.TOOL_CALL)
        return Conversation((Message(role=Role.ASSISTANT, tool_calls=calls),))

    def refused(self, decision: Decision) -> ToolOutput:
        """What is given in place of a result where the call may not be made."""
        return self._instead(decision, {})

    def stopped(self, decision: Decision) -> ToolOutput:
        """What is given in place of a blocked result."""
        return self._instead(decision, self.raw_input)

    def output(
        self,
        blocks: Sequence[Any],
        raw_input: dict[str, Any],
        *,
        is_error: bool,
        exception: Exception | None = None,
    ) -> ToolOutput:
        """An output that says nothing but what is given."""
        output = ToolOutput(
            tool_name=self.name,
            blocks=list(blocks),
            raw_input=raw_input,
            is_error=is_error,
            exception=exception,
        )
        output.raw_output = output.content
        return output

    @property
    def raw_input(self) -> dict[str, Any]:
        """The arguments, as a `FunctionTool` puts them into its outputs."""
        return {"args": self.args, "kwargs": self.kwargs}

    def _instead(self, decision: Decision, raw_input: dict[str, Any]) -> ToolOutput:
        text = self.gate.guard.policy.at(decision.stage).replacement
        if decision.action is Action.DROP:
            text = ""
        if decision.action is Action.BLOCK and self.gate.on_violation == "raise":
            text = report(decision)
        violation = GuardViolation(decision) if decision.action is Action.BLOCK else None
        blocks = [TextBlock(text=text)]
        return self.output(blocks, raw_input, is_error=True, exception=violation)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Given:
    """What a tool gave, about to be judged.

    Its content is what the model reads. What is beside that (raw output and input, exceptions) only
    programs get: it is judged as a text of its own, and left out where it does not pass.
    """

    use: ToolUse
    output: ToolOutput
    error: Exception | None = None
    """What the tool raised; the output is then what an agent makes of that."""

    @classmethod
    def of(cls, use: ToolUse, value: object) -> Given:
        """What a tool returned."""
        if isinstance(value, ToolOutput):
            return cls(use=use, output=read_through(value))
        text = written(value)
        return cls(use=use, output=use.output([TextBlock(text=text)], {}, is_error=False))

    @classmethod
    def of_error(cls, use: ToolUse, error: Exception) -> Given:
        """What a tool raised."""
        try:
            text = written(error)
        except ConversationError:
            text = type(error).__name__
        blocks = [TextBlock(text=text)]
        output = use.output(blocks, use.raw_input, is_error=True, exception=error)
        return cls(use=use, output=output, error=error)

    @property
    def violation(self) -> Decision | None:
        """What was blocked inside of the tool, if that is what it gives."""
        behind = errors_behind(self.output.exception, but=self.use.handling)
        found = (error for error in behind if isinstance(error, GuardViolation))
        return next((violation.decision for violation in found), None)

    @property
    def asked(self) -> list[Asked]:
        """What is asked about: the content, and what is beside it if that says more."""
        beside = self._beside()
        said = [Conversation((Message(role=Role.TOOL, text=beside),))] if beside else []
        return [*asked_about([self._message]), *said]

    def passed(self, decisions: Sequence[Decision]) -> ToolOutput:
        """What passes on after what was decided; without decisions all of it.

        Raises:
            Exception: What the tool raised, if that passes whole.
        """
        changed = self._changed(decisions)
        if changed is None and self.error:
            raise self.error
        return changed or self.output

    def _changed(self, decisions: Sequence[Decision]) -> ToolOutput | None:
        if self.violation:
            return self.use.stopped(self.violation)
        if not decisions:
            return None
        content, *beside = decisions
        if content.action is Action.BLOCK:
            return self.use.stopped(content)
        if not content.allowed:
            return self._with(decided_message(self._message, content).blocks)
        whole = self._beside() is not None and all(decision.allowed for decision in beside)
        return None if whole else self._with(self.output.blocks)

    def _with(self, blocks: Sequence[Any]) -> ToolOutput:
        return self.use.output(blocks, self.use.raw_input, is_error=self.output.is_error)

    @property
    def _message(self) -> ChatMessage:
        return ChatMessage(role=MessageRole.TOOL, blocks=self.output.blocks)

    def _beside(self) -> str | None:
        """What is said beside the content; None: that cannot be judged."""
        try:
            known = [self.use.name, self.use.args, self.use.kwargs, self.use.own]
            return beside_content(self.output, known)
        except ConversationError:
            return None
