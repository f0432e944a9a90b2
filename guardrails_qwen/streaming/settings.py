"""How a stream is moderated."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from guardrails_qwen.errors import PolicyError


class HoldBack(str, Enum):
    """What of a reply is kept back although it was judged, because more may still be found."""

    TOKENS = "tokens"
    """The last few tokens."""
    SENTENCE = "sentence"
    """The sentence that is not complete."""
    REPLY = "reply"
    """All of it, until it is complete."""


class Debounce(str, Enum):
    """When tokens that are not safe count: a single one is often noise."""

    REPORT = "report"
    """When the token before is not safe either, as the tech report says (arXiv 2510.14276): the
    weaker of what the policy says about the two is done."""
    EVALUATION = "evaluation"
    """When the token before has the same severity, as the published evaluation code does."""
    OFF = "off"
    """At once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """How a stream is moderated."""

    hold_back: HoldBack = HoldBack.TOKENS
    """A policy that may redact holds back the sentence at least: that is what it takes out."""
    tokens: int = 0
    """How many judged tokens `HoldBack.TOKENS` keeps back. A token that is not safe always waits
    for the next one, which is what the debounce needs; 0 keeps back nothing else."""
    debounce: Debounce = Debounce.REPORT
    """Of engines that judge tokens; others judge sentences, and each of their verdicts counts."""
    closing: str | None = None
    """What the reader gets in place of the rest when the policy blocks; by default streams raise
    `GuardViolation`. A policy that replaces has its own text. In LangChain also of replies that do
    not stream."""
    stride: int = 80
    """Of engines that judge whole texts: a sentence that ends so many characters behind the last
    judged one is judged, with all before it."""
    growth: float = 1.5
    """… and the stride grows, so that each judged part is at least so many times as long as the
    last one: all of them together cost at most growth / (growth − 1) times as much as judging the
    whole reply, which is done once more at its end."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hold_back", _member(HoldBack, self.hold_back))
        object.__setattr__(self, "debounce", _member(Debounce, self.debounce))
        if self.tokens < 0:
            raise PolicyError(f"tokens is {self.tokens}: use 0 or more")
        if self.stride < 1:
            raise PolicyError(f"stride is {self.stride}: use 1 or more characters")
        if not 1 < self.growth <= 100:
            raise PolicyError(f"growth is {self.growth}: use more than 1, 1.5 for example")


def _member(kind: type[Enum], value: object) -> Enum:
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(str(member.value) for member in kind)
        raise PolicyError(f"{value!r} is no {kind.__name__}: use {names}") from None
