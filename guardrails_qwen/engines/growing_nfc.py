"""Which part of a growing text has its final NFC form.

A character may compose with what follows (e and an acute accent), and combining marks are put in
order. Both stay within a segment: from a character that never joins what is before it up to the
next such character. What NFC is: Unicode Standard Annex 15.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

_COMPOSED = (range(0xC0, 0x3100), range(0x11000, 0x12000), range(0x16D00, 0x17000))
_VOWEL_AND_FINAL_JAMO = frozenset(map(chr, (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))))
_LEADING_JAMO = frozenset(map(chr, range(0x1100, 0x1113)))
_SYLLABLES, _FINALS = range(0xAC00, 0xD7A4), 28


def settled_length(text: str, seen: int = 0) -> int:
    """How many characters have the form that they keep, whatever follows.

    The rest of `text` is one segment, or nothing.

    Args:
        text: It begins with a segment.
        seen: The length of that segment as far as it was looked at before.
    """
    last = len(text)
    while last > seen and _joins(text[last - 1]):
        last -= 1
    if last == seen:
        return 0
    alone = last == len(text) and not _composes(text[last - 1])
    return last if alone else last - 1


def segments(text: str) -> list[str]:
    """The pieces that are brought into NFC each by itself."""
    starts = [i for i, character in enumerate(text) if i == 0 or not _joins(character)]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


@lru_cache(maxsize=4096)
def _joins(character: str) -> bool:
    """Whether it may compose, or change places, with what is before it."""
    if character.isascii():
        return False
    first = unicodedata.normalize("NFD", character)[0]
    unknown = unicodedata.category(character) == "Cn"  # the tokenizer's Unicode may be newer
    return unknown or unicodedata.combining(first) != 0 or first in _pairs()[1]


@lru_cache(maxsize=4096)
def _composes(character: str) -> bool:
    """Whether some mark or jamo behind it changes it."""
    if ord(character) in _SYLLABLES:
        return (ord(character) - _SYLLABLES.start) % _FINALS == 0
    base = unicodedata.normalize("NFD", character)[0]
    return len(unicodedata.normalize("NFD", character)) > 1 or base in _pairs()[0]


@lru_cache(maxsize=1)
def _pairs() -> tuple[frozenset[str], frozenset[str]]:
    """Characters that are the first and the second half of a composed one."""
    composed = [chr(code) for block in _COMPOSED for code in block]
    halves = [
        unicodedata.normalize("NFD", character)
        for character in composed
        if unicodedata.is_normalized("NFC", character)
    ]
    pairs = [half for half in halves if len(half) > 1]
    seconds = {c for pair in pairs for c in pair[1:]} | _VOWEL_AND_FINAL_JAMO
    return frozenset({pair[0] for pair in pairs} | _LEADING_JAMO), frozenset(seconds)
