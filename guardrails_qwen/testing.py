"""Test doubles for code that uses guards. Public: this project's own suite uses them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from guardrails_qwen.conversation import Conversation, Message, Role, require_text
from guardrails_qwen.dialects import qwen3guard
from guardrails_qwen.dialects.turns import judges_response
from guardrails_qwen.engines.base import Outcome
from guardrails_qwen.errors import ConversationError, EngineClosed, EngineError, GuardError
from guardrails_qwen.token_verdict import TokenVerdict
from guardrails_qwen.verdict import Category, Severity, Verdict

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


TokenScript = Mapping[str, Verdict] | Callable[[str], Verdict | GuardError]

_WORD = re.compile(r"\s*\S+(?=\s)")
_CERTAIN = 0.98


class ScriptedStreamEngine(ScriptedEngine):
    r"""A `ScriptedEngine` that also judges replies word by word while they grow.

    A token is a word with the white space before it, complete when the next white space begins.

    Args:
        script: As for `ScriptedEngine`.
        tokens: Verdicts on tokens: by a text that the reply contains so far (the first that fits,
            Safe where none does, so a verdict holds from the end of that text on); or a function of
            the reply up to the end of the token. By default what `script` says of texts.

    >>> unsafe = Verdict(severity=Severity.UNSAFE, categories=frozenset({Category.VIOLENT}))
    >>> session = ScriptedStreamEngine(tokens={"bomb": unsafe}).open(None)
    >>> " ".join(token.severity.label for token in session.feed("Now build a bomb with "))
    'Safe Safe Safe Unsafe Unsafe'
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        tokens: TokenScript | None = None,
        name: str = "scripted",
    ) -> None:
        super().__init__(script, name=name)
        self.tokens = tokens
        self.sessions: list[ScriptedSession] = []
        """All that were opened."""

    def open(self, conversation: Conversation | None) -> ScriptedSession:
        """A session; the prompt is judged by the script."""
        prompt = self._outcome(conversation) if conversation else None
        if isinstance(prompt, GuardError):
            raise prompt
        session = ScriptedSession(self._at_token, prompt)
        self.sessions.append(session)
        return session

    async def aopen(self, conversation: Conversation | None) -> ScriptedSession:
        """The same; never waits."""
        return self.open(conversation)

    def _at_token(self, reply: str) -> Verdict:
        found = self._token_outcome(reply)
        if isinstance(found, GuardError):
            raise found
        return replace(found, model=self.name, fingerprint=self.fingerprint)

    def _token_outcome(self, reply: str) -> Outcome:
        if self.tokens is None:
            return self._outcome(Conversation.of(Message(role=Role.ASSISTANT, text=reply)))
        if callable(self.tokens):
            return self.tokens(reply)
        fitting = (verdict for part, verdict in self.tokens.items() if part in reply)
        return next(fitting, Verdict(severity=Severity.SAFE))


class ScriptedSession:
    """A session of a `ScriptedStreamEngine`."""

    def __init__(self, judge: Callable[[str], Verdict], prompt: Verdict | None) -> None:
        self.prompt = prompt
        self.reply = ""
        """All that was fed and not taken back."""
        self.closed = False
        self._judge = judge
        self._judged = 0

    def feed(self, text: str) -> list[TokenVerdict]:
        """One verdict for each word that is complete."""
        self._require_open()
        self.reply += text
        return [self._token(word.end()) for word in _WORD.finditer(self.reply, self._judged)]

    async def afeed(self, text: str) -> list[TokenVerdict]:
        """The same; never waits."""
        return self.feed(text)

    def finish(self) -> list[TokenVerdict]:
        """What is left is one token."""
        self._require_open()
        return [self._token(len(self.reply))] if self._judged < len(self.reply) else []

    async def afinish(self) -> list[TokenVerdict]:
        """The same; never waits."""
        return self.finish()

    def truncate(self, characters: int) -> None:
        """Forget the rest of the reply."""
        self.reply = self.reply[:characters]
        self._judged = min(self._judged, characters)

    async def atruncate(self, characters: int) -> None:
        """The same; never waits."""
        self.truncate(characters)

    def fork(self) -> ScriptedSession:
        """A copy."""
        other = ScriptedSession(self._judge, self.prompt)
        other.reply, other._judged = self.reply, self._judged
        return other

    def close(self) -> None:
        """Refuse all that comes."""
        self.closed = True

    def _require_open(self) -> None:
        if self.closed:
            raise EngineClosed("the session is closed")

    def _token(self, end: int) -> TokenVerdict:
        start, self._judged = self._judged, end
        verdict = self._judge(self.reply[:end])
        category = min(verdict.categories, default=Category.VIOLENT)
        rest = (1 - _CERTAIN) / 2
        return TokenVerdict(
            start=start,
            end=end,
            token=0,
            severity=verdict.severity,
            category=category,
            severity_scores=verdict.scores.severity
            if verdict.scores
            else {level: _CERTAIN if level is verdict.severity else rest for level in Severity},
            category_scores={name: float(name is category) for name in Category},
            model=verdict.model,
            fingerprint=verdict.fingerprint,
        )


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
