"""Ways of asking a server for verdicts, side by side, and what they cost the client.

It starts no server but for stubs whose model takes no time. Tables go to standard output, and with
the raw numbers into `.bench/`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import openai

from benchmarks.machine import described
from benchmarks.remote import client, speed, tokens
from benchmarks.remote.agreement import agreement, real_texts
from benchmarks.remote.contenders import ALL, CHAT, CONSTRAINED, PLAIN, TOKENS, Contender, Target
from benchmarks.remote.questions import Kind
from benchmarks.remote.report import Results, markdown
from benchmarks.remote.stub import MODEL, running
from guardrails_qwen.engines.prompting import Prompting
from guardrails_qwen.engines.transformers import TransformersEngine

ROOT = Path(__file__).parents[2]
CALLERS = (1, 8, 32)
HELD = (200, 500)
DELAY = 2.0
"""Seconds that the stub takes for each request while they are held: longer than sending them all
takes, so that the first has not been answered when the last arrives."""
_COUNTED = 12
"""Verdicts whose tokens are counted, of each kind."""

HOW = """\
Give it a running server: python -m benchmarks.remote --url http://127.0.0.1:8011/v1 \
--model tiny-gen --tokenizer tiny

vLLM on a CPU, in an environment that scripts/vllm_env.sh makes:

  VLLM_CPU_KVCACHE_SPACE=1 TORCHDYNAMO_DISABLE=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 \\
  ENVIRONMENT/bin/python -m vllm.entrypoints.openai.api_server \\
    --model guardrails_qwen/checkpoints/tiny-gen --served-model-name tiny-gen --dtype float32 \\
    --enforce-eager --max-model-len 2048 --block-size 32 --host 127.0.0.1 --port 8011
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, and print it."""
    options = _options(arguments)
    if options.url is None:
        sys.exit(HOW)
    run = Run(options)
    for part in options.only.split(","):
        with run.noted(part):
            PARTS[part](run)
        run.write(options.folder)
    print((options.folder / "remote.md").read_text(encoding="utf-8"))


class Run:
    """A run of the benchmark, part by part."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.target = Target(
            url=options.url,
            model=options.model,
            prompting=Prompting.from_pretrained(options.tokenizer),
        )
        with self.target.engine(TOKENS) as engine:
            server = engine.explore()
        about: dict[str, Any] = {**described(), "openai": openai.__version__, "load": {}}
        about["server"] = f"{server.software or 'unknown'} at {options.url}"
        self.results = Results(about=about)

    @contextmanager
    def noted(self, part: str) -> Generator[None]:
        """Say what is being measured, and how busy the machine was."""
        print(f"{part} …", file=sys.stderr)
        before = os.getloadavg()[0]
        yield
        self.results.about["load"][part] = before, os.getloadavg()[0]

    def write(self, folder: Path) -> None:
        """All that there is so far, so that an interrupted run leaves what it has."""
        folder.mkdir(exist_ok=True)
        (folder / "remote.md").write_text(markdown(self.results), encoding="utf-8")
        raw = json.dumps(_plain(asdict(self.results)), indent=1)
        (folder / "remote.json").write_text(raw + "\n", encoding="utf-8")

    def latency(self) -> None:
        contenders = [self.target.contender(name) for name in ALL]
        for kind in Kind:
            self.results.latency[kind] = speed.latencies(contenders, kind, self.options.prompts)
        asyncio.run(_close(contenders))

    def tokens(self) -> None:
        verdicts = min(_COUNTED, self.options.prompts)
        for kind in Kind:
            self.results.costs[kind] = {
                name: asyncio.run(tokens.cost(self.target, name, kind, verdicts)) for name in ALL
            }

    def throughput(self) -> None:
        names = (PLAIN, CHAT, CONSTRAINED, TOKENS)

        async def measured(callers: int) -> dict[str, speed.Throughput]:
            contenders = [self.target.contender(name) for name in names]
            total = max(2 * callers, self.options.prompts)
            try:
                return await speed.throughputs(contenders, callers, total, self.options.rounds)
            finally:
                await _close(contenders)

        for callers in CALLERS:
            self.results.throughput[callers] = asyncio.run(measured(callers))

    def processor(self) -> None:
        total = 5 * self.options.prompts
        with running() as stub:
            self.results.processor = asyncio.run(
                client.processor(
                    self.target.at(stub.url, MODEL), stub, ALL, total, self.options.rounds
                )
            )

    def held(self) -> None:
        with running(DELAY) as stub:
            target = self.target.at(stub.url, MODEL)
            for name in (CHAT, TOKENS):
                self.results.held[name] = [
                    asyncio.run(client.held(target, stub, name, callers, self.options.held))
                    for callers in HELD
                ]

    def agreement(self) -> None:
        asked = real_texts(self.options.texts)
        if not asked:
            return
        with TransformersEngine.from_pretrained(self.options.tokenizer, dtype="float32") as engine:
            local = engine.judge(asked)
        for way in (CHAT, CONSTRAINED, TOKENS):
            with self.target.engine(way, deadline=None, exact=True) as engine:
                self.results.agreement[way] = agreement(local, engine, asked)


PARTS: dict[str, Callable[[Run], None]] = {
    "processor": Run.processor,
    "held": Run.held,
    "latency": Run.latency,
    "tokens": Run.tokens,
    "throughput": Run.throughput,
    "agreement": Run.agreement,
}
"""In this order, so that the local engine is not in memory while memory is measured."""


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.remote", description=__doc__)
    add = parser.add_argument
    add("--url", help="of a server's API, as http://127.0.0.1:8011/v1")
    add("--model", default="tiny-gen", help="the name under which it serves the guard")
    add("--tokenizer", default="tiny", help="the checkpoint: a folder, a name on the hub, or tiny")
    add("--only", default=",".join(PARTS), help="some of these, with commas: %(default)s")
    add("--quick", action="store_true", help="little of each, which takes a minute or two")
    add("--prompts", type=int, help="of each kind, for latency; by default 100")
    add("--rounds", type=int, help="of throughput and processor time; by default 5")
    add("--held", type=int, help="rounds of requests that are held; by default 10")
    add("--texts", type=int, help="for the agreement; by default 1,000")
    add("--folder", type=Path, default=ROOT / ".bench")
    options = parser.parse_args(arguments)
    usual = {"prompts": 100, "rounds": 5, "held": 10, "texts": 1000}
    quick = {"prompts": 10, "rounds": 1, "held": 2, "texts": 40}
    for name, value in (quick if options.quick else usual).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if unknown := set(options.only.split(",")) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


async def _close(contenders: Sequence[Contender]) -> None:
    for contender in contenders:
        await contender.aclose()


def _plain(value: Any) -> Any:
    """With names in place of enums as keys."""
    if isinstance(value, dict):
        return {getattr(k, "value", k): _plain(v) for k, v in value.items()}  # pyright: ignore
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value  # pyright: ignore


if __name__ == "__main__":
    main()
