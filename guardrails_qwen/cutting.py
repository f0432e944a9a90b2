"""Cutting a text into stretches of so many tokens. Pure; loses nothing, and takes linear time.

A unit is a sentence with the white space behind it, or a piece of one that is too long: what is cut
is always between two units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby, islice

from guardrails_qwen.errors import TextTooLong
from guardrails_qwen.sentences import middle, sentences

Measure = Callable[[Sequence[str]], list[int]]
"""Lengths of texts, in tokens: of ASCII no more than two for each character."""

_SLICE = 2_000
"""Characters of the longest unit that is measured at once."""
_BATCH = 512
"""Units measured at once: so many more than the limit may be looked at."""
_CHARACTERS = 8
"""Characters of an excerpt that are looked at for each of its tokens."""
_SHORT = 4
"""Tokens below which a sentence is judged together with short neighbours instead of alone."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A stretch of a turn that no window cuts, with its length in tokens."""

    start: int
    end: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Ruler:
    """Measures no more of a text than it has to."""

    measure: Measure

    def fits(self, text: str, most: int) -> bool:
        """Whether it has no more than `most` tokens."""
        short = text.isascii() and 2 * len(text) <= most  # whatever a template does to it
        return short or self.count(text, most) <= most

    def count(self, text: str, most: int) -> int:
        """Its length in tokens; beyond `most`, anything more than that."""
        total = 0
        for start in range(0, len(text), _SLICE):
            total += sum(self.measure([text[start : start + _SLICE]]))
            if total > most:
                break
        return total

    def units(self, text: str, cuts: Sequence[tuple[int, int]]) -> list[Unit]:
        """Stretches of a text with their lengths."""
        lengths = self.measure([text[start:end] for start, end in cuts])
        pairs = zip(cuts, lengths, strict=True)
        return [Unit(start, end, max(1, tokens)) for (start, end), tokens in pairs]


def units_of(text: str, ruler: Ruler, *, longest: int, limit: int) -> list[Unit]:
    """The whole text, in order: its sentences, and pieces of those longer than `longest` tokens.

    Raises:
        TextTooLong: The text has more than `limit` tokens. The rest is not measured.
    """
    cuts, total, found = _stretches(text), 0, list[Unit]()
    while batch := list(islice(cuts, _BATCH)):
        measured = ruler.units(text, batch)
        total += sum(unit.tokens for unit in measured)
        if total > limit:
            raise TextTooLong(total, limit)
        found += _divided(text, measured, ruler, longest)
    return found


def runs(units: Sequence[Unit], *, most: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Windows of `most` tokens: the first unit of each, and the one behind its last.

    Each has a unit that none before it has. What it shares with the one before is half a window at
    most, so that two in a row get ahead by half a window at least.
    """
    start = 0
    while True:
        end, size = start, 0
        while end < len(units) and (end == start or size + units[end].tokens <= most):
            size += units[end].tokens
            end += 1
        yield start, end
        if end >= len(units):
            return
        room = min(most // 2, most - units[end].tokens)
        start, shared = end, 0
        while shared < overlap and shared + units[start - 1].tokens <= room:
            start -= 1
            shared += units[start].tokens


def alone(units: Sequence[Unit]) -> Iterator[tuple[int, int]]:
    """Every unit by itself, in the form of `runs`; very short ones with their like."""
    keyed = groupby(enumerate(units), key=lambda item: item[1].tokens < _SHORT)
    for short, group in keyed:
        indices = [index for index, _ in group]
        first, end, step = indices[0], indices[-1] + 1, _SHORT if short else 1
        yield from ((start, min(start + step, end)) for start in range(first, end, step))


def excerpt(text: str, ruler: Ruler, most: int, *, tail: bool = False) -> str:
    """The beginning of a text, or its end, of no more than `most` tokens, in whole units.

    No more than eight characters are looked at for each token.
    """
    reach = most * _CHARACTERS
    part = text[-reach:] if tail else text[:reach]
    units = _divided(part, ruler.units(part, list(_stretches(part))), ruler, most)
    ordered = units[::-1] if tail else units
    sizes = accumulate(unit.tokens for unit in ordered)
    kept = ordered[: sum(size <= most for size in sizes)]
    length = sum(unit.end - unit.start for unit in kept)
    return part[len(part) - length :] if tail else part[:length]


def _stretches(text: str) -> Iterator[tuple[int, int]]:
    """The sentences of a text, each with the white space behind it, none of them very long."""
    starts = (span.start for span in islice(sentences(text), 1, None))
    position = 0
    for end in chain(starts, [len(text)]):
        while end - position > _SLICE:
            yield position, position + _SLICE
            position += _SLICE
        yield position, end
        position = end


def _divided(text: str, units: Sequence[Unit], ruler: Ruler, longest: int) -> list[Unit]:
    """The units; those longer than `longest` in pieces so small that several fit a window."""
    piece = max(1, longest // 8)
    return [
        part
        for unit in units
        for part in (_pieces(text, unit, ruler, piece) if unit.tokens > longest else [unit])
    ]


def _pieces(text: str, unit: Unit, ruler: Ruler, most: int) -> list[Unit]:
    parts = [unit]
    while any(_divisible(part, most) for part in parts):
        halves = (_halves(text, p) if _divisible(p, most) else [(p.start, p.end)] for p in parts)
        parts = ruler.units(text, [cut for cuts in halves for cut in cuts])
    return parts


def _divisible(unit: Unit, most: int) -> bool:
    return unit.tokens > most and unit.end - unit.start > 1


def _halves(text: str, unit: Unit) -> list[tuple[int, int]]:
    cut = unit.start + middle(text[unit.start : unit.end])
    return [(unit.start, cut), (cut, unit.end)]
