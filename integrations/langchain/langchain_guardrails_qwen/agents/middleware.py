"""A guard around all that an agent hears and says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents.middleware.types import (
    AgentMiddleware,
    AgentState,
    ExtendedModelResponse,
    ModelRequest,
    ModelResponse,
    ToolCallRequest,
    TracePolicy,
    hook_config,
    omit_payload,
)
from langchain_core.messages import ToolMessage
from langgraph.runtime import Runtime
from langgraph.types import Command
from typing_extensions import override

from guardrails_qwen import Guard
from guardrails_qwen.streaming import Streaming
from langchain_guardrails_qwen.admission import Admitted, admitted
from langchain_guardrails_qwen.agents.around_model import model_call
from langchain_guardrails_qwen.agents.around_tool import tool_call
from langchain_guardrails_qwen.agents.state import GuardrailState
from langchain_guardrails_qwen.steps import arun, run
from langchain_guardrails_qwen.thread_settings import ExitBehavior, ThreadSettings
from langchain_guardrails_qwen.threads import Scope

_STREAMING = Streaming()
_OMITTED = TracePolicy(process_inputs=omit_payload, process_outputs=omit_payload)


class GuardrailMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """Guards what goes to the model of an agent, what it says, and what its tools do.

    ```python
    agent = create_agent(llm, tools, middleware=[GuardrailMiddleware(guard)])
    ```

    Judged are, in the order of an agent's loop: what is new in the thread, with all before it as
    the context; the reply, while it is written, with its reasoning and its tool calls; arguments
    of calls that are not those of a judged reply, a changed one say, before the tool runs; and what
    the tool answers, before anybody hears of it. What was judged is not judged again, as long as
    its text, the policy and the model are the same.

    What is not let through is in no state, checkpoint, stream, event or trace, but for what is
    there before any middleware runs: the input of the agent. A reply that is changed loses its
    tool calls. Put this middleware last: what others put in place of the model or of a tool behind
    it is judged only when it is complete.

    The private part of the state, "guardrails", has a record of each decision, without text.

    Args:
        guard: The engine and the policy.
        exit_behavior: What happens where the policy blocks. "end": the message is replaced, and the
            run ends with `violation_message`. "replace": the message is replaced, and the agent
            goes on. "error": `GuardViolation` is raised; an input that is blocked stays in the
            thread then, and is judged, and blocked, anew with the next one.
        check_input: Judge what users and others send. System prompts of the agent are not judged.
        check_output: Judge what the model says, its tool calls included.
        check_tool_calls: Judge arguments that are not those of a judged reply.
        check_tool_results: Judge what tools answer.
        violation_message: What the assistant says where something is blocked; by default the
            closing text of `streaming`, or else the policy's replacement.
        streaming: How replies are moderated while they are written.
        beside: Judge what is new while the model answers it already. Nothing is released before
            the verdict.
        scope: What is judged of a thread that the guard sees for the first time: the last "turn",
            or "all" of it, where users can write the history themselves.
        name: The name in graphs and traces, of which each instance in an agent needs its own.
        trace_payloads: Whether traces of the hooks themselves have what they are called with.

    Raises:
        TypeError: `guard` is no `Guard`.
        ValueError: `exit_behavior` or `scope` is none of those.
    """

    state_schema = GuardrailState

    def __init__(  # noqa: PLR0913 - all but the guard by name
        self,
        guard: Guard,
        *,
        exit_behavior: ExitBehavior = "end",
        check_input: bool = True,
        check_output: bool = True,
        check_tool_calls: bool = True,
        check_tool_results: bool = True,
        violation_message: str | None = None,
        streaming: Streaming = _STREAMING,
        beside: bool = False,
        scope: Scope = "turn",
        name: str = "GuardrailMiddleware",
        trace_payloads: bool = False,
    ) -> None:
        super().__init__()
        self.tools = []
        self.trace_policy = None if trace_payloads else _OMITTED
        self._guard = guard
        self._settings = ThreadSettings(
            guard=guard,
            name=name,
            exit_behavior=exit_behavior,
            check_input=check_input,
            check_output=check_output,
            check_tool_calls=check_tool_calls,
            check_tool_results=check_tool_results,
            violation_message=violation_message,
            streaming=streaming,
            beside=beside,
            scope=scope,
        )

    @property
    @override
    def name(self) -> str:
        """The name of this instance."""
        return self._settings.name

    @hook_config(can_jump_to=["end"])
    @override
    def before_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Judge what is new in the thread."""
        return _update(run(admitted(self._settings, state), self._guard), state)

    @hook_config(can_jump_to=["end"])
    @override
    async def abefore_model(
        self, state: AgentState[Any], runtime: Runtime[Any]
    ) -> dict[str, Any] | None:
        """Judge what is new in the thread."""
        return _update(await arun(admitted(self._settings, state), self._guard), state)

    @override
    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ExtendedModelResponse[Any]:
        """Judge what the model says."""
        return run(model_call(self._settings, request), self._guard, handler)

    @override
    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ExtendedModelResponse[Any]:
        """Judge what the model says."""
        return await arun(model_call(self._settings, request), self._guard, handler)

    @override
    def wrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]],
    ) -> ToolMessage | Command[Any]:
        """Judge what a tool is to do, and what it answers."""
        return run(tool_call(self._settings, request), self._guard, handler)

    @override
    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """Judge what a tool is to do, and what it answers."""
        return await arun(tool_call(self._settings, request), self._guard, handler)


def _update(found: Admitted, state: AgentState[Any]) -> dict[str, Any] | None:
    """What was found, as an update of the agent's state."""
    if not found.ended:
        return found.update or None
    stale = {"structured_response": None} if "structured_response" in state else {}
    return {**found.update, **stale, "jump_to": "end"}
