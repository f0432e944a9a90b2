"""Tools of which nobody hears what a guard does not let through.

A tool runs inside a run of its own, to whose end callbacks, traces and events listen. So the guard
stands inside: between what the tool does and what LangChain makes of it. What a tool writes to a
stream itself is its own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.messages import BaseMessage, ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, ToolException
from langchain_core.tools.base import TOOL_MESSAGE_BLOCK_TYPES

from langchain_guardrails_qwen.agents.results import is_finished, messages_of, with_messages

Judge = Callable[[list[BaseMessage]], list[BaseMessage]]
"""What may pass of messages, each in its place: the very same one where it passes unchanged."""

AsyncJudge = Callable[[list[BaseMessage]], Awaitable[list[BaseMessage]]]
"""`Judge`, without blocking the event loop."""

Gate = Callable[[ToolCall], "ToolMessage | None"]
"""What is answered in place of a tool to a call that may not be made; None where it may."""

AsyncGate = Callable[[ToolCall], Awaitable["ToolMessage | None"]]
"""`Gate`, without blocking the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolGuard:
    """What stands before a tool and behind it."""

    gate: Gate
    agate: AsyncGate
    judge: Judge
    ajudge: AsyncJudge


_GUARDS = "guardrails_qwen_guards"
"""Where a copy keeps all that stands before it: a tool may be guarded more than once."""


def guarded_tool(tool: BaseTool, call_id: str | None, guard: ToolGuard) -> BaseTool:
    """A tool whose calls are judged before its run begins, and its results before that ends.

    It is a copy in all that LangChain asks of a tool (its schema, its injected arguments, how
    errors are handled), but what runs is the tool itself, which may keep state.

    Args:
        tool: The tool.
        call_id: The call that it answers.
        guard: What judges.
    """
    copy = tool.model_copy(update={"handle_tool_error": True} if tool.handle_tool_error else {})
    guards: list[ToolGuard] = [*vars(tool).get(_GUARDS, ()), guard]
    vars(copy)[_GUARDS] = guards
    # In the place of the methods of its class: LangChain looks at the signatures of the last two.
    vars(copy)["invoke"] = _gated(copy, guards)
    vars(copy)["ainvoke"] = _agated(copy, guards)
    vars(copy)["_run"] = _guarded(tool, call_id, guard.judge)
    vars(copy)["_arun"] = _aguarded(tool, call_id, guard.ajudge)
    return copy


def _gated(tool: BaseTool, guards: Sequence[ToolGuard]) -> Callable[..., Any]:
    def invoke(call: ToolCall, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        for guard in guards:
            if refused := guard.gate(_visible(tool, call)):
                return refused
        return type(tool).invoke(tool, call, config, **kwargs)

    return invoke


def _agated(tool: BaseTool, guards: Sequence[ToolGuard]) -> Callable[..., Any]:
    async def ainvoke(call: ToolCall, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        for guard in guards:
            if refused := await guard.agate(_visible(tool, call)):
                return refused
        return await type(tool).ainvoke(tool, call, config, **kwargs)

    return ainvoke


def _visible(tool: BaseTool, call: ToolCall) -> ToolCall:
    """A call without what LangGraph adds to its arguments: states, stores, runtimes."""
    if isinstance(tool.args_schema, dict):  # that adds nothing to schemas which are no classes
        return call
    shown = tool.args
    args = {key: value for key, value in call["args"].items() if key in shown}
    return ToolCall(name=call["name"], args=args, id=call["id"])


def _guarded(tool: BaseTool, call_id: str | None, judge: Judge) -> Callable[..., Any]:
    work: Callable[..., Any] = tool._run  # pyright: ignore[reportPrivateUsage]

    @functools.wraps(work)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            answer = _Answer.of(work(*args, **kwargs), tool, call_id)
        except ToolException as error:
            answer = _Answer.of_error(error, tool, call_id)
        return answer.passed(judge(answer.messages))

    return run


def _aguarded(tool: BaseTool, call_id: str | None, judge: AsyncJudge) -> Callable[..., Any]:
    work: Callable[..., Awaitable[Any]] = tool._arun  # pyright: ignore[reportPrivateUsage]

    @functools.wraps(work)
    async def arun(*args: Any, **kwargs: Any) -> Any:
        try:
            answer = _Answer.of(await work(*args, **kwargs), tool, call_id)
        except ToolException as error:
            answer = _Answer.of_error(error, tool, call_id)
        return answer.passed(await judge(answer.messages))

    return arun


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Answer:
    """What a tool gave, and the messages that LangChain makes of it."""

    value: Any
    """Content, messages or commands."""
    messages: list[BaseMessage]
    artifact: tuple[Any, ...] = ()
    """What stands behind the content, where the tool gives more."""
    failed: bool = False

    @classmethod
    def of(cls, given: Any, tool: BaseTool, call_id: str | None) -> _Answer:
        """What a tool returned."""
        value, artifact = given, ()
        if tool.response_format == "content_and_artifact" and isinstance(given, tuple) and given:
            value, *rest = cast("tuple[Any, ...]", given)
            artifact = tuple(rest)
        if is_finished(value):
            return cls(value=value, messages=messages_of(value), artifact=artifact)
        message = ToolMessage(content=_content(value), tool_call_id=call_id or "")
        return cls(value=value, messages=[message], artifact=artifact)

    @classmethod
    def of_error(cls, error: ToolException, tool: BaseTool, call_id: str | None) -> _Answer:
        """What the model is told of an error, by the tool's own way to handle it.

        Raises:
            ToolException: The tool has none.
        """
        handle = tool.handle_tool_error
        if not handle:
            raise error
        told: Any = str(error.args[0]) if error.args else "Tool execution error"
        if isinstance(handle, str):
            told = handle
        elif callable(handle):
            told = handle(error)
        message = ToolMessage(content=_content(told), tool_call_id=call_id or "")
        return cls(value=told, messages=[message], failed=True)

    def passed(self, messages: list[BaseMessage]) -> Any:
        """What may pass of it, after what may pass of its messages.

        Raises:
            ToolException: The tool failed.
        """
        unchanged = all(new is old for new, old in zip(messages, self.messages, strict=True))
        if unchanged:
            value, artifact = self.value, self.artifact
        else:
            value = with_messages(self.value, messages) if self._finished else messages[0].content
            artifact = tuple(None for _ in self.artifact)
        if self.failed:
            raise ToolException(value)
        return (value, *artifact) if artifact else value

    @property
    def _finished(self) -> bool:
        return is_finished(self.value)


def _content(value: object) -> str | list[str | dict[Any, Any]]:
    """A value as the content of a message: as it is where it is such, else as JSON."""
    if isinstance(value, str):
        return value
    if _is_blocks(value):
        return cast("list[str | dict[Any, Any]]", value)
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def _is_blocks(value: object) -> bool:
    """Whether LangChain takes a list as content, by the same rule; any other it makes JSON of."""
    if not isinstance(value, list):
        return False
    blocks = cast("list[object]", value)
    return all(isinstance(b, dict) and b.get("type") in TOOL_MESSAGE_BLOCK_TYPES for b in blocks)  # pyright: ignore[reportUnknownMemberType]
