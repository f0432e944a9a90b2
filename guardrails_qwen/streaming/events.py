"""What a moderator says about a stream. Offsets are in characters of the reply as it came."""

from __future__ import annotations

from dataclasses import dataclass, field

from guardrails_qwen.decision import Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Characters `start` to `end` were judged and may be read."""

    start: int
    end: int
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redact:
    """Characters from `start` to the next release are taken out; `marker` stands for them."""

    start: int
    marker: str
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Nothing new may be read; so many characters wait."""

    characters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The end: nothing more is released, whatever comes."""

    decision: Decision
    closing: str | None
    """What the reader gets instead of the rest, perhaps nothing; None: raise `GuardViolation`."""


Event = Release | Redact | Hold | Block
