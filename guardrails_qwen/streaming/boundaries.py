"""Where the sentences of a growing text end: found once, and never taken back. Pure.

`guardrails_qwen.sentences` reads a whole text and finds better places, but what it says of a text's
beginning changes with what comes behind. What was shown to a reader cannot be taken back, so here
whether a sentence ends at a character depends on the text up to that character, and on nothing
behind it. Cutting a text into chunks therefore changes nothing.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right

_STOPS = frozenset(".!?…؟۔।॥։።")
"""Stops that white space has to follow."""
_WIDE_STOPS = frozenset("。！？｡．၊။")
"""Stops of scripts that put no space behind them."""
_CLOSERS = frozenset("'\"’”»›)]}」』）】》〉］｝*_`")
"""What may stand between a stop and the end, markup included."""
_EITHER = frozenset("«“‘‹")
"""Openers that close in some languages; behind a stop without white space they do."""
_OPENERS = "'\"‘“«‹([{*_`"
_BREAKS = frozenset("\n\r\u2028\u2029")
_ABBREVIATIONS = frozenset(
    """
    dr mr mrs ms prof rev gen sen gov capt lt col sgt st jr sr vs cf al approx ca nos fig figs eq
    eqs ch vol eds pp inc ltd co corp dept univ est bzw usw nr str abb vgl etc
    """.split()  # noqa: SIM905  words, not code
)
_LONGEST_WORD = 16
"""Characters; longer words are no abbreviations."""
_CLAUSE = 120
"""Characters after which a space ends a sentence in scripts without stops, as in `sentences`."""
_LONG = 1000
"""Characters after which a space ends any sentence, so that what is held back is bounded."""
_LONGEST = 2000
"""Characters after which a sentence ends anywhere."""


class SentenceEnds:
    """The ends of the sentences of a text that is handed in piece by piece.

    An end is where the next sentence begins: at the first character that is not white space behind
    a stop and its closing quotes and brackets, or behind a line break. So white space belongs to
    the sentence before it, and the end is known when that one character is there. A stop needs
    white space behind it, those of Chinese and Japanese do not; the stop of an abbreviation, of
    initials or of a number that begins a line is none. Where nothing stops, a space ends a sentence
    of 1,000 characters (in Thai, Lao, Khmer and Burmese of 120), and 2,000 are the most.

    >>> ends = SentenceEnds()
    >>> ends.feed("Dr. Who came. He w")
    >>> ends.feed("ent.")
    >>> ends.found
    [14]
    """

    def __init__(self, start: int = 0) -> None:
        """Args: start: the offset of the first character that will be handed in."""
        self.found: list[int] = []
        self._at = start
        self._begin(start)

    def feed(self, text: str) -> None:
        """Append to the text."""
        for character in text:
            if character.isspace():
                self._white(character)
            else:
                if self._ends_before(character):
                    self.found.append(self._at)
                    self._begin(self._at)
                self._read(character)
            self._at += 1

    def up_to(self, at: int) -> int | None:
        """The last end at an offset or before it."""
        index = bisect_right(self.found, at)
        return self.found[index - 1] if index else None

    def after(self, at: int) -> int | None:
        """The first end at an offset or behind it; None where there is none yet."""
        index = bisect_left(self.found, at)
        return self.found[index] if index < len(self.found) else None

    def _begin(self, at: int) -> None:
        self._start = at
        self._words = 0
        self._word = ""
        self._stop = self._wide = self._space = self._break = self._stopless = False

    def _white(self, character: str) -> None:
        self._space = True
        self._break = self._break or character in _BREAKS

    def _ends_before(self, character: str) -> bool:
        if not self._words:
            return False  # white space alone is no sentence
        if self._break:
            return True
        if self._wide and (self._space or not _continues(character)):
            return True
        length = self._at - self._start
        if self._space:
            stopped = self._stop and not self._abbreviated()
            return stopped or length >= (_CLAUSE if self._stopless else _LONG)
        return length >= _LONGEST and not unicodedata.category(character).startswith("M")

    def _read(self, character: str) -> None:
        if self._space:
            self._word, self._stop, self._wide = "", False, False
        if not self._word:
            self._words += 1
        self._space = self._break = False
        if character in _WIDE_STOPS:
            self._wide = True
        elif character in _STOPS:
            self._stop = True
        elif character not in _CLOSERS and not (self._stop and character in _EITHER):
            self._stop = self._wide = False
        self._stopless = self._stopless or _writes_no_stops(character)
        if len(self._word) <= _LONGEST_WORD:
            self._word += character

    def _abbreviated(self) -> bool:
        """Whether the stop of the last word belongs to it."""
        word = self._word.strip(_OPENERS).lower()
        if len(word) > _LONGEST_WORD or not word.endswith("."):
            return False
        parts = word[:-1].split(".")
        if all(len(part) == 1 and part.isalpha() for part in parts):
            return True  # "e.g.", "U.S.", "J."
        numbered = self._words == 1 and len(word) <= 4 and word[:-1].isdecimal()
        return numbered or word[:-1] in _ABBREVIATIONS


def _continues(character: str) -> bool:
    return character in _CLOSERS or character in _WIDE_STOPS or character in _STOPS


def _writes_no_stops(character: str) -> bool:
    """Thai and Lao, Burmese, Khmer."""
    return (
        "\u0e00" <= character <= "\u0eff"
        or "\u1000" <= character <= "\u109f"
        or "\u1780" <= character <= "\u17ff"
    )
