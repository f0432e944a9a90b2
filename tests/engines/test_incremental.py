"""Tokens of a text that grows are those of the whole text, and come as early as they can."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.normalizers import NFC, NFKC, Normalizer
from tokenizers.pre_tokenizers import (
    ByteLevel,
    Metaspace,
    PreTokenizer,
    Split,
    Whitespace,
)
from tokenizers.pre_tokenizers import Sequence as InTurn
from tokenizers.trainers import BpeTrainer

from guardrails_qwen import CheckpointError, ConversationError
from guardrails_qwen.engines.growing_merges import Merged
from guardrails_qwen.engines.incremental import GrowingText, TextEncoder, Token
from guardrails_qwen.engines.tokenization import PromptEncoder

CHECKPOINT = Path(__file__).parents[2] / "guardrails_qwen" / "checkpoints" / "tiny-gen"

CHINESE = (
    "我们今天去公园散步，天气非常好，很多人都在那里玩耍。今天的天气和昨天的天气一样好，公园里的人很多。"
    "人工智能技术的发展给社会带来了巨大的变化，人工智能也带来了新的挑战和问题。"
)
TEXTS = {
    "English": "Don't worry: it's the 2nd of 12 tests, isn't it?  We'll see (or WON'T)...\n\nYes!",
    "Chinese": CHINESE,
    "Japanese": "東京は日本の首都です。カタカナとひらがなが混ざる、2024年のテキスト。",
    "Thai": "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอน 12 คำ",
    "Arabic": "اللغة العربية هي أكثر اللغات السامية تحدثا، ٣ مرات.",
    "Hindi": "हिन्दी क्षेत्र की भाषा है। क\u093c और क़",
    "Korean": "한국어는 교착어이며 조사가 발달해 있다.",
    "jamo": unicodedata.normalize("NFD", "한국어는 교착어이다."),
    "French": "Ça va déjà, l'été où l'élève est né à Noël.",
    "Vietnamese": "Tiếng Việt là tiếng mẹ đẻ. Biết viết tiếng Việt: điều tốt.",
    "half composed": "Tiê\u0301ng Viê\u0323t la\u0300 tiê\u0301ng me\u0323. Biê\u0301t viê\u0301t.",
    "decomposed": unicodedata.normalize("NFD", "Ça va déjà, Việt Nam, ệ Å ≠."),
    "marks": "a\u0323\u0301\u0302 e\u0301\u0323 x\u0338\u0334 中\u0301\u0323 \u0301=\u0338",
    "emoji": "Hi 👍🏽 there 👩🏽\u200d🚀!! 🇫🇷🇩🇪 ❤\ufe0f ok... wow?!'s",
    "code": "def f(x):\n    if x == 1:\n        return  [y for y in x]\n\n\nclass A:\r\n\tpass\r\n",
    "blanks": "a   b \n \n\n  c\r\n\r\n \t d\u00a0\u3000 e   \n",
    "markup": "<|im_end|>\n<|im_start|>user\n</think>\n\n<think>",
}
ODD = [
    *(" ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\r\n", "'s", "'S", "'ll", "'", "’s", "ſ"),
    *("\u0301", "\u0323", "\u0338", "\u0344", "\u212a", "\u212b", "\uf900", "\u0958", "\u09be"),
    *("\u1112", "\u1161", "\u11ab", "가", "\u0378", "\x00", "\ue000", "ǅ", "ʰ", "1234", "²", "Ⅷ"),
]
PIECES = [*sorted({word for text in TEXTS.values() for word in (*text.split(), *text)}), *ODD]
WRITING = st.lists(
    st.one_of(st.sampled_from(PIECES), st.text(st.characters(codec="utf-8"), max_size=4)),
    max_size=16,
).map("".join)
CUTS = st.lists(st.integers(1, 9), min_size=1, max_size=12)
HEADS = ["", "\n\n", "</think>\n\n", "e", " "]


def _trained(pre_tokenizer: PreTokenizer, normalizer: Normalizer | None) -> Tokenizer:
    """A tokenizer of a thousand tokens; those of Chinese are several characters long."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = ByteLevelDecoder()  # pyright: ignore[reportAttributeAccessIssue]
    if normalizer is not None:
        tokenizer.normalizer = normalizer  # pyright: ignore[reportAttributeAccessIssue]
    trainer = BpeTrainer(
        vocab_size=1000, show_progress=False, initial_alphabet=sorted(ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator([*TEXTS.values()] * 3, trainer)
    return tokenizer


def _split(pattern: str) -> PreTokenizer:
    bytes_ = ByteLevel(add_prefix_space=False, use_regex=False)
    return InTurn([Split(Regex(pattern), "isolated"), bytes_])  # pyright: ignore


@lru_cache
def tokenizer(name: str) -> Tokenizer:
    match name:
        case "bundled":
            return PromptEncoder((CHECKPOINT / "tokenizer.json").read_text("utf-8")).plain
        case "gpt2":
            return _trained(ByteLevel(add_prefix_space=False), None)
        case "threes":
            return _trained(
                _split(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
                    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                None,
            )
        case "cases":
            return _trained(
                _split(
                    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*"
                    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
                    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
                    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
                    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                NFC(),
            )
        case _:
            return _trained(_split(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))|\P{N}+"), NFC())


NAMES = ["bundled", "gpt2", "threes", "cases", "from the right"]


@lru_cache
def encoder(name: str) -> TextEncoder:
    return TextEncoder(tokenizer(name))


def ids(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens]


def whole(name: str, text: str) -> list[int]:
    return tokenizer(name).encode(text, add_special_tokens=False).ids


def chunks(text: str, cuts: Sequence[int]) -> Iterator[str]:
    """The text cut into chunks of these lengths, over and over."""
    position, turn = 0, 0
    while position < len(text):
        width = cuts[turn % len(cuts)]
        yield text[position : position + width]
        position, turn = position + width, turn + 1


def fed(growing: GrowingText, parts: Iterator[str]) -> list[Token]:
    return [*chain.from_iterable(map(growing.feed, parts)), *growing.finish()]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(text=WRITING, cuts=CUTS, head=st.sampled_from(HEADS))
def test_any_cutting_gives_the_tokens_of_the_whole(
    name: str, text: str, cuts: list[int], head: str
) -> None:
    tokens = fed(encoder(name).growing(head), chunks(text, cuts))
    assert ids(tokens) == whole(name, head + text)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("head", HEADS, ids=repr)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_real_text_in_chunks_of_every_length(name: str, head: str, text: str) -> None:
    for width in (1, 2, 3, 7, len(text)):
        tokens = fed(encoder(name).growing(head), chunks(text, [width]))
        assert ids(tokens) == whole(name, head + text)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None)
@given(text=WRITING, cuts=CUTS, head=st.sampled_from(HEADS))
def test_any_cutting_gives_the_same_offsets(
    name: str, text: str, cuts: list[int], head: str
) -> None:
    at_once = fed(encoder(name).growing(head), iter([text]))
    assert fed(encoder(name).growing(head), chunks(text, cuts)) == at_once


@pytest.mark.parametrize(
    ("text", "offsets"),
    [
        pytest.param("q\u0301 \u1112\u1161\u11ab.", [0, 1, 2, 3, 6], id="a composed one beside"),
        pytest.param("中\u0301\u0323.", [0, 1, 3], id="marks that change places"),
    ],
)
@pytest.mark.parametrize("width", [1, 2, 9])
def test_what_composes_is_one_and_what_does_not_is_several(
    text: str, offsets: list[int], width: int
) -> None:
    tokens = fed(encoder("bundled").growing(), chunks(text, [width]))
    assert {place for token in tokens for place in (token.start, token.end)} <= {
        *offsets,
        len(text),
    }


def test_a_letter_of_a_contraction_may_become_another_one() -> None:
    text = "A's A's\u0301 A'll\u0301"
    assert ids(fed(encoder("cases").growing(), iter(text))) == whole("cases", text)


@settings(max_examples=150, deadline=None)
@given(text=WRITING, cuts=CUTS, head=st.sampled_from(HEADS))
def test_offsets_cover_the_text_in_order(text: str, cuts: list[int], head: str) -> None:
    tokens = fed(encoder("bundled").growing(head), chunks(text, cuts))
    reached = 0
    for token in tokens:
        assert token.start <= reached <= token.end <= len(text)
        reached = token.end
    assert reached == len(text)


@settings(max_examples=150, deadline=None)
@given(text=WRITING, cuts=CUTS)
def test_offsets_of_normalized_text_are_the_tokenizers(text: str, cuts: list[int]) -> None:
    text = tokenizer("bundled").normalizer.normalize_str(text)
    tokens = fed(encoder("bundled").growing(), chunks(text, cuts))
    expected = tokenizer("bundled").encode(text, add_special_tokens=False).offsets
    assert [(token.start, token.end) for token in tokens] == expected


def test_a_letter_that_is_half_composed_may_become_part_of_a_token() -> None:
    """ê and an acute accent are ế, with which "tiế" is a token, although "tiê" is none."""
    merges = [("t", "i"), ("á", "º"), ("áº", "¿"), ("ti", "áº¿")]
    entries = [*sorted(ByteLevel.alphabet()), *map("".join, merges)]
    small = Tokenizer(BPE({entry: id_ for id_, entry in enumerate(entries)}, merges))
    small.pre_tokenizer = ByteLevel(add_prefix_space=False)  # pyright: ignore
    small.normalizer = NFC()  # pyright: ignore[reportAttributeAccessIssue]
    tokens = fed(TextEncoder(small).growing(), iter("tiê\u0301"))
    assert [(token.id, token.start, token.end) for token in tokens] == [(len(entries) - 1, 0, 4)]


def test_tokens_of_the_head_are_nowhere_in_the_text() -> None:
    tokens = encoder("bundled").growing("\n\n").feed("the. ")
    assert [(token.start, token.end) for token in tokens] == [(0, 0), (0, 3), (3, 4)]


def test_a_token_of_head_and_text_starts_with_the_text() -> None:
    growing = encoder("bundled").growing("\n\n")
    assert growing.feed("\n\n") == []
    assert [(token.start, token.end) for token in growing.feed("the.")] == [
        (0, 2),
        (2, 5),
    ]


@settings(max_examples=100, deadline=None)
@given(text=WRITING, cuts=CUTS, one=WRITING, other=WRITING)
def test_forks_go_on_by_themselves(text: str, cuts: list[int], one: str, other: str) -> None:
    growing = encoder("bundled").growing()
    before = [*chain.from_iterable(map(growing.feed, chunks(text, cuts)))]
    fork = growing.fork()
    ours, theirs = growing.feed(one), fork.feed(other)
    assert ids([*before, *ours, *growing.finish()]) == whole("bundled", text + one)
    assert ids([*before, *theirs, *fork.finish()]) == whole("bundled", text + other)


@settings(max_examples=100, deadline=None)
@given(text=WRITING, cuts=CUTS)
def test_held_counts_what_is_not_wholly_handed_out(text: str, cuts: list[int]) -> None:
    growing = encoder("bundled").growing()
    length, tokens = 0, list[Token]()
    for chunk in chunks(text, cuts):
        length += len(chunk)
        tokens += growing.feed(chunk)
        reached = max((token.end for token in tokens), default=0)
        begun = max((token.start for token in tokens), default=0)
        assert length - reached <= growing.held <= length - begun
    growing.finish()
    assert growing.held == 0


@pytest.mark.parametrize(
    ("text", "held"),
    [
        pytest.param("the", 3, id="a word may go on"),
        pytest.param("Yes ", 1, id="a space belongs to the next word"),
        pytest.param("Yes, ", 1, id="punctuation before a space"),
        pytest.param("in 12", 0, id="digits stand alone"),
        pytest.param("Yes\n", 1, id="line breaks gather"),
        pytest.param("Yes\n\nI", 1, id="until something else comes"),
        pytest.param("it'", 1, id="an apostrophe waits for its letter"),
        pytest.param("我们去公园散步", 1, id="ideographs, as far as they form tokens"),
        pytest.param("我们。", 1, id="a full stop may be followed by line breaks"),
    ],
)
def test_little_is_held_back(text: str, held: int) -> None:
    growing = encoder("bundled").growing()
    for character in text:
        growing.feed(character)
    assert growing.held == held


MARKS = ["\u0301", "\u0300", "\u0307", "\u0323", "\u0338", "\u3099", "\u0654", "\u093c", "\u11ab"]
AFTER = ["", "a", " ", "\n", "1", ".", "中", "  ", " a", " \n", "s ", "'", "ll ", "\u0301", *MARKS]


@lru_cache
def _entries(name: str) -> list[bytes]:
    """The tokens of a vocabulary as bytes, sorted."""
    letters = "".join(sorted(ByteLevel.alphabet()))
    spelled = {bytes([byte]).decode("latin-1"): byte for byte in range(256)}
    free = iter(letter for letter in letters if ord(letter) > 255)
    known = {c: b for c, b in spelled.items() if c in letters}
    known |= {next(free): byte for c, byte in sorted(spelled.items()) if c not in letters}
    return sorted(bytes(known[c] for c in entry) for entry in tokenizer(name).get_vocab())


def _continuations(name: str, text: str) -> Iterator[str]:
    """All that may turn the end of a text into part of another token, and more."""
    yield from AFTER
    encoded, entries = unicodedata.normalize("NFC", text).encode(), _entries(name)
    for width in range(1, len(encoded) + 1):
        known = encoded[-width:]
        for entry in entries[bisect_left(entries, known) :]:
            if not entry.startswith(known):
                break
            for more in _completed(entry[width:]):
                yield from (more, more + " ", more + "a", more + "中")


def _completed(encoded: bytes) -> Iterator[str]:
    """The bytes as text; if the last character is not whole, all that it may be."""
    for missing in range(3):
        for last in range(0x80, 0xC0) if missing else (0,):
            tail = bytes([last] if missing == 1 else [last, last])[:missing]
            try:
                yield (encoded + tail).decode()
            except UnicodeDecodeError:
                continue


@lru_cache
def _needlessly_held(name: str, script: str) -> int:
    """After how many characters something is held, but no two continuations differ in what is next.

    A last character that may still compose does not count: it is handed out whole or not at all,
    although its first bytes may be certain.
    """
    growing, text, count = encoder(name).growing(), TEXTS[script], 0
    certain: list[Token] = []
    for length, character in enumerate(text, 1):
        certain += growing.feed(character)
        if growing.held and not _within_the_last(name, text[:length], len(certain)):
            known = text[:length]
            nexts = {tuple(whole(name, known)[len(certain) :][:1])}
            count += all(
                tuple(whole(name, known + more)[len(certain) :][:1]) in nexts
                for more in _continuations(name, known)
            )
    return count


PLAIN = ["English", "Chinese", "Thai", "Korean", "French", "emoji", "code", "markup"]


@pytest.mark.parametrize("script", PLAIN)
def test_nothing_is_held_back_without_need(script: str) -> None:
    assert _needlessly_held("bundled", script) == 0


@pytest.mark.parametrize("name", NAMES)
def test_next_to_nothing_is_held_back_without_need_in_any_script(name: str) -> None:
    """What is: pieces of characters that no whole character would continue, for one character."""
    scripts = [*PLAIN, "Japanese", "Arabic", "Hindi"]
    needless = sum(_needlessly_held(name, script) for script in scripts)
    assert needless <= 0.03 * sum(len(TEXTS[script]) for script in scripts)


def _within_the_last(name: str, text: str, certain: int) -> bool:
    """Whether the next token has bytes of a last character that may still compose."""
    last = len(text) - 1
    while last and unicodedata.combining(text[last]):
        last -= 1
    composes = any(
        unicodedata.normalize("NFC", text[last] + mark)[0] != text[last] for mark in MARKS
    )
    encoding = tokenizer(name).encode(text, add_special_tokens=False)
    return composes and encoding.offsets[certain][1] > last


MIXED = {
    "white space": " \n\r\t",
    "breaks and spaces": "\n      ",
    "kinds of spaces": "  \t\u3000\u00a0",
    "letters and apostrophes": "abst'’",
    "upper and lower case": "aAbBéÉ",
    "punctuation": "!?.,;-#_(",
    "punctuation and breaks": "!/\n\r",
    "digits": "0129٣²Ⅷ",
    "marks": "e\u0301\u0323\u0338",
    "zero width": "a\u200d\u200b\ufe0f ",
    "ideographs and spaces": "我们去 \n中，",
    "jamo": "\u1112\u1161\u11ab가",
    "emoji": "👍🏽\u200d🚀",
    "everything": " \n'’aAés1.!中\u0301\u200d👍\u3000\u00a0\x85ſ",
}


def _mixed(letters: str) -> str:
    return "".join(Random(letters).choices(letters, k=20_000))


LONG = {
    "words": "It is the same old story of words and more words, isn't it? " * 340,
    "ideographs": CHINESE.replace("，", "").replace("。", "") * 300,
    "one letter": "a" * 20_000,
    "spaces": " " * 20_000,
    "a line break and spaces": "\n" + " " * 20_000,
    "contractions": "stdm" * 5_000,
    "repeated punctuation": "!$?-" * 5_000,
    "repeated marks": "a" + "\u0301\u0323" * 10_000,
    **{name: _mixed(letters) for name, letters in MIXED.items()},
}


def _looked_at(text: str, width: int, name: str = "bundled") -> int:
    """How many characters the tokenizer is given for a text that is fed in chunks."""
    own, seen = TextEncoder(tokenizer(name)), 0
    encode, cut = own.merges.encode, own.splits.cut

    def encode_counted(piece: str) -> list[Merged]:
        nonlocal seen
        seen += len(piece)
        return encode(piece)

    def cut_counted(piece: str) -> list[int]:
        nonlocal seen
        seen += len(piece)
        return cut(piece)

    own.merges.encode, own.splits.cut = encode_counted, cut_counted
    assert ids(fed(own.growing(), chunks(text, [width]))) == whole(name, text)
    return seen


@pytest.mark.parametrize("width", [1, 2_000])
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_the_cost_of_a_text_is_linear(text: str, width: int) -> None:
    short, long = _looked_at(text[:5_000], width), _looked_at(text[:20_000], width)
    assert long < 2 * 4 * short
    assert long < 500 * 20_000


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("letters", MIXED.values(), ids=MIXED)
def test_mixtures_cost_little_whatever_the_tokenizer(name: str, letters: str) -> None:
    assert _looked_at(_mixed(letters)[:3_000], 4, name) < 200 * 3_000


def test_a_lone_surrogate_is_refused_and_does_no_harm() -> None:
    growing = encoder("bundled").growing()
    tokens = growing.feed("secret ")
    with pytest.raises(ConversationError) as caught:
        growing.feed("plan \ud83d")
    assert "plan" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert ids([*tokens, *growing.feed("plan"), *growing.finish()]) == whole(
        "bundled", "secret plan"
    )


def test_what_is_finished_takes_no_more() -> None:
    growing = encoder("bundled").growing()
    growing.finish()
    with pytest.raises(ValueError, match="finished"):
        growing.feed("more")
    with pytest.raises(ValueError, match="finished"):
        growing.finish()


def _words() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def _shortcuts() -> Tokenizer:
    tokenizer = _trained(ByteLevel(add_prefix_space=False), None)
    tokenizer.model.ignore_merges = True  # pyright: ignore
    return tokenizer


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(_words, id="words"),
        pytest.param(_shortcuts, id="words that are not merged"),
        pytest.param(lambda: _trained(Metaspace(), None), id="not bytes"),
        pytest.param(lambda: _trained(ByteLevel(add_prefix_space=True), None), id="a space added"),
        pytest.param(lambda: _trained(ByteLevel(add_prefix_space=False), NFKC()), id="NFKC"),
    ],
)
def test_tokenizers_that_cannot_be_followed_are_refused(make: Callable[[], Tokenizer]) -> None:
    with pytest.raises(CheckpointError):
        TextEncoder(make())
