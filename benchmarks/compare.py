"""Ours against the model card's recipe and any-guardrail, side by side: `make bench`.

Every contender has a process of its own on the same weights with the same number of threads. In
each round of a workload they take turns (A B C A B C …), so that what disturbs the machine disturbs
all of them. Tables go to standard output, and with the raw numbers and a plot into `.bench/`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.environment import any_guardrail
from benchmarks.plots import plot
from benchmarks.report import OURS, RECIPE, RIVAL, markdown
from benchmarks.study import Limits, Study
from benchmarks.widen import BUNDLED, SHAPES, Shape, kept
from benchmarks.worker import Contender
from benchmarks.workloads import Messages, real_prompts, workloads

ROOT = Path(__file__).parents[1]

PRECISIONS = ("float32", "bfloat16", "int8")
"""Ours is run in each; one that the machine cannot do is reported as not available."""

SMALL = "tiny"


def main() -> None:
    options = _options()
    options.folder.mkdir(exist_ok=True)
    machine = _machine(options)
    studies = list[Study]()
    for name in options.shapes.split(","):
        studies.append(_study(name, options))
        _write(studies, machine, options.folder)
    print((options.folder / "results.md").read_text(encoding="utf-8"))


def _write(studies: list[Study], machine: dict[str, Any], folder: Path) -> None:
    """All that there is so far, so that an interrupted run leaves what it has."""
    transformers = (reply.get("transformers") for s in studies for reply in s.loaded.values())
    machine["transformers"] = next(filter(None, transformers), "unknown")
    (folder / "results.md").write_text(markdown(studies, machine), encoding="utf-8")
    raw = {"machine": machine, "studies": [_raw(study) for study in studies]}
    (folder / "results.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    plot(studies, folder / "results.png")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ours against the recipe and any-guardrail.")
    add = parser.add_argument
    add("--quick", action="store_true", help="the bundled checkpoint only, one round of each")
    add("--shapes", help=f"some of {SMALL}, {', '.join(SHAPES)}, with commas")
    add("--contenders", help="some of those in the tables, with commas; all by default")
    add("--only", default="", help="workloads whose name contains this")
    add("--rounds", type=int, help="for every workload")
    add("--budget", type=float, default=300, help="seconds for one contender in one round")
    add("--document", type=int, help="length of the long text, in tokens; by default 20,000")
    add("--agreement", type=int, help="how many real prompts; by default 1,000, or 100 if large")
    add("--data", type=Path, default=ROOT.parent / "shared" / "data", help="where these are")
    add("--device", default="cpu")
    add("--threads", type=int, default=os.cpu_count())
    add("--folder", type=Path, default=ROOT / ".bench")
    options = parser.parse_args()
    if options.quick:
        options.rounds = options.rounds or 1
        options.budget = min(options.budget, 20)
        options.agreement = 50 if options.agreement is None else options.agreement
        options.document = options.document or 2000
    options.shapes = options.shapes or (SMALL if options.quick else f"{SMALL},0.6B")
    return options


def _study(name: str, options: argparse.Namespace) -> Study:
    """Everything about one shape."""
    folder, shape = _checkpoint(name, options)
    study = Study(name, shape, folder, Limits(budget=options.budget, rounds=options.rounds))
    found, missing = _contenders(name, options)
    study.loaded |= {rival: {"error": reason} for rival, reason in missing.items()}
    auto: Any = AutoTokenizer
    tokenizer = auto.from_pretrained(folder)

    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    def lengths(conversations: list[Messages]) -> list[int]:
        rendered = [tokenizer.apply_chat_template(c, tokenize=False) for c in conversations]
        return [count(text) for text in rendered]

    planned = workloads(count, document=options.document or 20_000)
    threads = {"device": options.device, "threads": options.threads}
    try:
        study.load(found, **threads, logs=options.folder / "logs")
        study.warm_up(planned[0].conversations, planned[1].conversations)
        for workload in planned:
            if options.only in workload.name:
                study.measure(workload, lengths(workload.conversations))
        prompts = real_prompts(options.data, _prompts(options, study))
        if prompts:
            study.compare(prompts, lengths(prompts))
        if not study.large:  # where it is too little to be seen
            study.count_overhead(OURS, {work.name: work.conversations for work in planned[:4]})
    finally:
        study.close()
    return study


def _prompts(options: argparse.Namespace, study: Study) -> int:
    default = 100 if study.large else 1000
    return default if options.agreement is None else options.agreement


def _checkpoint(name: str, options: argparse.Namespace) -> tuple[Path, Shape]:
    """The checkpoint of that shape, with a context that long texts fit in."""
    shape = Shape.of(BUNDLED) if name == SMALL else SHAPES[name]
    narrow = name in {"4B", "8B"} or (name != SMALL and options.device != "cpu")
    dtype = torch.bfloat16 if narrow else torch.float32
    suffix = "-bfloat16" if narrow else ""
    return kept(options.folder / f"{name}{suffix}", shape, dtype=dtype), shape


def _contenders(shape: str, options: argparse.Namespace) -> tuple[list[Contender], dict[str, str]]:
    """Those that are asked for, and those that cannot be had, with the reason."""
    here = Path(sys.executable)
    theirs = "float32" if options.device == "cpu" and shape not in {"4B", "8B"} else "bfloat16"
    wanted = options.contenders.split(",") if options.contenders else None
    found, missing = list[Contender](), dict[str, str]()

    def add(name: str, kind: str, dtype: str, python: Path = here) -> None:
        if wanted is None or name in wanted:
            found.append(Contender(name=name, kind=kind, dtype=dtype, python=python))

    add(RECIPE, "recipe", theirs)
    try:
        if wanted is None or RIVAL in wanted:
            add(RIVAL, RIVAL, theirs, any_guardrail(options.folder / "any-guardrail"))
    except (OSError, RuntimeError) as error:
        missing[RIVAL] = str(error)
    for dtype in PRECISIONS:
        add(f"ours ({dtype})", "ours", dtype)
    return found, missing


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    """Measured in a process of its own, set up like the contenders'."""
    command = [sys.executable, "-m", "benchmarks.machine", "--device", options.device]
    command += ["--threads", str(options.threads), "--seconds", "0.1" if options.quick else "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


def _raw(study: Study) -> dict[str, Any]:
    rows = [*study.rows, *([study.agreement] if study.agreement else [])]
    return {
        "shape": study.name,
        "contenders": study.loaded,
        "overhead": study.overhead,
        "rows": [asdict(row) | {"mode": row.mode.value} for row in rows],
    }


if __name__ == "__main__":
    main()
