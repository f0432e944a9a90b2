"""Finding the offending sentences of a text and taking them out. Pure; no model runs here."""

from __future__ import annotations

from collections.abc import Sequence

from guardrails_qwen.sentences import sentences
from guardrails_qwen.verdict import Category, Span


def suspects(text: str, spans: Sequence[Span]) -> list[Span]:
    """The sentences that the spans touch, in order; all of them where there are no spans."""
    if not spans:
        return list(sentences(text))
    touched, found = iter(sorted(spans, key=lambda span: span.start)), list[Span]()
    reach, span = 0, next(touched, None)
    for sentence in sentences(text):
        while span and span.start < sentence.end:
            reach, span = max(reach, span.end), next(touched, None)
        if sentence.start < reach:
            found.append(sentence)
    return found


def redacted(text: str, offending: Sequence[Span], marker: str) -> tuple[str, tuple[Span, ...]]:
    """The text with a marker in place of the offending spans, and what was taken out.

    Spans that only white space parts become one. In the marker, `{category}` stands for the names
    of the categories, or for "unsafe" where a span names none.
    """
    spans = _merged(text, offending)
    kept, position = list[str](), 0
    for span in spans:
        labels = [category.label for category in Category if category in span.categories]
        kept += [text[position : span.start], filled(marker, labels)]
        position = span.end
    return "".join([*kept, text[position:]]), tuple(spans)


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


def filled(marker: str, labels: Sequence[str]) -> str:
    """The marker with the names of the categories, or with "unsafe" where there are none."""
    return marker.replace("{category}", ", ".join(labels) or "unsafe")
