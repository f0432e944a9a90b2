"""Where the text that a judge has stands in the reply. Pure."""

from __future__ import annotations

from typing import NamedTuple


class _Piece(NamedTuple):
    judged: int
    """Its first character in the text that the judge has."""
    reply: int
    """The same character in the reply."""


class Offsets:
    """From characters of what the judge has to characters of the reply, and back.

    They differ after a redaction: the judge is made to forget what was taken out, so that what it
    judges is what the reader sees.
    """

    def __init__(self) -> None:
        self._pieces = [_Piece(0, 0)]

    def start(self, judged: int) -> int:
        """Where in the reply a character stands."""
        piece = next(piece for piece in reversed(self._pieces) if piece.judged <= judged)
        return judged - piece.judged + piece.reply

    def end(self, judged: int) -> int:
        """Where in the reply a stretch ends: behind its last character, before what was cut."""
        return self.start(judged - 1) + 1 if judged else 0

    def judged(self, reply: int) -> int:
        """Where the judge has a character of the reply that was not taken out."""
        piece = next(piece for piece in reversed(self._pieces) if piece.reply <= reply)
        return reply - piece.reply + piece.judged

    def cut(self, start: int, resume: int) -> int:
        """The reply from `start` to `resume` is taken out; how much the judge has to keep."""
        kept = self.judged(start)
        self._pieces = [piece for piece in self._pieces if piece.judged < kept]
        self._pieces.append(_Piece(kept, resume))
        return kept
