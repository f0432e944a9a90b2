"""Which part of a growing text has its final NFC form.

A character may compose with what follows (e and an acute accent), and combining marks are put in
order. Both stay within a segment: from a character that never joins what is before it up to the
next such character. What NFC is: Unicode Standard Annex 15.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from itertools import combinations

_COMPOSED = (range(0xC0, 0x3100), range(0x11000, 0x12000), range(0x16D00, 0x17000))
_VOWEL_AND_FINAL_JAMO = frozenset(map(chr, (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))))
_LEADING_JAMO = frozenset(map(chr, range(0x1100, 0x1113)))
_SYLLABLES, _FINALS = range(0xAC00, 0xD7A4), 28


def settled_length(text: str, seen: int = 0) -> int:
    """How many characters have the form that they keep, whatever follows.

    The rest of `text` is one segment, or the marks at the end of one, or nothing.

    Args:
        text: It begins with a segment.
        seen: The length of that segment as far as it was looked at before.
    """
    last = len(text)
    while last > seen and _joins(text[last - 1]):
        last -= 1
    if last == seen:
        return 0
    return last - 1 if _composes(text[last - 1]) else last


def segments(text: str) -> list[str]:
    """The pieces that are brought into NFC each by itself.

    A character that composes with nothing is one, and the marks behind it are another, as they are
    where `settled_length` parts them. So the pieces are the same however a text comes.
    """
    starts = [
        index
        for index, character in enumerate(text)
        if index == 0 or not _joins(character) or _ends_alone(text[index - 1])
    ]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


@lru_cache(maxsize=4096)
def beginnings(segment: str) -> tuple[str, ...]:
    """What the normalized form of a segment may begin with, whatever joins it; () if unknown."""
    composed = unicodedata.normalize("NFC", segment)
    base, first = unicodedata.normalize("NFD", segment[0])[0], composed[0]
    if _joins(first) or (base in _LEADING_JAMO and ord(first) not in _SYLLABLES):
        return ()
    if ord(first) in _SYLLABLES:
        return tuple(chr(code) for code in range(ord(first), ord(first) + _FINALS))
    forms = (unicodedata.normalize("NFC", composed + marks)[0] for marks in _marks(base))
    return tuple(dict.fromkeys((first, *forms)))


@lru_cache(maxsize=4096)
def _joins(character: str) -> bool:
    """Whether it may compose, or change places, with what is before it."""
    if character.isascii():
        return False
    first = unicodedata.normalize("NFD", character)[0]
    unknown = unicodedata.category(character) == "Cn"  # the tokenizer's Unicode may be newer
    return unknown or unicodedata.combining(first) != 0 or first in _seconds()


def _ends_alone(character: str) -> bool:
    return not (_joins(character) or _composes(character))


@lru_cache(maxsize=4096)
def _composes(character: str) -> bool:
    """Whether some mark or jamo behind it changes it."""
    if ord(character) in _SYLLABLES:
        return (ord(character) - _SYLLABLES.start) % _FINALS == 0
    base, *marks = unicodedata.normalize("NFD", character)
    return bool(marks) or base in _LEADING_JAMO or base in _composed()


@lru_cache(maxsize=4096)
def _marks(base: str) -> tuple[str, ...]:
    """All that may complete what a character composes with, of which a part may be there."""
    return tuple(
        {
            "".join(part)
            for marks in _composed().get(base, ())
            for length in range(1, len(marks) + 1)
            for part in combinations(marks, length)
        }
    )


@lru_cache(maxsize=1)
def _seconds() -> frozenset[str]:
    """What composes with something in front of it."""
    marks = {mark for follows in _composed().values() for marks in follows for mark in marks}
    return frozenset(marks) | _VOWEL_AND_FINAL_JAMO


@lru_cache(maxsize=1)
def _composed() -> dict[str, tuple[str, ...]]:
    """Characters, each with what turns it into another one. Hangul is not among them."""
    found: dict[str, list[str]] = {}
    for character in (chr(code) for block in _COMPOSED for code in block):
        base, *marks = unicodedata.normalize("NFD", character)
        if marks and unicodedata.is_normalized("NFC", character):
            found.setdefault(base, []).append("".join(marks))
    return {base: tuple(marks) for base, marks in found.items()}
