"""Where a pre-tokenizer may cut a text that is still growing."""

from __future__ import annotations

import re
from collections.abc import Callable

OPEN = -1
"""An end that is not known yet: the piece goes on behind the text."""

_CONTEXTS = (
    "a{0}a A{0}A 1{0}1 11{0}11 .{0}. 中{0}中 {0} a.{0} 1.{0} a{0}s a{0}ll",
    "\n{0}\n a\n{0}a  {0}a  {0}1  {0}. \u0301{0}\u0301 👍{0}👍 {0}{0}{0} a{0}{0}a 1{0}{0}1 ",
    "aA{0} Aa{0} {0}aA {0}Aa .{0}{0}. \n {0} \n \r{0}\r\n \t{0}\t {0}",
)
_FOLLOWING = (
    *("", "a", "A", "é", "ǅ", "ʰ", "中", "あ", "ア", "한", "ก", "ا", "अ", "ſ", "1", "٣", "²", "Ⅷ"),
    *(" ", "\t", "\n", "\r", "\x0b", "\x85", "\u00a0", "\u3000", "\u2028"),
    *(".", ",", "'", "’", "_", "-", "(", "$", "+", "^", "/", "<", ">", "\\", "。", "©", "👍"),
    *("\u0301", "\u093f", "\u20dd", "\u200d", "\ufe0f", "\x00", "\ue000"),
    *(" a", " A", " 1", " .", " '", " \n", " \r\n", "  ", "  a", "  1", "  \n", "\t\n", "\ta"),
    *("\na", "\n.", "\n\n", "\n \n", "\r\n", ".\n", ".a", "..", "./", ".'", "'a", "''", "/\n"),
    *("s", "t", "d", "m", "re", "ve", "ll", "e", "l", "S", "E", "L", "LL", "'s", "'ll", "a's"),
    *("sa", "ta", "lla", "rea", "ea", "la", "1a", "11", "111", "1.", "aa", "Aa", "aA", "AA", "AAa"),
    *("中a", "a中", "a\u0301", "\u0301a", "\u0301\n", "👍\u200d", "11a", "111a"),
)
_PRINTABLE = tuple(map(chr, range(0x21, 0x7F)))
_KEPT, _PERIOD = 16, 12
_RUN = re.compile(rf"(.)\1{{{_KEPT + _PERIOD - 1},}}", re.DOTALL)
_APOSTROPHES = re.compile("['’]")
_REMEMBERED = 20_000

Cutter = Callable[[str], list[int]]
"""Where the pieces of a text end, in characters."""


class Splits:
    """How a pre-tokenizer cuts, whatever follows, found out by trying.

    It is asked about a text with each of a table of continuations behind it. Texts of the same
    shape are cut alike, so an answer is remembered by shape: characters stand for all that are cut
    alike in a table of contexts, and a long run for longer ones whose length differs by a multiple
    of 12. A pre-tokenizer has to look at nothing in front of a piece, as all known ones do.
    """

    def __init__(self, cutter: Cutter) -> None:
        self.cut = cutter
        self._alike = _Alike(cutter)
        self._following: tuple[str, ...] = ()
        self._kinds: frozenset[str] = frozenset()
        self._known: dict[str, tuple[frozenset[int], frozenset[str]]] = {}

    def ends(self, text: str) -> frozenset[int]:
        """Where the first piece of `text` may end, in characters; `OPEN` for behind the text."""
        shape = self._shape(text)
        key = _RUN.sub(_shortened, shape)
        ends, _ = self._looked_up(key)
        return ends if len(key) == len(shape) else _in_full(ends, shape)

    def barred(self, text: str) -> frozenset[str]:
        """Kinds of characters that no piece has which begins as `text` and goes on."""
        return self._looked_up(self.shape(text))[1]

    def kind(self, character: str) -> str:
        """A character that stands for this one and for all that are cut alike."""
        return character.translate(self._alike)

    def settled(self, text: str, start: int, end: int) -> bool:
        """Whether the piece from `start` ends at `end`, whatever follows the text.

        As a rule the character behind it tells.
        """
        only, width = frozenset((end - start,)), 1
        while self.ends(text[start : end + width]) != only:
            if end + width >= len(text):
                return False
            width *= 2
        return True

    def shape(self, text: str) -> str:
        """A short text that makes whatever follows be cut as `text` does."""
        return _RUN.sub(_shortened, self._shape(text))

    def _shape(self, text: str) -> str:
        shape = text.translate(self._alike)
        for apostrophe in _APOSTROPHES.finditer(text):  # 's, 're and such are cut by their letters
            after = apostrophe.end()
            shape = shape[:after] + text[after : after + 2] + shape[after + 2 :]
        return shape

    def _looked_up(self, key: str) -> tuple[frozenset[int], frozenset[str]]:
        known = self._known.get(key)
        if known is None:
            known = self._probed(key)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = known
        return known

    def _probed(self, text: str) -> tuple[frozenset[int], frozenset[str]]:
        if not self._following:
            following = (*map(self._as_probe, _FOLLOWING), *map(self.kind, _PRINTABLE))
            self._kinds = frozenset(self.kind(probe[:1]) for probe in following)
            self._following = tuple(dict.fromkeys(following))
        firsts = {following: self.cut(text + following)[0] for following in self._following}
        ends = frozenset(end if end <= len(text) else OPEN for end in firsts.values())
        onward = {self.kind(following[0]) for following, end in firsts.items() if end > len(text)}
        return ends, self._kinds - onward

    def _as_probe(self, text: str) -> str:
        """Letters stay: they may be those of 's, of which the text may hold the beginning."""
        return "".join(c if c.isascii() else c.translate(self._alike) for c in text)


class _Alike(dict[int, str]):
    """For `str.translate`: a character as one that is cut alike, in every context of the table."""

    def __init__(self, cutter: Cutter) -> None:
        super().__init__()
        self._cut = cutter
        self._stands: dict[tuple[tuple[int, ...], ...], str] = {}
        for apostrophe in "'’":
            self[ord(apostrophe)] = apostrophe

    def __missing__(self, code: int) -> str:
        character = chr(code)
        cuts = tuple(tuple(self._cut(context.format(character))) for context in _CONTEXTS)
        self[code] = self._stands.setdefault(cuts, character)
        return self[code]


def _shortened(run: re.Match[str]) -> str:
    length = run.end() - run.start()
    return run[1] * (_KEPT + (length - _KEPT) % _PERIOD)


def _in_full(ends: frozenset[int], shape: str) -> frozenset[int]:
    """Ends in a shortened shape as ends in the whole one."""
    full = ends
    for run in _RUN.finditer(shape):
        dropped = run.end() - run.start() - len(_shortened(run))
        middle = run.start() + _KEPT // 2
        full = frozenset(end + dropped if end > middle else end for end in full)
    return full
