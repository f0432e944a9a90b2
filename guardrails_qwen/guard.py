"""A guard: an engine and a policy together. It is all that a framework adapter sees."""

from __future__ import annotations

import logging
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from guardrails_qwen.conversation import Conversation, ConversationLike, Message, Role
from guardrails_qwen.decision import Decision, log
from guardrails_qwen.engines.base import Engine, Outcome, failure
from guardrails_qwen.errors import (
    ConversationError,
    EngineError,
    GuardError,
    GuardViolation,
    PolicyError,
)
from guardrails_qwen.policy import Policy
from guardrails_qwen.redaction import redacted, suspects
from guardrails_qwen.rules import Action, Stage
from guardrails_qwen.streaming.settings import Streaming
from guardrails_qwen.verdict import Span, Verdict

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from guardrails_qwen.engines.families import LocalOptions
    from guardrails_qwen.engines.openai_compatible import RemoteOptions
    from guardrails_qwen.streaming.guarded import GuardedStream

logger = logging.getLogger("guardrails_qwen")

_Redaction = Generator[Sequence[Conversation], Sequence[Outcome], list[Decision]]
_Steps = Generator[Sequence[Conversation], Sequence[Outcome], list[Decision | GuardError]]
"""A moderation in progress: it yields what has to be judged, is sent the outcomes, and returns
decisions. It knows neither threads nor event loops; the doors drive it."""


