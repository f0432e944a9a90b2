"""Values on their way through a gate, as streams: replies while they are written, others whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessageChunk

from guardrails_qwen import Conversation, Decision, GuardError, Role, Stage
from guardrails_qwen.streaming import GuardedStream, aclose_source, close_source
from langchain_guardrails_qwen.gate import Gate
from langchain_guardrails_qwen.passage import Passing, settled
from langchain_guardrails_qwen.prompts import Place, Prompt, recall
from langchain_guardrails_qwen.reply import Reply
from langchain_guardrails_qwen.streams import added_up, released


def moderated(gate: Gate, chunks: Iterable[Any], place: Place) -> Generator[Any, None, None]:
    """What may pass of a stream, while it comes.

    Chunks of a reply leave when their text was cleared; chunks of anything else when the value that
    they add up to was judged. However it ends, the source is closed: at its end, when the reply is
    blocked (before anything else happens, so that the model stops), or when nobody reads on.

    Raises:
        GuardViolation: It is blocked, and there is no closing text.
        ConversationError: It is something that cannot be judged.
        GuardError: It could not be judged, and the policy says to raise.
    """
    source = iter(chunks)
    passing = None
    try:
        for chunk in source:
            passing = passing or _begun(gate, chunk, place)
            text = passing.held.add(chunk)
            events = passing.stream.feed(text) if text else []
            if passing.stream.over:
                close_source(source, chunks)
            yield from passing.held.passed(events)
            if passing.stream.over:
                return
        if passing and passing.held.mixed:
            values = passing.read()
            yield from passing.held.rest_passed(values, gate.check(values))
        elif passing:
            yield from passing.held.passed(passing.stream.finish(), finished=True)
    finally:
        if passing:
            passing.close()
        close_source(source, chunks)


async def amoderated(
    gate: Gate, chunks: AsyncIterable[Any], place: Place
) -> AsyncGenerator[Any, None]:
    """`moderated`, without blocking the event loop; also when its task is cancelled."""
    source = aiter(chunks)
    passing = None
    try:
        async for chunk in source:
            passing = passing or _begun(gate, chunk, place)
            text = passing.held.add(chunk)
            events = await passing.stream.afeed(text) if text else []
            if passing.stream.over:
                await aclose_source(source, chunks)
            for piece in passing.held.passed(events):
                yield piece
            if passing.stream.over:
                return
        if passing and passing.held.mixed:
            values = passing.read()
            for piece in passing.held.rest_passed(values, await gate.acheck(values)):
                yield piece
        elif passing:
            for piece in passing.held.passed(await passing.stream.afinish(), finished=True):
                yield piece
    finally:
        if passing:
            passing.close()
        await aclose_source(source, chunks)


class _Whole:
    """Chunks of which none leaves before all of them were judged."""

    mixed = True

    def __init__(self) -> None:
        self.came: list[Any] = []

    def add(self, chunk: Any) -> str:
        """One more chunk; there is no text to moderate."""
        self.came.append(chunk)
        return ""

    def passed(self, _events: object, *, finished: bool = False) -> Iterator[Any]:
        """Nothing."""
        return iter(())

    def rest_passed(
        self, passing: Sequence[Passing], results: Sequence[Decision | GuardError]
    ) -> Iterator[Any]:
        """The chunks, or what is passed on instead of the value that they add up to."""
        values = [passage.value for passage in passing if not isinstance(passage, GuardError)]
        return iter(released(self.came, values, settled(passing, results)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passing:
    """A stream on its way."""

    gate: Gate
    place: Place
    held: Reply | _Whole
    stream: GuardedStream

    def read(self) -> list[Passing]:
        """What all chunks add up to."""
        return self.gate.read(added_up(self.held.came), [self.place])

    def close(self) -> None:
        """The end, however it came."""
        self.stream.close()
        if self.stream.decision:
            self.gate.heard([self.stream.decision])


def _begun(gate: Gate, first: Any, place: Place) -> _Passing:
    """A stream of which the first chunk is there: the guard on the left has decided by then."""
    settings = gate.streaming
    known = gate.stage is not None or not isinstance(first, str)
    prompt = recall(place, near=not known)
    moderates = _moderates(gate, first, prompt)
    held = _Whole()
    if moderates:
        replacement = gate.guard.policy.at(Stage.OUTPUT).replacement
        held = Reply(closing=settings.closing, replacement=replacement)
    conversation = Conversation(prompt) if moderates and prompt else None
    stream = gate.guard.stream(conversation, settings=settings)
    return _Passing(gate=gate, place=place, held=held, stream=stream)


def _moderates(gate: Gate, first: Any, prompt: Prompt | None) -> bool:
    """Whether a stream is the assistant's text, and answers something."""
    if gate.stage not in (None, Stage.OUTPUT):
        return False
    if prompt and prompt[-1].role is Role.ASSISTANT:
        return False  # it goes on with what the assistant said, and is judged with it
    if isinstance(first, str):
        return prompt is not None or gate.stage is Stage.OUTPUT
    return isinstance(first, AIMessageChunk)
