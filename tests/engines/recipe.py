"""The model card's way to a verdict: generate greedily, then read. What we compare with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import guardrails_qwen

CHECKPOINT = Path(guardrails_qwen.__file__).parent / "checkpoints" / "tiny-gen"


class Recipe:
    """Greedy generation, in batches of prompts of one length so that nothing is padded."""

    def __init__(self, folder: Path = CHECKPOINT) -> None:
        auto: Any = AutoTokenizer
        self.tokenizer: Any = auto.from_pretrained(folder)
        model: Any = AutoModelForCausalLM
        self.model: Any = model.from_pretrained(folder, dtype=torch.float32).eval()

    def rendered(self, messages: list[dict[str, str]]) -> list[int]:
        """The prompt as the model card makes it: special tokens in content are special."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def answers(self, prompts: Sequence[list[int]], *, new_tokens: int = 40) -> list[str]:
        """What the model writes behind each prompt."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, ids in enumerate(prompts):
            by_length[len(ids)].append(i)
        written: dict[int, str] = {}
        for indices in by_length.values():
            batch = torch.tensor([prompts[i] for i in indices])
            with torch.inference_mode():
                output = self.model.generate(
                    batch,
                    attention_mask=torch.ones_like(batch),
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    eos_token_id=self.tokenizer.eos_token_id,
                    pad_token_id=self.tokenizer.eos_token_id,
                )
            texts = self.tokenizer.batch_decode(
                output[:, batch.shape[1] :], skip_special_tokens=True
            )
            written.update(zip(indices, texts, strict=True))
        return [written[i] for i in range(len(prompts))]
