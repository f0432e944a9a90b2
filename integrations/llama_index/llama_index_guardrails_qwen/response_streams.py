"""Answers of query engines that stream, moderated while they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.schema import NodeWithScore, QueryBundle

from guardrails_qwen import Conversation, Decision, Stage
from guardrails_qwen.streaming import (
    aclose_quietly,
    aclosed_after,
    close_quietly,
    closed_after,
    readable,
)
from llama_index_guardrails_qwen.events import Origin
from llama_index_guardrails_qwen.gate import Asked, Gate
from llama_index_guardrails_qwen.live import Live
from llama_index_guardrails_qwen.objects import Growing
from llama_index_guardrails_qwen.queries import context_of
from llama_index_guardrails_qwen.responses import (
    ANSWER,
    ASIDE,
    aside_text,
    asked_with,
    own_metadata,
    passes,
    text_instead,
)

_Streamed = StreamingResponse | AsyncStreamingResponse


def moderated(gate: Gate, query: QueryBundle, response: _Streamed) -> _Streamed:
    """A stream that answers a query, of which only what was judged leaves.

    Texts leave when they were cleared. Other items, the objects of structured answers, are kept to
    the end and judged together. Source nodes and metadata appear, in the same list and dict, when
    the answer is complete and has passed as it is. However it ends, the stream behind is closed.

    It is of the same kind as the one behind it, and an asynchronous one never blocks the event
    loop. Its generator raises:
        GuardViolation: The answer is blocked, and nothing takes its place.
        GuardError: It could not be judged, and the policy says to raise.
    """
    reply = _Reply(gate=gate, query=query, response=response)
    if isinstance(response, AsyncStreamingResponse):
        return AsyncStreamingResponse(_atexts(reply, response), reply.nodes, reply.metadata)
    return StreamingResponse(_texts(reply, response), reply.nodes, reply.metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    """A stream on its way.

    It knows nothing of the response that is made of it, so that no cycle keeps a generator that
    nobody reads on.
    """

    gate: Gate
    query: QueryBundle
    response: _Streamed
    origin: Origin = field(default_factory=Origin.now)
    nodes: list[NodeWithScore] = field(default_factory=list[NodeWithScore])
    metadata: dict[str, Any] | None = field(init=False)
    said: list[str] = field(default_factory=list[str])
    """All texts, held ones included."""
    held: list[object] = field(default_factory=list[object])
    """Items that wait for the end, and the texts behind the first of them."""
    told: Growing = field(default_factory=Growing)
    """What is said by those that are no texts."""

    def __post_init__(self) -> None:
        told = None if self.response.metadata is None else dict[str, Any]()
        object.__setattr__(self, "metadata", told)

    def live(self) -> Live:
        """The guard's stream, which knows the query."""
        live = Live(self.gate, self.origin)
        context = context_of(self.query)
        live.prompt = Conversation(context) if context else None
        return live

    def text_of(self, item: object) -> str:
        """What can be moderated of an item at once; nothing of one that has to wait."""
        if item is None or item == "":
            return ""
        if isinstance(item, str):
            self.said.append(item)
        else:
            self.told.add(item)
        if isinstance(item, str) and not self.held:
            return item
        self.held.append(item)
        return ""

    def asked(self) -> dict[str, Asked]:
        """What is asked at the end, when all texts have left."""
        return asked_with(
            self.query,
            {
                ANSWER: self._whole,
                ASIDE: lambda: aside_text(self.response),
            },
        )

    def _whole(self) -> str:
        """All texts in one piece, and what the other items say; nothing where none is held."""
        return "\n".join(["".join(self.said), self.told.text()]) if self.held else ""

    def rest(self, live: Live, decisions: Mapping[str, Decision]) -> Generator[Any, None, None]:
        """What leaves at the end, and what is to be known of it."""
        held = decisions.get(ANSWER)
        if held and not held.allowed:
            yield from [text] if (text := text_instead(self.gate, held)) else []
            return
        yield from self.held
        if passes(live.decision):
            self.nodes.extend(self.response.source_nodes or ())
            told = (self.response.metadata or {}) if passes(decisions.get(ASIDE)) else None
            if self.metadata is not None:
                self.metadata.update(own_metadata(self.response) if told is None else told)


def _texts(reply: _Reply, response: StreamingResponse) -> Generator[Any, None, None]:
    with reply.live() as live, closed_after(response.response_gen) as parts:
        parts.insert(0, items := iter(response.response_gen or ()))
        for item in chain(_begun(response), items):
            events = live.feed(reply.text_of(item))
            if live.over:
                close_quietly(parts)
            yield from readable(events)
            if live.over:
                return
        yield from readable(live.finish())
        if live.cut:
            return
        asked = reply.asked()
        decisions = _named(asked, reply.gate.judge([*asked.values()], Stage.OUTPUT, reply.origin))
        yield from reply.rest(live, decisions)


async def _atexts(reply: _Reply, response: AsyncStreamingResponse) -> AsyncGenerator[Any, None]:
    with reply.live() as live:
        async with aclosed_after(response.response_gen) as parts:
            async for item in _preceded(_begun(response), response.response_gen):
                events = await live.afeed(reply.text_of(item))
                if live.over:
                    await aclose_quietly(parts)
                for piece in readable(events):
                    yield piece
                if live.over:
                    return
            for piece in readable(await live.afinish()):
                yield piece
            if live.cut:
                return
            asked = reply.asked()
            decisions = _named(
                asked, await reply.gate.ajudge([*asked.values()], Stage.OUTPUT, reply.origin)
            )
            for piece in reply.rest(live, decisions):
                yield piece


def _begun(response: _Streamed) -> list[str]:
    """What was read of a stream already, which its response keeps."""
    return [response.response_txt] if response.response_txt else []


async def _preceded(
    first: Sequence[object], items: AsyncIterable[object] | None
) -> AsyncGenerator[object, None]:
    for item in first:
        yield item
    if items is not None:
        async for item in items:
            yield item


def _named(asked: Mapping[str, Asked], decisions: Sequence[Decision]) -> dict[str, Decision]:
    return dict(zip(asked, decisions, strict=True))
