"""Whole characters out of text that was cut anywhere. Pure."""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


class Characters:
    """Joins surrogates that belong together, and notices those that stay alone.

    A character beyond U+FFFF may arrive as two halves, and these in two chunks, from sources that
    cut UTF-16. Half a character is no text, and nobody can judge it.
    """

    def __init__(self) -> None:
        self.broken = False
        """Whether a half stayed alone: what comes behind it is no text."""
        self._half: str = ""

    def feed(self, text: str) -> str:
        """The whole characters that are there now; up to the first half that stays alone."""
        if self.broken or not (self._half or _SURROGATE.search(text)):
            return "" if self.broken else text
        text = _joined(self._half + text)
        self._half = ""
        alone = _SURROGATE.search(text)
        if alone is None:
            return text
        whole, rest = text[: alone.start()], text[alone.start() :]
        if len(rest) == 1 and rest < "\udc00":
            self._half = rest
        else:
            self.broken = True
        return whole

    def finish(self) -> None:
        """Nothing more comes: a half that waits stays alone."""
        self.broken = self.broken or bool(self._half)


def _joined(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
