"""Qwen3Guard-Gen on this machine, through the transformers library."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.dialects import qwen3guard
from guardrails_qwen.dialects.token_tree import TokenTree, build
from guardrails_qwen.engines.base import Outcome
from guardrails_qwen.errors import (
    EngineClosed,
    EngineError,
    GuardError,
    TextTooLong,
    UnreadableVerdict,
)
from guardrails_qwen.verdict import Verdict

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from guardrails_qwen.engines.loading import Checkpoint
    from guardrails_qwen.engines.one_pass import NotFinite, OffFormat, OnePass, Scored
    from guardrails_qwen.engines.tokenization import Prompt

logger = logging.getLogger("guardrails_qwen")


class LoadOptions(TypedDict, total=False):
    """Options of `TransformersEngine.from_pretrained`."""

    device: str
    dtype: str | torch.dtype
    revision: str | None
    local_files_only: bool
    row_tokens: int | None


class TransformersEngine:
    """Runs a Qwen3Guard-Gen checkpoint here, on a GPU or the CPU.

    Nothing is generated: one forward pass over the few tokens that tell the documented answers
    apart gives the verdict that greedy decoding would have written, and all probabilities.
    The engine is safe to use from many threads and tasks; one batch runs at a time.
    """

    def __init__(self, checkpoint: Checkpoint, *, row_tokens: int | None = None) -> None:
        self.name = checkpoint.name
        self.fingerprint = checkpoint.fingerprint
        self.demonstration = checkpoint.demonstration
        self._checkpoint: Checkpoint | None = checkpoint
        if row_tokens is not None and row_tokens < 1:
            raise ValueError(f"row_tokens is {row_tokens}: use at least 1, or None for the default")
        on_cpu = checkpoint.model.device.type == "cpu"
        self._row_tokens = row_tokens or (512 if on_cpu else 4096)
        self._trees = {response: _tree(checkpoint, response=response) for response in (False, True)}
        self._passes: dict[tuple[bool, tuple[int, ...]], OnePass] = {}
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="guardrails-qwen")

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
    ) -> Self:
        """Load a checkpoint.

        Args:
            model: A name on the model hub (`Qwen/Qwen3Guard-Gen-0.6B`), a folder (one that
                ModelScope's `snapshot_download` returns, say), or `tiny`: the bundled
                demonstration.
            device: A torch device; auto is CUDA, then MPS, then the CPU.
            dtype: A torch dtype or its name; auto is bfloat16 on CUDA, else float32.
            revision: Branch, tag or commit on the hub.
            local_files_only: Never ask the hub.
            row_tokens: How many tokens run at once, by default 512 on a CPU and 4,096 elsewhere.

        Raises:
            CheckpointError: It lacks a file, is of another kind, or has no guard's chat template.
            ImportError: torch and transformers are not installed: `pip install
                'guardrails-qwen[local]'`.
        """
        try:
            from guardrails_qwen.engines.loading import load
        except ModuleNotFoundError as error:
            raise ImportError(
                f"a local engine needs {error.name}: pip install 'guardrails-qwen[local]'"
            ) from error
        checkpoint = load(
            model,
            device=device,
            dtype=dtype,
            revision=revision,
            local_files_only=local_files_only,
        )
        if checkpoint.demonstration:
            logger.warning(
                "%s is a demonstration and protects nobody; for real use load "
                "Qwen/Qwen3Guard-Gen-0.6B or larger",
                checkpoint.name,
            )
        return cls(checkpoint, row_tokens=row_tokens)

    def __repr__(self) -> str:
        kind = ", a demonstration, not protection" if self.demonstration else ""
        if self._checkpoint is None:
            return f"TransformersEngine({self.name!r}, closed{kind})"
        model = self._checkpoint.model
        precision = str(model.dtype).removeprefix("torch.")
        return f"TransformersEngine({self.name!r}, {model.device}, {precision}{kind})"

    def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """Judge a batch; blocks until done.

        A conversation longer than the model's context becomes `TextTooLong`, and one that the model
        answers outside its format `UnreadableVerdict`, each in its own place.

        Raises:
            EngineClosed: After `close()`.
            EngineError: The model failed, out of memory for example.
        """
        started = time.perf_counter()
        prompts = self._prompts(conversations)
        with self._lock:
            outcomes = self._outcomes(conversations, prompts)
        seconds = time.perf_counter() - started
        return [
            replace(outcome, seconds=seconds) if isinstance(outcome, Verdict) else outcome
            for outcome in outcomes
        ]

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """Judge a batch on a thread of the engine's own; see `judge`."""
        self._open()
        loop = asyncio.get_running_loop()
        try:
            judging = loop.run_in_executor(self._worker, self.judge, conversations)
        except RuntimeError as error:
            raise EngineClosed("the engine is closed") from error
        return await judging

    def prompt(self, conversation: Conversation) -> list[int]:
        """The token ids that the model is given to judge a conversation."""
        return self._prompts([conversation])[0].ids

    def close(self) -> None:
        """Let the model go, once what is running is done. Later calls raise `EngineClosed`."""
        with self._lock:
            self._checkpoint = None
            self._passes.clear()
        self._worker.shutdown(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Checkpoint:
        checkpoint = self._checkpoint
        if checkpoint is None:
            raise EngineClosed("the engine is closed")
        return checkpoint

    def _prompts(self, conversations: Sequence[Conversation]) -> list[Prompt]:
        checkpoint = self._open()
        return checkpoint.encoder.prompts(
            [checkpoint.template.pieces(conversation) for conversation in conversations]
        )

    def _outcomes(
        self, conversations: Sequence[Conversation], prompts: Sequence[Prompt]
    ) -> list[Outcome]:
        """One outcome for each prompt; prompts of one branch and prefix run together."""
        checkpoint = self._open()
        outcomes: dict[int, Outcome] = {}
        groups: dict[tuple[bool, tuple[int, ...]], list[int]] = {}
        for i, (conversation, prompt) in enumerate(zip(conversations, prompts, strict=True)):
            response = qwen3guard.judges_response(conversation)
            needed = len(prompt) + self._trees[response].longest
            if needed > checkpoint.context:
                outcomes[i] = TextTooLong(needed, checkpoint.context)
            else:
                groups.setdefault((response, prompt.prefix), []).append(i)
        for key, indices in groups.items():
            scored = self._score(key, [prompts[i].rest for i in indices])
            for i, result in zip(indices, scored, strict=True):
                outcomes[i] = self._outcome(result)
        return [outcomes[i] for i in range(len(prompts))]

    def _score(
        self, key: tuple[bool, tuple[int, ...]], prompts: list[list[int]]
    ) -> list[Scored | OffFormat | NotFinite]:
        from guardrails_qwen.engines.one_pass import OnePass

        try:
            if key not in self._passes:
                response, prefix = key
                self._passes[key] = OnePass(
                    self._open().model, prefix, self._trees[response], row_tokens=self._row_tokens
                )
            return self._passes[key](prompts)
        except RuntimeError as error:  # torch's, out of memory among them
            raise EngineError(f"the model failed: {type(error).__name__}") from error

    def _outcome(self, scored: Scored | OffFormat | NotFinite) -> Outcome:
        from guardrails_qwen.engines.one_pass import NotFinite, OffFormat

        if isinstance(scored, OffFormat):
            return UnreadableVerdict("", "the model would not have written a documented answer")
        if isinstance(scored, NotFinite):
            return UnreadableVerdict("", "the model's output is not finite; try another dtype")
        resolved = len(qwen3guard.EXPECTED)
        refusal = scored.last if len(scored.answer) > resolved else None
        scores = qwen3guard.scores(scored.distribution, refusal)
        try:
            verdict = qwen3guard.verdict(scored.answer, scores)
        except GuardError as error:
            return error
        return replace(verdict, model=self.name, fingerprint=self.fingerprint, tokens=scored.tokens)


def _tree(checkpoint: Checkpoint, *, response: bool) -> TokenTree:
    answer = qwen3guard.answer_format(response=response)
    return build(
        {values: answer.write(values) for values in answer.answers},
        checkpoint.encoder.text,
        end=checkpoint.end,
        resolve=len(qwen3guard.EXPECTED),
        expected=qwen3guard.EXPECTED,
    )
