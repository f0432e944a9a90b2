"""Values on their way through a gate, as streams: replies while they are written, others whole."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessageChunk

from guardrails_qwen import Conversation, Decision, GuardError, Role, Stage
from guardrails_qwen.streaming import (
    GuardedStream,
    aclose_quietly,
    aclosed_after,
    close_quietly,
    closed_after,
)
from langchain_guardrails_qwen.gate import Gate, Results
from langchain_guardrails_qwen.notes import ending
from langchain_guardrails_qwen.passage import Passing, settled
from langchain_guardrails_qwen.prompts import Place, Prompt, recall
from langchain_guardrails_qwen.reply import Reply
from langchain_guardrails_qwen.streams import added_up, released

Notes = Callable[[Results], dict[str, Any]]
"""What the last chunk of a reply says of what was decided about it, as response metadata."""


def _no_notes(_results: Results) -> dict[str, Any]:
    return {}


def moderated(
    gate: Gate, chunks: Iterable[Any], place: Place, notes: Notes = _no_notes
) -> Generator[Any, None, None]:
    """What may pass of a stream, while it comes.

    Chunks of a reply leave when their text was cleared; chunks of anything else when the value that
    they add up to was judged. However it ends, the source is closed: at its end, when the reply is
    blocked (before anything else happens, so that the model stops), or when nobody reads on. What
    closing it raises takes the place of no block and of no other error; it is logged by its type.

    Args:
        gate: The guard.
        chunks: The stream.
        place: Where it passes.
        notes: Asked once, when a reply was judged.

    Raises:
        GuardViolation: It is blocked, and there is no closing text.
        ConversationError: It is something that cannot be judged.
        GuardError: It could not be judged, and the policy says to raise.
    """
    passing = None
    with closed_after(chunks) as sources:
        sources.insert(0, source := iter(chunks))
        try:
            for chunk in source:
                passing = passing or _begun(gate, chunk, place)
                text = passing.held.add(chunk)
                events = passing.stream.feed(text) if text else []
                if passing.stream.over:
                    close_quietly(sources)
                pieces = passing.held.passed(events)
                yield from passing.ending(pieces, notes) if passing.stream.over else pieces
                if passing.stream.over:
                    return
            if passing and passing.held.mixed:
                values = passing.read()
                results = gate.check(values)
                yield from passing.ending(passing.held.rest_passed(values, results), notes, results)
            elif passing:
                events = passing.stream.finish()
                yield from passing.ending(passing.held.passed(events, finished=True), notes)
        finally:
            if passing:
                passing.close()


async def amoderated(
    gate: Gate, chunks: AsyncIterable[Any], place: Place, notes: Notes = _no_notes
) -> AsyncGenerator[Any, None]:
    """`moderated`, without blocking the event loop; also when its task is cancelled."""
    passing = None
    async with aclosed_after(chunks) as sources:
        sources.insert(0, source := aiter(chunks))
        try:
            async for chunk in source:
                passing = passing or _begun(gate, chunk, place)
                text = passing.held.add(chunk)
                events = await passing.stream.afeed(text) if text else []
                if passing.stream.over:
                    await aclose_quietly(sources)
                pieces = passing.held.passed(events)
                for piece in passing.ending(pieces, notes) if passing.stream.over else pieces:
                    yield piece
                if passing.stream.over:
                    return
            if passing and passing.held.mixed:
                values = passing.read()
                results = await gate.acheck(values)
                rest = passing.held.rest_passed(values, results)
                for piece in passing.ending(rest, notes, results):
                    yield piece
            elif passing:
                events = await passing.stream.afinish()
                for piece in passing.ending(passing.held.passed(events, finished=True), notes):
                    yield piece
        finally:
            if passing:
                passing.close()


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

    def ending(
        self, pieces: Iterable[Any], notes: Notes, results: Results | None = None
    ) -> Iterator[Any]:
        """What leaves last, with notes.

        Args:
            pieces: What leaves.
            notes: Gives them.
            results: What was decided, if that is not the stream's own decision.
        """
        own = [self.stream.decision] if self.stream.decision else []
        return ending(pieces, notes(own if results is None else results), self.held.came[-1])

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
