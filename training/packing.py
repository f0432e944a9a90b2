"""Many conversations behind one copy of the policy: a batch computes the prefix once.

A segment is everything after `<BEGIN CONVERSATION>` up to the end of its answer. Segments of
similar length share a batch, each behind the same keys and values of the prefix, with positions
that go on from it: the logits equal those of separate full prompts.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, Qwen3ForCausalLM

from training.example import Example, messages

TOKENS, LONGEST = 3584, 512
"""Tokens a batch, about forty conversations, and of its longest conversation."""

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
    """Segments of one branch, padded on the right: all but `prefix` are [segments, tokens]."""

    prefix: Tensor
    tokens: Tensor
    weights: Tensor
    content: Tensor
    real: Tensor
    severity_at: Tensor
    """[segments]: where each severity's first token stands."""


def hidden_states(model: Qwen3ForCausalLM, batch: Batch, tokens: Tensor) -> Tensor:
    """Last hidden states [segments, tokens, hidden] of `tokens` behind the batch's prefix."""
    rows, length = tokens.shape
    start = len(batch.prefix)
    cache = DynamicCache(config=model.config)
    model.model(input_ids=batch.prefix[None], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(rows)
    seen = torch.ones(length, start + length, dtype=torch.bool).tril(start)
    return model.model(
        input_ids=tokens,
        attention_mask=seen[None, None].expand(rows, 1, -1, -1),
        position_ids=torch.arange(start, start + length)[None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state


class Renderer:
    """Tokenises examples exactly as the chat template would, a branch's prefix only once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.prefix: dict[bool, list[int]] = {}
        self._suffix: dict[bool, str] = {}
        for reply in (False, True):
            turns = ("\0",) * (2 if reply else 1)
            text = tokenizer.apply_chat_template(messages(turns), tokenize=False)
            before, _, after = text.partition("USER: ")
            self.prefix[reply] = self.encode([before])[0]
            self._suffix[reply] = after.rpartition("\0")[2]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, no special ones added."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def segments(self, examples: Sequence[Example]) -> list[Segment]:
        """One segment an example."""
        bodies = ["\n\n".join(self._labelled(e.turns)) for e in examples]
        reply = [e.judges_reply for e in examples]
        whole = self.encode([b + self._suffix[r] for b, r in zip(bodies, reply, strict=True)])
        tails = [len(ids) for ids in self.encode([self._suffix[False], self._suffix[True]])]
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
        ids = self.encode([e.answer() for e in examples])
        colon = self.encode(["Safety:"])[0][-1]
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


def collate(segments: Sequence[Segment], prefix: Sequence[int]) -> Batch:
    """One batch; its length is a multiple of 16, so that few shapes occur."""
    sizes = [len(segment.tokens) for segment in segments]
    width = -(-max(sizes) // 16) * 16

    def padded(rows: Sequence[Tensor]) -> Tensor:
        return pad_sequence([torch.empty(width, dtype=rows[0].dtype), *rows], True)[1:]

    return Batch(
        prefix=torch.tensor(prefix),
        tokens=padded([torch.tensor(s.tokens) for s in segments]),
        weights=padded([torch.tensor(s.weights) for s in segments]),
        content=padded(
            [torch.arange(n) < s.content.stop for s, n in zip(segments, sizes, strict=True)]
        ),
        real=padded([torch.ones(n, dtype=torch.bool) for n in sizes]),
        severity_at=torch.tensor([s.severity_at for s in segments]),
    )


def batches(segments: Sequence[Segment], prefix: Sequence[int]) -> list[tuple[Batch, list[int]]]:
    """Batches of about `TOKENS` tokens, and which segments each holds, shortest first.

    Segments of more than `LONGEST` tokens are left out: a text cut short would mean another thing.
    """
    order = [i for i, s in enumerate(segments) if len(s.tokens) <= LONGEST]
    order.sort(key=lambda i: len(segments[i].tokens))
    found: list[tuple[Batch, list[int]]] = []
    part: list[int] = []
    for i in order:
        width = -(-len(segments[i].tokens) // 16) * 16
        if part and width * (len(part) + 1) > TOKENS:
            found.append((collate([segments[k] for k in part], prefix), part))
            part = []
        part.append(i)
    if part:
        found.append((collate([segments[k] for k in part], prefix), part))
    return found


def shuffled_batches(renderer: Renderer, examples: Sequence[Example], *, seed: int) -> list[Batch]:
    """Both branches' batches in one random order; neighbours in length differ every time."""
    generator = random.Random(seed)
    order = generator.sample(list(examples), len(examples))
    found: list[Batch] = []
    for reply in (False, True):
        segments = renderer.segments([e for e in order if e.judges_reply == reply])
        for start in range(0, len(segments), 4000):
            part = segments[start : start + 4000]
            prefix = renderer.prefix[reply]
            found += [b for b, _ in batches(part, prefix)]
    generator.shuffle(found)
    return found
