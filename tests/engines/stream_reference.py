"""Qwen3Guard-Stream as published, slowly: every token takes a pass over all that came before it.

This shares nothing with the engine: the library's own backbone, heads applied by hand, the chat
format written out, and the tokenizer without its special tokens for whatever is content.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tokenizers import Tokenizer
from transformers import Qwen3Config, Qwen3Model

from guardrails_qwen import Category, Severity

START, END = "<|im_start|>", "<|im_end|>"
THINK = ("<think>", "\n\n", "</think>")
GAP = "\n\n"
"""What stands between the think block and the reply, and is tokenised with it."""

Turn = tuple[str, str]
"""Role and content."""

CATEGORIES = {
    "Violent": Category.VIOLENT,
    "Sexual Content": Category.SEXUAL_CONTENT,
    "Self-Harm": Category.SUICIDE_AND_SELF_HARM,
    "Political": Category.POLITICALLY_SENSITIVE_TOPICS,
    "PII": Category.PII,
    "Copyright": Category.COPYRIGHT_VIOLATION,
    "Illegal Acts": Category.NON_VIOLENT_ILLEGAL_ACTS,
    "Unethical": Category.UNETHICAL_ACTS,
    "Jailbreak": Category.JAILBREAK,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What the heads say at one token."""

    token: int
    severity: dict[Severity, float]
    """Log-probabilities."""
    category: dict[Category, float]
    """Log-probabilities, given that it is not safe."""

    @property
    def worst(self) -> Severity:
        return max(self.severity, key=self.severity.__getitem__)

    @property
    def named(self) -> Category:
        return max(self.category, key=self.category.__getitem__)


class StreamReference:
    """A checkpoint in a folder, in float32."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        library: Any = safetensors.torch  # its types are incomplete
        weights: dict[str, torch.Tensor] = {
            name: tensor.float()
            for file in sorted(folder.glob("*.safetensors"))
            for name, tensor in library.load_file(file).items()
        }
        self._heads = {k: v for k, v in weights.items() if not k.startswith("model.")}
        config: Any = Qwen3Config
        self._model: Any = Qwen3Model(config.from_pretrained(folder))
        self._model.float().eval().load_state_dict(
            {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
        )
        state = json.loads((folder / "tokenizer.json").read_text())
        self._special = {token["content"]: token["id"] for token in state["added_tokens"]}
        self._plain = Tokenizer.from_str(json.dumps(state | {"added_tokens": []}))

    def text(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def prompt(self, turns: Sequence[Turn]) -> Read:
        """What the query heads say where the last turn, the user's, is closed."""
        return self._read(self._turns(turns)[: -len(self.text("\n"))], "query")

    def reply(self, turns: Sequence[Turn], reply: str) -> list[Read]:
        """What the response heads say at every token of the reply; one forward pass for each."""
        head, tokens = self.parts(turns, reply)
        return [
            self._read([*head, *tokens[: i + 1]], "response")
            for i in range(len(self._scaffold(reply)), len(tokens))
        ]

    def parts(self, turns: Sequence[Turn], reply: str) -> tuple[list[int], list[int]]:
        """Ids up to the end of the think block, and those of what follows, `GAP` included."""
        opened = [self._special[START], *self.text("assistant\n")]
        block = [self._special[THINK[0]], *self.text(THINK[1]), self._special[THINK[2]]]
        return [*self._turns(turns), *opened, *block], self.text(GAP + reply)

    def ends(self, reply: str) -> list[int]:
        """Where its tokens end, in characters."""
        encoded = self._plain.encode(GAP + reply, add_special_tokens=False)
        return [end - len(GAP) for _, end in encoded.offsets if end > len(GAP)]

    def _scaffold(self, reply: str) -> list[int]:
        """The tokens of `GAP` that hold nothing of the reply."""
        encoded = self._plain.encode(GAP + reply, add_special_tokens=False)
        return [
            i for i, (_, end) in zip(encoded.ids, encoded.offsets, strict=True) if end <= len(GAP)
        ]

    def _turns(self, turns: Sequence[Turn]) -> list[int]:
        ids = list[int]()
        for role, content in turns:
            ids += [self._special[START], *self.text(f"{role}\n{content}"), self._special[END]]
            ids += self.text("\n")
        return ids

    def _read(self, ids: Sequence[int], side: str) -> Read:
        """What one pair of heads says at the last of some tokens."""
        with torch.inference_mode():
            hidden = self._model(torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
            prefix = "query_" if side == "query" else ""
            inner = self._heads[f"{prefix}risk_level_category_pre.weight"] @ hidden
            scale = (inner.square().mean() + self.config["rms_norm_eps"]).rsqrt()
            inner = inner * scale * self._heads[f"{prefix}risk_level_category_layernorm.weight"]
            risk = (self._heads[f"{prefix}risk_level_head.weight"] @ inner).log_softmax(0)
            category = (self._heads[f"{prefix}category_head.weight"] @ inner).log_softmax(0)
        return Read(
            token=ids[-1],
            severity={
                Severity.from_label(self.config[f"{side}_risk_level_map"][str(i)]): float(p)
                for i, p in enumerate(risk)
            },
            category={
                CATEGORIES[self.config[f"{side}_category_map"][str(i)]]: float(p)
                for i, p in enumerate(category)
            },
        )
