"""What was decided about one text, and why."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from guardrails_qwen.rules import Action, Rule, Stage
from guardrails_qwen.verdict import Category, Severity, Span, Verdict

logger = logging.getLogger("guardrails_qwen")

_PAST = {
    Action.ALLOW: "allowed",
    Action.FLAG: "flagged",
    Action.REDACT: "redacted",
    Action.REPLACE: "replaced",
    Action.DROP: "dropped",
    Action.BLOCK: "blocked",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is done with one text at one stage. Its repr and summary hold no text."""

    action: Action
    stage: Stage
    text: str | None = field(default=None, repr=False)
    """The text to pass on: the original, a redacted or replaced one, or None for nothing. Unless
    the decision is `allowed`, the message's tool calls are not passed on."""
    verdict: Verdict | None = None
    """What the model thought of the original; None where it could not be judged."""
    rule: Rule | None = None
    """The rule that fired; None where none did."""
    redactions: tuple[Span, ...] = ()
    """The parts of the original that were taken out."""
    error: str | None = None
    """Why the text could not be judged: the decision is degraded."""
    policy: str = ""
    """The policy's name."""
    fingerprint: str = ""
    """Policy and model, exactly: `<policy>.<model>`, the same in every process."""
    seconds: float | None = field(default=None, compare=False)
    """Cost: wall-clock time from the text to the decision."""

    @property
    def allowed(self) -> bool:
        """Whether the original text may pass unchanged."""
        return self.action <= Action.FLAG

    @property
    def degraded(self) -> bool:
        """Whether this was decided without a verdict, by the policy's `on_error`."""
        return self.error is not None

    @property
    def summary(self) -> str:
        """One line for people and logs, without text."""
        why = self.verdict.summary if self.verdict else "not judged"
        because = f"; {self.error}" if self.error else ""
        rule = f", rule «{self.rule.summary}»" if self.rule else ""
        policy = f", policy {self.policy}" if self.policy else ""
        return f"{self.stage.value} {_PAST[self.action]}: {why}{rule}{policy}{because}"

    def to_dict(self, *, text: bool = True) -> dict[str, Any]:
        """Plain data; `from_dict` reads it back. Without `text` it is fit for logs."""
        data: dict[str, Any] = {
            "action": self.action.label,
            "stage": self.stage.value,
            "verdict": self.verdict.to_dict() if self.verdict else None,
            "rule": rule_to_dict(self.rule) if self.rule else None,
            "redactions": [span.to_dict() for span in self.redactions],
            "error": self.error,
            "policy": self.policy,
            "fingerprint": self.fingerprint,
            "seconds": self.seconds,
        }
        return {**data, "text": self.text} if text else data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Decision:
        """The inverse of `to_dict`."""
        return cls(
            action=Action.from_label(data["action"]),
            stage=Stage(data["stage"]),
            text=data.get("text"),
            verdict=Verdict.from_dict(data["verdict"]) if data.get("verdict") else None,
            rule=rule_from_dict(data["rule"]) if data.get("rule") else None,
            redactions=tuple(map(Span.from_dict, data.get("redactions", ()))),
            error=data.get("error"),
            policy=data.get("policy", ""),
            fingerprint=data.get("fingerprint", ""),
            seconds=data.get("seconds"),
        )


def rule_to_dict(rule: Rule) -> dict[str, Any]:
    """A rule as policy files spell it."""
    data: dict[str, Any] = {"severity": rule.severity.label.lower(), "action": rule.action.label}
    if rule.category:
        data["category"] = rule.category.label
    if rule.probability is not None:
        data["probability"] = rule.probability
    return data


def rule_from_dict(data: Mapping[str, Any]) -> Rule:
    """The inverse of `rule_to_dict`."""
    category = data.get("category")
    return Rule(
        action=Action.from_label(data["action"]),
        severity=Severity.from_label(data["severity"]),
        category=Category(category) if category else None,
        probability=data.get("probability"),
    )


def log(decision: Decision) -> None:
    """One line without text: a warning where nothing was judged, of less interest where allowed."""
    level = logging.DEBUG if decision.action is Action.ALLOW else logging.INFO
    level = logging.WARNING if decision.degraded else level
    logger.log(level, decision.summary, extra={"decision": decision.to_dict(text=False)})
