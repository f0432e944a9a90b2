"""Where a text may be cut: its sentences, and the best place inside of one. Pure.

The whole text is read for it. Of a text that grows, `guardrails_qwen.streaming.boundaries` finds
the ends: less well, but what it has found stays true whatever comes behind.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import cast

import sentencex  # pyright: ignore[reportMissingTypeStubs]

from guardrails_qwen.verdict import Span

_segment = cast("Callable[[str, str], Iterable[str]]", sentencex.segment)  # pyright: ignore
_LINE = re.compile(r"[^\r\n]+")
_WHITE = re.compile(r"\s")
_WINDOW = 2000
"""Characters handed to the segmenter at once: its time grows with the square of them."""

_ONE = re.compile(r"[\w ,-]*")
"""What has no stop in any script: asking the segmenter costs more than reading short lines."""
_NO_STOPS = re.compile("[\u0e00-\u0eff]")
"""Thai and Lao, which write no full stops: a space ends a clause there."""
_PASSAGE = 120
"""Characters after which a space ends a sentence where nothing else does."""
_CLAUSE = re.compile(r"""[,;:、，；：。．・…—–]['")\]}」』”’）】]*\s*|[.!?]\s+|\n+""")
_SPACE = re.compile(r"\s+")


def sentences(text: str) -> Iterator[Span]:
    """The sentences of a text, in order, without the white space around them; time is linear.

    They cover everything that is not white space. A line break ends a sentence; within a line the
    boundaries are those of the `sentencex` library, Chinese and Japanese stops included. Thai and
    Lao have no stops: there, a space ends a sentence that has 120 characters already. A sentence of
    more than 2,000 characters may be cut.
    """
    for line in _LINE.finditer(text):
        end = line.start()
        for length in _lengths(line.group()):
            begin, end = end, end + length
            part = text[begin:end]
            stripped = part.strip()
            if stripped:
                start = end - len(part.lstrip())
                yield Span(start=start, end=start + len(stripped))


def middle(text: str) -> int:
    """Where to cut a sentence of two characters or more in two, so that it hurts least.

    Near the middle: behind a clause's punctuation if there is any, else behind white space, else
    between two characters, but not before a combining one.
    """
    half, quarter = len(text) // 2, len(text) // 4
    for pattern in (_CLAUSE, _SPACE):
        ends = [match.end() for match in pattern.finditer(text, quarter, len(text) - quarter)]
        inside = [end for end in ends if 0 < end < len(text)]
        if inside:
            return min(inside, key=lambda end: abs(end - half))
    near = range(half, min(half + 8, len(text)))
    return next((at for at in near if not unicodedata.category(text[at]).startswith("M")), half)


def _lengths(line: str) -> Iterator[int]:
    """The lengths of a line's sentences, in order; white space counts to the one before it."""
    plain = _WHITE.sub(" ", line)  # the segmenter crashes on some other white space
    position = 0
    while position < len(plain):
        window = plain[position : position + _WINDOW]
        parts = [window] if _ONE.fullmatch(window) else _parts(window)
        if position + len(window) < len(plain) and len(parts) > 1:
            parts.pop()  # it may go on behind the window
        yield from (length for part in parts for length in _passages(part))
        position += sum(map(len, parts))


def _parts(window: str) -> list[str]:
    parts = [str(part) for part in _segment("en", window)]
    return parts if "".join(parts) == window else [window]  # never lose a character to a segmenter


def _passages(sentence: str) -> Iterator[int]:
    """The lengths of what a sentence falls into where its script has no stops."""
    start = 0
    if len(sentence) > _PASSAGE and _NO_STOPS.search(sentence):
        for space in _SPACE.finditer(sentence):
            if space.start() - start >= _PASSAGE:
                yield space.end() - start
                start = space.end()
    if start < len(sentence):
        yield len(sentence) - start
