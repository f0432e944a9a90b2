"""Many conversations in one row behind one copy of the policy, as the library scores them.

A row is prefix + segment + segment + …; a segment is everything after `<BEGIN CONVERSATION>`
up to the end of its answer. Each token sees the prefix and its own segment, and positions start
again behind the prefix, so the logits equal those of separate full prompts.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.example import Example, messages

ANSWER_WEIGHT = {"severity": 1.0, "category": 0.4, "refusal": 0.6, "scaffold": 0.05}
"""What a token of the answer counts in the loss, by the line it stands on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A tokenised conversation and its answer.

    `content` is the slice of tokens that people wrote; `weights` has one entry a token.
    """

    tokens: list[int]
    content: slice
    weights: list[float]
    severity_at: int
    """Where the severity's first token stands."""
    refusal_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Packed rows of one branch: tokens, positions and parts are [rows, tokens].

    `parts` is 0 for the prefix, -1 for padding and the segment's number otherwise.
    """

    tokens: Tensor
    positions: Tensor
    parts: Tensor
    weights: Tensor
    content: Tensor

    def mask(self) -> Tensor:
        """Who sees whom: bool [rows, 1, tokens, tokens]."""
        length = self.tokens.shape[1]
        same = (self.parts[:, :, None] == self.parts[:, None, :]) | (self.parts[:, None, :] == 0)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        return (same & causal)[:, None]


class Renderer:
    """Tokenises examples exactly as the chat template would, a branch's prefix only once."""

    def __init__(self, tokenizer: Any, *, longest: int = 400) -> None:
        self.tokenizer = tokenizer
        self.longest = longest
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.prefix: dict[bool, list[int]] = {}
        self._suffix: dict[bool, str] = {}
        for reply in (False, True):
            turns = ("\0",) * (2 if reply else 1)
            text = tokenizer.apply_chat_template(messages(turns), tokenize=False)
            before, _, after = text.partition("USER: ")
            self.prefix[reply] = self._encode([before])[0]
            self._suffix[reply] = after.rpartition("\0")[2]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def segments(self, examples: Sequence[Example]) -> list[Segment]:
        """One segment an example; turns are cut at `longest` tokens, the last at most half."""
        bodies = ["\n\n".join(self._labelled(e.turns)) for e in examples]
        reply = [e.judges_reply for e in examples]
        whole = self._encode([b + self._suffix[r] for b, r in zip(bodies, reply, strict=True)])
        tails = [len(ids) for ids in self._encode([self._suffix[False], self._suffix[True]])]
        answers = self._answers(examples)
        found: list[Segment] = []
        for ids, r, (answer, weights, refusal) in zip(whole, reply, answers, strict=True):
            tail = tails[r] + 2  # the text may merge with the newlines that follow it
            size = len(ids)
            found.append(
                Segment(
                    tokens=ids + answer,
                    content=slice(0, size - tail),
                    weights=[0.0] * size + weights,
                    severity_at=size + 2,
                    refusal_at=None if refusal is None else size + refusal,
                )
            )
        return found

    def _labelled(self, turns: Sequence[str]) -> list[str]:
        return [f"{('USER', 'ASSISTANT')[i % 2]}: {text}" for i, text in enumerate(turns)]

    def _answers(
        self, examples: Sequence[Example]
    ) -> list[tuple[list[int], list[float], int | None]]:
        ids = self._encode([e.answer() for e in examples])
        colon = self._encode(["Safety:"])[0][-1]
        return [self._weighted(e, answer, colon) for e, answer in zip(examples, ids, strict=True)]

    def _weighted(
        self, example: Example, answer: list[int], colon: int
    ) -> tuple[list[int], list[float], int | None]:
        lines, line = ("severity", "category", "refusal"), -1
        weights, refusal = [ANSWER_WEIGHT["scaffold"]] * len(answer), None
        for i, token in enumerate(answer[:-1]):
            if token == colon:
                line += 1
                weights[i + 1] = ANSWER_WEIGHT[lines[line]]
                refusal = i + 1 if line == 2 else None
        if example.judges_reply and example.refusal is None:
            return answer, weights, None
        return [*answer, self.end], [*weights, ANSWER_WEIGHT["scaffold"]], refusal


def pack(
    segments: Sequence[Segment], prefix: Sequence[int], *, rows: int, length: int
) -> Iterator[Batch]:
    """Batches of up to `rows` rows of `length` tokens, first fit; overlong segments are left out."""
    room = length - len(prefix)
    bins: list[list[Segment]] = []
    free: list[int] = []
    for segment in segments:
        size = len(segment.tokens)
        if size > room:
            continue
        fit = next((i for i in range(len(bins)) if free[i] >= size), None)
        if fit is None:
            bins.append([])
            free.append(room)
            fit = len(bins) - 1
        bins[fit].append(segment)
        free[fit] -= size
        if len(bins) > rows:
            yield collate(bins[:rows], prefix, length)
            bins, free = bins[rows:], free[rows:]
    if bins:
        yield collate(bins, prefix, length)


def collate(bins: Sequence[Sequence[Segment]], prefix: Sequence[int], length: int) -> Batch:
    """One row a bin."""
    shape = (len(bins), length)
    tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    parts, weights = np.full(shape, -1, np.int64), np.zeros(shape, np.float32)
    content = np.zeros(shape, bool)
    start = len(prefix)
    for row, segments in enumerate(bins):
        tokens[row, :start], positions[row, :start] = prefix, np.arange(start)
        parts[row, :start], at = 0, start
        for number, segment in enumerate(segments, 1):
            end = at + len(segment.tokens)
            tokens[row, at:end] = segment.tokens
            positions[row, at:end] = np.arange(start, start + end - at)
            parts[row, at:end] = number
            weights[row, at:end] = segment.weights
            content[row, at : at + segment.content.stop] = True
            at = end
    return Batch(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        parts=torch.from_numpy(parts),
        weights=torch.from_numpy(weights),
        content=torch.from_numpy(content),
    )


def shuffled_batches(
    renderer: Renderer, examples: Sequence[Example], *, rows: int, length: int, seed: int
) -> list[Batch]:
    """Both branches' batches in one random order."""
    generator = random.Random(seed)
    order = generator.sample(list(examples), len(examples))
    batches: list[Batch] = []
    for reply in (False, True):
        segments = renderer.segments([e for e in order if e.judges_reply == reply])
        batches += pack(segments, renderer.prefix[reply], rows=rows, length=length)
    generator.shuffle(batches)
    return batches
