"""A value on its way through a guard: what is asked about it, and what becomes of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import AIMessage

from guardrails_qwen import (
    Action,
    Conversation,
    ConversationError,
    Decision,
    GuardError,
    GuardViolation,
    Role,
    Stage,
)
from langchain_guardrails_qwen.document_passage import DocumentPassage
from langchain_guardrails_qwen.prompts import Place, Prompt, recall, remember
from langchain_guardrails_qwen.values import Reading, read

_SPEAKERS = {
    Stage.OUTPUT: Role.ASSISTANT,
    Stage.TOOL_CALL: Role.ASSISTANT,
    Stage.TOOL_RESULT: Role.TOOL,
}
"""Who says a plain text at a stage; at the others it is the user."""

_NO_PROMPTS = frozenset({Stage.OUTPUT, Stage.TOOL_CALL, Stage.CONTEXT})
"""Stages of values that no model is asked."""

_REPLIES = frozenset({Stage.OUTPUT, Stage.TOOL_CALL})
"""Stages of what a model says."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Passage:
    """A value, read, at a place in a chain."""

    value: Any
    reading: Reading
    place: Place
    stage: Stage | None
    key: str | None
    closing: str | None
    """What a reply is replaced by that is blocked; None: raise."""
    prompt: Prompt
    """What comes before the value's own messages, where an assistant begins them."""
    trusts_system: bool = False
    """Whether system messages that begin the value's own are left out."""

    @classmethod
    def of(
        cls,
        value: Any,
        place: Place,
        stage: Stage | None,
        key: str | None,
        closing: str | None,
    ) -> Passage:
        """Read a value where it passes.

        A plain text is the assistant's where a guard further left in the same sequence has let a
        prompt in: the first guard in a sequence within another one may be given a text of either
        side. A reply is judged with the prompt that is found, unless it brings one of its own.

        Raises:
            ConversationError: It cannot be judged as it is.
        """
        near = recall(place, near=True)
        automatic = Role.USER if near is None else Role.ASSISTANT
        speaker = _SPEAKERS.get(stage, Role.USER) if stage else automatic
        reading = read(value, key=key, speaker=speaker)
        replies = reading.messages[0].role is Role.ASSISTANT
        return cls(
            value=value,
            reading=reading,
            place=place,
            stage=stage,
            key=key,
            closing=closing if _is_reply(value, near) else None,
            prompt=(recall(place) or ()) if replies else (),
        )

    @property
    def conversations(self) -> list[Conversation]:
        """One for each judged message, which comes last in it."""
        messages = (*self.prompt, *self.reading.messages)
        ends = range(len(messages) - self.reading.judged + 1, len(messages) + 1)
        return [Conversation(messages[:end]) for end in ends]

    def settle(self, results: Sequence[Decision | GuardError]) -> Any:
        """What to pass on: the value itself, if it may pass unchanged.

        Raises:
            GuardViolation: A message was blocked.
            GuardError: One could not be judged, and the policy says to raise.
        """
        decisions = [_not_blocked(result, self.closing) for result in results]
        unchanged = all(decision.allowed for decision in decisions)
        passed_on = self.value if unchanged else self.reading.put(decisions)
        asks = any(message.role is not Role.ASSISTANT for message in self.reading.messages)
        if asks and self.stage not in _NO_PROMPTS:
            remember(self.place, (*self.prompt, *self._read_again(passed_on).messages))
        return passed_on

    def _read_again(self, passed_on: Any) -> Reading:
        if passed_on is self.value:
            return self.reading
        again = read(passed_on, key=self.key, speaker=self.reading.messages[-1].role)
        return again.trusting() if self.trusts_system else again

    def trusting(self) -> Passage:
        """The same, but the system messages that begin the value are nobody's to judge."""
        return replace(self, reading=self.reading.trusting(), trusts_system=True)


Passing = Passage | DocumentPassage | ConversationError
"""A value as it passes, or why it cannot be read."""


def attempt(read: Callable[..., Passing], *args: Any) -> Passing:
    """What reading a value gives; one that cannot be read spares its neighbours."""
    try:
        return read(*args)
    except ConversationError as error:
        return error


def asked(passing: Iterable[Passing]) -> list[Conversation]:
    """All that a guard has to judge of a batch."""
    return [
        conversation
        for passage in passing
        if not isinstance(passage, ConversationError)
        for conversation in passage.conversations
    ]


def shared(
    passing: Iterable[Passing], results: Iterable[Decision | GuardError]
) -> list[list[Decision | GuardError]]:
    """The results of a batch, each value's own; of one that cannot be read, why."""
    answers = iter(results)
    return [
        [passage]
        if isinstance(passage, ConversationError)
        else [next(answers) for _ in passage.conversations]
        for passage in passing
    ]


def settled(passing: Sequence[Passing], results: Iterable[Decision | GuardError]) -> list[Any]:
    """What becomes of a batch: the value to pass on, or the error, of each."""
    return [
        passage if isinstance(passage, ConversationError) else _settled(passage, answers)
        for passage, answers in zip(passing, shared(passing, results), strict=True)
    ]


def _settled(passage: Passage | DocumentPassage, results: Sequence[Decision | GuardError]) -> Any:
    try:
        return passage.settle(results)
    except GuardError as error:
        return error


def _is_reply(value: Any, prompt: Prompt | None) -> bool:
    """Whether a value is what a model said, not what it shall go on with."""
    if isinstance(value, dict):
        return prompt is not None
    return isinstance(value, (str, AIMessage))


def _not_blocked(result: Decision | GuardError, closing: str | None) -> Decision:
    if isinstance(result, GuardError):
        raise result
    if result.action is not Action.BLOCK:
        return result
    if closing is None or result.stage not in _REPLIES:
        raise GuardViolation(result)
    return replace(result, action=Action.REPLACE, text=closing)
