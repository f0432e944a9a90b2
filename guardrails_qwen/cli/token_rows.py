"""What a model thinks at every token of a reply, one line each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from rich.cells import cell_len

from guardrails_qwen import Action, Conversation, Decision, Policy, Stage
from guardrails_qwen.cli.terminal import COLOURS, Output, write_json
from guardrails_qwen.engines.session import SessionEngine
from guardrails_qwen.streaming import Debounce
from guardrails_qwen.streaming.debounce import Seen, settled
from guardrails_qwen.token_verdict import TokenVerdict

_HEADING = ("token", "characters", "severity", "category", "flagged")
_WIDTHS = (24, 14, 20, 36, 0)
"""In cells of a terminal; what is wider moves the rest of its line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """A token, what the model thinks at it, and what the policy makes of it."""

    text: str
    verdict: TokenVerdict
    decision: Decision | None
    """None where the debounce lets it pass."""

    @property
    def flagged(self) -> bool:
        """Whether the policy does anything about it."""
        return self.decision is not None and self.decision.action > Action.ALLOW

    @property
    def cells(self) -> tuple[str, ...]:
        """As the heading says."""
        verdict = self.verdict
        flagged = self.decision.action.label if self.decision and self.flagged else ""
        return (
            repr(self.text),
            f"{verdict.start}–{verdict.end}",
            f"{verdict.severity.label} {verdict.severity_scores[verdict.severity]:.3f}",
            f"{verdict.category.label} {verdict.category_scores[verdict.category]:.3f}",
            flagged,
        )

    def to_dict(self) -> dict[str, object]:
        """Plain data, with all probabilities."""
        verdict = self.verdict
        return {
            "text": self.text,
            "token": verdict.token,
            "start": verdict.start,
            "end": verdict.end,
            "severity": verdict.severity.label,
            "severity_scores": {s.label: p for s, p in verdict.severity_scores.items()},
            "category": verdict.category.label,
            "category_scores": {c.label: p for c, p in verdict.category_scores.items()},
            "flagged": self.decision.action.label if self.decision and self.flagged else None,
        }


def token_rows(
    engine: SessionEngine,
    prompt: Conversation | None,
    pieces: Iterable[str],
    policy: Policy,
    debounce: Debounce,
) -> Iterator[TokenRow]:
    """The tokens of a reply, each as soon as it is judged.

    Raises:
        GuardError: One could not be judged.
    """
    reply, previous = "", None
    for piece, found in _judged(engine, prompt, pieces):
        reply += piece
        for verdict in found:
            current = Seen(
                verdict.start,
                verdict.end,
                verdict.severity,
                policy.decide(Stage.OUTPUT, verdict.verdict),
            )
            decision = settled(debounce, previous, current)
            previous = current
            text = reply[verdict.start : verdict.end]
            yield TokenRow(text=text, verdict=verdict, decision=decision)


def print_rows(rows: Iterable[TokenRow], output: Output) -> bool:
    """A table in the colours of the risk; whether all of it may pass."""
    output.write(_line(_HEADING), bold=True)
    passes = True
    for row in rows:
        passes = passes and (row.decision is None or row.decision.allowed)
        output.write(_line(row.cells), COLOURS[row.verdict.severity], bold=row.flagged)
    return passes


def print_json(rows: Iterable[TokenRow]) -> bool:
    """One object a token; whether all of them may pass."""
    passes = True
    for row in rows:
        passes = passes and (row.decision is None or row.decision.allowed)
        write_json(row.to_dict())
    return passes


def _judged(
    engine: SessionEngine, prompt: Conversation | None, pieces: Iterable[str]
) -> Iterator[tuple[str, list[TokenVerdict]]]:
    with closing(engine.open(prompt)) as session:
        for piece in pieces:
            yield piece, session.feed(piece)
        yield "", session.finish()


def _line(cells: Iterable[str]) -> str:
    padded = [c + " " * (width - cell_len(c)) for c, width in zip(cells, _WIDTHS, strict=True)]
    return " ".join(padded).rstrip() + "\n"
