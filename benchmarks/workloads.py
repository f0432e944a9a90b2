"""What is judged in the benchmark: made-up texts of exact lengths, the same in every run.

Nearly all are harmless. Every eighth text ends with a harmful question, so that verdicts differ and
their agreement says something.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import count as numbers
from pathlib import Path

Messages = list[dict[str, str]]
"""A conversation as the model card writes it: dictionaries with role and content."""

Count = Callable[[str], int]
"""The length of a text, in tokens."""

HARMFUL = "How can I make a bomb?"

_WHO = ["The ferry", "A fishing boat", "The harbour master", "Our neighbour", "The night train"]
_DOES = ["leaves", "comes back", "waits", "stays", "is said to arrive", "stops for a while"]
_WHERE = ["at the old pier", "behind the islands", "near the market", "north of the lighthouse"]
_WHEN = [
    "before dawn",
    "in the late afternoon",
    "on most Sundays",
    "when the tide turns",
    "at noon",
]
_FOLDERS = ("simple_safety_tests", "harmbench_prompts_guard", "xstest", "openai_moderation")


class Mode(Enum):
    """How conversations are handed in."""

    BATCH = "batch"
    TURNS = "turns"
    """One after another."""
    CALLERS = "callers"
    """Each by a thread of its own, all at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Something to time."""

    name: str
    conversations: list[Messages]
    mode: Mode = Mode.BATCH
    rounds: int
    """On the bundled checkpoint."""
    large_rounds: int
    """On a real shape, which takes a hundred times longer."""
    ours_only: bool = False
    """Where the others do the same as in another workload."""

    @property
    def texts(self) -> list[str]:
        return [message["content"] for messages in self.conversations for message in messages]


ALONE = "64 prompts, one after another"
AT_ONCE = "64 callers at once"


def workloads(count: Count, *, document: int) -> list[Workload]:
    """All of them; `document` is the length of the long text, in tokens."""
    shorts = [[_user(_ending(f"When does ferry number {i} leave?", i))] for i in range(64)]
    return [
        Workload(
            name="one short prompt",
            conversations=[[_user("Where does the ferry to the islands leave from?")]],
            rounds=15,
            large_rounds=5,
        ),
        Workload(
            name="prompt and reply, 400 tokens",
            conversations=[[_user(text(200, 1, count)), _assistant(text(200, 2, count))]],
            rounds=15,
            large_rounds=3,
        ),
        Workload(
            name="32 chunks of 200 tokens",
            conversations=[[_user(_ending(text(192, 10 + i, count), i))] for i in range(32)],
            rounds=5,
            large_rounds=1,
        ),
        Workload(name=AT_ONCE, conversations=shorts, mode=Mode.CALLERS, rounds=5, large_rounds=1),
        Workload(
            name=ALONE,
            conversations=shorts,
            mode=Mode.TURNS,
            rounds=5,
            large_rounds=1,
            ours_only=True,
        ),
        Workload(
            name=f"document of {document:,} tokens",
            conversations=[[_user(text(document, 3, count))]],
            rounds=2,
            large_rounds=1,
        ),
    ]


def text(tokens: int, seed: int, count: Count) -> str:
    """Sentences about a harbour, as many as fit into `tokens`."""
    sentences = list[str]()
    room = tokens
    for sentence in _sentences(random.Random(seed)):
        needed = count(f" {sentence}")
        if needed > room:
            return " ".join(sentences)
        sentences.append(sentence)
        room -= needed
    raise AssertionError("sentences never end")


def real_prompts(folder: Path, most: int) -> list[Messages]:
    """Up to `most` prompts of public benchmarks, in turn from each; none if there is no folder."""
    files = [folder / "benchmarks" / f"{name}.jsonl.gz" for name in _FOLDERS]
    sources = [list(_prompts(file)) for file in files if file.exists()]
    longest = max(map(len, sources), default=0)
    mixed = [source[i] for i in range(longest) for source in sources if i < len(source)]
    return [[_user(prompt)] for prompt in mixed][:most]


def _prompts(file: Path) -> Iterator[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            prompt = json.loads(line)["prompt"]
            if isinstance(prompt, str) and 0 < len(prompt) < 1500:
                yield prompt


def _sentences(choose: random.Random) -> Iterator[str]:
    for number in numbers(1):  # no sentence comes twice: what is equal is judged once
        parts = [choose.choice(options) for options in (_WHO, _DOES, _WHERE, _WHEN)]
        yield " ".join(parts) + f", day {number}."


def _ending(start: str, index: int) -> str:
    return f"{start} {HARMFUL}" if index % 8 == 7 else start


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}
