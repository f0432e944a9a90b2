"""Train tiny-stream: `python -m training.stream_train --data ../shared/data --out DIR`.

Seeded, timed. The tokenizer and the word vectors to begin with are those of tiny-gen.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from training import mixture
from training.stream_example import IGNORED
from training.stream_model import StreamGuard, config, copy_tokenizer, load, save, warm
from training.stream_packing import Batch, Renderer, shuffled_batches
from training.stream_probe import Probe
from training.stream_replies import epoch

TINY_GEN = Path(__file__).parent.parent / "guardrails_qwen" / "checkpoints" / "tiny-gen"
LANGUAGE_TOKENS = 512
"""Written tokens that take part in the language-modelling term of a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What can be turned; the defaults are those of the bundled weights."""

    seed: int = 20251121
    minutes: float = 40.0
    """Training ends by then, and the rates fall towards it."""
    warmup: int = 100
    matrix_rate: float = 0.008
    rate: float = 0.003
    decay: float = 0.1
    language_weight: float = 0.25
    reply_weight: float = 1.5
    category_weight: float = 0.3
    noise: float = 0.05
    """How many written tokens are replaced by random ones on the way in."""
    skipped: float = 0.25
    """How many batches have a gap of up to `reach` in their positions: far apart, but cheap."""
    reach: int = 5000
    average: float = 0.997
    """Decay of the moving average of the weights, which is what is kept."""
    every: int = 400
    """Steps between two looks at the held-out data."""


class Trainer:
    """A guard, its optimizers and the moving average of its weights."""

    def __init__(self, guard: StreamGuard, recipe: Recipe) -> None:
        self.guard, self.recipe = guard, recipe
        self.average = copy.deepcopy(guard).requires_grad_(False).eval()
        matrices = [p for n, p in guard.named_parameters() if p.ndim == 2 and "layers" in n]
        others = [p for n, p in guard.named_parameters() if p.ndim != 2 or "layers" not in n]
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
        """One update, `done` being the share of the run behind it; returns the losses."""
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * self._schedule(number, done)
            optimizer.zero_grad(set_to_none=True)
        losses = self._losses(batch)
        total = (
            losses["prompt"] * self._share(batch)
            + self.recipe.reply_weight * losses["reply"]
            + self.recipe.language_weight * losses["language"]
        )
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.guard.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self._follow(min(self.recipe.average, (1 + number) / (10 + number)))
        return {name: loss.item() for name, loss in losses.items()}

    def _schedule(self, number: int, done: float) -> float:
        warm_up = min(1.0, (number + 1) / self.recipe.warmup)
        return warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        tokens = self._noisy(batch)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.guard.hidden(tokens, self._positions(batch))
            language = self._language(hidden, batch)
        rows = torch.arange(len(tokens))
        asked = self.guard.prompts(hidden[rows, batch.ask_at].float())
        scored = (batch.weights > 0).flatten().nonzero()[:, 0]
        said = self.guard.replies(hidden.flatten(0, 1)[scored].float())
        weights = batch.weights.flatten()[scored]
        return {
            "prompt": self._graded(asked, batch.ask_severity, batch.ask_category, None),
            "reply": self._graded(
                said,
                batch.severities.flatten()[scored],
                batch.categories.flatten()[scored],
                weights,
            ),
            "language": language,
        }

    def _graded(
        self,
        logits: tuple[Tensor, Tensor],
        severity: Tensor,
        category: Tensor,
        weights: Tensor | None,
    ) -> Tensor:
        """The loss of both heads, averaged over what is labelled."""
        total = torch.zeros(())
        for part, truth, scale in (
            (logits[0], severity, 1.0),
            (logits[1], category, self.recipe.category_weight),
        ):
            counts = (truth != IGNORED).float() * (1.0 if weights is None else weights)
            losses = cross_entropy(part, truth, ignore_index=IGNORED, reduction="none")
            total = total + scale * (losses * counts).sum() / counts.sum().clamp(min=1.0)
        return total

    def _language(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Loss of guessing some of the next tokens with the word vectors, which the heads lack."""
        targets = batch.tokens[:, 1:].flatten()
        modelled = batch.written[:, 1:].flatten().nonzero()[:, 0]
        if len(modelled) == 0:
            return torch.zeros(())
        at = modelled[torch.randint(len(modelled), (LANGUAGE_TOKENS,), generator=self.generator)]
        logits = hidden[:, :-1].flatten(0, 1)[at] @ self.guard.model.embed_tokens.weight.T
        return cross_entropy(logits.float(), targets[at])

    def _positions(self, batch: Batch) -> Tensor:
        rows, length = batch.tokens.shape
        positions = torch.arange(length).repeat(rows, 1)
        if torch.rand((), generator=self.generator) > self.recipe.skipped:
            return positions
        at = torch.randint(length, (rows, 1), generator=self.generator)
        gap = torch.randint(self.recipe.reach, (rows, 1), generator=self.generator)
        return positions + gap * (positions >= at)

    @staticmethod
    def _share(batch: Batch) -> float:
        """How much the prompts of a batch count: batches of long replies hold only a few."""
        return min(2.0, max(0.25, (len(batch.ask_at) / 48) ** 0.5))

    def _noisy(self, batch: Batch) -> Tensor:
        known = self.guard.config.vocab_size - 8
        random_tokens = torch.randint(0, known, batch.tokens.shape, generator=self.generator)
        hit = torch.rand(batch.tokens.shape, generator=self.generator) < self.recipe.noise
        return torch.where(batch.written & hit, random_tokens, batch.tokens)

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        for kept, now in zip(self.average.parameters(), self.guard.parameters(), strict=True):
            kept.lerp_(now, 1 - decay)


