"""Lengths in tokens where there is no tokenizer. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_PIECE = re.compile(r"[A-Za-z]+| +|[^A-Za-z ]", re.ASCII)
_LETTERS = 5
"""Letters of an English word that a token of Qwen's or Llama's vocabulary covers, or more."""
_LONGEST = 15
"""Letters of a word; what is longer may be none, and tokens cover about two letters of it."""
_SPACES = 8
"""Spaces of a long row that a token covers, or more."""


def estimated(texts: Sequence[str]) -> list[int]:
    """About how many tokens each text has, rather too many than too few.

    English comes out about a third too long and Chinese a little; digits, punctuation and letters
    of other scripts count as a token each, characters beyond the basic plane as two.
    """
    return [_estimated(text) for text in texts]


def _estimated(text: str) -> int:
    return sum(_piece(match[0]) for match in _PIECE.finditer(text))


def _piece(piece: str) -> int:
    if piece[0] == " ":
        return len(piece) // _SPACES
    if piece.isascii():
        return math.ceil(len(piece) / (_LETTERS if len(piece) <= _LONGEST else 2))
    return 2 if ord(piece) > 0xFFFF else 1
