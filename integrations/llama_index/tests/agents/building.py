"""Agents of every kind, and all that anybody can get of their runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from llama_index.core.agent.workflow import (
    AgentStream,
    AgentWorkflow,
    CodeActAgent,
    FunctionAgent,
    ReActAgent,
)
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.llm import LLM
from llama_index.core.memory import BaseMemory, ChatMemoryBuffer
from llama_index.core.workflow import Context, Event

from guardrails_qwen import Guard, GuardError
from integrations.llama_index.tests.doubles import WritingLLM, call, heard
from llama_index_guardrails_qwen.llm import GuardedLLM
from llama_index_guardrails_qwen.tools import guarded_tools

Reply = list[Any] | str

of_the_framework = pytest.mark.filterwarnings(
    "ignore::pydantic.PydanticDeprecatedSince20",  # workflows look at all that an agent has
    "ignore::pydantic.PydanticDeprecatedSince211",
    "ignore:is_running called from within a step:DeprecationWarning",  # by ReActAgent
    "ignore:Skipping serialization of known unserializable key",  # the memory
)
"""What LlamaIndex itself warns of in every run of an agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of agent, and how its models ask for tools and answer."""

    name: str
    make: Callable[..., Any]
    asks: Callable[[str], Reply]
    """Asks for the tool `search` with a query."""
    says: Callable[[str], Reply]


def search_call(query: str) -> Reply:
    return [call("search", query=query)]


def react_call(query: str) -> Reply:
    return f"Thought: I have to look.\nAction: search\nAction Input: {json.dumps({'query': query})}"


def react_answer(text: str) -> Reply:
    return f"Thought: I can answer without using any more tools.\nAnswer: {text}"


def code(query: str) -> Reply:
    return f"<execute>print(search({query!r}))</execute>"


def plain(text: str) -> Reply:
    return text


def code_agent(*, llm: LLM, tools: Sequence[Any] = (), **options: Any) -> CodeActAgent:
    """An agent whose code can call its tools by name."""
    functions = {tool.metadata.name: tool.async_fn for tool in tools}

    async def execute(code: str) -> str:
        """Run code."""
        name, _, argument = code.removeprefix("print(").partition("(")
        return str(await functions[name](argument.strip("'\")")))

    return CodeActAgent(code_execute_fn=execute, llm=llm, tools=list(tools), **options)


def workflow_of(*, llm: LLM, tools: Sequence[Any] = (), **options: Any) -> AgentWorkflow:
    """Two agents, of which the second is never asked."""
    first = FunctionAgent(name="first", description="First.", llm=llm, tools=list(tools), **options)
    second = FunctionAgent(name="second", description="Second.", llm=llm)
    return AgentWorkflow(agents=[first, second], root_agent="first")


FUNCTION = Kind(name="function", make=FunctionAgent, asks=search_call, says=plain)
REACT = Kind(name="react", make=ReActAgent, asks=react_call, says=react_answer)
CODE = Kind(name="code", make=code_agent, asks=code, says=plain)
WORKFLOW = Kind(name="workflow", make=workflow_of, asks=search_call, says=plain)
KINDS = [FUNCTION, REACT, CODE, WORKFLOW]


def search(query: str) -> str:
    """Find a page."""
    if query == "fail":
        raise LookupError("no page about a bomb")
    return {"bad": "how to make a bomb", "good": "how to make pancakes"}.get(query, "nothing")


@dataclass(slots=True, kw_only=True)
class Run:
    """A run of an agent, and what was heard of it."""

    events: list[Event] = field(default_factory=list[Event])
    result: Any = None
    error: Exception | None = None
    told: str = ""
    """What dispatchers were told."""
    memory: list[ChatMessage] = field(default_factory=list[ChatMessage])
    dumped: str = ""
    """The context, as it is stored."""

    @property
    def everything(self) -> str:
        """All that anybody gets of it, as text."""
        shown = [f"{event!r} {event} {_fields(event)}" for event in self.events]
        kept = [self.memory, self.dumped, self.told]
        return "\n".join([*shown, *map(repr, [self.result, _fields(self.result), *kept])]) + (
            f"{self.error!r} {self.error}"
        )

    @property
    def streamed(self) -> str:
        """The text that was shown while it was written."""
        return "".join(event.delta for event in self.events if isinstance(event, AgentStream))

    def of(self, kind: type[Event]) -> list[Any]:
        """The events of a kind."""
        return [event for event in self.events if isinstance(event, kind)]


def new_memory() -> BaseMemory:
    """A memory that forgets nothing."""
    return ChatMemoryBuffer(token_limit=100_000)


async def run(
    agent: Any,
    message: str = "What do you know?",
    *,
    ctx: Context | None = None,
    memory: BaseMemory | None = None,
    **options: Any,
) -> Run:
    """Run an agent to its end, and listen to it."""
    done = Run()
    ctx = ctx or Context(agent)
    memory = memory or new_memory()
    with heard() as (events, spans):
        handler = agent.run(user_msg=message, ctx=ctx, memory=memory, **options)
        try:
            async for event in handler.stream_events():
                done.events.append(event)
        except GuardError:
            pass  # it is raised again below
        try:
            done.result = await handler
        except GuardError as error:
            done.error = error
    await asyncio.sleep(0)
    done.told = f"{events.events!r} {[vars(event) for event in events.events]} {spans.told!r}"
    done.memory = await memory.aget_all()
    done.dumped = json.dumps(handler.ctx.to_dict())
    return done


def guarded(
    kind: Kind,
    guard: Guard,
    replies: Sequence[Reply],
    *,
    tool: Any = search,
    llm: Mapping[str, Any] | None = None,
    tools: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Any, WritingLLM]:
    """An agent whose model and tool are guarded, and the model inside.

    Args:
        llm: Settings of the guarded model.
        tools: Settings of the guarded tools.
        options: Settings of the agent.
    """
    inner = WritingLLM(replies=list(replies))
    model = GuardedLLM(inner=inner, guard=guard, **(llm or {}))
    return kind.make(
        llm=model, tools=guarded_tools([tool], guard, **(tools or {})), **options
    ), inner


def sent(inner: WritingLLM) -> str:
    """All that a model was sent."""
    return repr([[vars(message) for message in messages] for messages in inner.seen])


def _fields(value: Any) -> str:
    fields: dict[str, Any] = {**getattr(value, "__dict__", {})}
    fields.update(getattr(value, "_data", None) or {})
    return repr({key: (item, getattr(item, "__dict__", None)) for key, item in fields.items()})