def stream(corpus: mixture.Corpus, renderer: Renderer, recipe: Recipe) -> Iterator[Batch]:
    """Epoch after epoch, each drawn anew."""
    number = 0
    while True:
        seed = recipe.seed + number
        yield from shuffled_batches(renderer, epoch(corpus, seed=seed), seed=seed)
        number += 1


def train(source: Path, out: Path, recipe: Recipe, start: Path | None = None) -> None:
    """Everything, from the sources to the checkpoint; `start` is a checkpoint to go on from."""
    torch.manual_seed(recipe.seed)
    corpus = mixture.load(source, seed=Recipe().seed)
    copy_tokenizer(TINY_GEN, out)
    words = AutoTokenizer.from_pretrained(out)
    if start is None:
        guard = StreamGuard(config(words))
        warm(guard, TINY_GEN)
    else:
        guard = load(start)
    renderer = Renderer(words)
    trainer = Trainer(guard.train(), recipe)
    probe = Probe(renderer, corpus.held_out, seed=Recipe().seed)
    print(f"{sum(p.numel() for p in guard.parameters()):,} parameters", flush=True)
    best, kept = 0.0, trainer.average
    started = time.perf_counter()
    for number, batch in enumerate(stream(corpus, renderer, recipe), 1):
        done = (time.perf_counter() - started) / 60 / recipe.minutes
        losses = trainer.step(batch, number - 1, done)
        if number % 50 == 0:
            rounded = {name: round(loss, 3) for name, loss in losses.items()}
            print(f"{number}, {done:.0%} of the time, {rounded}", flush=True)
        if number % recipe.every == 0 or done >= 1:
            scores = probe.score(trainer.average)
            print(number, json.dumps({k: round(v, 4) for k, v in scores.items()}), flush=True)
            if scores["criterion"] > best:
                best, kept = scores["criterion"], copy.deepcopy(trainer.average)
        if done >= 1:
            break
    save(kept, out, probe.verdicts)
    minutes = (time.perf_counter() - started) / 60
    print(f"kept the best by the held-out criterion, {best:.4f}; {minutes:.1f} minutes", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="a checkpoint to go on from")
    parser.add_argument("--minutes", type=float, default=Recipe().minutes)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    given = parser.parse_args()
    train(given.data, given.out, Recipe(minutes=given.minutes, seed=given.seed), given.start)


if __name__ == "__main__":
    main()
