"""Finding the offending sentences of a text and taking them out. Pure; no model runs here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import cast

import sentencex  # pyright: ignore[reportMissingTypeStubs]

from guardrails_qwen.verdict import Category, Span

_segment = cast("Callable[[str, str], Iterable[str]]", sentencex.segment)  # pyright: ignore
_LINE = re.compile(r"[^\r\n]+")
_WHITE = re.compile(r"\s")
_WINDOW = 2000
"""Characters handed to the segmenter at once: its time grows with the square of them."""


def sentences(text: str) -> list[Span]:
    """The sentences of a text, without the white space around them.

    They cover everything that is not white space. A line break ends a sentence; within a line the
    sentence boundaries are those of the `sentencex` library, Chinese and Japanese stops included.
    A sentence of more than 2,000 characters may be cut.
    """
    return [span for line in _LINE.finditer(text) for span in _stripped(line.group(), line.start())]


def redacted(text: str, offending: Sequence[Span], marker: str) -> tuple[str, tuple[Span, ...]]:
    """The text with a marker in place of the offending spans, and what was taken out.

    Spans that only white space parts become one. In the marker, `{category}` stands for the names
    of the categories, or for "unsafe" where a span names none.
    """
    spans = _merged(text, offending)
    kept, position = list[str](), 0
    for span in spans:
        labels = [category.label for category in Category if category in span.categories]
        kept += [text[position : span.start], _filled(marker, labels)]
        position = span.end
    return "".join([*kept, text[position:]]), tuple(spans)


def _stripped(line: str, offset: int) -> Iterable[Span]:
    begin = 0
    for end in accumulate(_lengths(line)):
        part, begin = line[begin:end], end
        stripped = part.strip()
        start = offset + end - len(part.lstrip())
        if stripped:
            yield Span(start=start, end=start + len(stripped))


def _lengths(line: str) -> Iterable[int]:
    """The lengths of a line's sentences, in order; white space counts to the one before it."""
    plain = _WHITE.sub(" ", line)  # the segmenter crashes on some other white space
    position = 0
    while position < len(plain):
        window = plain[position : position + _WINDOW]
        parts = [str(part) for part in _segment("en", window)]
        if "".join(parts) != window:  # never lose a character to a segmenter
            parts = [window]
        if position + len(window) < len(plain) and len(parts) > 1:
            parts.pop()  # it may go on behind the window
        yield from map(len, parts)
        position += sum(map(len, parts))


def _merged(text: str, spans: Sequence[Span]) -> list[Span]:
    merged = list[Span]()
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        last = merged[-1] if merged else None
        if last and not text[last.end : span.start].strip():
            both = last.categories | span.categories
            end = max(last.end, span.end)
            merged[-1] = Span(start=last.start, end=end, categories=both)
        else:
            merged.append(span)
    return merged


def _filled(marker: str, labels: list[str]) -> str:
    return marker.replace("{category}", ", ".join(labels) or "unsafe")
