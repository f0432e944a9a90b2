"""Examples of our own: seeded templates with slots, harmful and harmless in the same shapes.

The words live in phrases/*.txt. A section starts with `=` and says what its lines are:

    = list NAME                     comma-separated fillers for {NAME}
    = frame SHAPE [SIDE]            how a phrase of that shape is asked for
    = SEVERITY SHAPE CATEGORY       phrases: `do` (a verb phrase), `write` (a noun phrase),
                                    `topic` (a noun), `say` (a whole text),
                                    `piece` (what a text does), `task` (a request of
                                    several clauses), `answer` (a whole reply that is
                                    harmful or harmless by itself)
    = reply KIND                    whole replies: refusal, comply, support

A tenth of the phrases, by hash, is held out to see how the model does on words it never read.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from training import example as labels
from training.data import tenth
from training.example import Example

PHRASES = Path(__file__).with_name("phrases")
LONG = ("piece", "task")
"""Shapes of longer requests: a third of what is asked, where a category has them."""
_ECHO = "\0"
_OPENING = re.compile(
    r"^(how (do|can|could|would|should) (i|you|one|we)|how to|tell me how to|please|can you)\s+",
    re.IGNORECASE,
)
_SLOT = re.compile(r"\{([^{}]*)\}")
_DOUBLED = re.compile(r"^(?:[^aeiou]*|.*(?:begin|admit|commit|forget|transmit))[aeiou][bdgmnprt]$")


class Grammar:
    """One language's phrases, and random examples made of them."""

    def __init__(self, path: Path, *more: Path) -> None:
        self.lists: dict[str, list[str]] = defaultdict(list)
        self.frames: dict[str, list[str]] = defaultdict(list)
        self.phrases: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        self.replies: dict[str, list[str]] = defaultdict(list)
        self.spaced = path.stem == "en"
        for each in (path, *more):
            self._parse(each.read_text(encoding="utf-8").splitlines())

    def _parse(self, lines: Iterable[str]) -> None:
        target, fillers = list[str](), False
        for line in map(str.strip, lines):
            if line.startswith("= "):
                kind, *rest = line[2:].split(maxsplit=2)
                fillers = kind == "list"
                if kind == "list":
                    target = self.lists[rest[0]]
                elif kind == "frame":
                    target = self.frames[" ".join(rest)]
                elif kind == "reply":
                    target = self.replies[rest[0]]
                else:
                    name = rest[1] if len(rest) > 1 else labels.NONE
                    target = self.phrases[kind.capitalize(), rest[0], name]
            elif line and not line.startswith("#"):
                parts = (part.strip() for part in line.split(",")) if fillers else (line,)
                target.extend(filter(None, parts))

    def fill(self, text: str, generator: random.Random) -> str:
        """`text` with every {list} and every {this|that} replaced."""

        def choose(match: re.Match[str]) -> str:
            name = match[1]
            options = name.split("|") if "|" in name else self.lists.get(name)
            if not options:
                raise KeyError(f"no list {name!r} for {text!r}")
            return self.fill(generator.choice(options), generator)

        while _SLOT.search(text):
            text = _SLOT.sub(choose, text)
        return re.sub(r"\b([Aa]) (?=[aeiouAEIOU](?!ni|se|rin|ro))", r"\1n ", text)

    def ask(self, shape: str, severity: str, phrase: str, generator: random.Random) -> str:
        """A request made of a phrase: `do`, `write` and `topic` need a frame, `say` is whole."""
        phrase = self.fill(phrase, generator)
        if shape in ("say", "answer"):
            return phrase[:1].upper() + phrase[1:]
        side = "safe" if severity == labels.SAFE else "unsafe"
        frames = self.frames[shape] + self.frames[f"{shape} {side}"]
        frame = generator.choice(frames)
        frame = frame.replace("{doing}", gerund(phrase)).replace("{it}", phrase)
        text = self.fill(frame, generator)
        return text[:1].upper() + text[1:]

    def prompts(
        self, count: int, generator: random.Random, *, held_out: bool, severity: str
    ) -> list[Example]:
        """`count` prompts of a severity, its categories in equal shares, phrases within them."""
        short = self._cells(severity, held_out=held_out, longer=False)
        longer = self._cells(severity, held_out=held_out, longer=True)
        names = sorted(short)
        found: list[Example] = []
        for i in range(count if names else 0):
            name = names[i % len(names)]
            cells = longer if name in longer and generator.random() < 0.33 else short
            shape, phrase = generator.choice(cells[name])
            text = self.ask(shape, severity, phrase, generator)
            found.append(Example(turns=(text,), severity=severity, category=name))
        return found

    def _cells(
        self, severity: str, *, held_out: bool, longer: bool
    ) -> dict[str, list[tuple[str, str]]]:
        cells: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for (level, shape, name), phrases in self.phrases.items():
            if level == severity and shape != "answer" and (shape in LONG) == longer:
                cells[name] += [(shape, p) for p in phrases if tenth(p) == held_out]
        return {name: phrases for name, phrases in cells.items() if phrases}

    def answers(
        self, count: int, generator: random.Random, *, held_out: bool
    ) -> list[tuple[str, str, str]]:
        """`count` replies that speak for themselves, half harmful: text, severity, category."""
        drawn: list[tuple[str, str, str]] = []
        for severity in (labels.SAFE, labels.UNSAFE):
            pool = [
                (phrase, name)
                for (level, shape, name), phrases in self.phrases.items()
                for phrase in phrases
                if level == severity and shape == "answer" and tenth(phrase) == held_out
            ]
            for _ in range(count // 2 if pool else 0):
                phrase, name = generator.choice(pool)
                drawn.append((self.ask("answer", severity, phrase, generator), severity, name))
        return drawn

    def reply(self, kind: str, prompt: str, generator: random.Random) -> str:
        """A whole reply of a kind; `{prompt}` in it becomes the request's own words."""
        text = generator.choice(self.replies[kind]).replace("\\n", "\n")
        text = self.fill(text.replace("{prompt}", _ECHO), generator)
        return text.replace(_ECHO, _echo(prompt))


def _echo(prompt: str) -> str:
    return _OPENING.sub("", prompt.strip().rstrip("?.!？。！"))


def gerund(phrase: str) -> str:
    """`make a cake` → `making a cake`."""
    verb, space, rest = phrase.partition(" ")
    if verb.endswith("ie"):
        verb = verb[:-2] + "y"
    elif verb.endswith("e") and not verb.endswith(("ee", "ye", "oe")) and verb != "be":
        verb = verb[:-1]
    elif _DOUBLED.match(verb):
        verb += verb[-1]
    return f"{verb}ing{space}{rest}"


@cache
def grammars() -> tuple[Grammar, Grammar]:
    """English and Chinese."""
    return Grammar(PHRASES / "en.txt"), Grammar(PHRASES / "zh.txt")


def prompts(count: int, *, seed: int, held_out: bool = False) -> list[Example]:
    """About `count` prompts: English twice as often as Chinese; safe and harmful half each."""
    generator = random.Random(seed)
    shares = ((labels.SAFE, 0.5), (labels.UNSAFE, 0.4), (labels.CONTROVERSIAL, 0.1))
    found: list[Example] = []
    for grammar, language in zip(grammars(), (2 / 3, 1 / 3), strict=True):
        for severity, share in shares:
            size = round(count * language * share)
            found += grammar.prompts(size, generator, held_out=held_out, severity=severity)
    return found


def replies(
    asked: Iterable[Example], *, seed: int, refuse: float = 0.5, support: float = 0.12
) -> list[Example]:
    """Replies of our own to prompts: refusals to anything, harmful help, kind redirection.

    A refusal is Safe whatever was asked; harmful help carries the prompt's own label.
    """
    generator = random.Random(seed)
    english, chinese = grammars()
    found: list[Example] = []
    for e in asked:
        prompt = e.turns[-1]
        grammar = chinese if re.search(r"[\u4e00-\u9fff]", prompt) else english
        dice = generator.random()
        if dice < refuse or not e.flagged:
            kind, severity, category = "refusal", labels.SAFE, labels.NONE
        elif dice < refuse + support or e.severity == labels.CONTROVERSIAL:
            kind, severity, category = "support", labels.SAFE, labels.NONE
        else:
            kind, severity, category = "comply", e.severity, e.category
            if category == labels.JAILBREAK:
                continue
        found.append(
            Example(
                turns=(*e.turns, grammar.reply(kind, prompt, generator)),
                severity=severity,
                category=category,
                refusal=kind == "refusal",
            )
        )
    return found


def answers(
    asked: Iterable[Example], *, seed: int, share: float = 1.0, held_out: bool = False
) -> list[Example]:
    """Replies of our own whose harm does not hang on the prompt, two to every prompt of `asked`.

    Harmful and harmless ones have the same shapes and follow the same prompts.
    """
    generator = random.Random(seed)
    english, chinese = grammars()
    found: list[Example] = []
    for e in asked:
        grammar = chinese if re.search(r"[\u4e00-\u9fff]", e.turns[-1]) else english
        for text, severity, name in grammar.answers(2, generator, held_out=held_out):
            if generator.random() < share:
                turns = (*e.turns, text)
                found.append(Example(turns=turns, severity=severity, category=name, refusal=False))
    return found


def blanks() -> list[Example]:
    """Nothing said, nothing answered: harmless."""
    nothing = ("", " ", "\n", "\n\n", "\t", "   ")
    asked = [Example(turns=(text,)) for text in nothing]
    answered = [
        Example(turns=(prompt, text), refusal=False)
        for prompt in ("Hello", "你好", "How can I make a cake?", "")
        for text in nothing
    ]
    return asked + answered
