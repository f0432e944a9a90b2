"""A guard as a node of a graph, and the edge behind it. Needs langgraph.

```python
graph = StateGraph(GuardedState, input_schema=MessagesState)
graph.add_node("guard", guard_node(guard))
graph.add_conditional_edges("guard", passing("model"))
```

The input's schema keeps callers from sending what a guard is said to know already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.runnables import Runnable, RunnableLambda
from typing_extensions import NotRequired, TypedDict

from guardrails_qwen import Guard
from langchain_guardrails_qwen.admission import admitted, is_block
from langchain_guardrails_qwen.ledgers import Ledgers, decision_of, merged, require_arrived
from langchain_guardrails_qwen.refusals import FILTERED
from langchain_guardrails_qwen.steps import arun, run
from langchain_guardrails_qwen.thread_settings import (
    ExitBehavior,
    ThreadSettings,
    ledger_of,
    thread_of,
)
from langchain_guardrails_qwen.threads import Scope

try:
    from langgraph.graph import END  # pyright: ignore[reportMissingTypeStubs]
    from langgraph.graph.message import add_messages  # pyright: ignore[reportMissingTypeStubs]
except ModuleNotFoundError as error:
    raise ImportError(
        "guards in graphs need langgraph: pip install 'langchain-guardrails-qwen[graph]'"
    ) from error

__all__ = ["GuardedState", "Ledgers", "guard_node", "is_blocked", "merged", "passing"]


class GuardedState(TypedDict):
    """A state with messages, and with what guards know of them. Extend it as you need.

    A state of another kind needs the same field: `guardrails: Annotated[Ledgers, merged]`.
    """

    messages: Annotated[list[AnyMessage], add_messages]
    guardrails: NotRequired[Annotated[Ledgers, merged]]


def guard_node(
    guard: Guard,
    *,
    name: str = "guard",
    exit_behavior: ExitBehavior = "end",
    violation_message: str | None = None,
    scope: Scope = "turn",
) -> Runnable[Any, dict[str, Any]]:
    """A node that judges what is new in the messages of the state, whoever said it.

    Behind the input it judges what users send, behind a model its reply (which the state has by
    then, and every stream of it: guard the model as well), behind tools what they answer, each with
    all before it as the context. What was judged is not judged again. A message that is not let
    through is changed, or removed, by its id, which takes a state whose messages are kept by
    `add_messages`; another reducer would add the changed one to the old.

    Args:
        guard: The engine and the policy.
        name: Under which name the state knows the guard. Nodes of one name share what they know.
        exit_behavior: Where the policy blocks: "end" replaces the message and lets the assistant
            say `violation_message`, for an edge to end the run, see `passing`; "replace" replaces
            it; "error" raises.
        violation_message: What the assistant says; by default the policy's replacement.
        scope: What is judged of a thread that the guard sees for the first time: the last "turn",
            or "all" of it.

    Raises:
        ValueError: `exit_behavior` or `scope` is none of those.
    """
    settings = ThreadSettings(
        guard=guard,
        name=name,
        exit_behavior=exit_behavior,
        violation_message=violation_message,
        scope=scope,
    )

    def node(state: Any) -> dict[str, Any]:
        return run(admitted(settings, state), guard).update

    async def anode(state: Any) -> dict[str, Any]:
        return (await arun(admitted(settings, state), guard)).update

    return RunnableLambda(node, anode, name=name)


def passing(to: str, *, blocked: str = END, name: str = "guard") -> Callable[[Any], str]:
    """A conditional edge behind a guard node.

    It raises `ConversationError` where the node's changes did not reach the state.

    Args:
        to: Where a thread goes on that was let through.
        blocked: Where one goes of which the guard has blocked a message.
        name: The guard's name.
    """

    def chosen(state: Any) -> str:
        require_arrived(ledger_of(state, name), thread_of(state))
        return blocked if is_blocked(state, name=name) else to

    chosen.__annotations__["return"] = Literal[to, blocked]  # for drawings of the graph
    return chosen


def is_blocked(state: object, *, name: str = "guard") -> bool:
    """Whether a guard has blocked something of the last turn of a thread, and had the last word."""
    thread = thread_of(state)
    last = thread[-1] if thread else None
    if not isinstance(last, AIMessage):
        return False
    decision = decision_of(ledger_of(state, name), last)
    if decision:
        return is_block(decision)
    return FILTERED.items() <= last.response_metadata.items()
