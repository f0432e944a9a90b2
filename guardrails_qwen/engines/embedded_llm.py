"""A model that tells which token follows a prompt, and vLLM's offline `LLM` as one."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from guardrails_qwen.errors import EngineError, UnreadableVerdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which token follows a prompt."""

    prompt: Sequence[int] = field(repr=False)
    choices: Sequence[int]
    """Tokens whose log-probabilities are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """What a model holds likely behind a prompt."""

    logprobs: Mapping[int, float]
    """By token id, of the choices and of the likeliest token."""
    likeliest: int
    """Of the whole vocabulary."""
    computed: int
    """Tokens of the prompt that were computed, and not in a cache."""

    @property
    def finite(self) -> bool:
        """Whether all this is what a model holds likely; a token may be out of the question."""
        likeliest = self.logprobs.get(self.likeliest, 0.0)
        others = self.logprobs.values()
        return math.isfinite(likeliest) and all(p < math.inf for p in others)


class NextTokens(Protocol):
    """A loaded model that tells what follows a prompt. One thread at a time asks it."""

    @property
    def context(self) -> int:
        """The longest prompt with its answer, in tokens."""
        ...

    @property
    def cache(self) -> int:
        """Tokens whose keys and values are kept for later prompts that begin alike."""
        ...

    def read(self, questions: Sequence[Question]) -> list[Following]:
        """The answer to each question, in order."""
        ...

    def close(self) -> None:
        """Let the model go."""
        ...


class EmbeddedLLM:
    """vLLM's offline `LLM` as `NextTokens`."""

    def __init__(self, llm: Any) -> None:
        self._llm: Any = llm
        self._process = os.getpid()
        self._parameters = cache(_parameters)
        config = llm.llm_engine.vllm_config
        self.context = int(config.model_config.max_model_len)
        self.cache = int(config.cache_config.block_size * (config.cache_config.num_gpu_blocks or 0))
        self.dtype = str(config.model_config.dtype)

    @classmethod
    def load(cls, folder: Path, **options: Any) -> EmbeddedLLM:
        """A checkpoint in vLLM, which is quiet unless options or environment say otherwise."""
        if not {"VLLM_LOGGING_LEVEL", "VLLM_LOGGING_CONFIG_PATH"} & os.environ.keys():
            options.setdefault("log_level", "ERROR")
        options.setdefault("use_tqdm_on_load", False)
        options.setdefault("enable_prefix_caching", True)
        vllm: Any = import_module("vllm")
        return cls(vllm.LLM(model=str(folder), **options))

    def read(self, questions: Sequence[Question]) -> list[Following]:
        """The answer to each question, in order.

        Raises:
            UnreadableVerdict: vLLM answered something else than what it was asked.
            EngineError: It belongs to the process that this one was forked from.
        """
        if os.getpid() != self._process:
            raise EngineError("vLLM does not survive a fork: load the engine in each process")
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(question.prompt)} for question in questions],
            [self._parameters(tuple(question.choices)) for question in questions],
            use_tqdm=False,
        )
        # What a call that failed has left behind in vLLM comes out before what was asked now.
        latest = outputs[-len(questions) :]
        return [_following(one, output) for one, output in zip(questions, latest, strict=True)]

    def close(self) -> None:
        """End vLLM's processes, and free its memory."""
        llm, self._llm = self._llm, None
        if llm is None or os.getpid() != self._process:
            return
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def _parameters(choices: tuple[int, ...]) -> Any:
    """What asks vLLM for the likeliest token and the log-probabilities of some."""
    vllm: Any = import_module("vllm")
    return vllm.SamplingParams(
        temperature=0, max_tokens=1, logprob_token_ids=list(choices), detokenize=False
    )


def _following(question: Question, output: Any) -> Following:
    """An answer of vLLM, once it is certain that it is one to the question.

    Raises:
        UnreadableVerdict: It is not.
    """
    [completion] = output.outputs
    if list(output.prompt_token_ids) != list(question.prompt) or len(completion.token_ids) != 1:
        raise UnreadableVerdict("", "vLLM answered something else than what it was asked")
    [step] = completion.logprobs
    logprobs = {int(token): float(found.logprob) for token, found in step.items()}
    if not logprobs.keys() >= set(question.choices):
        raise UnreadableVerdict("", "vLLM left out log-probabilities that it was asked for")
    return Following(
        logprobs=logprobs,
        likeliest=int(completion.token_ids[0]),
        computed=len(question.prompt) - (output.num_cached_tokens or 0),
    )
