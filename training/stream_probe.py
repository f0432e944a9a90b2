"""What training looks at to keep the best weights: held-out prompts, and replies made of
held-out rows and held-out phrases.
"""

import random
from collections.abc import Sequence

import torch

from training import data, mixture, synthetic
from training import example as labels
from training.example import Example
from training.stream_example import StreamExample
from training.stream_measure import Debounce, Judged
from training.stream_model import StreamGuard
from training.stream_packing import Renderer, batches
from training.stream_replies import Composer, refused, whole

_UNSAFE = 1


@torch.no_grad()
def judge(
    guard: StreamGuard, renderer: Renderer, examples: Sequence[StreamExample]
) -> list[Judged]:
    """Every example token by token, in one pass a batch; those that are too long are left out."""
    segments = renderer.segments(examples)
    found: dict[int, Judged] = {}
    for batch, part in batches(segments):
        hidden = guard.hidden(batch.tokens).float()
        asked = guard.prompts(hidden[torch.arange(len(part)), batch.ask_at])[0]
        severities = guard.replies(hidden)[0].argmax(-1)
        for row, i in enumerate(part):
            start = segments[i].reply_at
            found[i] = Judged(
                example=examples[i],
                severities=severities[row, start : start + len(segments[i].ends)].tolist(),
                ends=segments[i].ends,
                prompt=int(asked[row].argmax()),
                unsafe=float(asked[row].softmax(-1)[_UNSAFE]),
            )
    return [found[i] for i in sorted(found)]


def composed(
    held_out: Sequence[Example], count: int, *, seed: int
) -> tuple[list[StreamExample], list[StreamExample]]:
    """Held-out replies, half of them with a harmful part at a known sentence."""
    generator = random.Random(seed)
    composer = Composer(held_out, generator, held_out=True)
    harmful = composer.compose(count // 2, harmful=True)
    return harmful, composer.compose(count // 2, harmful=False)


class Probe:
    """Held-out prompts and replies, scored often."""

    def __init__(self, renderer: Renderer, held_out: list[Example], *, seed: int) -> None:
        generator = random.Random(seed)
        self.renderer = renderer
        groups = mixture.by_source([e for e in held_out if not e.judges_reply])
        asked = [e for _, g in sorted(groups.items()) for e in generator.sample(g, min(40, len(g)))]
        asked += synthetic.prompts(500, seed=seed, held_out=True)
        harmful, harmless = composed(held_out, 500, seed=seed)
        answered = [e for e in held_out if e.judges_reply and not e.flagged]
        ordinary = [e for e in answered if e.source in data.BENIGN]
        said_no = refused([e for e in asked if e.severity == labels.UNSAFE][:80], generator)
        self.prompts = [whole(e) for e in asked]
        self.harmful = harmful
        self.harmless = [
            *harmless,
            *said_no,
            *[whole(e) for e in generator.sample(ordinary, min(100, len(ordinary)))],
        ]

    def score(self, guard: StreamGuard) -> dict[str, float]:
        """Balanced accuracies (not Safe counts as harmful), and their mean."""
        prompts = judge(guard, self.renderer, self.prompts)
        pairs = [(j.example.severity != labels.SAFE, j.prompt != 0) for j in prompts]
        found = [j.delay(Debounce.REPORT) for j in judge(guard, self.renderer, self.harmful)]
        soon = sum(delay is not None and delay < 32 for delay in found) / len(found)
        passed = [
            j.first(Debounce.REPORT) is None for j in judge(guard, self.renderer, self.harmless)
        ]
        quiet = sum(passed) / len(passed)
        scores = {
            "prompts": _balanced_accuracy(pairs),
            "within 32": soon,
            "quiet": quiet,
        }
        return {**scores, "criterion": (scores["prompts"] + (soon + quiet) / 2) / 2}

    def verdicts(self, guard: StreamGuard) -> list[int]:
        """Every severity of a part of the probe, to compare two sets of weights."""
        judged = judge(guard, self.renderer, [*self.prompts[:400], *self.harmful[:100]])
        return [s for j in judged for s in (j.prompt, *j.severities)]


def _balanced_accuracy(pairs: Sequence[tuple[bool, bool]]) -> float:
    hit = [guess for truth, guess in pairs if truth]
    quiet = [not guess for truth, guess in pairs if not truth]
    return (sum(hit) / max(1, len(hit)) + sum(quiet) / max(1, len(quiet))) / 2
