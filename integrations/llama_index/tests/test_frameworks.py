"""The lowest versions that are tested are the lowest that the package allows, the newest are those
of every other test."""

import re
from pathlib import Path

import pytest

ADAPTER = Path(__file__).parents[1]
PIN = r"^([\w-]+)==([\d.]+)"


def pins(file: Path) -> dict[str, str]:
    """The versions of a list, by distribution."""
    return dict(re.findall(PIN, file.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("distribution", ["llama-index-core", "llama-index-instrumentation"])
def test_what_is_allowed_is_tested(distribution: str) -> None:
    allowed = (ADAPTER / "pyproject.toml").read_text(encoding="utf-8")
    [floor] = re.findall(rf'"{distribution}>=([\d.]+),', allowed)
    assert pins(ADAPTER / "frameworks" / "lowest.txt")[distribution] == floor


@pytest.mark.parametrize("name", ["lowest", "newest"])
def test_a_list_has_all_that_moves_together(name: str) -> None:
    assert set(pins(ADAPTER / "frameworks" / f"{name}.txt")) == {
        "llama-index-core",
        "llama-index-instrumentation",
        "llama-index-workflows",
    }


def test_every_other_test_runs_on_the_newest() -> None:
    tested = pins(ADAPTER.parents[1] / "constraints.txt")
    assert pins(ADAPTER / "frameworks" / "newest.txt").items() <= tested.items()
