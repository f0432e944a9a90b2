"""The lowest versions that are tested are the lowest that the package allows."""

import re
from pathlib import Path

import pytest

ADAPTER = Path(__file__).parents[1]


@pytest.mark.parametrize("distribution", ["langchain", "langchain-core"])
def test_what_is_allowed_is_tested(distribution: str) -> None:
    allowed = (ADAPTER / "pyproject.toml").read_text(encoding="utf-8")
    tested = (ADAPTER / "frameworks" / "lowest.txt").read_text(encoding="utf-8")
    [floor] = re.findall(rf'"{distribution}>=([\d.]+),', allowed)
    [pin] = re.findall(rf"^{distribution}==([\d.]+)$", tested, re.MULTILINE)
    assert pin.removesuffix(".0") == floor
