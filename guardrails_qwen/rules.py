"""What we do about a verdict, at one stage of an application."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum

from guardrails_qwen.errors import PolicyError
from guardrails_qwen.verdict import Category, Severity, Verdict


class Stage(str, Enum):
    """Where in an application a text is judged."""

    INPUT = "input"
    """What a user sends."""
    OUTPUT = "output"
    """What the model answers."""
    CONTEXT = "context"
    """What a retriever brings."""
    TOOL_CALL = "tool_call"
    """What the model wants a tool to do."""
    TOOL_RESULT = "tool_result"
    """What a tool answers."""


class Action(IntEnum):
    """What is done with a text. Ordered, so `max()` is the strictest."""

    ALLOW = 0
    """Pass it on."""
    FLAG = 1
    """Pass it on, and say so in the decision and the log."""
    REDACT = 2
    """Take the offending sentences out and pass on the rest, if the rest passes by itself."""
    REPLACE = 3
    """Pass on a fixed text instead."""
    DROP = 4
    """Pass on nothing, and go on without it."""
    BLOCK = 5
    """Pass on nothing, and stop: adapters raise `GuardViolation`."""

    @property
    def label(self) -> str:
        """The name as policy files spell it."""
        return self.name.lower()

    @classmethod
    def from_label(cls, label: str) -> Action:
        """The inverse of `label`.

        Raises:
            ValueError: No action is called so.
        """
        for action in cls:
            if action.label == label.lower():
                return action
        raise ValueError(f"unknown action: use one of {', '.join(a.label for a in cls)}")


class OnError(str, Enum):
    """What is done with a text that could not be judged."""

    BLOCK = "block"
    """Treat it as blocked."""
    ALLOW = "allow"
    """Pass it on unjudged, marked as degraded, but only where the engine was not available. A text
    that is too long, or that makes the model answer nonsense, is blocked: its author chose that."""
    RAISE = "raise"
    """Raise the error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When a verdict reaches `severity`, and names `category` if one is given, do `action`.

    With `probability` the rule goes by the model's probabilities instead of its verdict: it holds
    where P(severity or worse, and the category) is at least that much.
    """

    action: Action
    severity: Severity = Severity.CONTROVERSIAL
    category: Category | None = None
    probability: float | None = None

    def __post_init__(self) -> None:
        _coerced(self, "action", Action)
        _coerced(self, "severity", Severity)
        if self.category is not None:
            _coerced(self, "category", Category)
        if self.probability is not None and not 0 < self.probability <= 1:
            raise PolicyError(f"probability is {self.probability}: use more than 0 and at most 1")

    def holds(self, verdict: Verdict) -> bool:
        """Whether the verdict fulfils the rule's conditions."""
        if self.probability is not None:
            return verdict.probability(self.severity, self.category) >= self.probability
        named = self.category is None or self.category in verdict.categories
        return verdict.severity >= self.severity and named

    @property
    def summary(self) -> str:
        """The rule in one line, for people."""
        of = f" {self.category.label}" if self.category else ""
        at = f" at p ≥ {self.probability:g}" if self.probability is not None else ""
        return f"{self.severity.label}{of}{at}: {self.action.label}"


REPLACEMENT = "This content was removed by the safety policy."
MARKER = "[removed: {category}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePolicy:
    """The rules of one stage.

    Of the rules that hold, one that names a category beats those that name none, a higher severity
    beats a lower one, and of equals the stricter action wins. A verdict of several categories gets
    the strictest of what each would get. Where no rule holds, the text is allowed.
    """

    rules: tuple[Rule, ...] = ()
    on_error: OnError = OnError.BLOCK
    replacement: str = REPLACEMENT
    """What `replace` passes on, and `redact` where redaction does not help."""
    marker: str = MARKER
    """What stands in for redacted sentences; `{category}` becomes the names of the categories."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        _coerced(self, "on_error", OnError)

    def rule_for(self, verdict: Verdict) -> Rule | None:
        """The rule that decides about a verdict, or None: allow."""
        holding = [rule for rule in self.rules if rule.holds(verdict)]
        general = _most_specific(rule for rule in holding if rule.category is None)
        deciding = [
            _most_specific(rule for rule in holding if rule.category is category)
            for category in Category
        ]
        specific = [rule for rule in deciding if rule]
        covered = {rule.category for rule in specific}
        if general and not (verdict.categories and verdict.categories <= covered):
            specific.append(general)
        return max(specific, key=lambda rule: rule.action, default=None)


def _coerced(owner: Rule | StagePolicy, name: str, kind: type[Enum]) -> None:
    """Make a member of a field that was given by value: comparisons go by identity."""
    value = getattr(owner, name)
    try:
        object.__setattr__(owner, name, kind(value))
    except ValueError:
        raise PolicyError(f"{name} is {value!r}, which is no {kind.__name__}") from None


def _most_specific(rules: Iterable[Rule]) -> Rule | None:
    return max(rules, key=lambda rule: (rule.severity, rule.action), default=None)
