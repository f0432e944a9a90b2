"""Replies whose harmful part starts at a known sentence, and harmless ones of the same make.

A reply is a lead, a part and a rest: sentences of harmless replies around one part that is
harmful or, in the twin, harmless. Every kind of part has both, and harmless replies change their
topic in the same places, so that neither the seam nor the style tells them apart.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from training import data, mixture
from training import example as labels
from training.example import Example
from training.stream_example import Piece, StreamExample
from training.synthetic import PHRASES, Grammar

_SENTENCE = re.compile(r".+?(?:[.!?]+(?=\s|$)|[。！？；]+|\n+|$)", re.DOTALL)
_KINDS = {"phrase": 41, "steps": 16, "statement": 18, "excerpt": 15, "saying": 10}
"""How often a part is of each kind."""
_BUDGETS = ((0, 18), (90, 26), (260, 26), (700, 18), (1800, 9), (4200, 3))
"""Characters of a lead and how often; a Chinese one has two fifths of them."""
_CONTESTED = ("do_not_answer_responses", "gptfuzz_labelled_train", "jade_db_v3_responses")


def sentences(text: str) -> list[str]:
    """`text` in sentences and lines, without the space between them."""
    return [part.strip() for part in _SENTENCE.findall(text) if part.strip()]


@cache
def grammars() -> dict[bool, Grammar]:
    """The phrases for replies, English (False) and Chinese (True)."""
    return {
        chinese: Grammar(PHRASES / f"{name}.txt", PHRASES / f"stream_{name}.txt")
        for chinese, name in ((False, "en"), (True, "zh"))
    }


def is_chinese(text: str) -> bool:
    """Whether `text` holds Chinese characters."""
    return re.search(r"[\u4e00-\u9fff]", text) is not None


@dataclass(slots=True, kw_only=True)
class Pools:
    """What replies of one language are made of."""

    asked: dict[bool, list[Example]] = field(default_factory=lambda: {True: [], False: []})
    """Short prompts, by whether they are harmful."""
    ordinary: list[tuple[Example, list[str]]] = field(default_factory=list)
    """Harmless replies in sentences."""
    said: dict[bool, list[Example]] = field(default_factory=lambda: {True: [], False: []})
    replied: dict[bool, list[Example]] = field(default_factory=lambda: {True: [], False: []})
    """Whole replies of sources that have harmful ones."""


def pools(examples: Iterable[Example]) -> dict[bool, Pools]:
    """The pools of both languages."""
    found = {False: Pools(), True: Pools()}
    for e in examples:
        pool = found[is_chinese(e.turns[-1])]
        if e.judges_reply:
            if e.source in data.BENIGN and e.turns[-1].strip():
                pool.ordinary.append((e, sentences(e.turns[-1])))
            elif e.source in _CONTESTED or (e.flagged and e.source != "diasafety_train"):
                pool.replied[e.flagged].append(e)
            continue
        if e.source in data.OFFENSIVE:
            if not re.search(r"[?？]", e.turns[0]):
                pool.said[e.flagged].append(e)
        elif 0 < len(e.turns[0].strip()) < 300 and e.category != labels.JAILBREAK:
            pool.asked[e.flagged].append(e)
    return found


class Composer:
    """Draws replies from the pools and from our own phrases, held out or not."""

    def __init__(
        self, examples: Iterable[Example], generator: random.Random, *, held_out: bool = False
    ) -> None:
        self.pools = pools(examples)
        self.generator = generator
        self.phrases = {chinese: _cells(g, held_out) for chinese, g in grammars().items()}

    def compose(self, count: int, *, harmful: bool, chinese: float = 0.35) -> list[StreamExample]:
        """`count` examples; a third of them Chinese."""
        return [self._one(harmful, self.generator.random() < chinese) for _ in range(count)]

    def _one(self, harmful: bool, chinese: bool) -> StreamExample:
        asked = self._asked(chinese, self.generator.random() < (0.45 if harmful else 0.3))
        lead = self._lead(chinese, asked)
        part = self._part(harmful, chinese, asked)
        pieces = [Piece(text=lead)] if lead else []
        gap = self._gap(chinese) if lead else ""
        pieces.append(
            Piece(
                text=gap + part.text,
                severity=part.severity,
                category=part.category,
                vague=part.vague,
            )
        )
        if self.generator.random() < 0.5:
            rest = self._ordinary(chinese, self.generator.choice((80, 250, 600)))
            pieces.append(Piece(text=self._gap(chinese) + rest))
        return changed(
            StreamExample(
                turns=asked.turns,
                severity=asked.severity,
                category=asked.category,
                reply=tuple(pieces),
            ),
            self.generator,
        )

    def _asked(self, chinese: bool, harmful: bool) -> Example:
        pool = self.pools[chinese]
        if not harmful and self.generator.random() < 0.5:
            e, _ = self.generator.choice(pool.ordinary)
            if len(e.turns[0]) < 600 and e.source != "counsel_chat":
                return Example(turns=e.turns[:1], source=e.source)
        return self.generator.choice(pool.asked[harmful])

    def _lead(self, chinese: bool, asked: Example) -> str:
        sizes, odds = zip(*_BUDGETS, strict=True)
        (budget,) = self.generator.choices(sizes, odds)
        parts: list[str] = []
        if self.generator.random() < 0.45:
            parts.append(grammars()[chinese].reply("lead", asked.turns[-1][:150], self.generator))
        if budget:
            parts.append(self._ordinary(chinese, self.generator.randint(budget // 2, budget)))
        return self._gap(chinese).join(parts)

    def _ordinary(self, chinese: bool, budget: int) -> str:
        """Sentences of harmless replies, of as many as are needed to fill `budget`."""
        budget = budget * 2 // 5 if chinese else budget
        found, size = list[str](), 0
        while size < budget:
            _, lines = self.generator.choice(self.pools[chinese].ordinary)
            start = self.generator.randrange(len(lines)) if self.generator.random() < 0.5 else 0
            for line in lines[start:]:
                found.append(line)
                size += len(line)
                if size >= budget:
                    break
        gap = self._gap(chinese)
        return gap.join(found)

    def _part(self, harmful: bool, chinese: bool, asked: Example) -> Piece:
        (kind,) = self.generator.choices(list(_KINDS), list(_KINDS.values()))
        make: Callable[[bool, bool, Example], Piece] = getattr(self, f"_{kind}")
        return make(harmful, chinese, asked)

    def _phrase(self, harmful: bool, chinese: bool, asked: Example) -> Piece:
        """One to three of our own sentences, the first of which gives the label."""
        severity, name, cell = self._cell(harmful, chinese, ("answer",))
        texts = [
            grammars()[chinese].ask("answer", severity, phrase, self.generator)
            for phrase in self.generator.choices(cell, k=self.generator.choice((1, 1, 2, 3)))
        ]
        return Piece(text=self._gap(chinese).join(texts), severity=severity, category=name)

    def _saying(self, harmful: bool, chinese: bool, asked: Example) -> Piece:
        """A sentence of our own that a user would say, in the assistant's mouth."""
        severity, name, cell = self._cell(harmful, chinese, ("say",))
        phrase = self.generator.choice(cell)
        text = grammars()[chinese].ask("say", severity, phrase, self.generator)
        return Piece(text=text, severity=severity, category=name)

    def _steps(self, harmful: bool, chinese: bool, asked: Example) -> Piece:
        """Steps towards something that was asked for, harmful or not."""
        if asked.flagged != harmful or len(asked.turns[0]) > 120:
            asked = self.generator.choice(self.pools[chinese].asked[harmful])
        if harmful and asked.severity == labels.CONTROVERSIAL:
            return self._phrase(harmful, chinese, asked)
        kind = "comply" if harmful else "teach"
        text = grammars()[chinese].reply(kind, asked.turns[0][:120], self.generator)
        return Piece(text=text, severity=asked.severity, category=asked.category)

    def _statement(self, harmful: bool, chinese: bool, asked: Example) -> Piece:
        pool = self.pools[chinese].said[harmful]
        e = self.generator.choice(pool)
        return Piece(text=e.turns[0], severity=e.severity, category=e.category)

    def _excerpt(self, harmful: bool, chinese: bool, asked: Example) -> Piece:
        """Some sentences of a reply of the sources that have harmful replies."""
        e = self.generator.choice(self.pools[chinese].replied[harmful])
        lines = sentences(e.turns[-1])
        size = self.generator.randint(3, 8)
        start = self.generator.randint(0, max(0, len(lines) - size))
        text = self._gap(chinese).join(lines[start : start + size])[:1500]
        return Piece(text=text, severity=e.severity, category=e.category, vague=harmful)

    def _cell(
        self, harmful: bool, chinese: bool, shapes: Sequence[str]
    ) -> tuple[str, str, list[str]]:
        """The phrases of one severity and category, categories by the root of their number."""
        severity = labels.SAFE
        if harmful:
            rare = self.generator.random() < 0.15
            severity = labels.CONTROVERSIAL if rare else labels.UNSAFE
        cells = {
            name: phrases
            for (level, shape, name), phrases in self.phrases[chinese].items()
            if level == severity and shape in shapes
        }
        if not cells:
            return self._cell(harmful, not chinese, shapes)
        names = sorted(cells)
        (name,) = self.generator.choices(names, [len(cells[n]) ** 0.5 for n in names])
        return severity, name, cells[name]

    def _gap(self, chinese: bool) -> str:
        (gap,) = self.generator.choices(("" if chinese else " ", "\n", "\n\n"), (6, 2, 2))
        return gap


