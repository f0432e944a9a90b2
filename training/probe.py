"""What training looks at to keep the best weights: held-out rows and held-out phrases.

Four slices: prompts, our own phrases, replies, and statements that stand as replies to prompts
that have nothing to do with them.
"""

import random

import torch
from transformers import Qwen3ForCausalLM

from training import data, mixture, synthetic
from training import example as labels
from training.example import Example
from training.packing import Batch, Renderer, batches, hidden_states


class Probe:
    """Held-out rows and held-out phrases, batched once and scored often."""

    def __init__(self, renderer: Renderer, held_out: list[Example], *, seed: int) -> None:
        generator = random.Random(seed)
        own = synthetic.prompts(700, seed=seed, held_out=True)
        own += synthetic.replies(generator.sample(own, 300), seed=seed)
        groups = mixture.by_source(held_out)
        drawn = [e for _, g in sorted(groups.items()) for e in generator.sample(g, min(60, len(g)))]
        benign = [e for e in drawn if e.source in data.BENIGN and not e.judges_reply]
        said = mixture.statements(e for e in held_out if not e.judges_reply)
        alone = mixture.behind(generator.sample(said, min(300, len(said))), benign, generator)
        alone += synthetic.answers(
            generator.sample(benign, min(150, len(benign))), seed=seed, held_out=True
        )
        self.alone = set(map(id, alone))
        self.starts = [renderer.encode([f" {name}"])[0][0] for name in labels.SEVERITIES]
        self.batches: list[tuple[Batch, list[Example]]] = []
        for reply in (False, True):
            chosen = [e for e in (*drawn, *own, *alone) if e.judges_reply == reply]
            segments = renderer.segments(chosen)
            for batch, part in batches(segments, renderer.prefix[reply]):
                self.batches.append((batch, [chosen[i] for i in part]))

    @torch.no_grad()
    def severities(self, model: Qwen3ForCausalLM) -> list[tuple[Example, int]]:
        """Each example with the index of the most likely severity."""
        found: list[tuple[Example, int]] = []
        for batch, examples in self.batches:
            with torch.autocast("cpu", torch.bfloat16):
                hidden = hidden_states(model, batch, batch.tokens)
            last = hidden[torch.arange(len(examples)), batch.severity_at - 1]
            logits = model.lm_head(last.float())[:, self.starts]
            found += zip(examples, logits.argmax(-1).tolist(), strict=True)
        return found

    def score(self, model: Qwen3ForCausalLM) -> dict[str, float]:
        """Balanced accuracies (strict), and their mean, which picks what is kept."""
        judged = self.severities(model)
        alone = [(e, s) for e, s in judged if id(e) in self.alone]
        judged = [(e, s) for e, s in judged if id(e) not in self.alone]
        own = [(e, s) for e, s in judged if e.source == "synthetic"]
        slices = {
            "prompts": [
                (e, s) for e, s in judged if e.source != "synthetic" and not e.judges_reply
            ],
            "phrases": [(e, s) for e, s in own if not e.judges_reply],
            "replies": [(e, s) for e, s in judged if e.judges_reply],
            "statements": alone,
        }
        scores = {name: _balanced_accuracy(part) for name, part in slices.items()}
        return {**scores, "criterion": sum(scores.values()) / len(scores)}


def _balanced_accuracy(judged: list[tuple[Example, int]]) -> float:
    flagged = [severity > 0 for e, severity in judged if e.flagged]
    passed = [severity == 0 for e, severity in judged if not e.flagged]
    return (sum(flagged) / max(1, len(flagged)) + sum(passed) / max(1, len(passed))) / 2
