"""What was measured, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.study import Study

_COLOURS = {"recipe": "#9a9a9a", "any-guardrail": "#c9a227"}
_OURS = ["#0b5394", "#3d85c6", "#45818e", "#6aa84f"]
_BAR = 0.8


def plot(studies: Sequence[Study], file: Path) -> None:
    """Latency of each workload, a panel a shape, on a logarithmic scale."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    library: Any = pyplot
    longest = max(len(study.rows) for study in studies)
    names = max((_ready(study) for study in studies), key=len)
    size = (7.5 * len(studies), 1.4 + longest * (0.2 + 0.15 * len(names)))
    figure, panels = library.subplots(1, len(studies), figsize=size, squeeze=False)
    for panel, study in zip(panels[0], studies, strict=True):
        _panel(panel, study, names)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3 * len(studies), frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(file, dpi=150)


def _ready(study: Study) -> list[str]:
    return [name for name, reply in study.loaded.items() if "error" not in reply]


def _panel(panel: Any, study: Study, names: list[str]) -> None:
    height = _BAR / len(names)
    for index, name in enumerate(names):
        found = [
            (place + (index + 0.5) * height - _BAR / 2, cell.median)
            for place, row in enumerate(study.rows)
            if (cell := row.cells.get(name)) and cell.median
        ]
        places, seconds = [place for place, _ in found], [value for _, value in found]
        bars = panel.barh(places, seconds, height * 0.92, color=_colour(name, names), label=name)
        panel.bar_label(bars, [_short(value) for value in seconds], padding=2, fontsize=7)
    panel.set_xscale("log")
    panel.margins(x=0.14)
    panel.set_yticks(range(len(study.rows)), [row.name for row in study.rows])
    panel.invert_yaxis()
    panel.set_xlabel("time, seconds (logarithmic; shorter is better)")
    panel.set_title("the bundled checkpoint" if not study.large else f"the shape of {study.name}")
    panel.grid(axis="x", alpha=0.3)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _colour(name: str, names: list[str]) -> str:
    ours = [known for known in names if known not in _COLOURS]
    return _COLOURS.get(name) or _OURS[ours.index(name) % len(_OURS)]


def _short(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
