"""Train tiny-gen: `python -m training.train --data ../shared/data --out DIR`, seeded, timed."""

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from training import data, mixture, synthetic, tokenizer
from training import example as labels
from training.example import Example
from training.packing import Batch, Renderer, pack, shuffled_batches

ROWS, LENGTH = 6, 640
"""Rows a step, and tokens a row: about forty conversations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What can be turned; the defaults are what the bundled checkpoint was made with."""

    seed: int = 20251121
    steps: int = 4600
    warmup: int = 150
    vocabulary: int = 8000
    matrix_rate: float = 0.01
    rate: float = 0.003
    decay: float = 0.05
    language_weight: float = 0.3
    language_share: float = 0.35
    """The part of the content's tokens that takes part in the language-modelling term."""
    noise: float = 0.06
    """How many content tokens are replaced by random ones on the way in."""
    average: float = 0.997
    """Decay of the moving average of the weights, which is what is kept."""
    every: int = 400
    """Steps between two looks at the held-out data."""


def config(size: int) -> Qwen3Config:
    """The shape: head_dim 128 and two query heads a key/value head, as in the real models."""
    return Qwen3Config(
        vocab_size=size,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        attention_bias=False,
        initializer_range=0.05,
    )


class Trainer:
    """A model, its optimizers and the moving average of its weights."""

    def __init__(self, model: Qwen3ForCausalLM, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
        others = [p for n, p in model.named_parameters() if p.ndim != 2 or "layers" not in n]
        self.optimizers = (
            torch.optim.Muon(
                matrices, lr=recipe.matrix_rate, weight_decay=recipe.decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(
                others, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.decay
            ),
        )
        self.peaks = [o.param_groups[0]["lr"] for o in self.optimizers]
        self.generator = torch.Generator().manual_seed(recipe.seed)

    def step(self, batch: Batch, number: int) -> dict[str, float]:
        """One update; returns the two losses."""
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * self._schedule(number)
            optimizer.zero_grad(set_to_none=True)
        answer, language = self._losses(batch)
        (answer + self.recipe.language_weight * language).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self._follow(min(self.recipe.average, (1 + number) / (10 + number)))
        return {"answer": answer.item(), "language": language.item()}

    def _schedule(self, number: int) -> float:
        if number < self.recipe.warmup:
            return (number + 1) / self.recipe.warmup
        rest = (number - self.recipe.warmup) / (self.recipe.steps - self.recipe.warmup)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * rest))

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        targets, weights = batch.tokens[:, 1:], batch.weights[:, 1:]
        answered = weights > 0
        chosen = torch.rand(weights.shape, generator=self.generator) < self.recipe.language_share
        modelled = batch.content[:, 1:] & chosen
        with torch.autocast("cpu", torch.bfloat16):
            hidden = hidden_states(self.model, batch, self._noisy(batch))[:, :-1]
            loss_of = torch.nn.functional.cross_entropy
            of_answer = loss_of(
                self.model.lm_head(hidden[answered]).float(), targets[answered], reduction="none"
            )
            language = loss_of(self.model.lm_head(hidden[modelled]).float(), targets[modelled])
        return (of_answer * weights[answered]).sum() / weights.sum(), language

    def _noisy(self, batch: Batch) -> Tensor:
        random_tokens = torch.randint(
            0, self.recipe.vocabulary - 8, batch.tokens.shape, generator=self.generator
        )
        hit = torch.rand(batch.tokens.shape, generator=self.generator) < self.recipe.noise
        return torch.where(batch.content & hit, random_tokens, batch.tokens)

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        for kept, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
            kept.lerp_(now, 1 - decay)


