"""The ways to run an agent, each with everything that can be observed of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from langchain.agents.structured_output import StructuredOutputError
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig

from guardrails_qwen import GuardError
from integrations.langchain.tests.leaks.probe import Ears, Sink, Trace
from tests.observed import logged

MODES = ["values", "updates", "messages", "custom", "debug", "tasks", "checkpoints"]
Door = Callable[[Any, Any, RunnableConfig, Sink], Awaitable[None]]


async def invoke(agent: Any, value: Any, config: RunnableConfig, sink: Sink) -> None:
    sink.hear("result", agent.invoke(value, config))


async def ainvoke(agent: Any, value: Any, config: RunnableConfig, sink: Sink) -> None:
    sink.hear("result", await agent.ainvoke(value, config))


async def stream(agent: Any, value: Any, config: RunnableConfig, sink: Sink) -> None:
    for _, mode, chunk in agent.stream(value, config, stream_mode=MODES, subgraphs=True):
        sink.hear(f"stream: {mode}", chunk)


async def astream(agent: Any, value: Any, config: RunnableConfig, sink: Sink) -> None:
    chunks = agent.astream(value, config, stream_mode=MODES, subgraphs=True)
    async for _, mode, chunk in chunks:
        sink.hear(f"stream: {mode}", chunk)


async def events_v2(agent: Any, value: Any, config: RunnableConfig, sink: Sink) -> None:
    async for event in agent.astream_events(value, config, version="v2"):
        sink.hear(f"events v2: {_kind(event['event'])}", event)


async def events_v3(agent: Any, value: Any, config: RunnableConfig, sink: Sink) -> None:
    for event in agent.stream_events(value, config, version="v3"):
        sink.hear(f"events v3: {_method(event)}", event)


async def aevents_v3(agent: Any, value: Any, config: RunnableConfig, sink: Sink) -> None:
    run = await agent.astream_events(value, config, version="v3")
    async for event in run:
        sink.hear(f"events v3: {_method(event)}", event)


async def projections_v3(agent: Any, value: Any, config: RunnableConfig, sink: Sink) -> None:
    """What the typed views of a run give: text, reasoning, tool calls, snapshots."""
    run = agent.stream_events(value, config, version="v3")
    for name, item in run.interleave(*(name for name in _VIEWS if name in run.extensions)):
        sink.hear(f"events v3: {_VIEWS[name]}", *_view(name, item))
    sink.hear("events v3: values", run.output)


_VIEWS = {"messages": "messages", "tool_calls": "tools", "values": "values"}


def _view(name: str, item: Any) -> list[Any]:
    if name == "messages":
        return [*item.text, *item.reasoning, *item.tool_calls, item.output]
    if name == "tool_calls":
        return [item.input, *item.output_deltas, item.output, item.error]
    return [item]


def _kind(event: str) -> str:
    kinds = {"on_chat_model": "model", "on_tool": "tool", "on_custom": "custom"}
    return next((kind for start, kind in kinds.items() if event.startswith(start)), "chain")


def _method(event: Any) -> str:
    return event["method"] if event["method"] in ("messages", "tools", "values") else "others"


DOORS: list[Door] = [
    *(invoke, ainvoke, stream, astream, events_v2, events_v3, aevents_v3, projections_v3)
]


@dataclass(slots=True)
class Watch:
    """Handlers that are told of a run, and the config that brings them in."""

    sink: Sink = field(default_factory=Sink)
    thread: str = "thread"

    @property
    def config(self) -> RunnableConfig:
        """A new one; its handlers write into the same sink."""
        handlers = [Ears(self.sink), Trace(self.sink)]
        return {"callbacks": [*handlers], **self.plain}

    @property
    def plain(self) -> RunnableConfig:
        """The same without handlers."""
        return {"configurable": {"thread_id": self.thread}, "recursion_limit": 20}

    async def run(self, door: Door, agent: Any, value: Any) -> None:
        """One run with all that is observed, its error and its log records included."""
        with logged(self.sink):
            try:
                await door(agent, value, self.config, self.sink)
            except (GuardError, StructuredOutputError) as error:
                self.sink.hear("error", error)

    def look(self, agent: Any, saver: Any) -> None:
        """What is left behind: in the state and its history, and in what the saver keeps."""
        config = self.plain
        self.sink.hear("state", agent.get_state(config, subgraphs=True))
        for snapshot in reversed(list(agent.get_state_history(config))):
            self.sink.hear("history", snapshot)
        for blobs in _by_version(saver.blobs):
            self.sink.hear("saver", blobs)
        self.sink.hear("saver", saver.storage)
        for checkpoint in sorted(saver.writes, key=str):
            self.sink.hear("saver writes", saver.writes[checkpoint])

    async def again(self, agent: Any, asked: list[Any]) -> None:
        """A harmless turn behind it; `asked` is what the model is asked."""
        before = len(asked)
        config = self.plain
        try:
            await agent.ainvoke({"messages": [HumanMessage("And again?")]}, config)
        except (GuardError, StructuredOutputError) as error:
            self.sink.hear("error", error)
        self.sink.hear("next turn", asked[before:])


def _by_version(blobs: Mapping[Any, Any]) -> list[list[Any]]:
    """What a saver stored of the channels, oldest versions first."""
    versions = defaultdict[int, list[Any]](list)
    for (_, _, _, version), blob in blobs.items():
        versions[int(str(version).split(".")[0])].append(blob)
    return [versions[version] for version in sorted(versions)]