def _cells(grammar: Grammar, held_out: bool) -> dict[tuple[str, str, str], list[str]]:
    """The phrases of our own that may stand in a reply: no questions, no jailbreaks."""
    cells: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for (level, shape, name), phrases in grammar.phrases.items():
        if shape in ("answer", "say") and name != labels.JAILBREAK:
            cells[level, shape, name] = [
                p for p in phrases if data.tenth(p) == held_out and not re.search(r"[?？]", p)
            ]
    return {key: phrases for key, phrases in cells.items() if phrases}


def changed(e: StreamExample, generator: random.Random) -> StreamExample:
    """Now and then the reply in lower case."""
    if generator.random() > 0.06:
        return e
    reply = tuple(
        Piece(text=p.text.lower(), severity=p.severity, category=p.category, vague=p.vague)
        for p in e.reply
    )
    return StreamExample(
        turns=e.turns, severity=e.severity, category=e.category, reply=reply, source=e.source
    )


def whole(e: Example, asked: Example | None = None) -> StreamExample:
    """A judged prompt, or a reply that carries one label, as it is.

    `asked` is the reply's prompt with its label, where somebody labelled it.
    """
    if not e.judges_reply:
        return StreamExample(
            turns=e.turns, severity=e.severity, category=e.category, source=e.source
        )
    vague = e.flagged and e.source != "synthetic" and e.source not in data.OFFENSIVE
    piece = Piece(text=e.turns[-1], severity=e.severity, category=e.category, vague=vague)
    return StreamExample(
        turns=e.turns[:-1],
        severity=asked.severity if asked else None,
        category=asked.category if asked else labels.NONE,
        reply=(piece,),
        source=e.source,
    )


