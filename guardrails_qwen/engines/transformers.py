"""Qwen3Guard-Gen on this machine, through the transformers library."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from guardrails_qwen.calibration.temperatures import Calibration
from guardrails_qwen.conversation import Conversation
from guardrails_qwen.dialects import qwen3guard
from guardrails_qwen.dialects.token_tree import OffFormat, Scored
from guardrails_qwen.dialects.turns import judges_response
from guardrails_qwen.engines.base import Outcome
from guardrails_qwen.engines.batching import Batcher, Batching
from guardrails_qwen.engines.closing import Closing
from guardrails_qwen.engines.local import needs_local, warn_of_demonstration
from guardrails_qwen.errors import (
    EngineClosed,
    GuardError,
    TextTooLong,
    UnreadableVerdict,
)
from guardrails_qwen.longtext import Windows

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from guardrails_qwen.engines.loading import Checkpoint
    from guardrails_qwen.engines.one_pass import NotFinite, OnePass
    from guardrails_qwen.engines.tokenization import Prompt

_ROWS = 2
"""Rows that a batch holds: so long a request waits for what runs already."""


class LoadOptions(TypedDict, total=False):
    """Options of `TransformersEngine.from_pretrained`."""

    device: str
    dtype: str | torch.dtype
    revision: str | None
    local_files_only: bool
    row_tokens: int | None
    windows: Windows
    batching: Batching
    calibration: Calibration | str | Path | None
    warm_up: bool


class TransformersEngine(Closing):
    """Runs a Qwen3Guard-Gen checkpoint here, on a GPU or the CPU.

    Nothing is generated: one forward pass over the few tokens that tell the documented answers
    apart gives the verdict that greedy decoding would have written, and all probabilities.
    Callers, threads and tasks alike, share forward passes; see `Batching`. A text that is longer
    than a window is judged in windows; see `Windows`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        row_tokens: int | None = None,
        windows: Windows = Windows(),
        batching: Batching = Batching(),
        calibration: Calibration = Calibration(),
    ) -> None:
        from guardrails_qwen.engines.windowed import Windowed, room

        if row_tokens is not None and row_tokens < 1:
            raise ValueError(f"row_tokens is {row_tokens}: use at least 1, or None for the default")
        self.name = checkpoint.name
        self.fingerprint = _fingerprint(checkpoint, windows)
        self.demonstration = checkpoint.demonstration
        if calibration != Calibration():
            calibration.require(self.fingerprint)
            self.fingerprint = f"{self.fingerprint}+{calibration.digest}"
        self._calibration = calibration
        self._checkpoint: Checkpoint | None = checkpoint
        on_cpu = checkpoint.decoder.device.type == "cpu"
        self._row_tokens = row_tokens or (256 if on_cpu else 1024)
        self._trees = {
            response: checkpoint.prompting.tree(response=response) for response in (False, True)
        }
        rooms = {
            response: room(
                checkpoint.prompting,
                context=checkpoint.context,
                answer=tree.longest,
                response=response,
            )
            for response, tree in self._trees.items()
        }
        self._context = checkpoint.context
        self._passes: dict[_Kind, OnePass] = {}
        self._warm = False
        self._windowed = Windowed[_Job](
            checkpoint.prompting,
            windows={response: windows.within(most) for response, most in rooms.items()},
            job=self._job,
            batcher=Batcher(
                self._run,
                size=self._size,
                budget=_ROWS * self._row_tokens,
                settings=batching,
                name=checkpoint.name,
            ),
        )

    @classmethod
    def from_pretrained(  # noqa: PLR0913
        cls,
        model: str | Path = "tiny",
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        local_files_only: bool = False,
        row_tokens: int | None = None,
        windows: Windows = Windows(),
        batching: Batching = Batching(),
        calibration: Calibration | str | Path | None = None,
        warm_up: bool = False,
    ) -> Self:
        """Load a checkpoint.

        Args:
            model: A name on the model hub (`Qwen/Qwen3Guard-Gen-0.6B`), a folder (one that
                ModelScope's `snapshot_download` returns, say), or `tiny`: the bundled
                demonstration.
            device: A torch device; auto is CUDA, then MPS, then the CPU.
            dtype: A torch dtype or its name, or `int8` for a CPU; auto is bfloat16 on CUDA and on a
                CPU with instructions for it, else float32.
            revision: Branch, tag or commit on the hub.
            local_files_only: Never ask the hub.
            row_tokens: How many tokens run at once, by default 256 on a CPU and 1,024 elsewhere.
            windows: How a long text is cut.
            batching: How concurrent callers share forward passes.
            calibration: Temperatures that were fitted on this model, or a file of them: its
                probabilities are scaled by them.
            warm_up: Compute the policy prefixes and record CUDA graphs at once, which otherwise
                the first requests wait for.

        Raises:
            CheckpointError: It lacks a file, is of another kind, or has no guard's chat template;
                or the calibration belongs to another model.
            ImportError: torch and transformers are not installed: `pip install
                'guardrails-qwen[local]'`.
        """
        with needs_local():
            from guardrails_qwen.engines.loading import device_of, load
        if not isinstance(calibration, Calibration):
            calibration = Calibration.from_file(calibration) if calibration else Calibration()
        with ThreadPoolExecutor(1) as loader:  # see `_run`
            checkpoint = loader.submit(
                load,
                model,
                device=device_of(device),
                dtype=dtype,
                revision=revision,
                local_files_only=local_files_only,
            ).result()
        if checkpoint.demonstration:
            warn_of_demonstration(checkpoint.name, "Qwen/Qwen3Guard-Gen-0.6B")
        engine = cls(
            checkpoint,
            row_tokens=row_tokens,
            windows=windows,
            batching=batching,
            calibration=calibration,
        )
        if warm_up:
            engine.warm_up()
        return engine

    def __repr__(self) -> str:
        kind = ", a demonstration, not protection" if self.demonstration else ""
        if self._checkpoint is None:
            return f"TransformersEngine({self.name!r}, closed{kind})"
        decoder = self._checkpoint.decoder
        precision = decoder.precision.value
        return f"TransformersEngine({self.name!r}, {decoder.device}, {precision}{kind})"

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

    def warm_up(self) -> None:
        """Compute the policy prefixes and, on a GPU, record prompts of every length.

        Raises:
            EngineClosed: After `close()`.
            GuardError: The model failed.
        """
        self._warm = True
        for outcome in self.judge([Conversation.of(""), Conversation.exchange("", "")]):
            if isinstance(outcome, GuardError) and not isinstance(outcome, UnreadableVerdict):
                raise outcome

    def close(self) -> None:
        """Answer those who wait, then let the model go. Later calls raise `EngineClosed`."""
        self._windowed.close()
        self._checkpoint = None
        self._passes.clear()

    def _open(self) -> Checkpoint:
        checkpoint = self._checkpoint
        if checkpoint is None:
            raise EngineClosed("the engine is closed")
        return checkpoint

    def _job(self, conversation: Conversation, prompt: Prompt) -> _Job | TextTooLong:
        response = judges_response(conversation)
        needed = len(prompt) + self._trees[response].longest
        if needed > self._context:
            return TextTooLong(needed, self._context)
        return _Job(kind=(response, prompt.prefix), tokens=tuple(prompt.rest))

    def _size(self, job: _Job) -> int:
        return len(job.tokens) + len(self._trees[job.kind[0]].nodes)

    def _run(self, jobs: list[_Job]) -> list[Outcome]:
        """Judge a batch; jobs of one branch and prefix run together.

        No other thread runs torch here, and the one that loaded the model is gone: each would have
        a pool of threads of its own, and with more threads than cores OpenMP no longer waits
        actively, which doubles the time of a short prompt.
        """
        groups: dict[_Kind, list[int]] = {}
        for i, job in enumerate(jobs):
            groups.setdefault(job.kind, []).append(i)
        outcomes: dict[int, Outcome] = {}
        for kind, indices in groups.items():
            scored = self._score(kind, [jobs[i].tokens for i in indices])
            outcomes.update(zip(indices, map(self._outcome, scored), strict=True))
        return [outcomes[i] for i in range(len(jobs))]

    def _score(
        self, kind: _Kind, prompts: list[tuple[int, ...]]
    ) -> list[Scored | OffFormat | NotFinite]:
        from guardrails_qwen.engines.one_pass import OnePass

        if kind not in self._passes:
            response, prefix = kind
            self._passes[kind] = OnePass(
                self._open().decoder, prefix, self._trees[response], row_tokens=self._row_tokens
            )
        if self._warm:
            self._passes[kind].warm_up()
        return self._passes[kind](prompts)

    def _outcome(self, scored: Scored | OffFormat | NotFinite) -> Outcome:
        from guardrails_qwen.engines.one_pass import NotFinite

        if isinstance(scored, OffFormat):
            return UnreadableVerdict("", "the model would not have written a documented answer")
        if isinstance(scored, NotFinite):
            return UnreadableVerdict("", "the model's output is not finite; try another dtype")
        try:
            verdict = qwen3guard.scored_verdict(scored, self._calibration.apply)
        except GuardError as error:
            return error
        return replace(verdict, model=self.name, fingerprint=self.fingerprint, tokens=scored.tokens)


_Kind = tuple[bool, tuple[int, ...]]
"""What prompts that run together share: whether they ask about a response, and their prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One prompt to score."""

    kind: _Kind = field(repr=False)
    tokens: tuple[int, ...] = field(repr=False)
    """Without the prefix."""


def _fingerprint(checkpoint: Checkpoint, windows: Windows) -> str:
    """The model and how it is asked about long texts: both make a verdict what it is."""
    return hashlib.sha256(f"{checkpoint.fingerprint} {windows!r}".encode()).hexdigest()[:16]
