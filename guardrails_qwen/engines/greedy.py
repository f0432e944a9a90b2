"""What a model writes when it takes the likeliest token each time, for many prompts at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

Ids = Sequence[int]

_ROWS = 32
"""Prompts that run side by side: their logits over the whole vocabulary are held at once."""
_PADDING = 0.2
"""The most of a batch that may be padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the model would write next."""

    token: int
    weights: tuple[float, ...]
    """Of each group of tokens that is watched, the logarithm of its unnormalised probability."""
    finite: bool
    """Whether all of it is numbers."""


@dataclass(slots=True, eq=False, kw_only=True)
class Written:
    """What the model wrote behind one prompt."""

    tokens: list[int] = field(default_factory=list[int], repr=False)
    """Without the token that ends the turn."""
    steps: list[Step] = field(default_factory=list[Step], repr=False)
    """One for each token, and one for the end."""
    ended: bool = False
    """Whether the model ended its turn; else it was stopped."""

    @property
    def finite(self) -> bool:
        """Whether the model's output was numbers all the way."""
        return all(step.finite for step in self.steps)


class Greedy:
    """Greedy answers, where the commonest is guessed and checked in the pass over the prompt.

    A prompt runs with the guess behind it, so that an answer as guessed takes one forward pass.
    Where the model would write something else, the rest of the guess is masked out and the answer
    goes on token by token. Prompts that share a prefix compute its keys and values once. What a
    prompt gets does not depend on its neighbours, but for the rounding of sums.

    Args:
        model: A causal language model of the transformers library.
        guess: The commonest answer, without its end.
        ends: Tokens that end a turn.
        watched: Groups of tokens whose probabilities are wanted.
        goes_on: Whether what was written so far may still become an answer; else it is left there.
        longest: Most tokens of an answer.
    """

    def __init__(  # noqa: PLR0913
        self,
        model: Any,
        *,
        guess: Ids,
        ends: frozenset[int],
        watched: Sequence[Ids],
        goes_on: Callable[[Ids], bool],
        longest: int,
    ) -> None:
        self._model = model
        self._device: torch.device = model.device
        self._guess = list(guess)
        self._ends = ends
        self._watched = [torch.tensor(group, device=self._device) for group in watched]
        self._goes_on = goes_on
        self._longest = longest
        self._prefixes: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, prefix: tuple[int, ...], prompts: Sequence[Ids]) -> list[Written]:
        """What is written behind each prompt, given without the prefix that all of them share."""
        written: dict[int, Written] = {}
        with torch.inference_mode():
            for indices in side_by_side(list(map(len, prompts))):
                answers = self._write(prefix, [prompts[i] for i in indices])
                written.update(zip(indices, answers, strict=True))
        return [written[i] for i in range(len(prompts))]

    def _write(self, prefix: tuple[int, ...], prompts: Sequence[Ids]) -> list[Written]:
        width = max(map(len, prompts))
        rows = [_Row.of(len(prefix), len(prompt), width) for prompt in prompts]
        ids = [[0] * (width - len(prompt)) + [*prompt, *self._guess] for prompt in prompts]
        masks = [row.mask + [1] * len(self._guess) for row in rows]
        positions = [_positions(mask, len(own)) for mask, own in zip(masks, ids, strict=True)]
        cache = self._behind(prefix, len(prompts))
        found = self._run(ids, masks, positions, cache, len(self._guess) + 1)
        for row, steps in zip(rows, found, strict=True):
            self._check(row, steps)
        self._go_on(rows, cache)
        return [row.written for row in rows]

    def _check(self, row: _Row, steps: Sequence[Step]) -> None:
        """Keep as much of the guess as the model would have written."""
        kept = 0
        for step, guessed in zip(steps, [*self._guess, None], strict=True):
            self._take(row, step)
            if row.done or step.token != guessed:
                break
            kept += 1
        row.mask += [1] * kept + [0] * (len(self._guess) - kept)

    def _go_on(self, rows: Sequence[_Row], cache: DynamicCache) -> None:
        """Write on, token by token, where an answer is not done."""
        while alive := [i for i, row in enumerate(rows) if not row.done]:
            if len(alive) < len(rows):
                cache.batch_select_indices(torch.tensor(alive, device=self._device))
                rows = [rows[i] for i in alive]
            for row in rows:
                row.mask.append(1)
            found = self._run(
                [[row.written.tokens[-1]] for row in rows],
                [row.mask for row in rows],
                [[row.start + len(row.written.tokens) - 1] for row in rows],
                cache,
                1,
            )
            for row, [step] in zip(rows, found, strict=True):
                self._take(row, step)

    def _take(self, row: _Row, step: Step) -> None:
        written = row.written
        written.steps.append(step)
        if not step.finite:
            row.done = True
        elif step.token in self._ends:
            written.ended = row.done = True
        else:
            written.tokens.append(step.token)
            row.done = len(written.tokens) >= self._longest or not self._goes_on(written.tokens)

    def _behind(self, prefix: tuple[int, ...], count: int) -> DynamicCache:
        """The keys and values of a prefix, for so many rows."""
        if prefix and prefix not in self._prefixes:
            cache = DynamicCache()
            places = list(range(len(prefix)))
            self._forward([list(prefix)], [[1] * len(prefix)], [places], cache, 1)
            layers: Any = cache.layers
            self._prefixes[prefix] = [(layer.keys, layer.values) for layer in layers]
        cache: Any = DynamicCache()
        for i, both in enumerate(self._prefixes.get(prefix, ())):
            keys, values = (one.expand(count, -1, -1, -1) for one in both)
            cache.update(keys, values, i)
        return cache

    def _run(
        self,
        ids: list[list[int]],
        masks: list[list[int]],
        positions: list[list[int]],
        cache: DynamicCache,
        keep: int,
    ) -> list[list[Step]]:
        """What would be written next at each of the last positions of a row."""
        logits = self._forward(ids, masks, positions, cache, keep).float()
        values, tokens = logits.max(-1)
        sums = [logits[..., group].logsumexp(-1) for group in self._watched]
        told = torch.stack([tokens.float(), values, *sums], -1)  # ids are exact below 2**24
        rows = cast("list[list[list[float]]]", told.tolist())  # pyright: ignore[reportUnknownMemberType]
        return [[_step(own) for own in row] for row in rows]

    def _forward(
        self,
        ids: list[list[int]],
        masks: list[list[int]],
        positions: list[list[int]],
        cache: DynamicCache,
        keep: int,
    ) -> Tensor:
        """Logits [row, keep, vocabulary] at the last positions."""
        return self._model(
            input_ids=torch.tensor(ids, device=self._device),
            attention_mask=torch.tensor(masks, device=self._device),
            position_ids=torch.tensor(positions, device=self._device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits


@dataclass(slots=True, eq=False, kw_only=True)
class _Row:
    """One prompt on its way."""

    start: int
    """The position of the first token of the answer."""
    mask: list[int]
    """1 for each token so far that belongs to it, 0 for padding and wrong guesses."""
    written: Written = field(default_factory=Written)
    done: bool = False

    @classmethod
    def of(cls, prefix: int, own: int, width: int) -> _Row:
        """A row for a prompt of so many tokens behind a prefix, padded in front to a width."""
        mask = [1] * prefix + [0] * (width - own) + [1] * own
        return cls(start=prefix + own, mask=mask)


def _positions(mask: Sequence[int], last: int) -> list[int]:
    """The positions of the last tokens of a row, where only what is not masked counts."""
    return [max(0, place - 1) for place in accumulate(mask)][-last:]


def _step(told: Sequence[float]) -> Step:
    token, value, *weights = told
    finite = all(map(math.isfinite, (value, *weights)))
    return Step(token=int(token), weights=tuple(weights), finite=finite)


def side_by_side(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of what runs together: of similar length, so that little is padding."""
    batch = list[int]()
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        full = len(batch) == _ROWS
        if batch and (full or lengths[i] < (1 - _PADDING) * lengths[batch[0]]):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
