"""Which tokens of a piece of text stay as they are while the piece grows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import NamedTuple

from guardrails_qwen.engines.growing_memory import Remembered

_TRIED = 512
_REMEMBERED = 1_000_000
"""Characters of questions."""
_SHORT = 32
_NONE: frozenset[str] = frozenset()


class Merged(NamedTuple):
    """A token: its id, and its text as the vocabulary spells it."""

    id: int
    text: str


Merging = Callable[[str], list[Merged]]


class Merges:
    """What a byte-pair encoding makes of a piece that is not complete.

    Two facts about byte-pair encoding carry this. If a token of a text ends at q, then the text up
    to q alone is encoded as the tokens up to q; and a sequence of tokens is an encoding if each two
    neighbours are that of their own text. So a token of the complete piece that reaches over the
    end of what is known begins at one of few places: where the rest is the beginning of an entry of
    the vocabulary, and that entry may stand behind the token in front.
    """

    def __init__(
        self, encode: Merging, vocabulary: Iterable[str], kind: Callable[[str], str | None]
    ) -> None:
        """`kind` names the kind of the first character of a spelling, if it is a whole one."""
        self.encode = encode
        self._kind = kind
        self._entries = sorted(vocabulary)
        self._longest = max(map(len, self._entries))
        self._pairs: Remembered[tuple[str, str, frozenset[str]], bool] = Remembered(_REMEMBERED)
        self._short: Remembered[tuple[str, int, str, frozenset[str]], int] = Remembered(_REMEMBERED)

    def stable(
        self,
        piece: str,
        ends: Sequence[int],
        *,
        following: Iterable[str],
        barred: frozenset[str],
        before: str,
    ) -> int:
        """How much of `piece` has tokens that it keeps.

        Args:
            piece: What is known of it, or what is left of it behind tokens that it keeps.
            ends: Where it may turn out to end.
            following: All that it may go on with otherwise: "" for anything.
            barred: Kinds of characters that it does not go on with.
            before: The text of the token in front, if there is one in the same piece.
        """
        paths = _Paths(piece, self.encode)
        common = reduce(paths.shared, ends) if ends else None
        least = -1
        for more in following:
            longer = self._growing(piece + more, len(piece), before, _NONE if more else barred)
            common = longer if common is None else paths.shared(common, longer)
            if least < 0 < common:  # what stays whatever follows is a short cut
                least = paths.shared(common, self._growing(piece, len(piece), before, barred))
            if common <= max(0, least):
                break
        return common or 0

    def _growing(self, piece: str, limit: int, before: str, barred: frozenset[str]) -> int:
        """How much of the first `limit` characters keeps its tokens as the piece goes on."""
        if len(piece) > _SHORT:
            return self._worked_out(piece, limit, before, barred)
        key = (piece, limit, before, barred)
        known = self._short.get(key)
        if known is None:
            known = self._worked_out(*key)
            self._short.put(key, known, len(piece) + len(before))
        return known

    def _worked_out(self, piece: str, limit: int, before: str, barred: frozenset[str]) -> int:
        paths = _Paths(piece, self.encode)
        common = len(piece)
        for start in range(max(0, len(piece) - self._longest + 1), len(piece)):
            if self._extends(piece[start:]):
                token = paths.last(start) if start else before
                if self._follows(token, piece[start:], barred):
                    common = paths.shared(common, start)
            if not common:
                break
        while common > limit:
            common -= len(paths.last(common))
        return common

    def _extends(self, beginning: str) -> bool:
        """Whether an entry of the vocabulary begins so and goes on."""
        after = bisect_right(self._entries, beginning)
        return after < len(self._entries) and self._entries[after].startswith(beginning)

    def _follows(self, token: str, beginning: str, barred: frozenset[str]) -> bool:
        key = (token, beginning, barred)
        known = self._pairs.get(key)
        if known is None:
            known = self._tried(*key)
            self._pairs.put(key, known, len(token) + len(beginning))
        return known

    def _tried(self, token: str, beginning: str, barred: frozenset[str]) -> bool:
        """Whether a longer entry that begins so, and is not barred, may stand behind `token`."""
        after = bisect_right(self._entries, beginning)
        for index in range(after, len(self._entries)):
            entry = self._entries[index]
            if not entry.startswith(beginning):
                return False
            allowed = self._kind(entry[len(beginning) :]) not in barred
            if index == after + _TRIED or (allowed and self._neighbours(token, entry)):
                return True
        return False

    def _neighbours(self, token: str, entry: str) -> bool:
        expected = [token, entry] if token else [entry]
        return [merged.text for merged in self.encode(token + entry)] == expected


class _Paths:
    """Encodings of all beginnings of a piece, as a tree: each hangs on the one less a token."""

    def __init__(self, piece: str, encode: Merging) -> None:
        self._piece = piece
        self._encode = encode
        self._lasts: dict[int, str] = {}

    def last(self, end: int) -> str:
        """The text of the last token of the piece up to `end`."""
        if end not in self._lasts:
            position = 0
            for merged in self._encode(self._piece[:end]):
                position += len(merged.text)
                self._lasts[position] = merged.text
        return self._lasts[end]

    def shared(self, one: int, other: int) -> int:
        """How far two beginnings are encoded alike."""
        while one != other:
            if one > other:
                one, other = other, one
            other -= len(self.last(other))
        return one
