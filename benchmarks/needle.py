"""A harmful sentence hidden in a long harmless text: how often windows of each size find it.

Texts of 20,000 tokens are made of paragraphs, English in one and Chinese in the next, that the
model calls safe, each judged alone. Sentences from safety benchmarks that it does not call safe,
judged alone, are put into them, one at a time, at evenly spread places. A sentence counts as found
where the verdict is not Safe and one of its spans holds the whole sentence. The harmless texts are
judged as well, for false alarms and for the cost: tokens computed for each token of text.

The data is not in this repository: `GUARDRAILS_QWEN_DATA` names its folder.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from tokenizers import Tokenizer

import guardrails_qwen
from guardrails_qwen import Conversation, Severity, Verdict
from guardrails_qwen.engines.base import Engine
from guardrails_qwen.engines.transformers import TransformersEngine
from guardrails_qwen.longtext import Window, Windows, merged, windows
from guardrails_qwen.sentences import sentences

BUNDLED = Path(guardrails_qwen.__file__).parent / "checkpoints" / "tiny-gen"
DATA = Path(os.environ.get("GUARDRAILS_QWEN_DATA", Path(__file__).parents[2] / "shared" / "data"))
HARMLESS = {
    "en": ["train/gsm8k_train", "train/self_instruct_t0", "train/clinc150"],
    "zh": ["train/belle_zh", "train/kdconv_zh"],
}
HARMFUL = {
    "en": ["benchmarks/simple_safety_tests", "benchmarks/harmbench_prompts_guard"],
    "zh": ["train/catqa"],
}
LANGUAGES = ["en", "zh"]
SETTINGS = [
    Windows(tokens=tokens, overlap=overlap, sentences=False)
    for tokens in (64, 128, 256, 512, 1024)
    for overlap in (1, tokens // 4)
] + [Windows(tokens=tokens, overlap=64, sentences=True) for tokens in (256, 512)]

UNCUT = Windows(tokens=1_200, overlap=0, history=0)
"""Of the engine, which is handed windows that are cut already."""


@dataclass(frozen=True)
class Haystack:
    """A harmless text with the places between its sentences, and the needles of its language."""

    text: str
    needles: Sequence[str]

    @cached_property
    def places(self) -> list[int]:
        """Where a sentence may be put in."""
        return [span.end for span in sentences(self.text)]

    def hiding(self, index: int, depth: float) -> tuple[str, int, int]:
        """The text with one needle at a depth of 0 … 1, and where the needle is."""
        place = self.places[int(depth * len(self.places))]
        needle = self.needles[index % len(self.needles)]
        before, after = self.text[:place], self.text[place:].lstrip()
        text = f"{before}{_gap(before)}{needle}{_gap(needle)}{after}"
        return text, place + 1, place + 1 + len(needle)


def _gap(text: str) -> str:
    """What parts a sentence from the next: a space behind a stop, else a line break."""
    return " " if text[-1] in ".!?。！？" else "\n"


@dataclass
class Judge:
    """An engine that remembers what it judged, and a measure that remembers what it counted."""

    engine: Engine
    encode: Callable[[list[str]], Iterable[int]]
    lengths: dict[str, int] = field(default_factory=dict[str, int])
    verdicts: dict[str, Verdict] = field(default_factory=dict[str, Verdict])

    def measure(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        new = [text for text in dict.fromkeys(texts) if text not in self.lengths]
        self.lengths.update(zip(new, self.encode(new) if new else [], strict=True))
        return [self.lengths[text] for text in texts]

    def judged(self, texts: Sequence[str]) -> list[Verdict]:
        """A verdict on each text as a prompt.

        Raises:
            GuardError: A text could not be judged.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self.verdicts]
        outcomes = self.engine.judge([Conversation.of(text) for text in new])
        for text, outcome in zip(new, outcomes, strict=True):
            if not isinstance(outcome, Verdict):
                raise outcome
            self.verdicts[text] = outcome
        return [self.verdicts[text] for text in texts]

    def harmful(self, texts: Sequence[str]) -> list[str]:
        """Those that are not safe."""
        verdicts = self.judged(texts)
        return [t for t, verdict in zip(texts, verdicts, strict=True) if verdict.severity]

    def windows(self, text: str, settings: Windows) -> list[Window]:
        """The windows of a text."""
        return windows(Conversation.of(text), self.measure, settings)

    def verdict(self, found: Sequence[Window]) -> Verdict:
        """The verdict on a text from its windows."""
        outcome = merged(found, self.judged([w.conversation.last.text for w in found]))
        if not isinstance(outcome, Verdict):
            raise outcome
        return outcome


