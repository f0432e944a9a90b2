"""One forward pass against the model card's recipe, side by side in one run: `make bench`.

The recipe renders the checkpoint's chat template, generates greedily with the transformers library
and reads the text. Both run on the same weights, on the CPU, in float32, in turns (A B A B …), and
the ratio is that of the medians. The texts are made up and harmless: time does not depend on them.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import guardrails_qwen
from guardrails_qwen import Conversation
from guardrails_qwen.engines.transformers import TransformersEngine

BUNDLED = Path(guardrails_qwen.__file__).parent / "checkpoints" / "tiny-gen"

SENTENCE = "The harbour was quiet, and the ferry to the islands had left half an hour before. "


class Recipe:
    """The model card's way: one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        auto: Any = AutoTokenizer
        self.tokenizer: Any = auto.from_pretrained(folder)
        model: Any = AutoModelForCausalLM
        self.model: Any = model.from_pretrained(folder, dtype=torch.float32).eval()

    def __call__(self, conversations: list[Conversation]) -> list[str]:
        return [self.answer(conversation) for conversation in conversations]

    def answer(self, conversation: Conversation) -> str:
        """What the model writes."""
        messages = [message.to_dict() for message in conversation.messages]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        inputs = self.tokenizer([text], return_tensors="pt")
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=128, do_sample=False)
        return self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])


def workloads() -> dict[str, list[Conversation]]:
    """What is judged, by name."""
    short = Conversation.of("Where does the ferry to the islands leave from?")
    reply = Conversation.exchange("Tell me about the harbour.", SENTENCE * 20)
    chunks = [Conversation.of(f"{i}. {SENTENCE * 8}") for i in range(32)]
    shorts = [Conversation.of(f"When does ferry number {i} leave?") for i in range(32)]
    return {
        "one short prompt": [short],
        "one prompt with a long reply": [reply],
        "32 short prompts": shorts,
        "32 longer chunks": chunks,
    }


def timed(run: Callable[[], object]) -> float:
    """Wall-clock seconds."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()

    engine = TransformersEngine.from_pretrained(options.checkpoint, device="cpu", dtype="float32")
    recipe = Recipe(options.checkpoint)
    print(f"{engine!r}; {platform.processor() or platform.machine()}, {torch.get_num_threads()}")
    print(f"threads, torch {torch.__version__}; medians of {options.rounds} rounds\n")
    print("| workload | tokens | recipe, ms | one pass, ms | ratio |")
    print("|---|---|---|---|---|")
    for name, conversations in workloads().items():
        tokens = sum(len(engine.prompt(conversation)) for conversation in conversations)
        pairs = list[tuple[float, float]]()
        for _ in range(options.rounds + 1):
            pairs.append(
                (
                    timed(lambda: recipe(conversations)),  # noqa: B023
                    timed(lambda: engine.judge(conversations)),  # noqa: B023
                )
            )
        generated, scored = (
            1000 * statistics.median(times[1:]) for times in zip(*pairs, strict=True)
        )
        ratio = generated / scored
        print(f"| {name} | {tokens} | {generated:.1f} | {scored:.1f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
