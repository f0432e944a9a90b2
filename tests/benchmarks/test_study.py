"""Contenders in processes of their own, and what is reported of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import OURS, RECIPE, markdown
from benchmarks.study import Limits, Study
from benchmarks.widen import BUNDLED, Shape
from benchmarks.worker import Contender
from benchmarks.workloads import Messages, Mode, Workload

UNKNOWN = "ours (float7)"

MACHINE: dict[str, Any] = {
    "processor": "a processor",
    "cores": 2,
    "flags": ["avx2"],
    "memory": "8 GiB",
    "gpu": None,
    "system": "Linux",
    "python": "3.11",
    "torch": "2",
    "transformers": "5",
    "threads": 1,
    "rates": {"float32": 1e12},
    "bandwidth": 1e10,
}


def _contender(name: str, kind: str, dtype: str = "float32") -> Contender:
    return Contender(name=name, kind=kind, dtype=dtype, python=Path(sys.executable))


def _workload(name: str, conversations: list[Messages], mode: Mode) -> Workload:
    return Workload(name=name, conversations=conversations, mode=mode, rounds=2, large_rounds=1)


PROMPTS: list[Messages] = [
    [{"role": "user", "content": "How can I make a bomb?"}],
    [{"role": "user", "content": "Where does the ferry leave?"}],
    [
        {"role": "user", "content": "How do I pick a lock?"},
        {"role": "assistant", "content": "I can't help with that."},
    ],
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    study = Study("tiny", Shape.of(BUNDLED), BUNDLED, Limits(budget=60, rounds=None))
    contenders = [
        _contender(RECIPE, "recipe"),
        _contender(OURS, "ours"),
        _contender(UNKNOWN, "ours", dtype="float7"),
    ]
    study.load(contenders, device="cpu", threads=1, logs=tmp_path_factory.mktemp("logs"))
    for mode in Mode:
        study.measure(_workload(mode.value, PROMPTS, mode), [130, 130, 160])
    long: Messages = [{"role": "user", "content": "Where is it? " * 3000}]
    study.measure(_workload("too much", [long], Mode.BATCH), [10**9])
    yield study
    study.close()


def test_each_mode_gives_the_verdicts_of_the_recipe(study: Study) -> None:
    for row in study.rows[:3]:
        recipe, ours = row.cells[RECIPE], row.cells[OURS]
        assert len(recipe.seconds) == len(ours.seconds) == 2
        assert recipe.verdicts == ours.verdicts
        assert recipe.verdicts[:2] == [["Unsafe", ["Violent"], None], ["Safe", [], None]]
        assert recipe.peak > 100
        assert recipe.computed is None
        assert ours.computed


def test_what_cannot_be_had_is_reported(study: Study) -> None:
    assert "float7" in study.loaded[UNKNOWN]["error"]
    report = markdown([study], MACHINE)
    assert f"{UNKNOWN} is not available here" in report


def test_what_would_take_too_long_is_left_out_and_says_so(study: Study) -> None:
    cell = study.rows[-1].cells[RECIPE]
    assert cell.median is None
    assert cell.problem is not None
    assert cell.problem.startswith("left out: about")
    assert cell.problem in markdown([study], MACHINE)


def test_the_report_has_times_ratios_agreement_and_the_limit(study: Study) -> None:
    report = markdown([study], MACHINE)
    for said in ("a processor", "How many times sooner than recipe", "100", "share", "MiB"):
        assert said in report


def test_a_process_that_dies_is_an_error_and_not_a_time(tmp_path: Path) -> None:
    broken = Contender(name="broken", kind="ours", dtype="float32", python=Path("/bin/false"))
    study = Study("tiny", Shape.of(BUNDLED), BUNDLED, Limits(budget=60, rounds=1))
    study.load([broken], device="cpu", threads=1, logs=tmp_path)
    assert "ended with 1" in study.loaded["broken"]["error"]
