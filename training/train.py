"""Train tiny-gen: `python -m training.train --data ../shared/data --out DIR`, seeded, timed."""

import argparse
import copy
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3ForCausalLM

from training import mixture, synthetic, tokenizer
from training.model import config, save
from training.packing import Batch, Renderer, hidden_states, shuffled_batches
from training.probe import Probe

LANGUAGE_TOKENS = 896
"""Content tokens that take part in the language-modelling term of a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What can be turned; the defaults are those of a run from scratch."""

    seed: int = 20251121
    steps: int = 2800
    warmup: int = 150
    vocabulary: int = 8000
    matrix_rate: float = 0.008
    rate: float = 0.003
    decay: float = 0.1
    language_weight: float = 0.3
    noise: float = 0.06
    """How many content tokens are replaced by random ones on the way in."""
    average: float = 0.997
    """Decay of the moving average of the weights, which is what is kept."""
    every: int = 300
    """Steps between two looks at the held-out data."""
    minutes: float | None = None
    """End after so much time, if that is before the last step; the rates fall with it."""

    def continued(self) -> "Recipe":
        """The recipe for going on from trained weights: other draws, a third of the rates."""
        return replace(
            self,
            seed=self.seed + 1000,
            warmup=30,
            matrix_rate=self.matrix_rate / 3,
            rate=self.rate / 3,
            average=0.99,
            every=100,
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
                matrices,
                lr=recipe.matrix_rate,
                weight_decay=recipe.decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.decay),
        )
        self.peaks = [o.param_groups[0]["lr"] for o in self.optimizers]
        self.generator = torch.Generator().manual_seed(recipe.seed)

    def step(self, batch: Batch, number: int, done: float) -> dict[str, float]:
        """One update, `done` being the share of the run behind it; returns the two losses."""
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * self._schedule(number, done)
            optimizer.zero_grad(set_to_none=True)
        answer, language = self._losses(batch)
        (answer + self.recipe.language_weight * language).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self._follow(min(self.recipe.average, (1 + number) / (10 + number)))
        return {"answer": answer.item(), "language": language.item()}

    def _schedule(self, number: int, done: float) -> float:
        if number < self.recipe.warmup:
            return (number + 1) / self.recipe.warmup
        warm = self.recipe.warmup / self.recipe.steps
        rest = max(0.0, (done - warm) / (1 - warm))
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * rest))

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        targets, weights = batch.tokens[:, 1:].flatten(), batch.weights[:, 1:].flatten()
        answered = weights.nonzero()[:, 0]
        modelled = batch.content[:, 1:].flatten().nonzero()[:, 0]
        # Drawn with replacement and filled up, so that few shapes occur: each costs a compilation.
        draws = torch.randint(len(modelled), (LANGUAGE_TOKENS,), generator=self.generator)
        filling = answered.new_zeros(-len(answered) % 128)
        at = torch.cat([modelled[draws], answered, filling])
        with torch.autocast("cpu", torch.bfloat16):
            hidden = hidden_states(self.model, batch, self._noisy(batch))[:, :-1]
            logits = self.model.lm_head(hidden.flatten(0, 1)[at])
        losses = torch.nn.functional.cross_entropy(logits.float(), targets[at], reduction="none")
        language, answer = losses[:LANGUAGE_TOKENS], losses[LANGUAGE_TOKENS:]
        weights = weights[at[LANGUAGE_TOKENS:]]
        return (answer * weights).sum() / weights.sum(), language.mean()

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


def batches(corpus: mixture.Corpus, renderer: Renderer, recipe: Recipe) -> Iterator[Batch]:
    """Epoch after epoch, each drawn anew."""
    number = 0
    while True:
        seed = recipe.seed + number
        examples = mixture.epoch(corpus, seed=seed)
        yield from shuffled_batches(renderer, examples, seed=seed)
        number += 1


def beginning(
    texts: Sequence[str], out: Path, recipe: Recipe, start: Path | None
) -> tuple[PreTrainedTokenizerBase, Qwen3ForCausalLM]:
    """A tokenizer, its files written to `out`, and a model: new ones, or those of `start`."""
    if start is None:
        words = tokenizer.build(texts, out, vocabulary=recipe.vocabulary)
        return words, Qwen3ForCausalLM(config(words)).train()
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if start.resolve() != out.resolve():
            shutil.copyfile(start / name, out / name)
    model = Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(out), model.train()


def train(source: Path, out: Path, recipe: Recipe, start: Path | None = None) -> None:
    """Everything, from the sources to the checkpoint; `start` is a checkpoint to go on from."""
    started = time.perf_counter()
    torch.manual_seed(recipe.seed)
    corpus = mixture.load(source, seed=Recipe().seed)
    texts = corpus.texts() + [e.turns[0] for e in synthetic.prompts(12000, seed=recipe.seed)]
    words, model = beginning(texts, out, recipe, start)
    renderer = Renderer(words)
    trainer = Trainer(model, recipe)
    probe = Probe(renderer, corpus.held_out, seed=Recipe().seed)
    if start is not None:
        before = probe.score(trainer.average)
        print("before", json.dumps({k: round(v, 4) for k, v in before.items()}), flush=True)
    size = sum(p.numel() for p in trainer.model.parameters())
    print(
        f"{size:,} parameters, {len(words):,} tokens, policy prefixes of "
        f"{[len(p) for p in renderer.prefix.values()]} tokens",
        flush=True,
    )
    best, kept = 0.0, trainer.average
    for number, batch in enumerate(batches(corpus, renderer, recipe), 1):
        spent = (time.perf_counter() - started) / 60 / (recipe.minutes or math.inf)
        losses = trainer.step(batch, number - 1, min(1.0, max((number - 1) / recipe.steps, spent)))
        last = number == recipe.steps or spent >= 1
        if number % 50 == 0 or last:
            print(
                f"{number} of {recipe.steps}, {time.perf_counter() - started:.0f} s, {losses}",
                flush=True,
            )
        if number % recipe.every == 0 or last:
            scores = probe.score(trainer.average)
            print(number, json.dumps({k: round(v, 4) for k, v in scores.items()}), flush=True)
            if scores["criterion"] > best:
                best, kept = scores["criterion"], copy.deepcopy(trainer.average)
                torch.save(kept.state_dict(), out / "float32.pt")
        if last:
            break
    save(kept, out, lambda model: [severity for _, severity in probe.severities(model)])
    print(
        f"kept the best by the held-out criterion, {best:.4f}; "
        f"{(time.perf_counter() - started) / 60:.1f} minutes",
        flush=True,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--start", type=Path, help="a checkpoint to go on from")
    parser.add_argument("--minutes", type=float, help="end by then, with the rates at their end")
    given = parser.parse_args()
    recipe = Recipe(steps=given.steps, minutes=given.minutes)
    if given.start is not None:
        recipe = recipe.continued()
    train(given.data, given.out, recipe, given.start)


if __name__ == "__main__":
    main()
