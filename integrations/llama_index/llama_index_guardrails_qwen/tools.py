"""Tools of which nobody gets what a guard does not let through.

Agents make a text of what a tool gives, and of what it raises, and hand that on to the model, to
their memory and to whoever reads their events. So the guard stands between the tool and the agent.
It judges the arguments before anybody is told of the call, and what the tool gives before anybody
is told of that.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from llama_index.core.tools import AsyncBaseTool, BaseTool, FunctionTool, ToolMetadata, ToolOutput
from llama_index.core.workflow import Context
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR
from typing_extensions import override

from guardrails_qwen import Guard, Stage
from llama_index_guardrails_qwen.events import dispatcher
from llama_index_guardrails_qwen.gate import Gate, OnViolation
from llama_index_guardrails_qwen.tool_use import Given, ToolUse
from llama_index_guardrails_qwen.unheard import unheard

try:
    from workflows.runtime.types import results  # pyright: ignore[reportMissingTypeStubs]

    _pauses: tuple[type[Exception], ...] = (results.WaitingForEvent,)
except (ImportError, AttributeError):
    _pauses = ()
"""What a tool raises to wait for an event of its workflow; LlamaIndex, too, can do without."""

_Method = TypeVar("_Method", bound=Callable[..., Any])


def guarded_tool(
    tool: BaseTool | Callable[..., Any],
    guard: Guard,
    *,
    on_violation: OnViolation = "raise",
    check_arguments: bool = True,
    check_result: bool = True,
) -> GuardedTool:
    """A tool of which nobody gets what the guard does not let through.

    Arguments are judged as a call of the assistant (`Stage.TOOL_CALL`) before the tool runs. What
    the tool gives, or raises, is judged as the result of a tool (`Stage.TOOL_RESULT`): its content,
    and apart from that its raw output, which is left out where it does not pass or cannot be read.
    A `FunctionTool` stays one, and so do its `fn` and `async_fn`, which are guarded as well.

    What is blocked is answered with an error (`is_error`) whose exception is the `GuardViolation`.
    The same becomes of a violation inside of the tool, in a guarded query engine say, if it is what
    the tool raises, or behind that. One that the tool handles, to return a text say, is its own
    affair: what it gives instead is judged like any result. Arguments of which the policy says
    anything but to pass never reach the tool.

    Args:
        tool: Any tool, or a function, of which a `FunctionTool` is made. `RouterQueryEngine` and
            `SubQuestionQueryEngine` take the engine out of its tool: for these guard the engine,
            `QueryEngineTool.from_defaults(guard_query_engine(engine, guard))`.
        guard: What judges.
        on_violation: "raise": the error is a notice with a number, by which the next call of a
            `GuardedLLM` raises the violation, so that the agent's run ends with it. Agents catch
            what tools raise; with other models the run goes on. "reply": the error is the policy's
            replacement, and the run goes on.
        check_arguments: A `GuardedLLM` has judged the calls in its replies; where all come from
            one, False saves a check each. Not with agents that read calls out of a text, as
            `ReActAgent` does: there the text was judged, and not what was read.
        check_result: False is for tools that only give what was judged inside. Handlers are told of
            what such a tool does; of any other they hear its arguments and its judged result.

    Raises:
        TypeError: The tool or the guard is something else.
    """
    gate = Gate(guard=guard, component="tool", on_violation=on_violation)
    checks = ToolChecks(gate=gate, arguments=check_arguments, result=check_result)
    if not isinstance(tool, BaseTool):
        if not callable(tool):  # pyright: ignore[reportUnnecessaryComparison]
            raise TypeError(f"the tool is {type(tool).__name__}: give a tool or a function")
        tool = FunctionTool.from_defaults(tool)
    if isinstance(tool, FunctionTool):
        return GuardedFunctionTool(tool, checks)
    return GuardedTool(tool, checks)


def guarded_tools(
    tools: Iterable[BaseTool | Callable[..., Any]],
    guard: Guard,
    *,
    on_violation: OnViolation = "raise",
    check_arguments: bool = True,
    check_result: bool = True,
) -> list[GuardedTool]:
    """`guarded_tool` for each of several."""
    return [
        guarded_tool(
            tool,
            guard,
            on_violation=on_violation,
            check_arguments=check_arguments,
            check_result=check_result,
        )
        for tool in tools
    ]


def _untold(method: _Method) -> _Method:
    """Keep LlamaIndex from telling handlers of a method, which it does of all that tools have."""
    setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)
    return method


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChecks:
    """What is judged of a tool, and by whom."""

    gate: Gate
    arguments: bool
    result: bool

    @property
    def silence(self) -> AbstractContextManager[None]:
        """Around the tool: handlers may hear what it does if that is not judged afterwards."""
        return unheard() if self.result else nullcontext()


class GuardedTool(AsyncBaseTool):
    """A tool between checks; see `guarded_tool`, which makes it."""

    def __init__(self, inner: BaseTool, checks: ToolChecks) -> None:
        self._inner = inner
        self._checks = checks

    @property
    @override
    def metadata(self) -> ToolMetadata:
        return self._inner.metadata

    @_untold
    @override
    def __call__(self, *args: Any, **kwargs: Any) -> ToolOutput:
        return self.call(*args, **kwargs)

    @_untold
    @override
    def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """Judge the arguments, call the tool, and judge what it gives.

        Raises:
            Exception: What the tool raised, if that passes.
            GuardError: Something could not be judged, and the policy says to raise.
        """
        use = self._use(args, kwargs)
        if self._checks.arguments:
            [decision] = self._checks.gate.judge([use.asked], Stage.TOOL_CALL)
            if not decision.allowed:
                return use.refused(decision)
        return self.judged_call(*args, **kwargs)

    @_untold
    @override
    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """`call`, without blocking the event loop."""
        use = self._use(args, kwargs)
        if self._checks.arguments:
            [decision] = await self._checks.gate.ajudge([use.asked], Stage.TOOL_CALL)
            if not decision.allowed:
                return use.refused(decision)
        return await self.ajudged_call(*args, **kwargs)

    @dispatcher.span
    def judged_call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """Call the tool, and judge what it gives. Handlers are told of this part of a call."""
        given = self._given(args, kwargs)
        asked = [] if given.violation or not self._checks.result else given.asked
        return given.passed(self._checks.gate.judge(asked, Stage.TOOL_RESULT))

    @dispatcher.span
    async def ajudged_call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """`judged_call`, without blocking the event loop."""
        given = await self._agiven(args, kwargs)
        asked = [] if given.violation or not self._checks.result else given.asked
        return given.passed(await self._checks.gate.ajudge(asked, Stage.TOOL_RESULT))

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
        use = self._use(args, kwargs)
        try:
            with self._checks.silence:
                return Given.of(use, self._work(*args, **kwargs))
        except _pauses:
            raise
        except Exception as error:  # noqa: BLE001  agents make a text of whatever it is
            return Given.of_error(use, error)

    async def _agiven(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
        use = self._use(args, kwargs)
        try:
            with self._checks.silence:
                return Given.of(use, await self._awork(*args, **kwargs))
        except _pauses:
            raise
        except Exception as error:  # noqa: BLE001  agents make a text of whatever it is
            return Given.of_error(use, error)

    def _work(self, *args: Any, **kwargs: Any) -> object:
        if isinstance(self._inner, AsyncBaseTool):
            return self._inner.call(*args, **kwargs)
        return self._inner(*args, **kwargs)

    async def _awork(self, *args: Any, **kwargs: Any) -> object:
        if isinstance(self._inner, AsyncBaseTool):
            return await self._inner.acall(*args, **kwargs)
        return await asyncio.to_thread(self._inner, *args, **kwargs)

    def _use(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ToolUse:
        """The call, without the contexts of workflows, which say nothing and cannot be dumped."""
        return ToolUse(
            gate=self._checks.gate,
            name=self.metadata.name or "",
            args=tuple(item for item in args if not isinstance(item, Context)),
            kwargs={key: item for key, item in kwargs.items() if not isinstance(item, Context)},
            own=getattr(self._inner, "partial_params", None),
            handling=sys.exc_info()[1],
        )


class GuardedFunctionTool(GuardedTool, FunctionTool):
    """A function tool between checks, for agents that ask for one; so are its functions."""

    def __init__(self, inner: FunctionTool, checks: ToolChecks) -> None:
        vars(self).update(vars(inner))
        GuardedTool.__init__(self, inner, checks)
        self._fn = _guarded(inner.fn, self)
        self._async_fn = _aguarded(inner.async_fn, self)
        is_async = inspect.iscoroutinefunction(inner.real_fn)
        self._real_fn = (_aguarded if is_async else _guarded)(inner.real_fn, self)


def _guarded(function: Callable[..., Any], tool: GuardedTool) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return tool.call(*args, **kwargs).raw_output

    return call


def _aguarded(function: Callable[..., Any], tool: GuardedTool) -> Callable[..., Any]:
    @functools.wraps(function)
    async def acall(*args: Any, **kwargs: Any) -> Any:
        return (await tool.acall(*args, **kwargs)).raw_output

    return acall
