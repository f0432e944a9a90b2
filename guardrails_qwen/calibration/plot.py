"""Reliability diagrams as PNG, by matplotlib."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from guardrails_qwen.calibration.report import BINS, Bin, FieldReport, Measures, Report

_BEFORE, _AFTER, _GREY = "#c2571a", "#1f5fa8", "#8a8f98"


def write_plot(report: Report, path: str | Path) -> None:
    """Draw what was forecast against what happened, one panel a field, before and after.

    A point is a bin, as large as it is full, with Wilson's 95 % interval; below it stands how many
    rows it holds. A field without labelled rows has no panel.

    Raises:
        ImportError: matplotlib is not installed: `pip install 'guardrails-qwen[calibration]'`.
        OSError: The file cannot be written.
    """
    require_library()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [field for field in report.fields if field.before]
    width = max(1, len(drawn))
    figure: Any = Figure(figsize=(1.0 + 4.4 * width, 6.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(
        2, width, squeeze=False, sharex=True, gridspec_kw={"height_ratios": [4, 1]}
    )
    for column, field in enumerate(drawn):
        _reliability(axes[0][column], field)
        _counts(axes[1][column], field)
    axes[0][0].set_ylabel("observed frequency")
    axes[1][0].set_ylabel("rows in the bin\n(logarithmic)", fontsize=8)
    figure.suptitle(_title(report), fontsize=11)
    figure.savefig(Path(path), dpi=150, format="png")


def require_library() -> None:
    """Make sure that plots can be drawn.

    Raises:
        ImportError: matplotlib is not installed: `pip install 'guardrails-qwen[calibration]'`.
    """
    try:
        import matplotlib.figure  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ModuleNotFoundError as error:
        raise ImportError(
            f"a plot needs {error.name}: pip install 'guardrails-qwen[calibration]'"
        ) from error


def _title(report: Report) -> str:
    kind = " (a demonstration, not protection)" if report.demonstration else ""
    return f"Reliability of {report.model}{kind}, {report.judged} rows"


def _reliability(axes: Any, field: FieldReport) -> None:
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle="--", zorder=1)
    for name, measures, colour in _curves(field):
        found = measures.bins
        predicted, observed = [b.predicted for b in found], [b.observed for b in found]
        axes.errorbar(
            predicted,
            observed,
            yerr=[*zip(*map(_spread, found), strict=True)],
            color=colour,
            linewidth=1,
            elinewidth=0.8,
            alpha=0.45,
        )
        sizes = [14 + 200 * b.count / field.rows for b in found]
        axes.scatter(predicted, observed, s=sizes, color=colour, linewidth=0, zorder=3)
        axes.scatter([], [], s=40, color=colour, label=f"{name}: ECE {measures.ece:.3f}")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.19), yticks=[i / 5 for i in range(6)])
    axes.set_title(f"{field.name}: P({field.event})", fontsize=9)
    axes.legend(loc="upper left", fontsize=8, frameon=False)
    _bare(axes)


def _spread(found: Bin) -> tuple[float, float]:
    """How far Wilson's 95 % interval reaches below and above what was observed."""
    z, n, p = 1.96, found.count, found.observed
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, p - middle + half), max(0.0, middle + half - p)


def _counts(axes: Any, field: FieldReport) -> None:
    width = 0.4 / BINS
    for offset, (_, measures, colour) in zip((-width, 0.0), _curves(field), strict=False):
        middles = [(min(int(b.predicted * BINS), BINS - 1) + 0.5) / BINS for b in measures.bins]
        axes.bar(
            [middle + offset for middle in middles],
            [b.count for b in measures.bins],
            width=width,
            align="edge",
            color=colour,
            alpha=0.75,
        )
    axes.set(yscale="log", ylim=(0.7, 2 * field.rows), xlabel=_caption(field))
    _bare(axes)


def _caption(field: FieldReport) -> str:
    kept = f"T = {field.temperature:.2f}" if field.after else "not fitted, T = 1"
    return f"predicted probability\n{field.rows} rows, {field.positives} positive; {kept}"


def _curves(field: FieldReport) -> list[tuple[str, Measures, str]]:
    curves = [("before", field.before, _BEFORE), ("after, held out", field.after, _AFTER)]
    return [(name, measures, colour) for name, measures, colour in curves if measures]


def _bare(axes: Any) -> None:
    axes.grid(color="#e7e9ec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
