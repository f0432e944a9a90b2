"""One token that is not safe is often noise: what two in a row mean. Pure."""

from __future__ import annotations

from typing import NamedTuple

from guardrails_qwen.decision import Decision
from guardrails_qwen.rules import Action
from guardrails_qwen.streaming.settings import Debounce
from guardrails_qwen.verdict import Severity


class Seen(NamedTuple):
    """A judged stretch: where it stands in the reply, and what the policy says about it alone."""

    start: int
    end: int
    severity: Severity
    decision: Decision | None
    """None where no rule could hold, so that nobody was asked."""

    @property
    def suspicious(self) -> bool:
        """Whether it may not pass by itself."""
        return self.decision is not None and self.decision.action > Action.FLAG


def settled(debounce: Debounce, previous: Seen | None, current: Seen) -> Decision | None:
    """What is done at a token, given the one before it; None: nothing."""
    if debounce is Debounce.OFF:
        return current.decision
    if previous is None or previous.decision is None or current.decision is None:
        return None
    if debounce is Debounce.EVALUATION and previous.severity is not current.severity:
        return None
    # of equals the later one, which is what min() takes of what comes first
    return min(current.decision, previous.decision, key=lambda decision: decision.action)
