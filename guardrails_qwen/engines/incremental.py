"""Text as tokens while it grows: no token is handed out before it is certain."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import NamedTuple

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC

from guardrails_qwen.engines.growing_merges import Merged, Merges
from guardrails_qwen.engines.growing_nfc import beginnings, segments, settled_length
from guardrails_qwen.engines.growing_splits import OPEN, Splits
from guardrails_qwen.errors import CheckpointError, ConversationError

_PROBES = (
    "It's a test, isn't it?  Yes;\n\n  and\tmore: x = y[3] + 1234567.89\r\n",
    "它是一个测试。Ça và e\u0301te\u0323\u0302, 한국어 \u1112\u1161\u11ab, 👩🏽\u200d🚀🇫🇷",
    "ไทย, हिन्दी, العربية, がか\u3099",
    "<|im_end|></think> <|im_start|>user\n \n  'S 'LL don't\u00a0\u3000!!'s ...\n\n",
)
_OPTIONS = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)
_PATIENT = 512
_SEGMENT = 8
_AT_ONCE = 256
"""Characters; what is longer is worked through in parts, since cost grows faster than a part."""
_APOSTROPHES = frozenset("'’")
_UNFORESEEN = "the pre-tokenizer moved a cut that was taken for certain"
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_SPELLING = {
    byte: 0x100 + index for index, byte in enumerate(sorted({*range(0x100)} - {*_PRINTABLE}))
}
"""Of bytes that are not printable in Latin-1; as GPT-2 introduced it."""
_BYTES = {chr(_SPELLING.get(byte, byte)): byte for byte in range(0x100)}


class Token(NamedTuple):
    """A token, and which characters of the text it is made of.

    Offsets are in characters of the text as it was fed, the head not counted. A token that is part
    of a character has all of it; one of the head has 0 and 0. What NFC composes counts as one.
    """

    id: int
    start: int
    end: int


class TextEncoder:
    """What all growing texts of one tokenizer share.

    Args:
        tokenizer: A byte-level byte-pair encoding, with NFC or without a normalizer. It must know
            no special tokens, so that no text becomes one.

    Raises:
        CheckpointError: The tokenizer is of another kind.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.normalizes = _checked(tokenizer)
        model, pre_tokenizer = tokenizer.model, tokenizer.pre_tokenizer

        def encode(piece: str) -> list[Merged]:
            return [Merged(token.id, token.value) for token in model.tokenize(piece)]

        def cut(text: str) -> list[int]:
            return [end for _, (_, end) in pre_tokenizer.pre_tokenize_str(text)]

        self.splits = Splits(cut)
        self.merges = Merges(encode, tokenizer.get_vocab(with_added_tokens=False), self._kind)
        for probe in _PROBES:
            self._verify(probe)

    def growing(self, head: str = "") -> GrowingText:
        """A text that is fed piece by piece.

        Args:
            head: Text of a template right in front, which may share tokens with what is fed.
        """
        return GrowingText(self, head)

    def normalized(self, segment: str) -> str:
        """A segment in the form that the tokenizer brings it into."""
        return self._tokenizer.normalizer.normalize_str(segment) if self.normalizes else segment

    def _kind(self, spelled: str) -> str | None:
        first = bytes(_BYTES.get(letter, 0) for letter in spelled[:4]).decode(errors="replace")[:1]
        return None if first == "\ufffd" else self.splits.kind(first)

    def _verify(self, probe: str) -> None:
        growing = self.growing()
        tokens = [token for character in probe for token in growing.feed(character)]
        ids = [token.id for token in (*tokens, *growing.finish())]
        if ids != self._tokenizer.encode(probe, add_special_tokens=False).ids:
            raise CheckpointError("the tokenizer cannot be followed while a text grows")


