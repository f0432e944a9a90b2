"""Qwen3Guard-Stream on this machine: replies judged token by token while they are written."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.engines.base import Outcome
from guardrails_qwen.engines.batching import Batcher, Batching
from guardrails_qwen.engines.closing import Closing
from guardrails_qwen.engines.local import needs_local, warn_of_demonstration
from guardrails_qwen.engines.session_limits import AtLimit, Ledger, Sessions
from guardrails_qwen.errors import EngineClosed, GuardError
from guardrails_qwen.verdict import Verdict

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from guardrails_qwen.engines.backbone import Backbone
    from guardrails_qwen.engines.stream_checkpoint import StreamCheckpoint
    from guardrails_qwen.engines.stream_passes import Passing, Read
    from guardrails_qwen.engines.stream_requests import Whole
    from guardrails_qwen.engines.stream_session import StreamSession

_INLINE = 2_000
"""Characters that are prepared on the event loop itself, in a few milliseconds."""
_WHOLE_TOKENS = 8192
"""Whole messages of so many tokens together run at once; a longer one runs alone."""
_OVERHEAD = 100
"""Characters that preparing a message costs besides its own."""


class StreamOptions(TypedDict, total=False):
    """Options of `StreamEngine.from_pretrained`."""

    device: str
    dtype: str | torch.dtype
    revision: str | None
    local_files_only: bool
    row_tokens: int | None
    batching: Batching
    sessions: Sessions


class StreamEngine(Closing):
    """Runs a Qwen3Guard-Stream checkpoint here, on a GPU or the CPU, without code from it.

    `open` gives a session, which is fed a reply piece by piece and tells at every token what the
    model thinks. Nothing that came before is run again: only attention grows with the length of the
    reply. Sessions share forward passes. As an `Engine` it judges prompts by the model's own
    verdict on them, and replies by all of their tokens; see `reply_verdict`.
    """

    def __init__(
        self,
        checkpoint: StreamCheckpoint,
        *,
        row_tokens: int | None = None,
        batching: Batching = Batching(),
        sessions: Sessions = Sessions(),
    ) -> None:
        from guardrails_qwen.engines.stream_passes import StreamPasses
        from guardrails_qwen.engines.stream_reply import require_room
        from guardrails_qwen.engines.stream_requests import Model
        from guardrails_qwen.engines.stream_session import SessionParts

        if row_tokens is not None and row_tokens < 1:
            raise ValueError(f"row_tokens is {row_tokens}: use at least 1, or None for the default")
        require_room(checkpoint.context)
        self.name = checkpoint.name
        self.fingerprint = _fingerprint(checkpoint, sessions.at_limit)
        self.demonstration = checkpoint.demonstration
        self._backbone: Backbone | None = checkpoint.backbone
        on_cpu = checkpoint.backbone.device.type == "cpu"
        row_tokens = row_tokens or (256 if on_cpu else 2048)
        self._passes = StreamPasses(checkpoint.backbone)
        batcher: Batcher[Passing, Read] = Batcher(
            self._passes,
            size=lambda passing: len(passing.ids),
            budget=row_tokens,
            settings=batching,
            name=checkpoint.name,
        )
        model = Model(
            name=self.name,
            fingerprint=self.fingerprint,
            prompting=checkpoint.prompting,
            query=checkpoint.query,
            response=checkpoint.response,
            context=checkpoint.context,
            at_limit=sessions.at_limit,
            row_tokens=row_tokens,
        )
        self._wholes: Batcher[Whole, list[Read | GuardError]] = Batcher(
            partial(_run_whole, batcher),
            size=lambda whole: max(1, whole.tokens),
            budget=_WHOLE_TOKENS,
            settings=replace(batching, wait=0.0),
            name=checkpoint.name,
        )
        self._parts = SessionParts(
            model=model,
            batcher=batcher,
            ledger=Ledger(sessions),
            bytes_a_token=checkpoint.backbone.bytes_a_token,
        )

    @classmethod
    def from_pretrained(  # noqa: PLR0913
        cls,
        model: str | Path = "tiny-stream",
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        local_files_only: bool = False,
        row_tokens: int | None = None,
        batching: Batching = Batching(),
        sessions: Sessions = Sessions(),
    ) -> Self:
        """Load a checkpoint as it was published; code that comes with it is never run.

        Args:
            model: A name on the model hub (`Qwen/Qwen3Guard-Stream-0.6B`), a folder, or
                `tiny-stream`: the bundled demonstration.
            device: A torch device; auto is CUDA, then MPS, then the CPU.
            dtype: A torch dtype or its name, or `int8` for a CPU; auto is bfloat16 on CUDA and on a
                CPU with instructions for it, else float32.
            revision: Branch, tag or commit on the hub.
            local_files_only: Never ask the hub.
            row_tokens: How many tokens run at once, by default 256 on a CPU and 2,048 elsewhere.
            batching: How concurrent callers share forward passes.
            sessions: How many may be open, what they may take, and what happens to a reply that is
                longer than the model's context.

        Raises:
            CheckpointError: It lacks a file or a tensor, has one too many, or is of another kind.
            ImportError: torch and transformers are not installed: `pip install
                'guardrails-qwen[local]'`.
        """
        with needs_local():
            from guardrails_qwen.engines.loading import device_of
            from guardrails_qwen.engines.stream_checkpoint import load
        with ThreadPoolExecutor(1) as loader:  # its OpenMP threads go with it
            checkpoint = loader.submit(
                load,
                model,
                device=device_of(device),
                dtype=dtype,
                revision=revision,
                local_files_only=local_files_only,
            ).result()
        if checkpoint.demonstration:
            warn_of_demonstration(checkpoint.name, "Qwen/Qwen3Guard-Stream-0.6B")
        return cls(checkpoint, row_tokens=row_tokens, batching=batching, sessions=sessions)

    def __repr__(self) -> str:
        kind = ", a demonstration, not protection" if self.demonstration else ""
        if self._backbone is None:
            return f"StreamEngine({self.name!r}, closed{kind})"
        where = f"{self._backbone.device}, {self._backbone.precision.value}"
        return f"StreamEngine({self.name!r}, {where}{kind})"

    @property
    def open_sessions(self) -> int:
        """How many sessions are open."""
        return self._parts.ledger.sessions

    @property
    def session_memory(self) -> int:
        """Bytes that keys and values of open sessions take."""
        return self._parts.ledger.memory

    def open(self, conversation: Conversation | None) -> StreamSession:
        """A session for the reply to a conversation.

        Args:
            conversation: What was said before the reply, the prompt last; None where that is not
                known.

        Raises:
            EngineOverloaded: Too many sessions are open, no memory is left, or too many wait.
            TextTooLong: The conversation leaves no room for a reply.
            ConversationError: It ends with the assistant, or holds what a text model cannot judge.
            EngineClosed: After `close()`.
            GuardError: The conversation could not be judged.
        """
        from guardrails_qwen.engines.stream_session import Opening

        opening = Opening.of(self._parts, conversation)
        with opening.unless_it_fails():
            return opening.opened(self._parts.batcher.judge(opening.passings, conversations=1))

    async def aopen(self, conversation: Conversation | None) -> StreamSession:
        """`open`, without blocking the event loop."""
        from guardrails_qwen.engines.stream_session import Opening

        if _short([conversation]):
            opening = Opening.of(self._parts, conversation)
        else:
            opening = await asyncio.to_thread(Opening.of, self._parts, conversation)
        with opening.unless_it_fails():
            answers = await self._parts.batcher.ajudge(opening.passings, conversations=1)
            return opening.opened(answers)

    def prompt(self, conversation: Conversation | None) -> list[int]:
        """The token ids that the model is given in front of the reply to a conversation.

        All but what is encoded together with the reply: the line breaks that open it.
        """
        return self._parts.model.opened(conversation).ids

    def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """Judge a batch of prompts and replies; blocks until done.

        A text that is longer than the model's context becomes `TextTooLong` in its own place; so
        does a reply only if the sessions are to refuse that.

        Raises:
            EngineClosed: After `close()`.
            EngineOverloaded: Too many wait already.
        """
        started = time.perf_counter()
        asked = self._asked(conversations)
        return self._outcomes(asked, self._wholes.judge(_sound(asked)), started)

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """As `judge`, without blocking the event loop. A cancelled call frees its place."""
        started = time.perf_counter()
        if _short(conversations):
            asked = self._asked(conversations)
        else:
            asked = await asyncio.to_thread(self._asked, conversations)
        return self._outcomes(asked, await self._wholes.ajudge(_sound(asked)), started)

    def close(self) -> None:
        """Answer those who wait, then let the model go. Later calls raise `EngineClosed`."""
        self._wholes.close()
        self._parts.batcher.close()
        self._passes.close()
        self._backbone = None

    def _asked(self, conversations: Sequence[Conversation]) -> list[Whole | GuardError]:
        if self._backbone is None:
            raise EngineClosed("the engine is closed")
        return [self._parts.model.whole(conversation) for conversation in conversations]

    def _outcomes(
        self,
        asked: Sequence[Whole | GuardError],
        answers: Sequence[list[Read | GuardError] | GuardError],
        started: float,
    ) -> list[Outcome]:
        each, seconds = iter(answers), time.perf_counter() - started
        return [self._outcome(whole, each, seconds) for whole in asked]

    def _outcome(
        self,
        whole: Whole | GuardError,
        answers: Iterator[list[Read | GuardError] | GuardError],
        seconds: float,
    ) -> Outcome:
        if isinstance(whole, GuardError):
            return whole
        answer = next(answers)
        if isinstance(answer, GuardError):
            return answer
        outcome = self._parts.model.outcome(whole, answer)
        return replace(outcome, seconds=seconds) if isinstance(outcome, Verdict) else outcome


def _sound(asked: Sequence[Whole | GuardError]) -> list[Whole]:
    return [whole for whole in asked if not isinstance(whole, GuardError)]


def _run_whole(
    batcher: Batcher[Passing, Read], wholes: Sequence[Whole]
) -> list[list[Read | GuardError] | GuardError]:
    """The answers for whole messages, which share passes with sessions.

    They queue before they begin, so that no more of them are in memory at once than these.
    """
    passings = [passing for whole in wholes for passing in whole.passings]
    answers = iter(batcher.judge(passings, conversations=len(wholes)))
    return [[next(answers) for _ in whole.passings] for whole in wholes]


def _short(conversations: Sequence[Conversation | None]) -> bool:
    """Whether preparing them takes so little that the event loop can bear it."""
    messages = [message for one in conversations if one for message in one.messages]
    return sum(_OVERHEAD + len(message.judged_text) for message in messages) <= _INLINE


def _fingerprint(checkpoint: StreamCheckpoint, at_limit: AtLimit) -> str:
    """The model and what becomes of long replies: both make a verdict what it is."""
    described = f"{checkpoint.fingerprint} {at_limit.value}"
    return hashlib.sha256(described.encode()).hexdigest()[:16]
