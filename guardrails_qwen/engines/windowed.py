"""From conversations to jobs for a model, and back: windows, prompts, shared batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.dialects.turns import judges_response
from guardrails_qwen.engines.base import Outcome
from guardrails_qwen.engines.batching import Batcher
from guardrails_qwen.engines.prompting import Prompting
from guardrails_qwen.engines.request import Job, Request
from guardrails_qwen.engines.tokenization import Prompt
from guardrails_qwen.errors import CheckpointError, EngineClosed, GuardError, TextTooLong
from guardrails_qwen.longtext import Window, Windows, windows
from guardrails_qwen.verdict import Verdict

_INLINE = 4_000
"""Characters of a request that are prepared on the event loop itself, in a few milliseconds."""
_OVERHEAD = 200
"""Characters that preparing a message costs besides its own."""
_SLACK = 32
"""Tokens that a text may take more in a prompt than by itself."""
_LEAST_ROOM = 64


def room(prompting: Prompting, *, context: int, answer: int, response: bool) -> int:
    """Tokens that a model's context has for text, beside its instructions and its answer.

    Raises:
        CheckpointError: That is too little to judge any.
    """
    left = context - prompting.overhead(response=response) - answer - _SLACK
    if left < _LEAST_ROOM:
        raise CheckpointError(
            f"the model's context of {context} tokens has room for {max(0, left)} "
            "of text beside the guard's own instructions: that is too little to judge any"
        )
    return left


class Windowed(Generic[Job]):
    """The doors of a local engine, which differs from others in what it runs for a prompt.

    Args:
        prompting: What makes prompts.
        windows: How a long text is cut: that of prompts (False), and that of responses (True).
        job: What to run for a prompt, or why it cannot be.
        batcher: Who runs it, together with what others ask.
    """

    def __init__(
        self,
        prompting: Prompting,
        *,
        windows: Mapping[bool, Windows],
        job: Callable[[Conversation, Prompt], Job | TextTooLong],
        batcher: Batcher[Job, Verdict],
    ) -> None:
        self._prompting: Prompting | None = prompting
        self._windows = windows
        self._job = job
        self._batcher = batcher

    def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """One outcome for each conversation; blocks until done.

        Raises:
            EngineClosed: After `close()`.
            EngineOverloaded: Too many wait already.
        """
        started = time.perf_counter()
        request = self._request(list(conversations))
        judged = self._batcher.judge(request.jobs, conversations=len(request.found))
        return request.outcomes(judged, started)

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """As `judge`, without blocking the event loop. A cancelled call frees its place."""
        started = time.perf_counter()
        conversations = list(conversations)
        if sum(map(_effort, conversations)) <= _INLINE:
            request = self._request(conversations)
        else:
            request = await asyncio.to_thread(self._request, conversations)
        judged = await self._batcher.ajudge(request.jobs, conversations=len(conversations))
        return request.outcomes(judged, started)

    def prompt(self, conversation: Conversation) -> list[int]:
        """The token ids that the model is given to judge a conversation, if it is not cut."""
        return self._open().prompts([conversation])[0].ids

    def close(self) -> None:
        """Answer those who wait. Later calls raise `EngineClosed`."""
        self._batcher.close()
        self._prompting = None

    def _open(self) -> Prompting:
        prompting = self._prompting
        if prompting is None:
            raise EngineClosed("the engine is closed")
        return prompting

    def _request(self, conversations: Sequence[Conversation]) -> Request[Job]:
        """Conversations as jobs for the model, or the errors that keep them from becoming any."""
        prompting = self._open()
        found = [self._cut(conversation, prompting) for conversation in conversations]
        cut = [window for item in found if not isinstance(item, GuardError) for window in item]
        prompts = prompting.prompts([window.conversation for window in cut])
        tried = [
            self._job(window.conversation, prompt)
            for window, prompt in zip(cut, prompts, strict=True)
        ]
        return Request(found=found, tried=tried)

    def _cut(self, conversation: Conversation, prompting: Prompting) -> list[Window] | GuardError:
        settings = self._windows[judges_response(conversation)]
        try:
            return windows(conversation, prompting.lengths, settings)
        except GuardError as error:
            return error


def _effort(conversation: Conversation) -> int:
    """What preparing a conversation takes, in characters."""
    return sum(
        _OVERHEAD
        + len(message.text)
        + len(message.name or "")
        + sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
        for message in conversation.messages
    )