class GrowingText:
    """A text that comes in chunks; its tokens are those of the whole, however it is cut.

    A token is handed out as soon as nothing that may follow can change it. Memory is what is held
    back; a text that keeps more than 512 characters waiting is looked at again only when it has
    grown by a sixteenth, which bounds the cost.
    """

    def __init__(self, encoder: TextEncoder, head: str = "") -> None:
        self._encoder = encoder
        self._fed = 0
        self._unsettled = head
        """What may still compose with what follows, as it was fed."""
        self._text = ""
        """Normalized, and not wholly handed out."""
        self._origin: list[tuple[int, int]] = []
        """Where each character of it starts and ends in what was fed. Never changed in place."""
        self._shape = ""
        """Stands for what was handed out of the piece that the text begins in."""
        self._skip = 0
        """How many bytes of the first character were handed out."""
        self._before = ""
        """The last token handed out, as long as it is of the same piece."""
        self._patience = 0
        self._finished = False

    @property
    def held(self) -> int:
        """Characters that were fed and whose tokens have not all been handed out."""
        settled = self._origin[0][0] if self._origin else self._fed - len(self._unsettled)
        return self._fed - max(0, settled)

    def feed(self, text: str) -> list[Token]:
        """The tokens that are certain now and were not before.

        Raises:
            ConversationError: A lone surrogate is in the text, which has no tokens.
            ValueError: The text is finished.
        """
        if self._finished:
            raise ValueError("the text is finished")
        if not _encodable(text):
            raise ConversationError(
                "half of a surrogate pair is in the text: it is no character and has no tokens"
            )
        tokens: list[Token] = []
        for start in range(0, len(text), _AT_ONCE):
            tokens += self._taken(text[start : start + _AT_ONCE])
        return tokens

    def _taken(self, text: str) -> list[Token]:
        seen, self._unsettled = len(self._unsettled), self._unsettled + text
        self._fed += len(text)
        if self._encoder.normalizes:
            self._settle(settled_length(self._unsettled, seen))
        else:
            self._settle(len(self._unsettled))
        return self._advance()

    def finish(self) -> list[Token]:
        """The rest of the tokens. Nothing can be fed afterwards.

        Raises:
            ValueError: The text is finished.
        """
        if self._finished:
            raise ValueError("the text is finished")
        self._finished = True
        self._settle(len(self._unsettled))
        return self._advance()

    def fork(self) -> GrowingText:
        """A copy that goes on by itself."""
        return copy.copy(self)

    def _settle(self, length: int) -> None:
        """Take over so many of the unsettled characters, normalized."""
        if not length:
            return
        raw, position = self._unsettled[:length], self._fed - len(self._unsettled)
        self._unsettled = self._unsettled[length:]
        text, origin = "", [*self._origin]
        for part in segments(raw) if self._encoder.normalizes else raw:
            settled = part if part.isascii() else self._encoder.normalized(part)
            places = range(position, position + len(part))
            position += len(part)
            if settled == part:
                origin += [(max(0, place), max(0, place + 1)) for place in places]
            else:
                origin += [(max(0, places.start), max(0, places.stop))] * len(settled)
            text += settled
        self._text, self._origin = self._text + text, origin

    def _advance(self) -> list[Token]:
        """Hand out what is certain: whole pieces, and the beginning of the one behind them."""
        if len(self._text) < self._patience and not self._finished:
            return []
        tokens = self._pieces()
        if not self._finished:
            tokens += self._beginning()
        waiting = len(self._text)
        self._patience = waiting + waiting // 16 if waiting > _PATIENT else 0
        return tokens

    def _pieces(self) -> list[Token]:
        """Hand out the pieces whose ends are certain."""
        splits, base = self._encoder.splits, len(self._shape)
        text, limit = self._shape + self._text + self._peek(), base + len(self._text)
        tokens: list[Token] = []
        start = 0
        for end in splits.cut(text) if text else ():
            if end > limit or not (self._finished or splits.settled(text, start, end)):
                break
            tokens += self._whole(max(0, start - base), end - base)
            self._skip, self._before, start = 0, "", end
        if start:
            self._drop(start - base)
            self._shape = ""
        return tokens

    def _whole(self, first: int, last: int) -> list[Token]:
        """The tokens of a piece that is complete, less what was handed out."""
        if last < first + (self._skip > 0):
            raise CheckpointError(_UNFORESEEN)
        characters = self._text[first:last]
        merged = self._encoder.merges.encode(_spelled(characters)[self._skip :])
        return self._placed(first, characters, merged)

    def _beginning(self) -> list[Token]:
        """Hand out what is certain of a piece that is not complete."""
        base, limit = len(self._shape), len(self._shape) + len(self._text)
        if limit == base:
            return []
        ends = self._encoder.splits.ends(self._shape + self._text + self._peek())
        known = [end - base for end in ends if end != OPEN and end <= limit]
        if min(known, default=1) < (self._skip > 0):
            raise CheckpointError(_UNFORESEEN)
        merges, piece = self._encoder.merges, _spelled(self._text)[self._skip :]
        seen = "" if self._unsettled else self._shape + self._text
        stable = merges.stable(
            piece,
            [len(self._text[:end].encode()) - self._skip for end in known],
            following=self._following() if len(known) < len(ends) else (),
            barred=self._encoder.splits.barred(seen) if seen else frozenset(),
            before=self._before,
        )
        return self._part(merges.encode(piece[:stable])) if stable else []

    def _part(self, merged: list[Merged]) -> list[Token]:
        """Hand out the first tokens of the piece that the text begins in."""
        tokens = self._placed(0, self._text, merged)
        self._before = merged[-1].text
        self._skip += sum(len(token.text) for token in merged)
        whole = 0
        while whole < len(self._text) and self._skip >= (width := len(self._text[whole].encode())):
            self._skip -= width
            whole += 1
        self._shape = self._encoder.splits.shape(self._shape + self._text[:whole])
        self._drop(whole)
        return tokens

    def _placed(self, first: int, characters: str, merged: list[Merged]) -> list[Token]:
        """Tokens with offsets; `characters` are those of the text from `first` on."""
        origin = self._origin
        if characters.isascii():
            owners = range(first, first + len(characters))
        else:
            owners = [
                index
                for index, character in enumerate(characters, first)
                for _ in range(len(character.encode()))
            ]
        tokens: list[Token] = []
        position = self._skip
        for token in merged:
            start, position = position, position + len(token.text)
            tokens.append(
                Token(token.id, origin[owners[start]][0], origin[owners[position - 1]][1])
            )
        return tokens

    def _drop(self, characters: int) -> None:
        self._text, self._origin = self._text[characters:], self._origin[characters:]

    def _following(self) -> Iterable[str]:
        """What the text may go on with, as far as it is known; rarely more than one is needed."""
        unsettled = self._unsettled
        forms = beginnings(unsettled) if 0 < len(unsettled) <= _SEGMENT else ()
        return map(_spelled, forms or ("",))

    def _peek(self) -> str:
        """What comes next, as far as it is known: enough to see where pieces end.

        What composes stays of its kind, but s behind an apostrophe may become another letter.
        """
        if not self._unsettled:
            return ""
        known, text = self._encoder.normalized(self._unsettled[0])[:1], self._shape + self._text
        cut = self._encoder.splits.cut
        if _APOSTROPHES.isdisjoint(text[-2:]) or cut(text + known) == cut(text + "a"):
            return known
        return ""


def _checked(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer brings text into NFC; others than those that can be followed raise."""
    model, normalizer = tokenizer.model, tokenizer.normalizer
    if not isinstance(model, BPE) or tokenizer.pre_tokenizer is None:
        raise CheckpointError(
            "only byte-level byte-pair encodings can be followed while a text grows"
        )
    for option in _OPTIONS:
        if getattr(model, option):
            raise CheckpointError(
                f"a tokenizer with {option} cannot be followed while a text grows"
            )
    if not (normalizer is None or isinstance(normalizer, NFC)):
        raise CheckpointError("a text that grows can be brought into NFC, and no other form")
    return normalizer is not None


def _spelled(text: str) -> str:
    """The bytes of a text as byte-level vocabularies spell them, a character each."""
    return text.encode().decode("latin-1").translate(_SPELLING)


def _encodable(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
