"""What the verdicts on the tokens of a complete reply say of it as a whole. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from guardrails_qwen.token_verdict import TokenVerdict
from guardrails_qwen.verdict import Category, Scores, Severity, Span, Verdict

_Pair = tuple[TokenVerdict, TokenVerdict]


def reply_verdict(tokens: Sequence[TokenVerdict]) -> Verdict:
    """One verdict on a reply of one token or more.

    As in the tech report (arXiv 2510.14276) it takes two tokens in a row: the reply is as severe as
    the weaker token of its worst pair, and a single token between safe ones counts for nothing. A
    reply of a single token is what that token is. Spans are where the pairs are.
    """
    pairs = list(pairwise(tokens)) or [(tokens[0], tokens[0])]
    worst = max(pairs, key=lambda pair: (_severity(pair), _least(pair, Severity.CONTROVERSIAL)))
    severity = _severity(worst)
    harmful = severity > Severity.SAFE
    unsafe = max(_least(pair, Severity.UNSAFE) for pair in pairs)
    either = max(_least(pair, Severity.CONTROVERSIAL) for pair in pairs)
    return Verdict(
        severity=severity,
        categories=frozenset({worst[1].category}) if harmful else frozenset(),
        scores=Scores(
            severity={
                Severity.SAFE: 1 - either,
                Severity.CONTROVERSIAL: either - unsafe,
                Severity.UNSAFE: unsafe,
            },
            category={name: either * p for name, p in worst[1].category_scores.items()},
        ),
        spans=tuple(_spans(pairs)),
        model=tokens[0].model,
        fingerprint=tokens[0].fingerprint,
        tokens=len(tokens),
    )


def _severity(pair: _Pair) -> Severity:
    return min(token.severity for token in pair)


def _least(pair: _Pair, severity: Severity) -> float:
    """P(severity or worse) at the weaker of two tokens."""
    return min(
        sum(p for level, p in token.severity_scores.items() if level >= severity) for token in pair
    )


def _spans(pairs: Sequence[_Pair]) -> Iterator[Span]:
    """Stretches of pairs that are not safe, each as long as it goes on."""
    start, end, categories = 0, 0, set[Category]()
    for first, second in pairs:
        if _severity((first, second)) is Severity.SAFE:
            continue
        if categories and first.start >= end:
            yield Span(start=start, end=end, categories=frozenset(categories))
            categories = set[Category]()
        if not categories:
            start = first.start
        end = second.end
        categories |= {first.category, second.category}
    if categories:
        yield Span(start=start, end=end, categories=frozenset(categories))
