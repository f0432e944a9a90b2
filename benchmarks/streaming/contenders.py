"""Ways to moderate a reply while it grows, as what the next token of it costs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from tokenizers import Tokenizer
from transformers import Qwen3Config, Qwen3Model

from guardrails_qwen import Action, Conversation, Guard, Policy
from guardrails_qwen.engines.session import SessionEngine
from guardrails_qwen.engines.transformers import TransformersEngine
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.streaming.events import Release

OURS, PUBLISHED, RERUN = "ours", "published recipe", "Gen every 32 tokens"
OURS_LATER = "ours, 32 at a time"

EVERY = 32
"""Tokens between two verdicts of a guard that judges whole texts."""

PROMPT = "What is new at the harbour?"

LENIENT = Policy.strict(action=Action.FLAG)
"""Asks as much as any policy, and lets every stream run to its end."""


class Contender(Protocol):
    """Moderates a reply, given as the texts of its tokens."""

    name: str

    def first(self, pieces: Sequence[str]) -> tuple[float, int]:
        """Seconds of work until something is released, and tokens that must have arrived."""
        ...

    def at(self, pieces: Sequence[str], positions: Sequence[int]) -> list[float]:
        """Seconds of work for one more token, behind so many tokens; positions ascend."""
        ...


class Ours:
    """A guard on a `StreamEngine`: tokenizing, policy and hold-back included.

    A token's work is measured over a few tokens, because one is judged when the next has begun.

    Args:
        run: So many tokens.
        fed: Tokens that arrive together.
    """

    def __init__(
        self, engine: SessionEngine, *, run: int = 16, fed: int = 1, name: str = OURS
    ) -> None:
        self.name = name
        self._guard = Guard(engine, LENIENT)
        self._run = run
        self._fed = fed

    def first(self, pieces: Sequence[str]) -> tuple[float, int]:
        stream = self._guard.stream(PROMPT, settings=Streaming())
        started = time.perf_counter()
        try:
            for count, chunk in enumerate(joined(pieces, self._fed), start=1):
                if any(isinstance(event, Release) for event in stream.feed(chunk)):
                    return time.perf_counter() - started, self._fed * count
        finally:
            stream.close()
        raise AssertionError("nothing was released")

    def at(self, pieces: Sequence[str], positions: Sequence[int]) -> list[float]:
        """One stream goes through all positions; the work of opening it counts for none."""
        stream = self._guard.stream(PROMPT, settings=Streaming())
        stream.feed(pieces[0])
        done, found = 1, list[float]()
        try:
            for position in positions:
                begin = max(done, position - self._run)
                if begin > done:
                    stream.feed("".join(pieces[done:begin]))
                done = begin + self._run
                chunks = list(joined(pieces[begin:done], self._fed))
                started = time.perf_counter()
                for chunk in chunks:
                    stream.feed(chunk)
                found.append((time.perf_counter() - started) / self._run)
        finally:
            stream.close()
        return found


class Published:
    """The published remote code's way: all tokens again for each one, without a cache.

    Its model class needs an older library, so the same work is done by the library's backbone and
    the checkpoint's tensors. Its tokenizer is given the whole reply beforehand.
    """

    def __init__(self, folder: Path, *, device: str, dtype: torch.dtype) -> None:
        self.name = PUBLISHED
        library: Any = safetensors.torch  # its types are incomplete
        weights: dict[str, torch.Tensor] = {
            name: tensor
            for file in sorted(folder.glob("*.safetensors"))
            for name, tensor in library.load_file(file).items()
        }
        config: Any = Qwen3Config
        with torch.device("meta"):
            model: Any = Qwen3Model(config.from_pretrained(folder))
        own = {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
        model.load_state_dict(own, assign=True)
        model.rotary_emb = type(model.rotary_emb)(config.from_pretrained(folder))
        self._model: Any = model.to(device=device, dtype=dtype).eval()
        self._heads = {
            name: tensor.to(device=device, dtype=dtype)
            for name, tensor in weights.items()
            if not name.startswith("model.")
        }
        self._device = device
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def first(self, pieces: Sequence[str]) -> tuple[float, int]:
        """A pass over the prompt, and one over the prompt and a token."""
        started = time.perf_counter()
        prompt, opening = self._ids(PROMPT)
        self._judge(prompt)
        self._judge([*prompt, *opening, *self._reply(pieces[:1])])
        return time.perf_counter() - started, 1

    def at(self, pieces: Sequence[str], positions: Sequence[int]) -> list[float]:
        prompt, opening = self._ids(PROMPT)
        ids = [*prompt, *opening, *self._reply(pieces)]
        before = len(prompt) + len(opening)
        found = list[float]()
        for position in positions:
            started = time.perf_counter()
            self._judge(ids[: before + position])
            found.append(time.perf_counter() - started)
        return found

    def worst(self, reply: str, prompt: str = PROMPT) -> list[str]:
        """The likeliest severity at each token of a reply, by the names of the checkpoint.

        Read in one pass: nothing in the model looks ahead.
        """
        asked, opening = self._ids(prompt)
        ids = self._reply([reply])
        risk, _ = self._judge([*asked, *opening, *ids], last=len(ids))
        names: dict[str, str] = self._model.config.response_risk_level_map
        return [names[str(int(i))] for i in risk.argmax(-1)]

    def _ids(self, prompt: str) -> tuple[list[int], list[int]]:
        """Up to the end of the prompt's turn, and what opens the reply."""
        asked = f"<|im_start|>user\n{prompt}<|im_end|>"
        opening = "\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        return self._encoded(asked), self._encoded(opening)

    def _reply(self, pieces: Sequence[str]) -> list[int]:
        return self._encoded("".join(pieces))

    def _encoded(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _judge(self, ids: Sequence[int], last: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of severity and category at the last tokens; read, so that they are there."""
        with torch.inference_mode():
            tokens = torch.tensor([ids], device=self._device)
            hidden = self._model(tokens, use_cache=False).last_hidden_state[0, -last:]
            inner = hidden @ self._heads["risk_level_category_pre.weight"].T
            weight = self._heads["risk_level_category_layernorm.weight"]
            inner = torch.nn.functional.rms_norm(
                inner, weight.shape, weight, self._model.config.rms_norm_eps
            )
            risk = inner @ self._heads["risk_level_head.weight"].T
            category = inner @ self._heads["category_head.weight"].T
            return risk.cpu(), category.cpu()


class Rerun:
    """A guard that judges the reply so far, with its prompt, every 32 tokens."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.name = RERUN
        self._engine = engine

    def first(self, pieces: Sequence[str]) -> tuple[float, int]:
        return EVERY * self.at(pieces, [EVERY])[0], EVERY

    def at(self, pieces: Sequence[str], positions: Sequence[int]) -> list[float]:
        """A verdict behind the position, shared by the tokens since the last one."""
        found = list[float]()
        for position in positions:
            conversation = Conversation.exchange(PROMPT, "".join(pieces[:position]))
            started = time.perf_counter()
            [outcome] = self._engine.judge([conversation])
            found.append((time.perf_counter() - started) / EVERY)
            if isinstance(outcome, Exception):
                raise outcome
        return found


def pieces_of(text: str, tokenizer: Tokenizer) -> list[str]:
    """The texts of a text's tokens; each ends where the next begins."""
    ends = [end for _, end in spans_of(text, tokenizer)]
    starts = [0, *ends][: len(ends)]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def joined(pieces: Sequence[str], size: int) -> Iterator[str]:
    """Chunks of so many tokens."""
    return ("".join(pieces[i : i + size]) for i in range(0, len(pieces), size))


def spans_of(text: str, tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """First and last character of each token."""
    return list(tokenizer.encode(text, add_special_tokens=False).offsets)


def plain_tokenizer(folder: Path) -> Tokenizer:
    """A checkpoint's tokenizer, to which no text is special."""
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return Tokenizer.from_str(json.dumps(state | {"added_tokens": []}))