def hidden_states(model: Qwen3ForCausalLM, batch: Batch, tokens: Tensor) -> Tensor:
    """Last hidden states [rows, tokens, hidden] of a packed batch."""
    return model.model(
        input_ids=tokens,
        attention_mask=batch.mask(),
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state


class Probe:
    """Held-out rows and held-out phrases, packed once and scored often."""

    def __init__(self, renderer: Renderer, held_out: list[Example], recipe: Recipe) -> None:
        generator = random.Random(recipe.seed)
        own = synthetic.prompts(700, seed=recipe.seed, held_out=True)
        own += synthetic.replies(generator.sample(own, min(300, len(own))), seed=recipe.seed)
        groups = mixture.by_source(held_out)
        drawn = [
            e for _, g in sorted(groups.items()) for e in generator.sample(g, min(60, len(g)))
        ]
        starts = renderer._encode([f" {name}" for name in labels.SEVERITIES])
        self.starts = [ids[0] for ids in starts]
        self.examples: list[Example] = []
        self.batches: list[tuple[Batch, list[Example]]] = []
        for reply in (False, True):
            chosen = [e for e in (*drawn, *own) if e.judges_reply == reply]
            segments = renderer.segments(chosen)
            prefix, room = renderer.prefix[reply], LENGTH - len(renderer.prefix[reply])
            fitting = [(s, e) for s, e in zip(segments, chosen, strict=True) if len(s.tokens) <= room]
            fitting.sort(key=lambda pair: -len(pair[0].tokens))
            for i in range(0, len(fitting), 1):
                segment, e = fitting[i]
                del segment
                self.examples.append(e)
            self._pack(fitting, prefix)

    def _pack(self, fitting: list[tuple[Any, Example]], prefix: list[int]) -> None:
        from training.packing import collate

        room = LENGTH - len(prefix)
        rows: list[list[tuple[Any, Example]]] = [[]]
        left = room
        for segment, e in fitting:
            if len(segment.tokens) > left:
                rows.append([])
                left = room
            rows[-1].append((segment, e))
            left -= len(segment.tokens)
        for i in range(0, len(rows), ROWS):
            part = rows[i : i + ROWS]
            batch = collate([[s for s, _ in row] for row in part], prefix, LENGTH)
            self.batches.append((batch, [e for row in part for _, e in row]))

    @torch.no_grad()
    def severities(self, model: Qwen3ForCausalLM) -> list[tuple[Example, int]]:
        """Each example with the index of the most likely severity."""
        found: list[tuple[Example, int]] = []
        for batch, examples in self.batches:
            with torch.autocast("cpu", torch.bfloat16):
                hidden = hidden_states(model, batch, batch.tokens)
            at = _severity_positions(batch)
            logits = model.lm_head(hidden[at].float())[:, self.starts]
            found += zip(examples, logits.argmax(-1).tolist(), strict=True)
        return found

    def score(self, model: Qwen3ForCausalLM) -> dict[str, float]:
        """Balanced accuracies (strict), and their mean, which picks what is kept."""
        judged = self.severities(model)
        slices = {
            "prompts": [(e, s) for e, s in judged if e.source != "synthetic" and not e.judges_reply],
            "phrases": [(e, s) for e, s in judged if e.source == "synthetic" and not e.judges_reply],
            "replies": [(e, s) for e, s in judged if e.judges_reply],
        }
        scores = {name: _balanced_accuracy(part) for name, part in slices.items()}
        return {**scores, "criterion": sum(scores.values()) / len(scores)}


def _severity_positions(batch: Batch) -> Tensor:
    """Bool [rows, tokens]: the token before each segment's severity."""
    weights, parts = batch.weights, batch.parts
    at = torch.zeros_like(parts, dtype=torch.bool)
    for row in range(parts.shape[0]):
        for part in range(1, int(parts[row].max()) + 1):
            inside = (parts[row] == part) & (weights[row] == 1.0)
            at[row, int(inside.nonzero()[0, 0]) - 1] = True
    return at


def _balanced_accuracy(judged: list[tuple[Example, int]]) -> float:
    flagged = [severity > 0 for e, severity in judged if e.flagged]
    passed = [severity == 0 for e, severity in judged if not e.flagged]
    return (sum(flagged) / max(1, len(flagged)) + sum(passed) / max(1, len(passed))) / 2


def batches(corpus: mixture.Corpus, renderer: Renderer, recipe: Recipe) -> Iterator[Batch]:
    """Epoch after epoch, each drawn anew."""
    number = 0
    while True:
        seed = recipe.seed + number
        examples = mixture.epoch(corpus, seed=seed)
        yield from shuffled_batches(renderer, examples, rows=ROWS, length=LENGTH, seed=seed)
        number += 1


def save(model: Qwen3ForCausalLM, folder: Path) -> None:
    """The weights in 16 bit, and the configuration, beside the tokenizer's files."""
    model = copy.deepcopy(model).to(torch.float16)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        max_new_tokens=32,
    )
    model.save_pretrained(folder)


def train(source: Path, out: Path, recipe: Recipe) -> None:
    """Everything, from the sources to the checkpoint."""
    started = time.perf_counter()
    random.seed(recipe.seed)
    np.random.seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    corpus = mixture.load(source, seed=recipe.seed)
    texts = corpus.texts() + [e.turns[0] for e in synthetic.prompts(12000, seed=recipe.seed)]
    words = tokenizer.build(texts, out, vocabulary=recipe.vocabulary)
    renderer = Renderer(words)
    settings = config(len(words))
    settings.eos_token_id, settings.pad_token_id = words.eos_token_id, words.pad_token_id
    settings.bos_token_id = None
    trainer = Trainer(Qwen3ForCausalLM(settings).train(), recipe)
    probe = Probe(renderer, corpus.held_out, recipe)
    size = sum(p.numel() for p in trainer.model.parameters())
    print(f"{size:,} parameters, {len(words):,} tokens, prefixes "
          f"{[len(p) for p in renderer.prefix.values()]}, "
          f"ready after {time.perf_counter() - started:.0f} s", flush=True)
    best, seen = 0.0, 0
    for number, batch in enumerate(batches(corpus, renderer, recipe), 1):
        losses = trainer.step(batch, number - 1)
        seen += int((batch.parts > 0).sum())
        if number % 100 == 0:
            print(f"{number} {losses['answer']:.3f} {losses['language']:.3f} "
                  f"{seen / (time.perf_counter() - started):.0f} tokens/s", flush=True)
        if number % recipe.every == 0 or number == recipe.steps:
            scores = probe.score(trainer.average)
            print(number, json.dumps({k: round(v, 4) for k, v in scores.items()}), flush=True)
            if scores["criterion"] > best:
                best = scores["criterion"]
                save(trainer.average, out)
        if number == recipe.steps:
            break
    print(f"kept the best by the held-out criterion, {best:.4f}; "
          f"{(time.perf_counter() - started) / 60:.1f} minutes", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--every", type=int, default=Recipe.every)
    given = parser.parse_args()
    train(given.data, given.out, Recipe(steps=given.steps, every=given.every))


if __name__ == "__main__":
    main()