class Guard:
    r"""Judges texts and decides about them.

    >>> from guardrails_qwen import Guard
    >>> from guardrails_qwen.testing import ScriptedEngine
    >>> guard = Guard(ScriptedEngine({"bomb": "Safety: Unsafe\nCategories: Violent"}))
    >>> guard.check("How can I make a bomb?").summary
    'input blocked: Unsafe (Violent), rule «Controversial: block», policy strict'
    """

    def __init__(self, engine: Engine, policy: Policy | None = None) -> None:
        if policy is not None and not isinstance(policy, Policy):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise PolicyError(
                f"the policy is {type(policy).__name__}: give a Policy, as Policy.strict(), "
                "Policy.loose() or Policy.from_file(path) make"
            )
        self.engine = engine
        self.policy = policy or Policy.strict()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "tiny",
        policy: Policy | None = None,
        **options: Unpack[LocalOptions],
    ) -> Guard:
        """A guard on a local model: Qwen3Guard-Gen or -Stream, or Llama Guard 3 or 4.

        Its config says which. See `TransformersEngine.from_pretrained` for the options; those that
        an engine has not are refused, and `sessions` is for `StreamEngine`.
        """
        from guardrails_qwen.engines.families import from_pretrained

        return cls(from_pretrained(model, **options), policy)

    @classmethod
    def remote(
        cls,
        base_url: str,
        policy: Policy | None = None,
        **options: Unpack[RemoteOptions],
    ) -> Guard:
        """A guard on a server: vLLM, SGLang or any other that speaks OpenAI's protocol.

        The family is what the model's name says, or what `dialect` says; OpenAI's moderation models
        are asked at their own endpoint. Nothing is sent before the first check. See
        `OpenAICompatibleEngine.from_url` for the options.
        """
        from guardrails_qwen.engines.families import from_url

        return cls(from_url(base_url, **options), policy)

    def __repr__(self) -> str:
        return f"Guard({self.engine!r}, policy={self.policy.name!r})"

    @property
    def fingerprint(self) -> str:
        """Policy and model, exactly, the same in every process."""
        return f"{self.policy.fingerprint}.{self.engine.fingerprint}"

    def check(self, value: ConversationLike, *, stage: Stage | None = None) -> Decision:
        """Judge the last message of a conversation and decide what to do with it.

        Messages of the same side just before it are judged with it, as one turn, but the text of
        the decision stands for the last only: judge each of several in its place.

        Args:
            value: A text, a message, or a list of messages; see `Conversation.of`.
            stage: By default what the last message is: output for an assistant's text, tool call
                for its calls (the stricter decision of the two, where it has both), tool result for
                a tool's, input for any other. A plain text at output is taken as the assistant's.

        Raises:
            ConversationError: The value is not a conversation.
            GuardError: It could not be judged (an image by a text model, say), and the policy says
                to raise.
        """
        return self.check_many([value], stage=stage)[0]

    async def acheck(self, value: ConversationLike, *, stage: Stage | None = None) -> Decision:
        """`check`, without blocking the event loop."""
        return (await self.acheck_many([value], stage=stage))[0]

    @overload
    def check_many(
        self,
        values: Iterable[ConversationLike],
        *,
        stage: Stage | None = None,
        return_exceptions: Literal[False] = False,
    ) -> list[Decision]: ...

    @overload
    def check_many(
        self,
        values: Iterable[ConversationLike],
        *,
        stage: Stage | None = None,
        return_exceptions: Literal[True],
    ) -> list[Decision | GuardError]: ...

    def check_many(
        self,
        values: Iterable[ConversationLike],
        *,
        stage: Stage | None = None,
        return_exceptions: bool = False,
    ) -> list[Decision] | list[Decision | GuardError]:
        """`check` for a batch: one decision for each value, in the same order.

        With `return_exceptions` what `check` would raise takes the place of its decision, and the
        neighbours are spared; otherwise the first is raised.
        """
        steps = self._steps(values, stage)
        try:
            request = next(steps)
            while True:
                request = steps.send(self._judge(request))
        except StopIteration as done:
            return done.value if return_exceptions else _raised(done.value)

    @overload
    async def acheck_many(
        self,
        values: Iterable[ConversationLike],
        *,
        stage: Stage | None = None,
        return_exceptions: Literal[False] = False,
    ) -> list[Decision]: ...

    @overload
    async def acheck_many(
        self,
        values: Iterable[ConversationLike],
        *,
        stage: Stage | None = None,
        return_exceptions: Literal[True],
    ) -> list[Decision | GuardError]: ...

    async def acheck_many(
        self,
        values: Iterable[ConversationLike],
        *,
        stage: Stage | None = None,
        return_exceptions: bool = False,
    ) -> list[Decision] | list[Decision | GuardError]:
        """`check_many`, without blocking the event loop."""
        steps = self._steps(values, stage)
        try:
            request = next(steps)
            while True:
                request = steps.send(await self._ajudge(request))
        except StopIteration as done:
            return done.value if return_exceptions else _raised(done.value)

    def enforce(self, value: ConversationLike, *, stage: Stage | None = None) -> str:
        """The text to pass on; nothing (an empty text) where it is dropped.

        Raises:
            GuardViolation: The policy blocks it.
        """
        return passed_on(self.check(value, stage=stage))

    async def aenforce(self, value: ConversationLike, *, stage: Stage | None = None) -> str:
        """`enforce`, without blocking the event loop."""
        return passed_on(await self.acheck(value, stage=stage))

    def stream(
        self,
        prompt: ConversationLike | None = None,
        *,
        stage: Stage = Stage.OUTPUT,
        settings: Streaming = Streaming(),
    ) -> GuardedStream:
        """A reply that is moderated while it is written; nothing is run before its first text.

        An engine that knows sessions judges every token once; any other judges the reply so far
        again and again, at the ends of sentences. So does an engine around one with sessions: a
        cache, a fallback, a cascade.

        Args:
            prompt: What the reply answers; None where that is not known. It is not decided about.
            stage: Whose rules hold.
            settings: How much is kept back, and when a token counts.

        Raises:
            ConversationError: The prompt is no conversation, or ends with a reply.
        """
        from guardrails_qwen.streaming.guarded import guarded_stream

        return guarded_stream(self, prompt, stage=stage, settings=settings)

    def answer(
        self,
        prompt: ConversationLike,
        call: Callable[[str], Iterable[str]],
        *,
        beside: bool = False,
        settings: Streaming = Streaming(),
    ) -> Iterator[str]:
        """Judge a prompt, call a language model, and yield of its reply what may be read.

        Args:
            prompt: What the user sends; its last message is judged.
            call: Calls the model with the text of that message, or with what may pass of it; what
                it returns is closed at the end. A prompt that is dropped has no reply.
            beside: Call at once, and judge the prompt meanwhile: nothing is yielded before the
                verdict, a bad prompt ends the call, and one that passes changed makes a new one.
            settings: How the reply is moderated.

        Raises:
            ConversationError: The prompt is no conversation, or ends with a reply.
            GuardViolation: The prompt is blocked, or the reply is and there is no closing text.
            GuardError: Something could not be judged, and the policy says to raise.
        """
        from guardrails_qwen.streaming import answering

        return answering.answer(self, prompt, call, early=beside, settings=settings)

    def aanswer(
        self,
        prompt: ConversationLike,
        call: Callable[[str], AsyncIterable[str]],
        *,
        beside: bool = False,
        settings: Streaming = Streaming(),
    ) -> AsyncGenerator[str, None]:
        """`answer`, without blocking the event loop. A hanging call ends at once as well."""
        from guardrails_qwen.streaming import answering

        return answering.aanswer(self, prompt, call, early=beside, settings=settings)

    def _judge(self, conversations: Sequence[Conversation]) -> Sequence[Outcome]:
        try:
            outcomes = self.engine.judge(conversations) if conversations else []
            return _complete(conversations, outcomes)
        except Exception as error:  # noqa: BLE001  whatever an engine raises, nothing was judged
            return [failure(error)] * len(conversations)

    async def _ajudge(self, conversations: Sequence[Conversation]) -> Sequence[Outcome]:
        try:
            outcomes = await self.engine.ajudge(conversations) if conversations else []
            return _complete(conversations, outcomes)
        except Exception as error:  # noqa: BLE001  whatever an engine raises, nothing was judged
            return [failure(error)] * len(conversations)

    def _steps(self, values: Iterable[ConversationLike], stage: Stage | None) -> _Steps:
        started = time.perf_counter()
        if isinstance(values, (str, bytes, Mapping, Message, Conversation)):
            raise ConversationError("a batch is a list of conversations, and this is a single one")
        stage = None if stage is None else Stage(stage)
        found = [_conversation(value, stage) for value in values]
        conversations = [item for item in found if isinstance(item, Conversation)]
        outcomes = yield conversations
        decided = [
            self._decide(conversation, (stage,) if stage else stages_of(conversation), outcome)
            for conversation, outcome in zip(conversations, outcomes, strict=True)
        ]
        pairs = [
            (conversation, decision)
            for conversation, decision in zip(conversations, decided, strict=True)
            if isinstance(decision, Decision) and decision.action is Action.REDACT
        ]
        redactions = iter((yield from self._redact(pairs)) if pairs else [])
        decisions = iter(decided)
        results = [item if isinstance(item, GuardError) else next(decisions) for item in found]
        seconds = time.perf_counter() - started
        return [_finished(result, redactions, seconds) for result in results]

    def _decide(
        self, conversation: Conversation, stages: Sequence[Stage], outcome: Outcome
    ) -> Decision | GuardError:
        """The strictest of what the stages decide."""
        text = conversation.last.text
        try:
            decisions = [
                self.policy.decide(stage, outcome, text)
                if isinstance(outcome, Verdict)
                else self.policy.decide_unjudged(stage, outcome, text)
                for stage in stages
            ]
        except GuardError as error:
            return error
        return max(decisions, key=lambda decision: decision.action)

    def _redact(self, pairs: Sequence[tuple[Conversation, Decision]]) -> _Redaction:
        """Take out the sentences that offend alone, then judge what is left.

        Where the verdict tells where the harm is, the other sentences are not looked at.
        """
        spans = [_affordable(conversation, decision.verdict) for conversation, decision in pairs]
        outcomes = yield [
            conversation.with_last_text(conversation.last.text[span.start : span.end])
            for (conversation, _), found in zip(pairs, spans, strict=True)
            for span in found
        ]
        judged = iter(outcomes)
        candidates = list[tuple[Conversation, Decision]]()
        for (conversation, decision), found in zip(pairs, spans, strict=True):
            offending = [s for span in found for s in self._offending(decision, span, next(judged))]
            marker = self.policy.at(decision.stage).marker
            text, taken = redacted(conversation.last.text, offending, marker)
            candidates.append(
                (conversation.with_last_text(text), replace(decision, text=text, redactions=taken))
            )
        outcomes = yield [conversation for conversation, _ in candidates]
        return [
            self._settle(*item)
            for item in zip((decision for _, decision in candidates), outcomes, strict=True)
        ]

    def _offending(self, decision: Decision, span: Span, outcome: Outcome) -> list[Span]:
        """The span where it offends, or cannot be judged; nothing where it may stay."""
        if not isinstance(outcome, Verdict):
            return [span]
        if self.policy.decide(decision.stage, outcome).allowed:
            return []
        return [replace(span, categories=outcome.categories)]

    def _settle(self, decision: Decision, outcome: Outcome) -> Decision:
        """The redaction if it passes by itself, else the replacement."""
        judged = isinstance(outcome, Verdict)
        passes = judged and self.policy.decide(decision.stage, outcome).allowed
        if passes and decision.redactions:
            return decision
        replacement = self.policy.at(decision.stage).replacement
        error = None if judged else f"{type(outcome).__name__}: {outcome}"
        return replace(
            decision, action=Action.REPLACE, text=replacement, redactions=(), error=error
        )


