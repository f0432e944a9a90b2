"""What moderating a stream costs and what it lets through: `python -m benchmarks.streaming`.

Contenders take turns in one process with the same number of threads: a guard on a Qwen3Guard-Stream
checkpoint; the published recipe, which runs the whole reply again for every token; and a
Qwen3Guard-Gen of the same size that judges the reply so far every 32 tokens. Tables go to standard
output, and with the raw numbers into `.bench/streaming.md` and `.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import described
from benchmarks.streaming import delays, leaks, material, speed
from benchmarks.streaming.contenders import (
    EVERY,
    OURS,
    OURS_LATER,
    PUBLISHED,
    RERUN,
    Contender,
    Ours,
    Published,
    Rerun,
    pieces_of,
    plain_tokenizer,
    spans_of,
)
from benchmarks.streaming.report import Results, markdown
from benchmarks.widen import BUNDLED, BUNDLED_STREAM, SHAPES, kept
from benchmarks.workloads import text
from guardrails_qwen.engines.stream import StreamEngine
from guardrails_qwen.engines.transformers import TransformersEngine
from guardrails_qwen.streaming import Debounce, HoldBack, Streaming

ROOT = Path(__file__).parents[2]

LENGTHS = (128, 1024, 4096)
"""Of replies, in tokens."""

HELD = {
    "no debounce, nothing held back": Streaming(debounce=Debounce.OFF),
    "nothing but what the debounce needs": Streaming(),
    "16 tokens": Streaming(tokens=16),
    "the sentence": Streaming(hold_back=HoldBack.SENTENCE),
    "the reply": Streaming(hold_back=HoldBack.REPLY),
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    run = Run(options)
    for part in options.only.split(","):
        with run.noted(part):
            PARTS[part](run)
        run.write()
    run.close()
    print(run.file(".md").read_text(encoding="utf-8"))


class Run:
    """A run of the benchmark, part by part."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.dtype: torch.dtype = getattr(torch, options.dtype)
        options.folder.mkdir(exist_ok=True)
        self.folder, self.gen = self._checkpoints()
        self.engine = StreamEngine.from_pretrained(
            self.folder, device=options.device, dtype=options.dtype
        )
        self.tokenizer = plain_tokenizer(self.folder)
        about: dict[str, Any] = {**described(), "threads": torch.get_num_threads(), "load": {}}
        about |= {"device": options.device, "dtype": options.dtype}
        about["checkpoint"] = self.folder.name
        self.results = Results(about=about)
        self._published: Published | None = None
        self._rerun: TransformersEngine | None = None

    def _checkpoints(self) -> tuple[Path, Path]:
        """Those of Stream and of Gen, in the same shape."""
        options = self.options
        named = options.checkpoint
        source = BUNDLED_STREAM if named == BUNDLED_STREAM.name else Path(named)
        if not options.shape:
            return source, BUNDLED
        shape, suffix = SHAPES[options.shape], "" if options.dtype == "float32" else "-bfloat16"
        dtype = torch.float32 if options.dtype == "float32" else torch.bfloat16
        gen, stream = (
            options.folder / f"{kind}{options.shape}{suffix}" for kind in ("", "stream-")
        )
        return (
            kept(stream, shape, dtype=dtype, source=source),
            kept(gen, shape, dtype=dtype),
        )

    @property
    def published(self) -> Published:
        """Loaded when it is needed first."""
        if self._published is None:
            self._published = Published(self.folder, device=self.options.device, dtype=self.dtype)
        return self._published

    @property
    def rerun(self) -> TransformersEngine:
        """Loaded when it is needed first."""
        if self._rerun is None:
            self._rerun = TransformersEngine.from_pretrained(
                self.gen, device=self.options.device, dtype=self.options.dtype
            )
        return self._rerun

    @contextmanager
    def noted(self, part: str) -> Generator[None]:
        """Say what is being measured, and how busy the machine was."""
        print(f"{part} …", file=sys.stderr, flush=True)
        before = os.getloadavg()[0]
        yield
        self.results.about["load"][part] = before, os.getloadavg()[0]

    def file(self, suffix: str) -> Path:
        """Where results go: each shape has its own."""
        shape = f"-{self.options.shape}" if self.options.shape else ""
        return self.options.folder / f"streaming{shape}{suffix}"

    def write(self) -> None:
        """All that there is so far, so that an interrupted run leaves what it has."""
        self.file(".md").write_text(markdown(self.results), encoding="utf-8")
        raw = json.dumps(asdict(self.results), indent=1)
        self.file(".json").write_text(raw + "\n", encoding="utf-8")

    def close(self) -> None:
        self.engine.close()
        if self._rerun is not None:
            self._rerun.close()

    def pieces(self, tokens: int, seed: int) -> list[str]:
        """The texts of so many tokens."""

        def count(part: str) -> int:
            return len(self.tokenizer.encode(part, add_special_tokens=False).ids)

        return pieces_of(text(tokens + 40, seed, count), self.tokenizer)[:tokens]

    def tokens(self, reply: str) -> list[tuple[int, int]]:
        """A reply as the guard's tokens."""
        return spans_of(reply, self.tokenizer)

    def costs(self) -> None:
        contenders: list[Contender] = [
            Ours(self.engine),
            Ours(self.engine, run=EVERY, fed=EVERY, name=OURS_LATER),
            self.published,
            Rerun(self.rerun),
        ]
        for length in self.options.lengths:
            rounds = self.options.rounds
            self.results.costs[length] = speed.costs(
                contenders, self.pieces(length + EVERY, 1), length, rounds
            )
            self.write()

    def flatness(self) -> None:
        self.results.places = places = self.options.lengths[0], self.options.lengths[-1]
        pieces = self.pieces(places[1] + 64, 2)
        for fed in (1, 16):
            self.results.flatness.append(
                speed.flatness(
                    self.engine, pieces, places=places, fed=fed, rounds=self.options.rounds
                )
            )

    def together(self) -> None:
        replies = [self.pieces(self.options.together, 100 + i) for i in range(64)]
        for fed in (1, 16):
            self.results.together.append(
                asyncio.run(
                    speed.together(self.engine, replies, fed=fed, rounds=self.options.rounds)
                )
            )

    def paced(self) -> None:
        streams, rate = self.options.paced
        replies = [self.pieces(int(10 * rate), 200 + i) for i in range(streams)]
        self.results.paced.append(asyncio.run(speed.paced(self.engine, replies, rate=rate, fed=16)))

    def leaks(self) -> None:
        streams, self.results.source = self._streams()
        for name, settings in HELD.items():
            outcomes = asyncio.run(
                leaks.moderated(lambda _: self.engine, streams, settings=settings)
            )
            self.results.leaks[name] = leaks.summarised(outcomes, self.tokens)

    def delays(self) -> None:
        streams = self._streams()[0][: self.options.delays]
        outcomes = asyncio.run(
            leaks.moderated(lambda _: self.engine, streams, settings=Streaming())
        )
        self.results.delays[OURS] = delays.ours(outcomes, self.tokens)
        self.results.delays[PUBLISHED] = delays.published(self.published, streams, self.tokens)
        self.results.delays[RERUN] = delays.rerun(self.rerun, streams, self.tokens)

    def _streams(self) -> tuple[list[leaks.Stream], str]:
        found = material.real(self.options.data) or material.made_up()
        made = leaks.streams(found.harmless, found.harmful, self.options.streams)
        return [self._whole_tokens(stream) for stream in made], found.source

    def _whole_tokens(self, stream: leaks.Stream) -> leaks.Stream:
        """The stream in chunks of a token, as a model writes it; they are cut at random else."""
        if not self.options.by_token:
            return stream
        return replace(stream, chunks=tuple(pieces_of(stream.reply, self.tokenizer)))


