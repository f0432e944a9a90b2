"""Streams as token ids in the plain chat format, and batches of them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training import example as labels
from training.stream_example import IGNORED, RISKS, StreamExample, token_labels
from training.stream_model import CATEGORIES

TOKENS, LONGEST = 4096, 2048
"""Tokens a batch, and of its longest conversation."""

_THINK = "<think>\n\n</think>\n\n"
_USER, _ASSISTANT, _END = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"
_RISK_AT = {name: i for i, name in enumerate(RISKS)}
_CATEGORY_AT = {name: i for i, name in enumerate(CATEGORIES)} | {labels.NONE: IGNORED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A tokenised conversation; the lists of the reply have one entry a reply token.

    `written` are the slices of tokens that people wrote; `ends` the character of the reply at
    which a token ends.
    """

    tokens: list[int]
    written: list[slice]
    ask_at: int
    ask_severity: int
    ask_category: int
    reply_at: int
    ends: list[int]
    severities: list[int]
    categories: list[int]
    weights: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Segments padded on the right: [segments, tokens], those of the prompt [segments]."""

    tokens: Tensor
    written: Tensor
    ask_at: Tensor
    ask_severity: Tensor
    ask_category: Tensor
    severities: Tensor
    categories: Tensor
    weights: Tensor


class Renderer:
    """Tokenises examples as the chat template would, with boundaries from lengths."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        (self.end,) = self.encode([_END])[0]
        self.line = self.encode(["\n"])[0]
        self.opening = {role: len(self.encode([role])[0]) for role in (_USER, _ASSISTANT)}
        self.before_reply = self.encode([_ASSISTANT + _THINK])[0]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, no special ones added."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def segments(self, examples: Sequence[StreamExample]) -> list[Segment]:
        """One segment an example."""
        turns = [
            (_USER, _ASSISTANT)[i % 2] + text for e in examples for i, text in enumerate(e.turns)
        ]
        opened = iter(self.encode(turns) if turns else [])
        replies = self.tokenizer(
            [e.text for e in examples], add_special_tokens=False, return_offsets_mapping=True
        )
        found: list[Segment] = []
        for e, ids, offsets in zip(
            examples, replies["input_ids"], replies["offset_mapping"], strict=True
        ):
            said = [next(opened) for _ in e.turns]
            found.append(self._segment(e, said, ids, [end for _, end in offsets]))
        return found

    def _segment(
        self, e: StreamExample, said: list[list[int]], reply: list[int], ends: list[int]
    ) -> Segment:
        tokens: list[int] = []
        written: list[slice] = []
        for i, turn in enumerate(said):
            written.append(
                slice(
                    len(tokens) + self.opening[(_USER, _ASSISTANT)[i % 2]], len(tokens) + len(turn)
                )
            )
            tokens += [*turn, self.end, *self.line]
        ask_at = len(tokens) - 1 - len(self.line)
        taught = token_labels(e.reply, ends)
        if e.reply:
            tokens += self.before_reply
            written.append(slice(len(tokens), len(tokens) + len(reply)))
        reply_at = len(tokens)
        if e.reply:
            tokens += [*reply, self.end]
            if taught:
                taught.append(taught[-1])
        flagged = e.severity not in (None, labels.SAFE)
        return Segment(
            tokens=tokens,
            written=written,
            ask_at=ask_at,
            ask_severity=IGNORED if e.severity is None else _RISK_AT[e.severity],
            ask_category=_CATEGORY_AT[e.category] if flagged else IGNORED,
            reply_at=reply_at,
            ends=ends,
            severities=[_RISK_AT[t.severity] for t in taught],
            categories=[_reply_category(t.category) for t in taught],
            weights=[t.weight * (64 / max(64, len(taught))) ** 0.5 for t in taught],
        )


def _reply_category(name: str) -> int:
    return IGNORED if name == labels.JAILBREAK else _CATEGORY_AT[name]


def collate(segments: Sequence[Segment]) -> Batch:
    """One batch; its length is a multiple of 16, so that few shapes occur."""
    width = -(-max(len(s.tokens) for s in segments) // 16) * 16

    def padded(rows: Sequence[Tensor], value: float = 0) -> Tensor:
        filled = pad_sequence([torch.empty(width, dtype=rows[0].dtype), *rows], True, value)
        return filled[1:]

    def placed(segment: Segment, values: Sequence[float], empty: float) -> Tensor:
        after = len(segment.tokens) - segment.reply_at - len(values)
        return torch.tensor([*[empty] * segment.reply_at, *values, *[empty] * after])

    return Batch(
        tokens=padded([torch.tensor(s.tokens) for s in segments]),
        written=padded([_written(s) for s in segments]),
        ask_at=torch.tensor([s.ask_at for s in segments]),
        ask_severity=torch.tensor([s.ask_severity for s in segments]),
        ask_category=torch.tensor([s.ask_category for s in segments]),
        severities=padded([placed(s, s.severities, IGNORED) for s in segments], IGNORED).long(),
        categories=padded([placed(s, s.categories, IGNORED) for s in segments], IGNORED).long(),
        weights=padded([placed(s, s.weights, 0.0) for s in segments]),
    )


def _written(segment: Segment) -> Tensor:
    marks = torch.zeros(len(segment.tokens), dtype=torch.bool)
    for part in segment.written:
        marks[part] = True
    return marks


def batches(segments: Sequence[Segment]) -> list[tuple[Batch, list[int]]]:
    """Batches of about `TOKENS` tokens and which segments each holds, shortest first.

    Segments of more than `LONGEST` tokens are left out.
    """
    order = [i for i, s in enumerate(segments) if len(s.tokens) <= LONGEST]
    order.sort(key=lambda i: len(segments[i].tokens))
    found: list[tuple[Batch, list[int]]] = []
    part: list[int] = []
    for i in order:
        width = -(-len(segments[i].tokens) // 16) * 16
        if part and width * (len(part) + 1) > TOKENS:
            found.append((collate([segments[k] for k in part]), part))
            part = []
        part.append(i)
    if part:
        found.append((collate([segments[k] for k in part]), part))
    return found


def shuffled_batches(
    renderer: Renderer, examples: Sequence[StreamExample], *, seed: int
) -> list[Batch]:
    """Batches in a random order; neighbours in length differ every time."""
    generator = random.Random(seed)
    order = generator.sample(list(examples), len(examples))
    found: list[Batch] = []
    for start in range(0, len(order), 6000):
        segments = renderer.segments(order[start : start + 6000])
        found += [batch for batch, _ in batches(segments)]
    generator.shuffle(found)
    return found
