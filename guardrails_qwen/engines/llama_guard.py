"""Llama Guard 3 and 4 on this machine, through the transformers library."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.dialects import llama_guard
from guardrails_qwen.engines.base import Outcome
from guardrails_qwen.engines.batching import Batcher, Batching
from guardrails_qwen.engines.closing import Closing
from guardrails_qwen.engines.local import needs_local
from guardrails_qwen.errors import EngineClosed, GuardError, TextTooLong, UnreadableVerdict
from guardrails_qwen.longtext import Windows
from guardrails_qwen.verdict import Scores

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from guardrails_qwen.engines.greedy import Greedy, Written
    from guardrails_qwen.engines.llama_checkpoint import LlamaCheckpoint
    from guardrails_qwen.engines.tokenization import Prompt


class LlamaGuardOptions(TypedDict, total=False):
    """Options of `LlamaGuardEngine.from_pretrained`."""

    device: str
    dtype: str | torch.dtype
    revision: str | None
    local_files_only: bool
    batch_tokens: int | None
    windows: Windows
    batching: Batching


class LlamaGuardEngine(Closing):
    """Runs a Llama Guard 3 (1B, 8B) or 4 (12B) checkpoint here, on a GPU or the CPU.

    The answer is what greedy decoding writes. `safe` is guessed and checked in the pass over the
    prompt, so that only the codes of an unsafe text are generated. The severity has its
    probability, over `safe` and `unsafe`; categories have none. Text only: a conversation with
    images becomes `ConversationError`. Long texts and shared passes are as in `TransformersEngine`.
    """

    def __init__(
        self,
        checkpoint: LlamaCheckpoint,
        *,
        batch_tokens: int | None = None,
        windows: Windows = Windows(),
        batching: Batching = Batching(),
    ) -> None:
        from guardrails_qwen.engines.windowed import Windowed, room

        if batch_tokens is not None and batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}: use at least 1, or None")
        self.name = checkpoint.name
        described = f"{checkpoint.fingerprint} {windows!r}"
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()[:16]
        self._checkpoint: LlamaCheckpoint | None = checkpoint
        self._context = checkpoint.context
        self._greedy: Greedy | None = None
        on_cpu = checkpoint.device.type == "cpu"
        rooms = {
            response: room(
                checkpoint.prompting,
                context=checkpoint.context,
                answer=llama_guard.ANSWER_TOKENS,
                response=response,
            )
            for response in (False, True)
        }
        self._windowed = Windowed[_Job](
            checkpoint.prompting,
            windows={response: windows.within(most) for response, most in rooms.items()},
            job=self._job,
            batcher=Batcher(
                self._run,
                size=lambda job: len(job.tokens),
                budget=batch_tokens or (512 if on_cpu else 8192),
                settings=batching,
                name=checkpoint.name,
            ),
        )

    @classmethod
    def from_pretrained(  # noqa: PLR0913
        cls,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        local_files_only: bool = False,
        batch_tokens: int | None = None,
        windows: Windows = Windows(),
        batching: Batching = Batching(),
    ) -> Self:
        """Load a checkpoint.

        Args:
            model: A name on the model hub (`meta-llama/Llama-Guard-3-8B`) or a folder.
            device: A torch device; auto is CUDA, then MPS, then the CPU.
            dtype: A torch dtype or its name; auto is bfloat16 on CUDA and on a CPU with
                instructions for it, else float32.
            revision: Branch, tag or commit on the hub.
            local_files_only: Never ask the hub.
            batch_tokens: How many tokens of prompts run together, the shared policy not counted;
                by default 512 on a CPU and 8,192 elsewhere.
            windows: How a long text is cut.
            batching: How concurrent callers share forward passes.

        Raises:
            CheckpointError: It lacks a file, is of another kind, or its chat template is not that
                of Llama Guard 3 or 4.
            ImportError: torch and transformers are not installed: `pip install
                'guardrails-qwen[local]'`.
        """
        with needs_local():
            from guardrails_qwen.engines.llama_checkpoint import load
            from guardrails_qwen.engines.loading import device_of
        with ThreadPoolExecutor(1) as loader:  # see `_run`
            checkpoint = loader.submit(
                load,
                model,
                device=device_of(device),
                dtype=dtype,
                revision=revision,
                local_files_only=local_files_only,
            ).result()
        return cls(checkpoint, batch_tokens=batch_tokens, windows=windows, batching=batching)

    def __repr__(self) -> str:
        if self._checkpoint is None:
            return f"LlamaGuardEngine({self.name!r}, closed)"
        where = f"{self._checkpoint.device}, {self._checkpoint.precision.value}"
        return f"LlamaGuardEngine({self.name!r}, {where})"

    def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """Judge a batch; blocks until done.

        A conversation that the model answers outside its format becomes `UnreadableVerdict`, and
        one with more text than the windows' limit `TextTooLong`, each in its own place.

        Raises:
            EngineClosed: After `close()`.
            EngineOverloaded: Too many wait already.
        """
        return self._windowed.judge(conversations)

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """As `judge`, without blocking the event loop. A cancelled call frees its place."""
        return await self._windowed.ajudge(conversations)

    def prompt(self, conversation: Conversation) -> list[int]:
        """The token ids that the model is given to judge a conversation, if it is not cut."""
        return self._windowed.prompt(conversation)

    def close(self) -> None:
        """Answer those who wait, then let the model go. Later calls raise `EngineClosed`."""
        self._windowed.close()
        self._checkpoint = None
        self._greedy = None

    def _job(self, conversation: Conversation, prompt: Prompt) -> _Job | TextTooLong:
        needed = len(prompt) + llama_guard.ANSWER_TOKENS
        if needed > self._context:
            return TextTooLong(needed, self._context)
        return _Job(prefix=prompt.prefix, tokens=tuple(prompt.rest))

    def _run(self, jobs: list[_Job]) -> list[Outcome]:
        """Judge a batch, on the only thread that runs torch; see `TransformersEngine`."""
        checkpoint = self._checkpoint
        if checkpoint is None:
            raise EngineClosed("the engine is closed")
        greedy = self._greedy = self._greedy or checkpoint.greedy()
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, job in enumerate(jobs):
            groups.setdefault(job.prefix, []).append(i)
        outcomes: dict[int, Outcome] = {}
        for prefix, indices in groups.items():
            answers = greedy(prefix, [jobs[i].tokens for i in indices])
            for i, written in zip(indices, answers, strict=True):
                outcomes[i] = self._outcome(checkpoint, jobs[i], written)
        return [outcomes[i] for i in range(len(jobs))]

    def _outcome(self, checkpoint: LlamaCheckpoint, job: _Job, written: Written) -> Outcome:
        if not written.finite:
            return UnreadableVerdict("", "the model's output is not finite; try another dtype")
        answer = checkpoint.decode(written.tokens)
        if not written.ended:
            return UnreadableVerdict(answer)
        try:
            verdict = llama_guard.read(answer, _scores(checkpoint, written))
        except GuardError as error:
            return error
        tokens = len(job.tokens) + len(written.tokens)
        return replace(verdict, model=self.name, fingerprint=self.fingerprint, tokens=tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One prompt to answer."""

    prefix: tuple[int, ...] = field(repr=False)
    tokens: tuple[int, ...] = field(repr=False)
    """Without the prefix."""


def _scores(checkpoint: LlamaCheckpoint, written: Written) -> Scores:
    """P(unsafe) of safe and unsafe, where the first token that is not white space is written."""
    decides = (bool(checkpoint.decode([token]).strip()) for token in written.tokens)
    place = next((i for i, word in enumerate(decides) if word), 0)
    safe, unsafe = written.steps[place].weights
    return llama_guard.severity_scores(1 / (1 + math.exp(min(700.0, safe - unsafe))))
