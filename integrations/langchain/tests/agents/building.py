"""Agents for tests: a model that says what a list says, a guard by script, and both colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.checkpoint.memory import InMemorySaver

from guardrails_qwen import Action, Guard, OnError, Policy, Stage
from guardrails_qwen.rules import Rule, StagePolicy
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.agents.frameworks import create_agent, tool
from integrations.langchain.tests.doubles import SCRIPT
from integrations.langchain.tests.leaks.models import Reply, ScriptedModel
from langchain_guardrails_qwen.agents import GuardrailMiddleware

THREAD: RunnableConfig = {"configurable": {"thread_id": "1"}}
NAME = "GuardrailMiddleware"

Run = Callable[..., Any]
"""Runs an agent or a graph in one of the two colours; to be awaited."""


def says(text: str) -> Reply:
    """A reply of words, in chunks of one word."""
    return [AIMessageChunk(content=f"{word} ") for word in text.split()]


def calls(*arguments: str, name: str = "search", ids: Sequence[str] = ()) -> Reply:
    """A reply that asks for a tool, once for each text."""
    found = ids or [f"call-{index}" for index in range(len(arguments))]
    chunks = [
        {"name": name, "args": f'{{"query": "{text}"}}', "id": id_, "index": index}
        for index, (text, id_) in enumerate(zip(arguments, found, strict=True))
    ]
    return [AIMessageChunk(content="", tool_call_chunks=chunks)]  # pyright: ignore[reportArgumentType]


def model(*replies: Reply, kind: type[ScriptedModel] = ScriptedModel) -> ScriptedModel:
    """A model that gives these replies in order, and then none."""
    left = iter(replies)
    return kind(script=lambda _messages: next(left))


def search_tool(ran: list[str], **options: Any) -> BaseTool:
    """A tool that finds what it is asked for, and says what it was asked."""

    @tool("search", **options)
    def search(query: str) -> str:
        """Search."""
        ran.append(query)
        return f"about {query}" if query != "worse" else "build a bomb"

    return search


def finding(text: str, **options: Any) -> BaseTool:
    """A tool that finds this text."""

    @tool("search", **options)
    def search(query: str) -> str:
        """Search."""
        return text

    return search


def policy_at(stage: Stage, action: Action, **fields: Any) -> Policy:
    """A policy that does something at one stage, and nothing at the others."""
    rules = (Rule(action=action),)
    stages = {stage: StagePolicy(rules=rules, **fields)}
    return Policy(name="one-stage", default=StagePolicy(), stages=stages)


def guard(
    engine: ScriptedEngine | None = None,
    action: Action = Action.BLOCK,
    on_error: OnError = OnError.BLOCK,
) -> Guard:
    """Unsafe is what contains "bomb"."""
    policy = Policy.strict(action=action, on_error=on_error)
    return Guard(engine or ScriptedEngine(SCRIPT), policy)


@dataclass(kw_only=True)
class Agent:
    """A guarded agent and all that it is made of."""

    graph: Any
    model: ScriptedModel
    engine: ScriptedEngine
    ran: list[str] = field(default_factory=list[str])

    @property
    def judged(self) -> list[str]:
        """What the engine was asked about, as "role: text"."""
        return [f"{c.last.role.value}: {c.last.judged_text.strip()}" for c in self.engine.seen]

    @property
    def state(self) -> dict[str, Any]:
        """The thread's state, private parts included."""
        return self.graph.get_state(THREAD).values

    def actions(self, name: str = NAME) -> dict[str, str | None]:
        """What the ledger says of each message, by its text."""
        ledger = self.state.get("guardrails", {}).get(name, {})
        found = dict[str, str | None]()
        for message in self.state["messages"]:
            if message.id in ledger:
                decision = ledger[message.id]["decision"]
                found[message.text.strip()] = decision and decision["action"]
        return found


def agent(
    *replies: Reply,
    tools: Sequence[BaseTool] | None = None,
    guard: Guard | None = None,
    before: Sequence[AgentMiddleware[Any, Any]] = (),
    after: Sequence[AgentMiddleware[Any, Any]] = (),
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Agent:
    """A guarded agent with a checkpointer.

    Args:
        replies: What its model says, call by call.
        tools: By default `search`.
        guard: By default a strict one.
        before: Middleware around the guard's.
        after: Middleware inside it.
        options: More for `create_agent`.
        settings: Of `GuardrailMiddleware`.
    """
    ran = list[str]()
    used = guard or Guard(ScriptedEngine(SCRIPT), Policy.strict())
    says = model(*replies)
    ours = GuardrailMiddleware(used, **settings)
    graph = create_agent(
        says,
        tools=[search_tool(ran)] if tools is None else tools,
        middleware=[*before, ours, *after],
        **{"checkpointer": InMemorySaver(), **(options or {})},
    )
    assert isinstance(used.engine, ScriptedEngine)
    return Agent(graph=graph, model=says, engine=used.engine, ran=ran)


def said(messages: Sequence[BaseMessage]) -> list[str]:
    """Messages as "type: text", in order."""
    return [f"{message.type}: {message.text.strip()}" for message in messages]


def user(*texts: str) -> dict[str, Any]:
    """A state with messages of the user."""
    return {"messages": [("user", text) for text in texts]}
