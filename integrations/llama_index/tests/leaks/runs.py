"""One scenario, run in one way, with all that can be observed of it."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.llms.llm import LLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import TextNode
from llama_index.core.workflow import Context
from workflows.errors import WorkflowRuntimeError  # pyright: ignore[reportMissingTypeStubs]

from guardrails_qwen import GuardError
from integrations.llama_index.tests.doubles import NGramEmbedding, WritingLLM
from integrations.llama_index.tests.leaks.probe import CallbackEars, Sink, listening
from integrations.llama_index.tests.leaks.subjects import Subject
from integrations.llama_index.tests.leaks.threats import AGENT_PLACES, Place, Recipe, Scenario
from integrations.llama_index.tests.leaks.tools import tools

NEXT = "And again?"
"""What the user asks in the next turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A way to run something. Agents have no synchronous one."""

    asynchronous: bool = True
    streams: bool = True

    def __str__(self) -> str:
        return f"{'a' * self.asynchronous}{'streams' * self.streams or 'waits'}"


ASYNC_DOORS = [Door(streams=streams) for streams in (True, False)]
DOORS = [*ASYNC_DOORS, *(Door(asynchronous=False, streams=door.streams) for door in ASYNC_DOORS)]


def doors(scenario: Scenario) -> list[Door]:
    """The ways to run a scenario."""
    return ASYNC_DOORS if scenario.place in AGENT_PLACES else DOORS


@dataclass(slots=True, kw_only=True)
class Run:
    """What runs in a scenario, guarded by a subject."""

    subject: Subject
    scenario: Scenario
    door: Door
    sink: Sink = field(default_factory=Sink)
    written: WritingLLM = field(init=False)
    model: LLM = field(init=False)
    memory: ChatMemoryBuffer = field(init=False)

    def __post_init__(self) -> None:
        ears = CallbackManager([CallbackEars(self.sink)])
        self.written = WritingLLM(
            replies=[*self.scenario.replies], chats=self.scenario.chats, callback_manager=ears
        )
        self.model = self.subject.model(self.written)
        self.memory = ChatMemoryBuffer.from_defaults(token_limit=100_000)  # pyright: ignore[reportUnknownMemberType]

    async def observed(self) -> Sink:
        """The scenario, what is left behind, and a harmless turn behind it."""
        index = None if self.scenario.place in AGENT_PLACES else self._index()
        with listening(self.sink):
            say = self._chat(index) if index else self._agent()
            await self._turn(say, self.scenario.question, [*self.scenario.history])
            sent = len(self.written.seen)
            self.written.replies = [*([""] * sent), *self.scenario.later]
            await self._turn(say, NEXT, [])
        for messages in self.written.seen[:sent]:
            self.sink.hear("model", messages)
        for messages in self.written.seen[sent:]:
            self.sink.hear("next turn", messages)
        return self.sink

    async def _turn(
        self, say: Callable[..., Awaitable[None]], question: str, history: list[ChatMessage]
    ) -> None:
        try:
            await say(question, history)
        except (GuardError, WorkflowRuntimeError) as error:  # the latter after too many tries
            self.sink.hear("error", error)
        self.sink.hear("memory", self.memory.get_all())

    def _index(self) -> VectorStoreIndex:
        nodes = [self.scenario.node.model_copy(), TextNode(text="Tea is a word of three letters.")]
        return VectorStoreIndex(nodes, embed_model=NGramEmbedding())

    def _agent(self) -> Callable[..., Awaitable[None]]:
        agent = self._workflow()
        context = Context(agent)

        async def say(question: str, history: list[ChatMessage]) -> None:
            told: Any = {"chat_history": history} if history else {}
            try:
                handler = agent.run(user_msg=question, ctx=context, memory=self.memory, **told)
                async for event in handler.stream_events():
                    self._hear_event(event)
                self._hear_output("result", await handler)
            finally:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self.sink.hear("context", context.to_dict())

        return say

    def _workflow(self) -> Any:
        made: dict[str, Any] = {
            "llm": self.model,
            "tools": self.subject.tools(tools(self.sink)),
            "streaming": self.door.streams,
            "output_cls": Recipe if self.scenario.structured else None,
            "description": "It talks.",
        }
        if self.scenario.place is Place.REACT:
            return ReActAgent(**made)
        first = FunctionAgent(name="first", **made)
        if self.scenario.place is Place.FUNCTION:
            return first
        return AgentWorkflow(
            agents=[first, FunctionAgent(name="second", **made)], root_agent="first"
        )

    def _hear_event(self, event: Any) -> None:
        name = type(event).__name__
        if name == "AgentStream":
            self.sink.hear("AgentStream: text", event.delta, event.response)
            self.sink.hear("AgentStream: tool_calls", event.tool_calls)
            self.sink.hear("AgentStream: raw", event.raw)
            self.sink.hear("AgentStream: thinking_delta", event.thinking_delta)
        elif name == "AgentOutput":
            self._hear_output(name, event)
        elif name != "StopEvent":
            self.sink.hear(name, event)

    def _hear_output(self, surface: str, output: Any) -> None:
        self.sink.hear(surface, output.response, output.structured_response, output.retry_messages)
        self.sink.hear(f"{surface}: tool_calls", output.tool_calls)
        self.sink.hear(f"{surface}: raw", output.raw)

    def _query(self, index: VectorStoreIndex) -> Callable[..., Awaitable[None]]:
        inner = index.as_query_engine(  # pyright: ignore[reportUnknownMemberType]
            llm=self.model,
            streaming=self.door.streams,
            response_mode=ResponseMode(self.scenario.mode),
            output_cls=Recipe if self.scenario.structured else None,
            node_postprocessors=self.subject.postprocessors(),
        )
        engine = self.subject.query(inner)

        async def say(question: str, history: list[ChatMessage]) -> None:
            response: Any = (
                await engine.aquery(question) if self.door.asynchronous else engine.query(question)
            )
            try:
                await self._read(response)
            finally:
                self.sink.hear("result", str(response), getattr(response, "response", None))
                self.sink.hear("sources", response.source_nodes, response.metadata)

        return say

    async def _read(self, response: Any) -> None:
        if isinstance(response, StreamingResponse):
            for token in response.response_gen:
                self.sink.hear("tokens", token)
        elif isinstance(response, AsyncStreamingResponse):
            async for token in response.async_response_gen():
                self.sink.hear("tokens", token)

    def _chat(self, index: VectorStoreIndex) -> Callable[..., Awaitable[None]]:
        if self.scenario.place is Place.QUERY:
            return self._query(index)
        inner = index.as_chat_engine(  # pyright: ignore[reportUnknownMemberType]
            chat_mode=ChatMode(self.scenario.mode),
            llm=self.model,
            memory=self.memory,
            node_postprocessors=self.subject.postprocessors(),
        )
        engine = self.subject.chat(inner)
        ways: dict[tuple[bool, bool], Any] = {
            (False, False): engine.chat,
            (False, True): engine.stream_chat,
            (True, False): engine.achat,
            (True, True): engine.astream_chat,
        }

        async def say(question: str, history: list[ChatMessage]) -> None:
            answer = ways[self.door.asynchronous, self.door.streams](question, history or None)
            response: Any = await answer if self.door.asynchronous else answer
            try:
                await self._listen(response)
            finally:
                self.sink.hear("result", str(response), response.response)
                more = getattr(response, "metadata", None)
                self.sink.hear("sources", response.source_nodes, response.sources, more)
                self.sink.hear("history", engine.chat_history)

        return say

    async def _listen(self, response: Any) -> None:
        if self.door.streams and self.door.asynchronous:
            async for token in response.async_response_gen():
                self.sink.hear("tokens", token)
        elif self.door.streams:
            for token in response.response_gen:
                self.sink.hear("tokens", token)