def stages_of(conversation: Conversation) -> tuple[Stage, ...]:
    """The stages at which the last message of a conversation is usually judged; one at least."""
    last = conversation.last
    if last.role is not Role.ASSISTANT:
        return (Stage.TOOL_RESULT if last.role is Role.TOOL else Stage.INPUT,)
    says = (Stage.OUTPUT,) if last.text.strip() or not last.tool_calls else ()
    return (*says, Stage.TOOL_CALL) if last.tool_calls else says


def passed_on(decision: Decision) -> str:
    """The text that a decision passes on; nothing (an empty text) where it was dropped.

    Raises:
        GuardViolation: It was blocked.
    """
    if decision.action is Action.BLOCK:
        raise GuardViolation(decision)
    return decision.text or ""


def _complete(request: Sequence[Conversation], outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """The outcomes, once it is certain that there is one for each conversation."""
    if not isinstance(outcomes, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise EngineError(f"the engine returned {type(outcomes).__name__}, not a list of outcomes")
    if len(outcomes) != len(request):
        raise EngineError(
            f"the engine returned {len(outcomes)} outcomes for {len(request)} conversations"
        )
    for outcome in outcomes:
        if not isinstance(outcome, (Verdict, GuardError)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise EngineError(f"the engine returned {type(outcome).__name__}, not a verdict")
    return outcomes


_SPEAKERS = {
    Stage.OUTPUT: Role.ASSISTANT,
    Stage.TOOL_CALL: Role.ASSISTANT,
    Stage.TOOL_RESULT: Role.TOOL,
}
"""Who says a plain text at a stage; at the others it is the user."""


def _conversation(value: ConversationLike, stage: Stage | None) -> Conversation | GuardError:
    try:
        if isinstance(value, str) and stage:
            return Conversation.of(Message(role=_SPEAKERS.get(stage, Role.USER), text=value))
        return Conversation.of(value)
    except GuardError as error:
        return error


_REDACTION_CHARACTERS = 50_000
"""What judging a text's sentences may cost, history included; beyond it the text is replaced."""


def _affordable(conversation: Conversation, verdict: Verdict | None) -> list[Span]:
    """The suspect sentences of the last message, or none where judging each would cost too much.

    Every sentence is judged behind the whole history, which is also what an attacker could use to
    keep an engine busy.
    """
    found = suspects(conversation.last.text, verdict.spans if verdict else ())
    history = sum(len(message.text) for message in conversation.messages[:-1])
    cost = sum(span.end - span.start + history for span in found)
    return found if cost <= _REDACTION_CHARACTERS else []


def _finished(
    result: Decision | GuardError, redactions: Iterator[Decision], seconds: float
) -> Decision | GuardError:
    """The result with its redaction and its cost, logged."""
    if isinstance(result, GuardError):
        logger.warning("not judged: %s: %s", type(result).__name__, result)
        return result
    result = next(redactions) if result.action is Action.REDACT else result
    result = replace(result, seconds=seconds)
    log(result)
    return result


def _raised(results: list[Decision | GuardError]) -> list[Decision]:
    decisions = [result for result in results if isinstance(result, Decision)]
    if len(decisions) < len(results):
        raise next(result for result in results if isinstance(result, GuardError))
    return decisions
