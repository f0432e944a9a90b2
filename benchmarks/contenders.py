"""One contender in a process of its own, so that its memory is its own.

`python -m benchmarks.contenders recipe FOLDER` loads a checkpoint and says so in one line of JSON.
Then it answers each line that it reads: how long a workload took, the verdicts, and the memory at
the peak. `benchmarks.compare` sends these lines, to each contender in turn. Only what a contender
needs is imported, because any-guardrail lives in an environment without this package.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

Messages = list[dict[str, str]]
Answer = dict[str, Any]
"""`verdict` (severity, categories, refusal; None where the model's answer was unreadable), `tokens`
that were computed, if known, and the `error` that kept the model from answering, if any."""

_SAFETY = re.compile(r"Safety: (Safe|Unsafe|Controversial)")
_CATEGORY = re.compile(
    r"(Violent|Non-violent Illegal Acts|Sexual Content or Sexual Acts|PII|Suicide & Self-Harm|"
    r"Unethical Acts|Politically Sensitive Topics|Copyright Violation|Jailbreak|None)"
)
_REFUSAL = re.compile(r"Refusal: (Yes|No)")


class Judge(Protocol):
    """A contender."""

    threads_may_share: bool
    precision: str

    def __call__(self, conversations: list[Messages]) -> list[Answer]: ...


class Recipe:
    """The model card's way: generate greedily, one prompt at a time, and read the text."""

    threads_may_share = False

    def __init__(self, folder: str, device: str, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        auto: Any = AutoTokenizer
        model: Any = AutoModelForCausalLM
        self.tokenizer: Any = auto.from_pretrained(folder)
        self.model: Any = model.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device)
        self.precision = dtype

    def __call__(self, conversations: list[Messages]) -> list[Answer]:
        return [self._judge(messages) for messages in conversations]

    def _judge(self, messages: Messages) -> Answer:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        inputs = self.tokenizer([text], return_tensors="pt").to(self.model.device)
        ids = self.model.generate(**inputs, max_new_tokens=128, do_sample=False)
        written = ids[0][len(inputs.input_ids[0]) :].tolist()
        answer = self.tokenizer.decode(written, skip_special_tokens=True)
        severity, refusal = _SAFETY.search(answer), _REFUSAL.search(answer)
        return _answer(
            severity and severity[1],
            [name for name in _CATEGORY.findall(answer) if name != "None"],
            refusal and refusal[1] == "Yes",
        )


class AnyGuardrail:
    """any-guardrail's Qwen3Guard, which generates as well.

    It takes three names on the model hub only, so its provider is told another place to load from;
    and a dtype, or else it would run the checkpoint's own.
    """

    threads_may_share = False

    def __init__(self, folder: str, device: str, dtype: str) -> None:
        import torch

        guard: Any = import_module("any_guardrail.guardrails.qwen3_guard").Qwen3Guard
        base: Any = import_module("any_guardrail.providers.huggingface").HuggingFaceProvider

        class Local(base):
            def load_model(self, model_id: str, **options: Any) -> None:
                del model_id
                base.load_model(self, folder, dtype=getattr(torch, dtype), **options)

        self.guard: Any = guard(provider=Local(device=device))
        self.precision = dtype

    def __call__(self, conversations: list[Messages]) -> list[Answer]:
        return [self._judge(messages) for messages in conversations]

    def _judge(self, messages: Messages) -> Answer:
        output: Any = self.guard.validate(*(message["content"] for message in messages))
        named: dict[str, Any] = {
            category.name: category.triggered for category in output.categories or ()
        }
        refusal = named.pop("refusal", None)
        return _answer(output.extra.get("severity"), list(named), refusal)


class Ours:
    """This package's local engine."""

    threads_may_share = True

    def __init__(self, folder: str, device: str, dtype: str) -> None:
        from guardrails_qwen.engines.transformers import TransformersEngine

        self.engine = TransformersEngine.from_pretrained(folder, device=device, dtype=dtype)
        self.precision = next(
            (name for name in ("bfloat16", "int8", "float16") if f", {name}" in repr(self.engine)),
            "float32",
        )

    def __call__(self, conversations: list[Messages]) -> list[Answer]:
        from guardrails_qwen import Conversation

        asked = [
            Conversation.of(messages[0]["content"])
            if len(messages) == 1
            else Conversation.exchange(messages[0]["content"], messages[1]["content"])
            for messages in conversations
        ]
        return [self._answer(outcome) for outcome in self.engine.judge(asked)]

    @staticmethod
    def _answer(outcome: object) -> Answer:
        from guardrails_qwen import UnreadableVerdict, Verdict

        if isinstance(outcome, Verdict):
            categories = [category.label for category in outcome.categories]
            label = outcome.severity.label
            return _answer(label, categories, outcome.refusal, tokens=outcome.tokens)
        unreadable = isinstance(outcome, UnreadableVerdict)
        return _answer(None, [], None, error=None if unreadable else type(outcome).__name__)


KINDS: dict[str, Callable[[str, str, str], Judge]] = {
    "recipe": Recipe,
    "any-guardrail": AnyGuardrail,
    "ours": Ours,
}


def _answer(
    severity: str | None,
    categories: list[str],
    refusal: bool | None,
    *,
    tokens: int | None = None,
    error: str | None = None,
) -> Answer:
    verdict = [severity, sorted(set(categories)), refusal] if severity else None
    return {"verdict": verdict, "tokens": tokens, "error": error}


def run(judge: Judge, mode: str, conversations: list[Messages]) -> list[Answer]:
    """Judge a batch, one conversation after another, or each from a thread of its own."""
    if mode == "batch":
        return judge(conversations)
    if mode == "turns":
        return [judge([messages])[0] for messages in conversations]
    return _from_threads(judge, conversations)


def _from_threads(judge: Judge, conversations: list[Messages]) -> list[Answer]:
    answers: dict[int, Answer] = {}
    turn = nullcontext() if judge.threads_may_share else threading.Lock()

    def call(index: int) -> None:
        with turn:
            answers[index] = judge([conversations[index]])[0]

    callers = [threading.Thread(target=call, args=(i,)) for i in range(len(conversations))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return [answers[i] for i in range(len(conversations))]


def overhead(judge: Judge, conversations: list[Messages], rounds: int = 15) -> dict[str, Any]:
    """Microseconds a conversation that our engine spends outside the model.

    The public methods of the decoder are wrapped to measure the time inside: embedding, layers and
    logits. What is left of `judge` is rendering, tokenising, packing and reading, and this file's
    conversion of messages and verdicts.
    """
    from guardrails_qwen.engines.decoder import Decoder

    inside = 0.0

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal inside
            started = time.perf_counter()
            try:
                return method(*args, **options)
            finally:
                inside += time.perf_counter() - started

        return call

    methods = {
        name: method
        for name, method in vars(Decoder).items()
        if callable(method) and (name == "__call__" or not name.startswith("_"))
    }
    samples = list[float]()
    for name, method in methods.items():
        setattr(Decoder, name, timed(method))
    try:
        for _ in range(rounds):
            inside, started = 0.0, time.perf_counter()
            judge(conversations)
            outside = time.perf_counter() - started - inside
            if not inside:
                raise RuntimeError("the engine no longer runs the decoder")
            samples.append(1e6 * outside / len(conversations))
    finally:
        for name, method in methods.items():
            setattr(Decoder, name, method)
    return {"microseconds": sorted(samples)[len(samples) // 2]}


class Memory:
    """Resident memory of this process at its peak, in MiB; on a GPU, what torch held there."""

    def __init__(self, device: str) -> None:
        self.device = device

    def reset(self) -> None:
        """Start anew, where the system can."""
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        if self.device.startswith("cuda"):
            import torch

            return torch.cuda.max_memory_allocated() / 2**20
        with suppress(OSError):
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) / 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(options: argparse.Namespace, say: Callable[[Answer], None]) -> None:
    """Load, then answer until there are no more questions."""
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    memory = Memory(options.device)
    started = time.perf_counter()
    judge = KINDS[options.kind](options.checkpoint, options.device, options.dtype)
    say(
        {
            "seconds": time.perf_counter() - started,
            "peak": memory.peak(),
            "precision": judge.precision,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
    )
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            say(_reply(judge, memory, asked))
        except Exception as error:  # noqa: BLE001 - reported as the result of this workload
            say({"error": f"{type(error).__name__}: {error}"[:300]})


def _reply(judge: Judge, memory: Memory, asked: dict[str, Any]) -> Answer:
    conversations: list[Messages] = asked["conversations"]
    if asked["mode"] == "overhead":
        return overhead(judge, conversations)
    memory.reset()
    started = time.perf_counter()
    answers = run(judge, asked["mode"], conversations)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak": memory.peak(), "answers": answers}


def main() -> None:
    """Answer on what is standard output now; whatever else is printed goes to standard error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: Answer) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        serve(options, say)
    except Exception as error:  # noqa: BLE001 - the other side reports it
        say({"error": f"{type(error).__name__}: {error}"[:300]})


if __name__ == "__main__":
    main()