def refused(asked: Iterable[Example], generator: random.Random) -> list[StreamExample]:
    """Harmful prompts with a refusal, and more text after it."""
    found: list[StreamExample] = []
    for e in asked:
        grammar = grammars()[is_chinese(e.turns[-1])]
        kinds = generator.choice((("refusal",), ("refusal", "support"), ("support", "refusal")))
        texts = [grammar.reply(kind, e.turns[-1][:150], generator) for kind in kinds]
        piece = Piece(text="\n".join(texts))
        found.append(
            StreamExample(turns=e.turns, severity=e.severity, category=e.category, reply=(piece,))
        )
    return found


def with_history(
    e: StreamExample, before: Sequence[StreamExample], generator: random.Random
) -> StreamExample:
    """Now and then the example behind one or two exchanges, harmless or refused."""
    if len(e.turns) > 1 or not before or generator.random() > 0.08:
        return e
    turns = [
        text
        for b in generator.sample(list(before), generator.randint(1, 2))
        for text in (b.turns[-1][:300], b.text[:300])
    ]
    return StreamExample(
        turns=(*turns, *e.turns),
        severity=e.severity,
        category=e.category,
        reply=e.reply,
        source=e.source,
    )


def epoch(corpus: mixture.Corpus, *, seed: int, composed: int = 16000) -> list[StreamExample]:
    """One epoch's examples, unshuffled: prompts, whole replies and `composed` made ones."""
    generator = random.Random(seed)
    drawn = mixture.epoch(corpus, seed=seed)
    asked = {e.turns[-1]: e for e in drawn if not e.judges_reply}
    found = [
        whole(e, asked.get(e.turns[-2]) if e.judges_reply else None)
        for e in drawn
        if not (e.judges_reply and e.flagged and e.source == "diasafety_train")
    ]
    source = [e for e in drawn if len(e.turns) < 3]
    composer = Composer(source, generator)
    found += composer.compose(composed * 9 // 20, harmful=True)
    made = composer.compose(composed * 11 // 20, harmful=False)
    harmful = [e for e in source if not e.judges_reply and e.flagged and len(e.turns[0]) < 300]
    said_no = refused(generator.sample(harmful, composed // 16), generator)
    found += made + said_no
    before = [e for e in (*made, *said_no) if len(e.text) < 600]
    return [with_history(e, before, generator) for e in found]
