"""What the tests use of LangChain and LangGraph whose types are known only in part."""

from typing import Any

from langchain.agents import (
    create_agent as _create_agent,  # pyright: ignore[reportUnknownVariableType]
)
from langchain_core.tools import tool as _tool
from langgraph.graph import (  # pyright: ignore[reportMissingTypeStubs]
    END,
    START,
)
from langgraph.graph import (  # pyright: ignore[reportMissingTypeStubs]
    StateGraph as _StateGraph,
)
from langgraph.graph.message import (  # pyright: ignore[reportMissingTypeStubs]
    REMOVE_ALL_MESSAGES,
    MessagesState,
    add_messages,
)

create_agent: Any = _create_agent  # pyright: ignore[reportUnknownVariableType]
graph_of: Any = _StateGraph
tool: Any = _tool

__all__ = [
    "END",
    "REMOVE_ALL_MESSAGES",
    "START",
    "MessagesState",
    "add_messages",
    "create_agent",
    "graph_of",
    "tool",
]
