"""What was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.remote.agreement import TOLERANCE, Agreement
from benchmarks.remote.client import AT_ONCE, Held, Processor
from benchmarks.remote.contenders import CHAT, PLAIN
from benchmarks.remote.questions import Kind
from benchmarks.remote.speed import Latency, Throughput
from benchmarks.remote.tokens import Cost


@dataclass(slots=True, kw_only=True)
class Results:
    """All that a run measured; each part by contender's name."""

    about: dict[str, Any]
    """The machine, the server, and how busy the machine was: the load average at the beginning of
    each part and at its end."""
    latency: dict[Kind, dict[str, Latency]] = field(default_factory=dict[Kind, dict[str, Latency]])
    costs: dict[Kind, dict[str, Cost]] = field(default_factory=dict[Kind, dict[str, Cost]])
    throughput: dict[int, dict[str, Throughput]] = field(
        default_factory=dict[int, dict[str, Throughput]]
    )
    """By the number of callers."""
    processor: dict[str, Processor] = field(default_factory=dict[str, Processor])
    held: dict[str, list[Held]] = field(default_factory=dict[str, list[Held]])
    agreement: dict[str, Agreement] = field(default_factory=dict[str, Agreement])


def markdown(results: Results) -> str:
    """All tables of what was measured."""
    parts = [_about(results.about)]
    if results.latency:
        parts += ["## One prompt alone", *_latency(results.latency)]
    if results.costs:
        parts += ["## Generated tokens", _costs(results.costs)]
    if results.throughput:
        parts += ["## Callers at once", *_throughput(results.throughput)]
    if results.processor:
        parts += ["## Processor time of the client", _processor(results.processor)]
    if results.held:
        parts += ["## Requests held", _held(results.held)]
    if results.agreement:
        parts += ["## Agreement with the local engine", _agreement(results.agreement)]
    return "\n\n".join(parts) + "\n"


def _about(about: Mapping[str, Any]) -> str:
    loads = ", ".join(
        f"{part} {before:.1f} to {after:.1f}" for part, (before, after) in about["load"].items()
    )
    return (
        f"{about['processor']}, {about['cores']} cores, {about['memory']}; Python "
        f"{about['python']}, openai {about['openai']}; server: {about['server']}.\n\n"
        f"Load of the machine, client and server included: {loads}."
    )


def _latency(latency: Mapping[Kind, Mapping[str, Latency]]) -> Iterator[str]:
    names = _names(latency)
    rounds = max(len(one.seconds) for row in latency.values() for one in row.values())
    said = f"Median and 95th percentile of {rounds} verdicts, in ms; contenders in turns.\n\n"
    times = {
        kind.value: [f"{1e3 * row[n].median:.1f} / {1e3 * row[n].p95:.1f}" for n in names]
        for kind, row in latency.items()
    }
    yield said + table(["", *names], ([kind, *cells] for kind, cells in times.items()))
    for base in (one for one in (CHAT, PLAIN) if one in names):
        said = f"How many times sooner than {base}, by medians.\n\n"
        ratios = (
            [kind.value, *(f"{row[base].median / row[n].median:.2f}" for n in names)]
            for kind, row in latency.items()
        )
        yield said + table(["", *names], ratios)
    yield _wrong(latency.values())


def _costs(costs: Mapping[Kind, Mapping[str, Cost]]) -> str:
    names = _names(costs)

    def cell(cost: Cost) -> str:
        generated, requests = cost.generated / cost.verdicts, cost.requests / cost.verdicts
        return f"{generated:.3g} in {requests:.3g}"

    said = "Generated tokens for a verdict, as the server counts them, in so many requests.\n\n"
    rows = ([kind.value, *(cell(row[n]) for n in names)] for kind, row in costs.items())
    return said + table(["", *names], rows)


def _throughput(throughput: Mapping[int, Mapping[str, Throughput]]) -> Iterator[str]:
    names = _names(throughput)
    yield "Verdicts a second; one prompt in eight is unsafe.\n\n" + table(
        ["callers", *names],
        (
            [str(callers), *(f"{row[n].median:.1f}" for n in names)]
            for callers, row in throughput.items()
        ),
    )
    for base in (one for one in (CHAT, PLAIN) if one in names):
        yield f"How many times as many as {base}.\n\n" + table(
            ["callers", *names],
            (
                [str(callers), *(f"{row[n].median / row[base].median:.2f}" for n in names)]
                for callers, row in throughput.items()
            ),
        )
    yield _wrong(throughput.values())


def _processor(processor: Mapping[str, Processor]) -> str:
    said = (
        "Of the whole client process for each request, in ms: the median of the rounds. The server "
        "is a stub in another process.\n\n"
    )
    rows = (
        [name, f"{1e3 * median(one.alone):.2f}", f"{1e3 * median(one.at_once):.2f}", str(one.wrong)]
        for name, one in processor.items()
    )
    return said + table(["", "one caller", f"{AT_ONCE} callers", "wrong"], rows)


def _held(held: Mapping[str, Iterable[Held]]) -> str:
    said = "All callers ask at the same time; the stub takes its time for each request.\n\n"
    head = ["", "callers", "rounds", "lost", "server saw at once", "median of a round"]
    head += ["memory before", "after the first", "after the last"]
    rows = (
        [
            *[name, str(one.callers), str(len(one.seconds)), str(one.lost), str(one.at_once)],
            f"{median(one.seconds):.2f} s",
            *(f"{one.resident[i]:.1f} MiB" if one.resident else "–" for i in (0, 1, -1)),
        ]
        for name, several in held.items()
        for one in several
    )
    return said + table(head, rows)


def _agreement(agreement: Mapping[str, Agreement]) -> str:
    said = (
        "Verdicts are the same where severity, categories and refusal are. The differences are the "
        "largest of all probabilities, where verdicts are the same.\n\n"
    )
    head = ["", "texts", "same verdict", "errors", "with scores", "P(severity)", "P(category)"]
    head += ["P(refusal)", f"more than {TOLERANCE:g} apart"]
    rows = (
        [
            *[name, str(one.texts), f"{100 * one.same / one.texts:.1f} %", str(one.errors)],
            *[str(one.scored), f"{one.severity:.2g}", f"{one.category:.2g}"],
            *[f"{one.refusal:.2g}", str(one.apart)],
        ]
        for name, one in agreement.items()
    )
    return said + table(head, rows)


def _wrong(rows: Iterable[Mapping[str, Latency | Throughput]]) -> str:
    wrong = dict[str, int]()
    for row in rows:
        for name, one in row.items():
            wrong[name] = wrong.get(name, 0) + one.wrong
    found = ", ".join(f"{name} {count}" for name, count in wrong.items() if count)
    return f"Errors and unexpected severities: {found or 'none'}."


def _names(rows: Mapping[Any, Mapping[str, object]]) -> list[str]:
    return list(next(iter(rows.values())))


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Rows of cells as a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
