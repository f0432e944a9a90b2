"""What sessions want run, in forward passes that all of them share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from guardrails_qwen.engines.backbone import Backbone
from guardrails_qwen.engines.ragged import Ragged, Stretch, TextCache
from guardrails_qwen.engines.stream_heads import Heads
from guardrails_qwen.errors import EngineClosed, GuardError, UnreadableVerdict


@dataclass(slots=True, eq=False)
class Slot:
    """Where a text's keys and values are; made when it first runs, and nothing once it is freed."""

    room: int
    """Positions that it may have by now."""
    cache: TextCache | None = None
    freed: bool = False

    def free(self) -> None:
        """Let go of the memory; what still runs keeps it for so long."""
        self.freed = True
        self.cache = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passing:
    """Tokens of a text to run, and where to read what the model thinks of them."""

    slot: Slot
    past: int
    ids: tuple[int, ...] = field(repr=False)
    heads: Heads = field(repr=False)
    reads: range
    """Indices of `ids`."""
    last: bool = False
    """Whether the slot is not needed afterwards."""

    @property
    def end(self) -> int:
        """Positions that are in use afterwards."""
        return self.past + len(self.ids)


Read = list[tuple[list[float], list[float]]]
"""Probabilities of severities and of categories at each token that was read, in the order of the
heads' labels."""


class StreamPasses:
    """Runs a batch of passings; those of one slot go in order, whatever of them fits at once."""

    def __init__(self, backbone: Backbone) -> None:
        self._ragged: Ragged | None = Ragged(backbone)

    def __call__(self, batch: list[Passing]) -> list[Read | GuardError]:
        """One answer for each, in order.

        Raises:
            EngineClosed: After `close()`.
        """
        ragged = self._ragged
        if ragged is None:
            raise EngineClosed("the engine is closed")
        found = dict[Passing, Read | GuardError]()
        for wave in _waves(batch):
            found.update(_ran(ragged, wave))
        for passing in batch:
            if passing.last:
                passing.slot.free()
        return [found[passing] for passing in batch]

    def close(self) -> None:
        """Let the model go."""
        self._ragged = None


_Chain = list[Passing]
"""Passings of one slot that follow one another without a gap."""


def _waves(batch: Sequence[Passing]) -> list[list[_Chain]]:
    """The first chain of each slot, then the second of each, and so on."""
    waves = list[list[_Chain]]()
    latest = dict[int, tuple[int, _Chain]]()
    for passing in batch:
        number, chain = latest.get(id(passing.slot), (-1, []))
        if chain and chain[-1].end == passing.past:
            chain.append(passing)
            continue
        if number + 1 == len(waves):
            waves.append([])
        waves[number + 1].append([passing])
        latest[id(passing.slot)] = number + 1, waves[number + 1][-1]
    return waves


def _ran(ragged: Ragged, wave: Sequence[_Chain]) -> dict[Passing, Read | GuardError]:
    """The answers of a wave, all chains of which run at once."""
    running = [chain for chain in wave if not chain[0].slot.freed]
    answers: dict[Passing, Read | GuardError] = {
        passing: EngineClosed("the session is closed") for chain in wave for passing in chain
    }
    if running:
        stretches = [
            Stretch(
                cache=_cache(ragged.backbone, chain),
                past=chain[0].past,
                ids=[token for passing in chain for token in passing.ids],
            )
            for chain in running
        ]
        hidden = ragged(stretches)
        answers.update(_read([passing for chain in running for passing in chain], hidden))
    return answers


def _cache(backbone: Backbone, chain: _Chain) -> TextCache:
    """The cache of a chain's slot, with room for it."""
    slot, end = chain[0].slot, chain[-1].end
    room, cache = max(slot.room, end), slot.cache
    if cache is None:
        cache = TextCache(backbone, room)
    elif cache.room < room:
        cache.grow(room, chain[0].past)
    if not slot.freed:
        slot.cache = cache
    return cache


@torch.inference_mode()
def _read(wave: Sequence[Passing], hidden: torch.Tensor) -> dict[Passing, Read | GuardError]:
    """The heads at whatever is read, those of one kind at once."""
    rows = dict[Passing, list[int]]()
    kinds = defaultdict[int, list[Passing]](list)
    start = 0
    for passing in wave:
        rows[passing] = [start + index for index in passing.reads]
        kinds[id(passing.heads)].append(passing)
        start += len(passing.ids)
    answers = dict[Passing, Read | GuardError]()
    for alike in kinds.values():
        at = torch.tensor([row for passing in alike for row in rows[passing]], dtype=torch.long)
        both = alike[0].heads(hidden[at.to(hidden.device)])
        read = iter(zip(*map(_lists, both), strict=True))
        for passing in alike:
            answers[passing] = _checked([next(read) for _ in rows[passing]])
    return answers


def _lists(scores: torch.Tensor) -> list[list[float]]:
    """Probabilities from their logarithms."""
    return scores.exp().tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _checked(read: Read) -> Read | UnreadableVerdict:
    if all(sum(severity) == sum(severity) for severity, _ in read):  # NaN is not itself
        return read
    return UnreadableVerdict("", "the model's output is not finite; try another dtype")
