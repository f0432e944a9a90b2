"""One call of a guarded model: its messages on the way in, its reply on the way out."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Generator,
    Iterable,
    Sequence,
)
from functools import partial
from typing import TypeVar

from llama_index.core.base.llms.types import ChatMessage, ChatResponse

from guardrails_qwen import (
    Action,
    Conversation,
    Decision,
    GuardError,
    GuardViolation,
    Message,
    Role,
)
from guardrails_qwen.streaming import (
    aclose_quietly,
    aclosed_after,
    close_quietly,
    closed_after,
)
from llama_index_guardrails_qwen.content import is_in_files
from llama_index_guardrails_qwen.events import Origin
from llama_index_guardrails_qwen.gate import Asked, Gate
from llama_index_guardrails_qwen.known import Known, Prefix, digests_of
from llama_index_guardrails_qwen.live import Live
from llama_index_guardrails_qwen.messages import (
    decided_message,
    read_message,
    unjudgeable,
)
from llama_index_guardrails_qwen.metadata import extra_of, noted, told_of
from llama_index_guardrails_qwen.reply import Reply, by_assistant
from llama_index_guardrails_qwen.thread import Thread, prompt_of

_T = TypeVar("_T")


class Turn:
    """One call of a model.

    Args:
        gate: The guard.
        known: What it decided before.
        messages: What the model is sent.
        trust_system: Whether the guard does not read a system message that comes first.
    """

    def __init__(
        self, gate: Gate, known: Known, messages: Sequence[ChatMessage], *, trust_system: bool
    ) -> None:
        self.messages = list(messages)
        self._gate = gate
        self._origin = Origin.now()
        self._known = known
        self._trust_system = trust_system
        self._prompt = tuple[Message, ...]()

    def admit(self) -> list[ChatMessage]:
        """The messages that may be sent: the very same list where they pass unchanged.

        Raises:
            GuardViolation: They may not, or there is nothing left to answer.
            GuardError: They could not be judged, and the policy says to raise.
        """
        thread = self._thread()
        while asked := thread.asked:
            thread.learn(self._gate.judge(asked))
        return self._admitted(thread)

    async def aadmit(self) -> list[ChatMessage]:
        """`admit`, without blocking the event loop."""
        thread = await self._done(self._thread)
        while asked := thread.asked:
            decisions = await self._gate.ajudge(asked)
            await self._done(partial(thread.learn, decisions))
        return await self._done(partial(self._admitted, thread))

    def passed(self, response: ChatResponse) -> ChatResponse:
        """What may be released of a response.

        Raises:
            GuardViolation: It is blocked.
            GuardError: It could not be judged, and the policy says to raise.
        """
        response = by_assistant(response)
        [decision] = self._gate.judge([self._about(response.message)])
        return self._released(response, decision)

    async def apassed(self, response: ChatResponse) -> ChatResponse:
        """`passed`, without blocking the event loop."""
        response = by_assistant(response)
        [decision] = await self._gate.ajudge([self._about(response.message)])
        return self._released(response, decision)

    def answered(self, violation: GuardViolation) -> ChatResponse:
        """What is answered in place of what was kept from passing.

        Raises:
            GuardViolation: That one, where nothing is.
        """
        return Reply().closed(self._gate.instead(violation), violation.decision)

    def moderated(self, chunks: Iterable[ChatResponse]) -> Generator[ChatResponse, None, None]:
        """What may be released of a reply that streams, while it comes.

        However it ends, the chunks are closed, and before anything else happens where it is
        blocked.

        Raises:
            GuardViolation: It is blocked, and there is no closing text.
            GuardError: It could not be judged, and the policy says to raise.
        """
        reply = Reply()
        try:
            with closed_after(chunks) as parts, Live(self._gate, self._origin) as live:
                source = iter(chunks)
                parts.insert(0, source)
                for chunk in source:
                    events = live.feed(self._next(reply, chunk, live))
                    if live.over:
                        close_quietly(parts)
                    yield from reply.passed(events)
                    if live.over:
                        return
                yield from reply.passed(live.finish())
                if live.cut:
                    return
            if whole := reply.whole:
                [decision] = self._gate.judge([self._about(whole)], origin=self._origin)
                yield from self._remembered(reply.rest(decision), decision)
            else:
                yield from self._remembered(reply.end(live.decision), live.decision)
        except GuardViolation as violation:
            yield reply.closed(self._gate.instead(violation), violation.decision)

    async def amoderated(
        self, chunks: AsyncIterable[ChatResponse]
    ) -> AsyncGenerator[ChatResponse, None]:
        """`moderated`, without blocking the event loop."""
        reply = Reply()
        try:
            async with aclosed_after(chunks) as parts:
                with Live(self._gate, self._origin) as live:
                    source = aiter(chunks)
                    parts.insert(0, source)
                    async for chunk in source:
                        events = await live.afeed(self._next(reply, chunk, live))
                        if live.over:
                            await aclose_quietly(parts)
                        for released in reply.passed(events):
                            yield released
                        if live.over:
                            return
                    for released in reply.passed(await live.afinish()):
                        yield released
                    if live.cut:
                        return
            if whole := reply.whole:
                [decision] = await self._gate.ajudge([self._about(whole)], origin=self._origin)
                last = self._remembered(reply.rest(decision), decision)
            else:
                last = self._remembered(reply.end(live.decision), live.decision)
            for released in last:
                yield released
        except GuardViolation as violation:
            yield reply.closed(self._gate.instead(violation), violation.decision)

    async def _done(self, reading: Callable[[], _T]) -> _T:
        """What reading messages gives, on a thread where that is to read files."""
        if any(map(is_in_files, self.messages)):
            return await asyncio.to_thread(reading)
        return reading()

    def _thread(self) -> Thread:
        return Thread(self.messages, self._gate.guard, self._known, trust_system=self._trust_system)

    def _admitted(self, thread: Thread) -> list[ChatMessage]:
        sent = thread.admitted()
        self._prompt = prompt_of(sent[thread.trusted :])
        unchanged = len(sent) == len(self.messages) and all(
            new is old for new, old in zip(sent, self.messages, strict=True)
        )
        return self.messages if unchanged else sent

    def _next(self, reply: Reply, chunk: ChatResponse, live: Live) -> str:
        """The text to moderate of a chunk.

        A reply that goes on with what the assistant said is judged with it, at the end.
        """
        goes_on = bool(self._prompt) and self._prompt[-1].role is Role.ASSISTANT
        live.prompt = Conversation(self._prompt) if self._prompt and not goes_on else None
        return reply.add(chunk, waits=goes_on)

    def _about(self, message: ChatMessage) -> Asked:
        """What is asked about a reply."""
        try:
            return Conversation((*self._prompt, read_message(message)))
        except GuardError as error:
            return unjudgeable(error, Role.ASSISTANT)

    def _released(self, response: ChatResponse, decision: Decision) -> ChatResponse:
        if decision.action is Action.BLOCK:
            raise GuardViolation(decision)
        [released] = self._remembered(
            [
                ChatResponse(
                    message=decided_message(response.message, decision),
                    delta=response.delta if decision.allowed else None,
                    raw=told_of(response.raw),
                    additional_kwargs=noted(extra_of(response), decision),
                )
            ],
            decision,
        )
        return released

    def _remembered(
        self, responses: Iterable[ChatResponse], decision: Decision | None
    ) -> Generator[ChatResponse, None, None]:
        """The responses; the message of each is known from now on, where it passed as it was."""
        for response in responses:
            if decision and decision.allowed and not decision.degraded:
                self._remember(read_message(response.message))
            yield response

    def _remember(self, reply: Message) -> None:
        guard = self._gate.guard
        self._known.add(Prefix(guard, self._prompt).then(reply))
        self._known.add(digests_of([*self._prompt[-1:], reply], guard)[-1])
