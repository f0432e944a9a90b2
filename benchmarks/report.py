"""What was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.study import Cell, Row, Study
from benchmarks.workloads import ALONE, AT_ONCE, Mode

RECIPE, RIVAL, OURS = "recipe", "any-guardrail", "ours (float32)"

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def markdown(studies: Iterable[Study], machine: dict[str, Any]) -> str:
    """All tables, for all shapes."""
    parts = [_machine(machine)]
    for study in studies:
        parts += [f"## {study.name}", *_study(study, machine)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _study(study: Study, machine: dict[str, Any]) -> Iterator[str]:
    names = list(study.loaded)
    ready = [name for name in names if "error" not in study.loaded[name]]
    yield "\n".join(
        f"- {name} is not available here: {study.loaded[name]['error']}"
        for name in names
        if name not in ready
    )
    yield "Time of a round; the median where there are several.\n\n" + _table(
        ["workload", "tokens", *ready, "rounds"],
        (
            [row.name, f"{row.tokens:,}", *_times(row, ready), str(_rounds(row))]
            for row in study.rows
        ),
    )
    for base in (RECIPE, RIVAL):
        ours = [name for name in ready if name.startswith("ours")]
        ratios = ([row.name, *_ratios(row, base, ours)] for row in study.rows)
        yield f"How many times sooner than {base}.\n\n" + _table(
            ["workload", *ours], (row for row in ratios if any(cell != "–" for cell in row[1:]))
        )
    yield _together(study, ready)
    yield "Memory of the process at its peak, in MiB.\n\n" + _table(
        ["", *ready],
        [
            ["loading", *(f"{study.loaded[name]['peak']:.0f}" for name in ready)],
            *([row.name, *_peaks(row, ready)] for row in study.rows),
        ],
    )
    yield _agreement(study, ready)
    yield _limits(study, machine, ready)
    yield _overhead(study)
    yield _left_out([*study.rows, *([study.agreement] if study.agreement else [])])


def _machine(machine: dict[str, Any]) -> str:
    rates = ", ".join(
        f"{rate / 1e9:,.0f} billion operations a second in {precision}"
        for precision, rate in machine["rates"].items()
    )
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory']}"
        f" ({', '.join(machine['flags']) or 'no vector instructions that matter'}); "
        f"GPU: {machine['gpu'] or 'none'}; {machine['system']}; Python {machine['python']}, "
        f"torch {machine['torch']}, transformers {machine['transformers']}; "
        f"{machine['threads']} threads for every contender.\n\n"
        f"Measured in this run: matrices are multiplied at {rates}; memory is read at "
        f"{machine['bandwidth'] / 1e9:.1f} GB/s."
    )


def _times(row: Row, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        seconds = _median(row, name)
        yield _time(seconds) if seconds is not None else "–"


def _ratios(row: Row, base: str, names: Iterable[str]) -> Iterator[str]:
    slow = _median(row, base)
    for name in names:
        fast = _median(row, name)
        yield f"{slow / fast:.1f}" if slow and fast else "–"


def _peaks(row: Row, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        cell = row.cells.get(name)
        yield f"{cell.peak:.0f}" if cell and cell.peak else "–"


def _together(study: Study, names: list[str]) -> str:
    rows = {row.name: row for row in study.rows}
    if AT_ONCE not in rows or ALONE not in rows:
        return ""
    pairs = {
        name: (_median(rows[ALONE], name), _median(rows[AT_ONCE], name))
        for name in names
        if name.startswith("ours")
    }
    said = [
        f"{alone / both:.1f} times ({name})"
        for name, (alone, both) in pairs.items()
        if alone and both
    ]
    return (
        f"64 callers at once are done sooner than one after another: {', '.join(said)}."
        if said
        else ""
    )


def _agreement(study: Study, names: list[str]) -> str:
    wanted = [(row, RECIPE) for row in study.rows]
    if study.agreement:
        wanted += [(study.agreement, RECIPE), (study.agreement, OURS)]
    table = list[list[str]]()
    for row, base in wanted:
        cells = [_same(row.cells.get(base), row.cells.get(name)) for name in names]
        if base in names and any(cell != "–" for cell in cells):
            cells[names.index(base)] = ""
            table.append([row.name, str(row.conversations), base, *cells])
    if not table:
        return ""
    said = (
        "Verdicts (severity, categories and refusal) that are the same, in %; an answer that "
        "cannot be read counts as a verdict of its own.\n\n"
    )
    return said + _table(["workload", "verdicts", "same as", *names], table)


def _same(base: Cell | None, other: Cell | None) -> str:
    if not base or not other or not base.verdicts or not other.verdicts:
        return "–"
    equal = sum(a == b for a, b in zip(base.verdicts, other.verdicts, strict=True))
    return f"{100 * equal / len(base.verdicts):.4g}"


def _limits(study: Study, machine: dict[str, Any], names: list[str]) -> str:
    table = list[list[str]]()
    for row in study.rows:
        for name in names:
            cell, precision = row.cells.get(name), study.loaded[name]["precision"]
            if (
                not cell
                or not cell.median
                or not cell.computed
                or precision not in machine["rates"]
            ):
                continue
            compute, reading = _ideal(study, row, cell.computed, precision, machine)
            ideal = max(compute, reading)
            table.append(
                [
                    row.name,
                    name,
                    f"{cell.computed:,}",
                    _time(compute),
                    _time(reading),
                    _time(cell.median),
                    f"{100 * ideal / cell.median:.0f} %",
                ]
            )
    said = (
        "The limit: what multiplying the weights by the tokens that were computed takes at the "
        "measured rate, or reading the weights once a pass, whichever is longer. Attention, norms "
        "and everything else count as nothing.\n\n"
    )
    head = [
        "workload",
        "",
        "tokens computed",
        "multiplying",
        "reading",
        "measured",
        "share of the limit",
    ]
    return said + _table(head, table) if table else ""


def _ideal(
    study: Study, row: Row, tokens: int, precision: str, machine: dict[str, Any]
) -> tuple[float, float]:
    """Seconds that multiplying takes, and seconds that reading the weights takes."""
    shape = study.shape
    operations = 2 * (shape.multiplied * tokens + shape.scoring * row.conversations)
    weights = (shape.multiplied + shape.scoring) * _BYTES[precision]
    passes = row.conversations if row.mode is Mode.TURNS else 1
    return operations / machine["rates"][precision], passes * weights / machine["bandwidth"]


def _overhead(study: Study) -> str:
    if study.large or not study.overhead:
        return ""
    rows = [
        [name, f"{reply['microseconds']:.0f}" if "error" not in reply else reply["error"]]
        for name, reply in study.overhead.items()
    ]
    head = (
        f"What a conversation costs outside the model, in microseconds; {OURS}, as one batch.\n\n"
    )
    return head + _table(["workload", "µs"], rows)


def _left_out(rows: Iterable[Row]) -> str:
    return "\n".join(
        f"- {row.name}, {name}: {cell.problem}"
        for row in rows
        for name, cell in row.cells.items()
        if cell.problem
    )


def _rounds(row: Row) -> int:
    return max((len(cell.seconds) for cell in row.cells.values()), default=0)


def _median(row: Row, name: str) -> float | None:
    cell = row.cells.get(name)
    return cell.median if cell else None


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
