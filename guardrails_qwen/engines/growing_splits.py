"""Where a pre-tokenizer may cut a text that is still growing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from guardrails_qwen.engines.growing_memory import Remembered

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
_WIDTHS = (1, 2, 4, 8, 16, 24, 32)
_APOSTROPHES = re.compile("['’]")
_REMEMBERED, _OVERHEAD = 1_000_000, 100
_CHARACTERS = 20_000

Cutter = Callable[[str], list[int]]
"""Where the pieces of a text end, in characters."""

_Signature = tuple[int | str, ...]
"""Where the first piece ends with each continuation, and the run in front of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """All that matters of the beginning of a piece."""

    stand: str
    """A short text that is cut as it is, whatever follows."""
    ends: tuple[int, ...]
    """Where the piece may end in `stand`; rising."""
    open: bool
    """Whether it may go on."""
    barred: frozenset[str]
    """Kinds of characters that it does not go on with."""


_EMPTY = _State(stand="", ends=(), open=True, barred=frozenset())


class _Step(NamedTuple):
    """What a character makes of a state."""

    state: _State
    sources: tuple[int, ...] | None
    """For each of its ends, which of the ends before it is; `None` if that cannot be said."""


class Splits:
    """How a pre-tokenizer cuts, whatever follows, found out by trying.

    A text is read as by an automaton whose states are found on the way: two beginnings of a piece
    are the same state if they are cut alike with each of a table of continuations behind them, and
    end in the same run (of two long ones, whose lengths differ by a multiple of 12). Characters
    stand for all that are cut alike in a table of contexts. So what is asked of the pre-tokenizer
    is short, and it is asked once. A pre-tokenizer has to look at nothing in front of a piece, as
    all known ones do.
    """

    def __init__(self, cutter: Cutter) -> None:
        self.cut = cutter
        self._alike = _Alike(cutter)
        self._following: tuple[str, ...] = ()
        self._kinds: frozenset[str] = frozenset()
        self._steps: Remembered[str, _Step] = Remembered(_REMEMBERED)
        self._states: Remembered[_Signature, _State] = Remembered(_REMEMBERED)

    def ends(self, text: str) -> frozenset[int]:
        """Where the first piece of `text` may end, in characters; `OPEN` for behind the text."""
        state, ends = self._read(text)
        return frozenset((*ends, OPEN) if state.open else ends)

    def barred(self, text: str) -> frozenset[str]:
        """Kinds of characters that no piece has which begins as `text` and goes on."""
        return self._read(text)[0].barred

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
        return self._read(text)[0].stand

    def _read(self, text: str) -> tuple[_State, tuple[int, ...]]:
        """The state at the end of a text, and where in it the ends of the state are."""
        state, ends = _EMPTY, ()
        for position, kind in enumerate(self._shape(text)):
            state, sources = self._step(state, kind)
            if sources is None:
                return self._tried(self._shape(text))
            places = (*ends, position, position + 1)
            ends = tuple(places[source] for source in sources)
            if not state.open and len(ends) == 1:
                break
        return state, ends

    def _tried(self, text: str) -> tuple[_State, tuple[int, ...]]:
        state = self._probed(text)[0]
        return state, state.ends

    def _shape(self, text: str) -> str:
        shape = text.translate(self._alike)
        for apostrophe in _APOSTROPHES.finditer(text):  # 's, 're and such are cut by their letters
            after = apostrophe.end()
            letters = "".join(
                letter if letter.casefold().isascii() else self.kind(letter)
                for letter in text[after : after + 2]
            )
            shape = shape[:after] + letters + shape[after + 2 :]
        return shape

    def _step(self, state: _State, kind: str) -> _Step:
        text = state.stand + kind
        step = self._steps.get(text)
        if step is None:
            step = self._stepped(state, text)
            self._steps.put(text, step, _OVERHEAD + len(text))
        return step

    def _stepped(self, state: _State, text: str) -> _Step:
        probed, signature = self._probed(text)
        known = self._states.get(signature)
        if known is None:
            known = self._short(probed, signature)
            self._states.put(signature, known, len(signature))
        places = (*state.ends, len(text) - 1, len(text))
        if not {*probed.ends} <= {*places}:
            return _Step(known, None)
        return _Step(
            known, tuple(max(i for i, p in enumerate(places) if p == end) for end in probed.ends)
        )

    def _short(self, state: _State, signature: _Signature) -> _State:
        """The state with a shorter stand, if there is one."""
        text = state.stand
        for width in _WIDTHS if len(text) > 2 * _KEPT else ():
            shorter, same = self._probed(text[: width // 2] + text[-width:])
            if same == signature:
                return shorter
        return state

    def _probed(self, text: str) -> tuple[_State, _Signature]:
        """A text as a state, and what makes another text the same one."""
        if not self._following:
            following = (*map(self._as_probe, _FOLLOWING), *map(self.kind, _PRINTABLE))
            self._kinds = frozenset(self.kind(probe[:1]) for probe in following)
            self._following = tuple(dict.fromkeys(following))
        length = len(text)
        firsts = [self.cut(text + following)[0] for following in self._following]
        onward = {
            self.kind(following[0])
            for following, end in zip(self._following, firsts, strict=True)
            if end > length
        }
        ends = tuple(sorted({end for end in firsts if end <= length}))
        state = _State(
            stand=text, ends=ends, open=max(firsts) > length, barred=self._kinds - onward
        )
        ranks = {end: -1 - rank for rank, end in enumerate(ends) if end < length}
        return state, (*(ranks.get(end, end - length) for end in firsts), *_run(text))

    def _as_probe(self, text: str) -> str:
        """Letters stay: they may be those of 's, of which the text may hold the beginning."""
        return "".join(c if c.isascii() else c.translate(self._alike) for c in text)


class _Alike(dict[int, str]):
    """For `str.translate`: a character as one that is cut alike, in every context of the table."""

    def __init__(self, cutter: Cutter) -> None:
        super().__init__()
        self._cut = cutter
        self._stands: dict[tuple[tuple[int, ...], ...], str] = {}

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if character in "'’":
            return character
        for letter in "aA" if not self._stands else "":  # rather than one of 's or 're
            self._stands.setdefault(self._cuts(letter), letter)
        if len(self) >= _CHARACTERS:
            self.clear()
        self[code] = self._stands.setdefault(self._cuts(character), character)
        return self[code]

    def _cuts(self, character: str) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(self._cut(context.format(character))) for context in _CONTEXTS)


def _run(text: str) -> tuple[str, int]:
    """The character that a text ends in, and how often; as often as makes a difference."""
    length = len(text) - len(text.rstrip(text[-1]))
    return text[-1], length if length < _KEPT else _KEPT + (length - _KEPT) % _PERIOD
