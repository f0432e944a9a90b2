"""`guardrails-qwen calibrate`: fit temperatures on labelled texts and say what they are worth."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer
from rich.console import Console
from rich.progress import Progress

from guardrails_qwen import GuardError, Severity
from guardrails_qwen.cli.common import Device, Dtype, Exit, Model, fail, warn_of_demonstration

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from guardrails_qwen.calibration import (
        Calibration,
        FieldReport,
        LabelledRows,
        Report,
    )

_NOTE = """\
Before is temperature 1. After is cross-fitted: five folds, each measured with the
temperature of the four others; T is fitted on all rows.
ECE: expected calibration error of P(event), 15 bins of equal width.
Brier: mean squared difference between P(event) and what happened.
NLL: mean negative logarithm of the label's probability.
Change in ECE: its 95 % interval, by a bootstrap of the rows."""


def calibrate(  # noqa: PLR0913, PLR0917
    data: Annotated[list[Path], typer.Argument(help="JSON Lines files, .gz among them.")],
    model: Model = "tiny",
    device: Device = "auto",
    dtype: Dtype = "auto",
    output: Annotated[Path, typer.Option(help="Where the temperatures go.")] = Path(
        "calibration.json"
    ),
    plot: Annotated[Path | None, typer.Option(help="A reliability diagram (PNG).")] = None,
    positive: Annotated[
        str, typer.Option(help="What counts as unsafe: controversial (and worse), or unsafe.")
    ] = "controversial",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Judge at most so many rows, drawn by a hash.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="How many rows are judged at a time.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Fit temperatures on labelled texts. Exit status: 0 done, 2 usage, 3 engine failure."""
    errors = Console(stderr=True)
    try:
        level = _level(positive)
        rows = _rows(data, limit)
        _need_plot_library(plot)
        _need_folders(output, plot)
    except (ValueError, ImportError, OSError) as error:
        fail(errors, error, Exit.USAGE)
    try:
        loaded: _Options = {"model": model, "device": device, "dtype": dtype}
        calibration, report = _fit(rows, level, batch, errors, **loaded)
    except (GuardError, ImportError) as error:
        fail(errors, error, Exit.ENGINE_FAILURE)
    try:
        _write(calibration, report, output, plot)
    except OSError as error:
        fail(errors, error, Exit.USAGE)
    if as_json:
        found = {**calibration.to_dict(), **report.to_dict(), "unlabelled": rows.unlabelled}
        sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
    else:
        _print(report, rows, [path for path in (output, plot) if path])
    if report.demonstration:
        warn_of_demonstration(errors)


def _level(name: str) -> Severity:
    levels = {"controversial": Severity.CONTROVERSIAL, "unsafe": Severity.UNSAFE}
    if name not in levels:
        raise ValueError(f"--positive is one of {', '.join(levels)}")
    return levels[name]


def _rows(data: list[Path], limit: int | None) -> LabelledRows:
    from guardrails_qwen.calibration import read_rows

    found = read_rows(data)
    if not found.rows:
        raise ValueError(
            f"no labelled rows; {found.unlabelled} without a label of what is judged: use the "
            "fields severity, unsafe, categories or refusal"
        )
    return found.limited(limit)


def _need_plot_library(plot: Path | None) -> None:
    """Fail before the work, not after it."""
    if plot is not None:
        from guardrails_qwen.calibration.plot import require_library

        require_library()


def _need_folders(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"the folder {path.parent} does not exist")


class _Options(TypedDict):
    model: str
    device: str
    dtype: str


def _fit(
    rows: LabelledRows,
    positive: Severity,
    batch: int,
    errors: Console,
    **options: Unpack[_Options],
) -> tuple[Calibration, Report]:
    from guardrails_qwen.calibration import fit
    from guardrails_qwen.engines.transformers import TransformersEngine

    engine = TransformersEngine.from_pretrained(**options)
    with engine, Progress(console=errors) as shown:
        task = shown.add_task(f"judging {len(rows.rows)} rows", total=len(rows.rows))
        return fit(
            engine,
            rows.rows,
            positive=positive,
            batch=batch,
            progress=lambda done: shown.update(task, completed=done),
        )


def _write(calibration: Calibration, report: Report, output: Path, plot: Path | None) -> None:
    calibration.to_file(output)
    if plot is not None:
        from guardrails_qwen.calibration.plot import write_plot

        write_plot(report, plot)


def _print(report: Report, rows: LabelledRows, written: list[Path]) -> None:
    failed = "".join(f", {count} {name}" for name, count in report.failed.items())
    typer.echo(
        f"{report.model}: {report.judged} rows judged, {rows.unlabelled} without a usable label, "
        f"{sum(report.failed.values())} not judged{failed}\n"
    )
    for field in report.fields:
        typer.echo("\n".join(_lines(field)) + "\n")
    typer.echo(_NOTE)
    for path in written:
        typer.echo(f"wrote {path}")


def _lines(field: FieldReport) -> list[str]:
    head = f"{field.name}  T {field.temperature:.3f}"
    if field.before is None:
        return [f"{head}  no labelled rows"]
    lines = [f"{head}  {field.rows} rows, {field.positives} positive: P({field.event})"]
    for label, name in (("ECE", "ece"), ("Brier", "brier"), ("NLL", "nll")):
        before = getattr(field.before, name)
        if field.after is None:
            lines.append(f"  {label:5}  {before:.3f}")
            continue
        after = getattr(field.after, name)
        worse = "  WORSE" if after > before else ""
        lines.append(f"  {label:5}  {before:.3f} → {after:.3f}{worse}")
    if field.change:
        low, high = field.change
        lines.append(f"  change in ECE  {low:+.3f} … {high:+.3f}: {field.effect}")
    return [*lines, *(f"  {note}" for note in field.notes)]
