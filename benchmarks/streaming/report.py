"""What was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.streaming.contenders import OURS, OURS_LATER, PUBLISHED, RERUN
from benchmarks.streaming.delays import Delay
from benchmarks.streaming.leaks import Summary
from benchmarks.streaming.speed import Cost, Flatness, Paced, Together


@dataclass(slots=True, kw_only=True)
class Results:
    """All that a run measured."""

    about: dict[str, Any]
    """The machine, the checkpoint, and how busy the machine was in each part."""
    costs: dict[int, dict[str, Cost]] = field(default_factory=dict[int, dict[str, Cost]])
    """By the reply's length in tokens, and by contender."""
    flatness: list[Flatness] = field(default_factory=list[Flatness])
    places: tuple[int, int] = (0, 0)
    """Where in a reply the flatness was measured."""
    together: list[Together] = field(default_factory=list[Together])
    leaks: dict[str, Summary] = field(default_factory=dict[str, Summary])
    """By the way of holding back."""
    source: str = ""
    """Of the streams of `leaks`."""
    delays: dict[str, Delay] = field(default_factory=dict[str, Delay])
    """By contender."""
    paced: list[Paced] = field(default_factory=list[Paced])


def markdown(results: Results) -> str:
    """All tables of what was measured."""
    parts = [_about(results.about)]
    if results.costs:
        parts += ["## What a token costs", *_costs(results.costs)]
    if results.flatness:
        parts += ["## Early and late in a reply", _flatness(results.flatness, results.places)]
    if results.together:
        parts += ["## Many streams at once", _together(results.together)]
    if results.paced:
        parts += ["## Streams at the pace of a model", _paced(results.paced)]
    if results.leaks:
        parts += ["## What gets through", _leaks(results.leaks, results.source)]
    if results.delays:
        parts += ["## Detection delay", _delays(results.delays)]
    return "\n\n".join(parts) + "\n"


def _about(about: Mapping[str, Any]) -> str:
    loads = ", ".join(
        f"{part} {before:.1f} to {after:.1f}" for part, (before, after) in about["load"].items()
    )
    return (
        f"{about['processor']}, {about['cores']} cores, {about['memory']}; GPU: "
        f"{about['gpu'] or 'none'}; Python {about['python']}, torch {about['torch']}; "
        f"{about['checkpoint']} on {about['device']} in {about['dtype']}; {about['threads']} "
        f"threads of torch for every contender.\n\nLoad of the machine: {loads or 'not measured'}."
    )


def _costs(costs: Mapping[int, Mapping[str, Cost]]) -> Iterator[str]:
    names = list(dict.fromkeys(name for row in costs.values() for name in row))
    yield (
        "Work in ms, medians of rounds in which the contenders take turns. Without a guard it is "
        "0. A token's is measured at five lengths on the way and integrated by Simpson's rule."
    )
    yield "Until the first token is released (tokens that must have arrived by then):\n\n" + table(
        ["reply", *names],
        (
            [f"{length:,} tokens", *(_first(row.get(name)) for name in names)]
            for length, row in costs.items()
        ),
    )
    yield "For each token:\n\n" + table(
        ["reply", *names],
        (
            [f"{length:,} tokens", *(_ms(row[n].token) if n in row else "–" for n in names)]
            for length, row in costs.items()
        ),
    )
    pairs = ((OURS, PUBLISHED), (OURS_LATER, RERUN))
    shown = [(less, more) for less, more in pairs if less in names and more in names]
    yield "How many times as much work a token is, at the same delay:\n\n" + table(
        ["reply", *(f"{more} / {less}" for less, more in shown)],
        (
            [f"{length:,} tokens", *(_ratio(row, less, more) for less, more in shown)]
            for length, row in costs.items()
        ),
    )


def _first(cost: Cost | None) -> str:
    return f"{_ms(cost.first)} ({cost.waits})" if cost else "–"


def _ratio(row: Mapping[str, Cost], less: str, more: str) -> str:
    return f"{row[more].token / row[less].token:.1f}" if more in row and less in row else "–"


def _flatness(rows: Iterable[Flatness], places: tuple[int, int]) -> str:
    head = ["fed", *(f"before token {place:,}" for place in places), "ratio"]
    head += [f"a chunk before token {places[1]:,}"]
    return "A token's work in ms, tokenizing and policy included.\n\n" + table(
        head,
        (
            [
                *[_fed(row.fed), _ms(row.early), _ms(row.late), f"{row.ratio:.2f}"],
                _ms(row.fed * row.late),
            ]
            for row in rows
        ),
    )


def _together(rows: Iterable[Together]) -> str:
    said = "Tokens a second of the same streams; medians of the rounds.\n\n"
    head = ["streams", "fed", "one after another", "at once", "ratio"]
    return said + table(
        head,
        (
            [
                str(row.streams),
                _fed(row.fed),
                f"{_share(row.in_turn, 0.5):,.0f}",
                f"{_share(row.at_once, 0.5):,.0f}",
                f"{row.ratio:.1f}",
            ]
            for row in rows
        ),
    )


def _paced(rows: Iterable[Paced]) -> str:
    head = ["streams", "tokens a second of each", "fed", "median", "99th percentile", "late"]
    return "From the arrival of a chunk to its verdicts, in ms.\n\n" + table(
        head,
        (
            [
                str(row.streams),
                f"{row.rate:g}",
                _fed(row.fed),
                _ms(_share(row.delays, 0.5)),
                _ms(_share(row.delays, 0.99)),
                f"{row.late} of {len(row.delays)}",
            ]
            for row in rows
        ),
    )


def _leaks(leaks: Mapping[str, Summary], source: str) -> str:
    streams = next(iter(leaks.values())).streams
    said = (
        f"{streams} replies with a harmful sentence at a known place ({source}), cut at random. "
        "Early: blocked before it, a false alarm; of these nothing else is counted. Tokens are "
        "the guard's; their median and 90th percentile are of streams that were blocked.\n\n"
    )
    head = ["hold-back", "early", "never blocked", "nothing leaked", "harmful tokens leaked"]
    head += ["leaked a stream", "arrived before the block"]
    return said + table(
        head,
        (
            [
                name,
                str(row.early),
                str(row.missed),
                str(row.clean),
                f"{row.leaked:,} of {row.harmful:,}",
                f"{row.leaked_median:g} / {row.leaked_p90:g}",
                "–" if row.delay_median is None else f"{row.delay_median:g} / {row.delay_p90:g}",
            ]
            for name, row in leaks.items()
        ),
    )


def _delays(delays: Mapping[str, Delay]) -> str:
    said = (
        "Tokens that have arrived of the harmful sentence and what follows it when a contender "
        "objects, of the streams to which it objects in time.\n\n"
    )
    head = ["", "median", "90th percentile", "never", "too early", "streams"]
    return said + table(
        head,
        (
            [
                name,
                *(f"{_share(one.tokens, share):g}" if one.tokens else "–" for share in (0.5, 0.9)),
                str(one.missed),
                str(one.early),
                str(len(one.tokens) + one.missed + one.early),
            ]
            for name, one in delays.items()
        ),
    )


def _fed(count: int) -> str:
    return "token by token" if count == 1 else f"{count} at a time"


def _share(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Rows of cells as a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
