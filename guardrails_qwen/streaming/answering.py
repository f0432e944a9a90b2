"""A prompt judged, a language model called, its reply moderated: all of it as one stream."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Iterable,
    Iterator,
)
from contextlib import aclosing
from typing import TYPE_CHECKING

from guardrails_qwen.conversation import Conversation, ConversationLike
from guardrails_qwen.decision import Decision
from guardrails_qwen.errors import GuardViolation
from guardrails_qwen.rules import Action, Stage
from guardrails_qwen.streaming.beside import abeside, beside
from guardrails_qwen.streaming.guarded import prompt_of
from guardrails_qwen.streaming.settings import Streaming
from guardrails_qwen.streaming.sources import closed_after

if TYPE_CHECKING:
    from guardrails_qwen.guard import Guard


class _ChangedError(Exception):
    """The prompt may not pass as it is; the decision says what may."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.summary)
        self.decision = decision


def answer(
    guard: Guard,
    prompt: ConversationLike,
    call: Callable[[str], Iterable[str]],
    *,
    early: bool,
    settings: Streaming,
) -> Iterator[str]:
    """See `Guard.answer`."""
    conversation = prompt_of(prompt)

    def judge() -> Decision:
        return guard.check(conversation, stage=Stage.INPUT)

    def reply(to: Conversation, chunks: Iterable[str]) -> Iterator[str]:
        return guard.stream(to, settings=settings).texts(chunks)

    if early:
        chunks = _called(call, conversation.last.text)
        running = beside(lambda: _require_unchanged(judge()), chunks)
        try:
            yield from reply(conversation, running)
        except _ChangedError as changed:
            decision = changed.decision
        else:
            return
    else:
        decision = judge()
    if passed := _passed(conversation, decision):
        yield from reply(passed, call(passed.last.text))


def _called(call: Callable[[str], Iterable[str]], text: str) -> Iterator[str]:
    """The chunks of a call that begins with the first of them: many clients block in the call."""
    chunks = call(text)
    with closed_after(chunks):
        yield from chunks


async def aanswer(
    guard: Guard,
    prompt: ConversationLike,
    call: Callable[[str], AsyncIterable[str]],
    *,
    early: bool,
    settings: Streaming,
) -> AsyncGenerator[str, None]:
    """See `Guard.aanswer`."""
    conversation = prompt_of(prompt)

    async def judge() -> Decision:
        return await guard.acheck(conversation, stage=Stage.INPUT)

    def reply(to: Conversation, chunks: AsyncIterable[str]) -> AsyncGenerator[str, None]:
        return guard.stream(to, settings=settings).atexts(chunks)

    async def require() -> None:
        _require_unchanged(await judge())

    if early:
        chunks = call(conversation.last.text)
        try:
            async with aclosing(reply(conversation, abeside(require(), chunks))) as texts:
                async for text in texts:
                    yield text
        except _ChangedError as changed:
            decision = changed.decision
        else:
            return
    else:
        decision = await judge()
    if passed := _passed(conversation, decision):
        async with aclosing(reply(passed, call(passed.last.text))) as texts:
            async for text in texts:
                yield text


def _require_unchanged(decision: Decision) -> None:
    if not decision.allowed:
        raise _ChangedError(decision)


def _passed(conversation: Conversation, decision: Decision) -> Conversation | None:
    """The prompt as the policy lets it pass; None where it is dropped.

    Raises:
        GuardViolation: It is blocked.
    """
    if decision.action is Action.BLOCK:
        raise GuardViolation(decision)
    if decision.allowed:
        return conversation
    return None if decision.text is None else conversation.with_last_text(decision.text)
