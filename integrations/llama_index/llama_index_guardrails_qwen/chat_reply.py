"""The reply of a chat engine that streams, on its way to the reader and to the memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator

from llama_index.core.base.llms.types import ChatResponse

from guardrails_qwen import Action, Decision, GuardViolation
from guardrails_qwen.streaming import aclose_source, aclosed_after, close_source, closed_after
from llama_index_guardrails_qwen.chat_streams import GuardedChatStream, atexts_of, texts_of
from llama_index_guardrails_qwen.chat_turn import Answer, ChatTurn, Settled
from llama_index_guardrails_qwen.events import Origin
from llama_index_guardrails_qwen.gate import Gate
from llama_index_guardrails_qwen.live import Live
from llama_index_guardrails_qwen.reply import Reply
from llama_index_guardrails_qwen.staged_memory import StagedMemory


class ChatReply:
    """A reply while it is written.

    Args:
        gate: The guard.
        turn: What it is an answer to.
        memory: Where the engine writes it to.
        response: What the engine answered with.
    """

    def __init__(self, gate: Gate, turn: ChatTurn, memory: StagedMemory, response: object) -> None:
        self._gate = gate
        self._origin = Origin.now()
        self._turn = turn
        self._memory = memory
        self._response = response
        self._came = ""
        self._reply = Reply()

    def stream(self) -> GuardedChatStream:
        """The reply, to be read."""
        stream = GuardedChatStream()
        stream.chat_stream = self._moderated(stream)
        return stream

    def astream(self) -> GuardedChatStream:
        """The reply, to be read by a coroutine."""
        stream = GuardedChatStream()
        stream.achat_stream = self._amoderated(stream)
        return stream

    def _moderated(self, stream: GuardedChatStream) -> Generator[ChatResponse, None, None]:
        source = texts_of(self._response)
        try:
            with closed_after(source), Live(self._gate, self._origin) as live:
                live.prompt = self._turn.prompt
                for text in source:
                    events = live.feed(self._next(text))
                    if live.over:
                        close_source(source)
                    yield from self._reply.passed(events)
                    if live.over:
                        break
                yield from self._reply.passed(live.finish() if not live.over else [])
            if answer := self._answer(live.decision):
                settled = self._turn.settle(self._memory.written, answer)
                self._memory.commit(settled.messages)
                _show_sources(stream, self._response, settled)
        except GuardViolation as violation:
            yield self._reply.closed(self._gate.instead(violation), violation.decision)

    async def _amoderated(self, stream: GuardedChatStream) -> AsyncGenerator[ChatResponse, None]:
        source = atexts_of(self._response)
        try:
            async with aclosed_after(source):
                with Live(self._gate, self._origin) as live:
                    live.prompt = self._turn.prompt
                    async for text in source:
                        events = await live.afeed(self._next(text))
                        if live.over:
                            await aclose_source(source)
                        for chunk in self._reply.passed(events):
                            yield chunk
                        if live.over:
                            break
                    for chunk in self._reply.passed(await live.afinish() if not live.over else []):
                        yield chunk
            if answer := self._answer(live.decision):
                settled = await self._turn.asettle(self._memory.written, answer)
                await self._memory.acommit(settled.messages)
                _show_sources(stream, self._response, settled)
        except GuardViolation as violation:
            yield self._reply.closed(self._gate.instead(violation), violation.decision)

    def _next(self, text: str) -> str:
        self._came += text
        return text

    def _answer(self, decision: Decision | None) -> Answer | None:
        """What was answered; None where nothing of it is to be remembered."""
        if decision and decision.action in (Action.BLOCK, Action.DROP):
            return None
        return Answer(
            came=self._came, released=self._reply.told, decision=decision, response=self._response
        )


def _show_sources(stream: GuardedChatStream, response: object, settled: Settled) -> None:
    """A reply that has passed as it is shows its sources; others may quote what was taken out."""
    if settled.shows_sources:
        stream.sources.extend(getattr(response, "sources", []))
        stream.source_nodes.extend(getattr(response, "source_nodes", []))
