"""A conversation with a label for its prompt and one for every token of its reply."""

from collections.abc import Sequence
from dataclasses import dataclass

from training.example import CONTROVERSIAL, NONE, SAFE, UNSAFE

IGNORED = -100
"""The label of what takes no part in the loss."""

RISKS = (SAFE, UNSAFE, CONTROVERSIAL)
"""Severities in the order of the published heads."""

_WORST = {SAFE: 0, CONTROVERSIAL: 1, UNSAFE: 2}
_SOON, _LATE = 6, 40
_LEAST = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a reply and its label, which holds from its first token to the end of the reply.

    `vague` says that the harm begins somewhere inside: the piece is a whole reply of a source
    that labels replies, not sentences.
    """

    text: str
    severity: str = SAFE
    category: str = NONE
    vague: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamExample:
    """Turns that alternate, a user's first and last, the last one's label, and the reply.

    `severity` is `None` where nobody labelled the prompt.
    """

    turns: tuple[str, ...]
    severity: str | None = None
    category: str = NONE
    reply: tuple[Piece, ...] = ()
    source: str = "synthetic"

    @property
    def text(self) -> str:
        """The reply."""
        return "".join(piece.text for piece in self.reply)

    @property
    def harmful(self) -> bool:
        """Whether any piece of the reply is not Safe."""
        return any(piece.severity != SAFE for piece in self.reply)

    @property
    def onset(self) -> int | None:
        """The character of the reply at which the first harmful piece starts."""
        start = 0
        for piece in self.reply:
            if piece.severity != SAFE:
                return start
            start += len(piece.text)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLabel:
    """What a token of a reply is taught: names, and how much it counts in the loss."""

    severity: str
    category: str
    weight: float


def token_labels(pieces: Sequence[Piece], ends: Sequence[int]) -> list[TokenLabel]:
    """A label a token; `ends` holds the character of the reply at which each token ends.

    The worst label so far holds. The first tokens of a harmful piece count less: nobody can know
    yet how the sentence goes on.
    """
    found: list[TokenLabel] = []
    bounds = _bounds(pieces)
    now, number, age = Piece(text=""), -1, 0
    for end in ends:
        while number + 1 < len(bounds) and end > bounds[number + 1]:
            number += 1
            if _WORST[pieces[number].severity] > _WORST[now.severity]:
                now, age = pieces[number], 0
        weight = 1.0 if now.severity == SAFE else _weight(age, _LATE if now.vague else _SOON)
        found.append(TokenLabel(severity=now.severity, category=now.category, weight=weight))
        age += 1
    return found


def _bounds(pieces: Sequence[Piece]) -> list[int]:
    starts, at = list[int](), 0
    for piece in pieces:
        starts.append(at)
        at += len(piece.text)
    return starts


def _weight(age: int, clear: int) -> float:
    return min(1.0, _LEAST + (1 - _LEAST) * age / clear)
