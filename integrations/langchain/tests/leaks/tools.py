"""Tools that return unsafe text in every way in which a tool can return something."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, InjectedToolCallId, ToolException, tool
from langgraph.types import Command

_runs: ContextVar[list[str] | None] = ContextVar("runs", default=None)


@contextmanager
def recorded() -> Generator[list[str]]:
    """What the tools are run with from here on, in this context."""
    runs = list[str]()
    token = _runs.set(runs)
    try:
        yield runs
    finally:
        _runs.reset(token)


def _ran(text: str) -> None:
    runs = _runs.get()
    if runs is not None:
        runs.append(text)


FOUND = "It says: get a kablres tonight."


@tool
def shout(text: str) -> str:
    """Say it aloud."""
    _ran(text)
    return text.upper()


@tool
def fetch(text: str) -> str:
    """Find something."""
    _ran(text)
    return FOUND


@tool
def fetch_blocks(text: str) -> list[dict[str, Any]]:
    """Find something, as content blocks."""
    _ran(text)
    return [{"type": "text", "text": FOUND}]


@tool(response_format="content_and_artifact")
def fetch_artifact(text: str) -> tuple[str, dict[str, Any]]:
    """Find something, and keep what was found beside the message."""
    _ran(text)
    return "Found.", {"page": FOUND}


@tool
def fail(text: str) -> str:
    """Fail and say why."""
    _ran(text)
    raise ToolException(FOUND)


fail.handle_tool_error = True


@tool
def command(text: str, tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
    """Find something, and write it to the state."""
    _ran(text)
    return Command(update={"messages": [ToolMessage(FOUND, tool_call_id=tool_call_id)]})


@tool(return_direct=True)
def fetch_directly(text: str) -> str:
    """Find something; the result is the answer."""
    _ran(text)
    return FOUND


TOOLS: list[BaseTool] = [
    shout,
    fetch,
    fetch_blocks,
    fetch_artifact,
    fail,
    command,
    fetch_directly,
]