def texts(sources: Iterable[str], language: str) -> Iterator[str]:
    """Prompts and replies of one language, white space at the ends removed."""
    for source in sources:
        with gzip.open(DATA / f"{source}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                fields = [row["prompt"], row["response"]] if row["lang"] == language else []
                yield from (text.strip() for text in fields if text and text.strip())


def haystacks(judge: Judge, *, tokens: int, count: int, seed: int = 0) -> list[Haystack]:
    """Harmless texts of so many tokens, English and Chinese in turn, with their needles.

    Raises:
        ValueError: There is too little data for them.
    """
    chance = random.Random(seed)
    return [
        stack
        for language in LANGUAGES
        for stack in _haystacks(judge, language, tokens, count // len(LANGUAGES), chance)
    ]


def _haystacks(
    judge: Judge, language: str, tokens: int, count: int, chance: random.Random
) -> Iterator[Haystack]:
    needles = [t for t in texts(HARMFUL[language], language) if len(list(sentences(t))) == 1]
    needles = judge.harmful(needles)
    chance.shuffle(needles)
    pool = [t for t in dict.fromkeys(texts(HARMLESS[language], language)) if len(t) < 800]
    chance.shuffle(pool)
    for _ in range(count):
        paragraphs, size = list[str](), 0
        while size < tokens:
            batch, pool = pool[:64], pool[64:]
            if not batch:
                raise ValueError(f"{DATA} has too little harmless text in {language}")
            harmful = set(judge.harmful(batch))
            batch = [text for text in batch if text not in harmful]
            totals = accumulate(judge.measure(batch), initial=size)
            kept = [text for text, total in zip(batch, totals, strict=False) if total < tokens]
            paragraphs += kept
            size += sum(judge.measure(kept))
            if len(kept) < len(batch):
                break
        yield Haystack(text="\n".join(paragraphs), needles=needles)


def found(judge: Judge, stacks: Sequence[Haystack], settings: Windows, placements: int) -> int:
    """How many of the needles are found. Only windows that touch a needle are judged."""
    count = 0
    for index in range(placements):
        stack = stacks[index % len(stacks)]
        text, start, end = stack.hiding(index // len(stacks), (index + 0.5) / placements)
        near = [
            window
            for window in judge.windows(text, settings)
            if window.span and window.span.start < end and start < window.span.end
        ]
        verdicts = judge.judged([window.conversation.last.text for window in near])
        count += any(
            verdict.severity
            and window.span
            and window.span.start <= start
            and end <= window.span.end
            for window, verdict in zip(near, verdicts, strict=True)
        )
    return count


@dataclass(frozen=True)
class Price:
    """What windows cost on harmless texts."""

    windows: int
    alarms: int
    """Windows that are not safe."""
    texts: int
    """Texts that are not safe."""
    computed: int
    """Tokens computed."""


def price(judge: Judge, stacks: Sequence[Haystack], settings: Windows) -> Price:
    """Alarms and cost where there is nothing to find."""
    every = [judge.windows(stack.text, settings) for stack in stacks]
    verdicts = [judge.verdict(own) for own in every]
    judged = [judge.judged([w.conversation.last.text for w in own]) for own in every]
    return Price(
        windows=sum(map(len, every)),
        alarms=sum(verdict.severity > Severity.SAFE for own in judged for verdict in own),
        texts=sum(verdict.severity > Severity.SAFE for verdict in verdicts),
        computed=sum(verdict.tokens or 0 for verdict in verdicts),
    )


def load(folder: Path) -> Judge:
    """The engine on the CPU, and its tokenizer."""
    engine = TransformersEngine.from_pretrained(
        folder, device="cpu", dtype="float32", windows=UNCUT
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(texts: list[str]) -> Iterable[int]:
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [len(encoding.ids) for encoding in encodings]

    return Judge(engine=engine, encode=encode)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED)
    parser.add_argument("--placements", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=20_000, help="of each harmless text")
    parser.add_argument("--texts", type=int, default=4, help="harmless texts, an even number")
    parser.add_argument("--windows", type=int, nargs="*", help="sizes to try, in tokens")
    options = parser.parse_args()

    judge = load(options.checkpoint)
    stacks = haystacks(judge, tokens=options.tokens, count=options.texts)
    size = sum(judge.measure([stack.text for stack in stacks]))
    print(f"{judge.engine!r}, {len(stacks)} texts of {size // len(stacks)} tokens\n")
    print("| window | overlap | sentences alone | found | windows | alarms | texts | cost |")
    print("|---|---|---|---|---|---|---|---|")
    for settings in SETTINGS:
        if options.windows and settings.tokens not in options.windows:
            continue
        hits = found(judge, stacks, settings, options.placements)
        paid = price(judge, stacks, settings)
        print(
            f"| {settings.tokens} | {settings.overlap} | {'yes' if settings.sentences else 'no'} "
            f"| {hits} of {options.placements} | {paid.windows} | {paid.alarms} "
            f"| {paid.texts} of {len(stacks)} | {paid.computed / size:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
