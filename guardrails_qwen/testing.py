"""Test doubles for code that uses guards. Public: this project's own suite uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from guardrails_qwen.conversation import Conversation, require_text
from guardrails_qwen.dialects import qwen3guard
from guardrails_qwen.dialects.turns import judges_response
from guardrails_qwen.engines.base import Outcome
from guardrails_qwen.errors import ConversationError, EngineError, GuardError
from guardrails_qwen.verdict import Severity, Verdict

Answer = str | Verdict | GuardError
Script = Answer | Mapping[str, Answer] | Callable[[Conversation], Answer]


class ScriptedEngine:
    r"""An engine that answers by a script and records what it was asked.

    Args:
        script: One answer for everything; or answers by a text that the judged message contains
            (the first that fits, Safe where none does); or a function of the conversation. An
            answer is a verdict, an error, or the words of a model: these are parsed as
            Qwen3Guard-Gen's are, so nonsense becomes `UnreadableVerdict`. Where a response is
            judged, a missing refusal line reads as No. Images are refused, as text models do.

    >>> engine = ScriptedEngine({"bomb": "Safety: Unsafe\nCategories: Violent"})
    >>> [verdict] = engine.judge([Conversation.of("How can I make a bomb?")])
    >>> verdict.summary, len(engine.seen)
    ('Unsafe (Violent)', 1)
    """

    def __init__(self, script: Script | None = None, *, name: str = "scripted") -> None:
        self.script: Script = {} if script is None else script
        self.name = name
        self.fingerprint = f"scripted:{name}"
        self.seen: list[Conversation] = []
        self.batches: list[int] = []
        """Sizes of the batches asked for, in order."""

    def __repr__(self) -> str:
        return f"ScriptedEngine(name={self.name!r})"

    def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """One scripted outcome for each conversation."""
        self.seen.extend(conversations)
        self.batches.append(len(conversations))
        return [_refusal(c) or self._outcome(c) for c in conversations]

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """The same; never waits."""
        return self.judge(conversations)

    def _outcome(self, conversation: Conversation) -> Outcome:
        answer = self._answer(conversation)
        if isinstance(answer, GuardError):
            return answer
        try:
            verdict = answer if isinstance(answer, Verdict) else _read(answer, conversation)
        except GuardError as error:
            return error
        return replace(verdict, model=self.name, fingerprint=self.fingerprint)

    def _answer(self, conversation: Conversation) -> Answer:
        if callable(self.script):
            return self.script(conversation)
        if not isinstance(self.script, Mapping):
            return self.script
        text = conversation.last.judged_text
        fitting = (answer for part, answer in self.script.items() if part in text)
        return next(fitting, Verdict(severity=Severity.SAFE))


class FailingEngine:
    """An engine that fails as a whole, as one does whose server is gone."""

    name = "failing"
    fingerprint = "failing"

    def __init__(self, error: EngineError | None = None) -> None:
        self.error = error or EngineError("the engine is not available")

    def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """Raises the error."""
        raise self.error

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """Raises the error."""
        raise self.error


def _refusal(conversation: Conversation) -> ConversationError | None:
    try:
        require_text(conversation.messages)
    except ConversationError as error:
        return error
    return None


def _read(answer: str, conversation: Conversation) -> Verdict:
    response = judges_response(conversation)
    if response and "\nRefusal:" not in answer and "\nCategories:" in answer:
        answer += "\nRefusal: No"
    return qwen3guard.read(answer, response=response)