PARTS: dict[str, Callable[[Run], None]] = {
    "flatness": Run.flatness,
    "together": Run.together,
    "paced": Run.paced,
    "costs": Run.costs,
    "leaks": Run.leaks,
    "delays": Run.delays,
}

_USUAL = {
    "lengths": LENGTHS,
    "rounds": 5,
    "together": 128,
    "streams": 500,
    "delays": 200,
}
_QUICK = {
    "lengths": (128, 512),
    "rounds": 1,
    "together": 32,
    "streams": 64,
    "delays": 16,
}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.streaming", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="little of each, which takes less than a minute")
    add("--checkpoint", default=BUNDLED_STREAM.name, help="a folder; by default %(default)s")
    add("--shape", choices=SHAPES, help="widen it: its speed depends on its shape only")
    add("--only", help=f"some of {', '.join(PARTS)}, with commas")
    add("--lengths", type=_numbers, help="of replies, in tokens, with commas")
    add("--rounds", type=int, help="of everything that is timed")
    add("--together", type=int, help="tokens of each of 64 streams at once")
    add("--paced", type=_pace, default=(64, 20.0), help="streams, and tokens a second: 256x50")
    add("--streams", type=int, help="with a harmful sentence")
    add("--delays", type=int, help="so many of them for the detection delay")
    add("--by-token", action="store_true", help="these in chunks of a token, not cut at random")
    add("--data", type=Path, default=material.DATA, help="where real texts are")
    add("--device", default="cpu")
    add("--dtype", choices=["float32", "bfloat16"], default="float32")
    add("--threads", type=int, default=os.cpu_count())
    add("--folder", type=Path, default=ROOT / ".bench")
    options = parser.parse_args(arguments)
    for name, value in (_QUICK if options.quick else _USUAL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    usual = [part for part in PARTS if part != "paced"] if options.quick else list(PARTS)
    speed_only = ["flatness", "together", "costs"]
    options.only = options.only or ",".join(speed_only if options.shape else usual)
    if unknown := set(options.only.split(",")) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


def _numbers(given: str) -> tuple[int, ...]:
    return tuple(int(part) for part in given.split(","))


def _pace(given: str) -> tuple[int, float]:
    streams, rate = given.split("x")
    return int(streams), float(rate)


if __name__ == "__main__":
    main()
