"""Measuring the contenders on one checkpoint, in turns, and what came out."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.widen import HEAD_DIM, Shape
from benchmarks.worker import Contender, Reply, Worker
from benchmarks.workloads import Messages, Mode, Workload

Verdict = list[Any] | None
"""Severity, categories, refusal; None where the answer was unreadable."""


@dataclass(slots=True, kw_only=True)
class Cell:
    """One contender on one workload."""

    seconds: list[float] = field(default_factory=list[float])
    peak: float = 0
    """Memory at the peak, in MiB."""
    verdicts: list[Verdict] = field(default_factory=list[Verdict])
    computed: int | None = None
    """Tokens that the model computed, if the contender says."""
    problem: str | None = None
    """Why there is no time."""

    @property
    def median(self) -> float | None:
        return median(self.seconds) if self.seconds and not self.problem else None

    def add(self, reply: Reply) -> None:
        if "error" in reply:
            self.problem = reply["error"]
            return
        answers: list[dict[str, Any]] = reply["answers"]
        if all(answer["error"] for answer in answers):
            self.problem = f"no verdict: {answers[0]['error']}"
            return
        tokens = [answer["tokens"] for answer in answers]
        self.seconds.append(reply["seconds"])
        self.peak = max(self.peak, reply["peak"])
        self.verdicts = [answer["verdict"] for answer in answers]
        self.computed = None if None in tokens else sum(tokens)


@dataclass(slots=True, kw_only=True)
class Row:
    """All contenders on one workload."""

    name: str
    mode: Mode
    conversations: int
    tokens: int
    """Of all prompts, as the model card's recipe computes them."""
    cells: dict[str, Cell]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a study may take."""

    budget: float
    """Seconds that one workload may take one contender in one round; what is bound to take longer
    is left out and says so."""
    rounds: int | None
    """None for what the workloads say."""
    loading: float = 600


class Study:
    """Contenders on one checkpoint; each has a process of its own, and one runs at a time."""

    def __init__(self, name: str, shape: Shape, checkpoint: Path, limits: Limits) -> None:
        self.name = name
        self.shape = shape
        self.large = shape.multiplied > 10**8
        self.checkpoint = checkpoint
        self.limits = limits
        self.loaded: dict[str, Reply] = {}
        """What each contender said of itself, or the error."""
        self.rows: list[Row] = []
        self.agreement: Row | None = None
        """Real prompts."""
        self.overhead: dict[str, Reply] = {}
        self._contenders: dict[str, Contender] = {}
        self._workers: dict[str, Worker] = {}
        self._speed: dict[str, tuple[float, float]] = {}
        """Operations of the largest workload measured so far, and seconds for each of them."""

    def load(self, contenders: list[Contender], *, device: str, threads: int, logs: Path) -> None:
        """Start all, and wait until each is ready or has failed."""
        logs.mkdir(parents=True, exist_ok=True)
        self._contenders = {contender.name: contender for contender in contenders}
        for contender in contenders:
            log = logs / f"{self.name} {contender.name}.log"
            self._workers[contender.name] = Worker(
                contender, self.checkpoint, device=device, threads=threads, log=log
            )
        for name, worker in list(self._workers.items()):
            self.loaded[name] = worker.answer(self.limits.loading)
            if "error" in self.loaded[name]:
                self._note(f"{name} is not available: {self.loaded[name]['error']}")
                self._workers.pop(name).close()

    def warm_up(self, *batches: list[Messages]) -> None:
        """Judge something of each branch, and some at once, before anything is timed."""
        for worker in self._workers.values():
            for conversations in batches:
                worker.ask({"mode": "batch", "conversations": conversations}, self.limits.loading)

    def measure(self, workload: Workload, tokens: list[int]) -> None:
        """Run a workload, contender by contender in each round.

        Args:
            workload: What to run.
            tokens: Lengths of the prompts.
        """
        rounds = self.limits.rounds or (workload.large_rounds if self.large else workload.rounds)
        row = self._row(workload.name, workload.mode, workload.conversations, tokens)
        self.rows.append(row)
        for number in range(1, rounds + 1):
            for name in self._workers:
                if not workload.ours_only or self._contenders[name].ours:
                    self._time(name, row, workload.conversations, tokens)
            self._note(f"{workload.name}: round {number} of {rounds}")

    def compare(self, prompts: list[Messages], tokens: list[int]) -> None:
        """Judge real prompts, for their verdicts."""
        self.agreement = self._row("real prompts", Mode.BATCH, prompts, tokens)
        for name in self._workers:
            self._time(name, self.agreement, prompts, tokens)
        self._note(f"{len(prompts)} real prompts")

    def count_overhead(self, contender: str, batches: dict[str, list[Messages]]) -> None:
        """What a conversation in each of the batches costs outside the model, in microseconds."""
        if worker := self._workers.get(contender):
            for name, conversations in batches.items():
                question = {"mode": "overhead", "conversations": conversations}
                self.overhead[name] = worker.ask(question, self.limits.loading)

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()

    def _row(self, name: str, mode: Mode, conversations: list[Messages], tokens: list[int]) -> Row:
        return Row(
            name=name, mode=mode, conversations=len(conversations), tokens=sum(tokens), cells={}
        )

    def _time(self, name: str, row: Row, conversations: list[Messages], tokens: list[int]) -> None:
        cell = row.cells.setdefault(name, Cell())
        if cell.problem:
            return
        operations = self._operations(tokens, whole=not self._contenders[name].ours)
        expected = self._expected(name, operations)
        if expected > self.limits.budget and not cell.seconds:
            cell.problem = f"left out: about {expected:.0f} s a round"
            return
        question = {"mode": row.mode.value, "conversations": conversations}
        cell.add(self._workers[name].ask(question, max(60, 5 * self.limits.budget)))
        if cell.median is not None and operations >= self._speed.get(name, (0, 0))[0]:
            self._speed[name] = operations, cell.median / operations

    def _expected(self, name: str, operations: float) -> float:
        """Seconds, from the largest workload before."""
        return operations * self._speed.get(name, (0, 0))[1]

    def _operations(self, tokens: list[int], *, whole: bool) -> float:
        """Of prompts from start to end; `whole` if each token of a long one attends to all."""
        attention = 2 * self.shape.layers * self.shape.heads * HEAD_DIM if whole else 0
        return sum(2 * self.shape.multiplied * n + attention * n**2 for n in tokens)

    def _note(self, what: str) -> None:
        print(f"{self.name} · {what}", file=sys.stderr)
