"""Conversations as what Qwen3Guard-Stream has to run for them, and back. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from guardrails_qwen.conversation import Conversation, Role, require_text
from guardrails_qwen.dialects.turns import Turn, turns
from guardrails_qwen.engines.base import Outcome
from guardrails_qwen.engines.reply_verdict import reply_verdict
from guardrails_qwen.engines.session_limits import AtLimit
from guardrails_qwen.engines.stream_heads import Heads
from guardrails_qwen.engines.stream_passes import Passing, Read, Slot
from guardrails_qwen.engines.stream_prompting import StreamPrompt, StreamPrompting
from guardrails_qwen.engines.stream_reply import Reply, Run, pieces
from guardrails_qwen.errors import ConversationError, GuardError, TextTooLong
from guardrails_qwen.token_verdict import TokenVerdict, token_verdict
from guardrails_qwen.verdict import Severity, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A loaded model as far as requests are concerned."""

    name: str
    fingerprint: str
    prompting: StreamPrompting
    query: Heads
    response: Heads
    context: int
    """Tokens."""
    at_limit: AtLimit
    row_tokens: int
    """The most that one passing has."""

    def opened(self, conversation: Conversation | None) -> StreamPrompt:
        """What stands in front of a reply.

        Raises:
            ConversationError: The conversation ends with the assistant, or holds images.
            TextTooLong: It is longer than the model's context.
        """
        if conversation is None:
            return self._fitting(self.prompting.opened([(Role.USER, "")]))
        require_text(conversation.messages)
        if conversation.last.role is Role.ASSISTANT:
            raise ConversationError(
                "the conversation ends with the assistant: open a session on what comes before the "
                "reply, and feed it the reply"
            )
        return self._fitting(self.prompting.opened(turns(conversation)))

    def reply(self, prompt: StreamPrompt) -> Reply:
        """A reply that is to be fed.

        Raises:
            TextTooLong: The prompt leaves no room.
        """
        return Reply(self.prompting.texts, prompt, self.context, self.at_limit)

    def prompt_passings(self, slot: Slot, prompt: StreamPrompt) -> list[Passing]:
        """A prompt and what opens the reply, read at the token that closes the prompt."""
        at = len(prompt.prompt) - 1
        return [
            Passing(
                slot=slot,
                past=piece.past,
                ids=piece.ids,
                heads=self.query,
                reads=range(at - piece.past, at - piece.past + 1)
                if piece.past <= at < piece.end
                else range(0),
            )
            for piece in pieces(Run(past=0, ids=tuple(prompt.ids)), self.row_tokens)
        ]

    def reply_passings(self, slot: Slot, runs: Sequence[Run]) -> list[Passing]:
        """Runs of a reply, read at the tokens that are scored."""
        return [
            Passing(
                slot=slot,
                past=piece.past,
                ids=piece.ids,
                heads=self.response,
                reads=range(len(piece.ids) - len(piece.scored), len(piece.ids)),
            )
            for run in runs
            for piece in pieces(run, self.row_tokens)
        ]

    def prompt_verdict(self, answers: Sequence[Read | GuardError]) -> Verdict:
        """What was read of a prompt.

        Raises:
            GuardError: One of the answers, if it is one.
        """
        [(severities, categories)] = _read(answers)
        labels = self.query.labels
        verdict = token_verdict(labels, severities, categories).verdict
        return replace(verdict, model=self.name, fingerprint=self.fingerprint)

    def token_verdicts(
        self, runs: Sequence[Run], answers: Sequence[Read | GuardError]
    ) -> list[TokenVerdict]:
        """What was read at the scored tokens of runs.

        Raises:
            GuardError: One of the answers, if it is one.
        """
        scored = [token for run in runs for token in run.scored]
        return [
            token_verdict(
                self.response.labels,
                *scores,
                start=token.start,
                end=token.end,
                token=token.id,
                model=self.name,
                fingerprint=self.fingerprint,
            )
            for token, scores in zip(scored, _read(answers), strict=True)
        ]

    def whole(self, conversation: Conversation) -> Whole | GuardError:
        """What has to run for a verdict on the last message, or why that cannot be."""
        try:
            require_text(conversation.messages)
            *before, (role, text) = turns(conversation)
            if role is Role.ASSISTANT:
                return self._whole_reply(before, text)
            prompt = self._fitting(self.prompting.opened([*before, (role, text)]))
        except GuardError as error:
            return error
        slot = Slot(len(prompt.ids))
        return Whole(passings=_ended(self.prompt_passings(slot, prompt)), tokens=len(prompt.ids))

    def _whole_reply(self, before: Sequence[Turn], text: str) -> Whole:
        prompt = self._fitting(self.prompting.opened(before))
        reply = self.reply(prompt)
        runs = [*reply.feed(text), *reply.finish()]
        slot = Slot(max((run.end for run in runs), default=0))
        opening = [replace(one, reads=range(0)) for one in self.prompt_passings(slot, prompt)]
        tokens = len(prompt.ids) + sum(len(run.ids) for run in runs)
        passings = [*opening, *self.reply_passings(slot, runs)] if runs else []
        return Whole(passings=_ended(passings), runs=runs, tokens=tokens if runs else 0)

    def outcome(self, whole: Whole, answers: Sequence[Read | GuardError]) -> Outcome:
        """The verdict, from the answers to the passings."""
        try:
            if whole.runs is None:
                verdict = self.prompt_verdict(answers)
            elif found := self.token_verdicts(whole.runs, answers):
                verdict = reply_verdict(found)
            else:  # a reply of no text, in which there is nothing to judge
                verdict = Verdict(severity=Severity.SAFE)
        except GuardError as error:
            return error
        return replace(verdict, model=self.name, fingerprint=self.fingerprint, tokens=whole.tokens)

    def _fitting(self, prompt: StreamPrompt) -> StreamPrompt:
        if len(prompt.ids) > self.context:
            raise TextTooLong(len(prompt.ids), self.context)
        return prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What has to run for a verdict on a complete message."""

    passings: list[Passing] = field(repr=False)
    runs: list[Run] | None = field(default=None, repr=False)
    """Those of a reply; None: a prompt is judged."""
    tokens: int
    """Cost."""


def _ended(passings: list[Passing]) -> list[Passing]:
    """The passings, of which the last frees the slot."""
    return [*passings[:-1], *(replace(one, last=True) for one in passings[-1:])]


def _read(answers: Sequence[Read | GuardError]) -> Iterator[tuple[list[float], list[float]]]:
    for answer in answers:
        if isinstance(answer, GuardError):
            raise answer
        yield from answer
