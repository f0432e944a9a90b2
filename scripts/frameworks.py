"""Run the tests of an adapter on other versions than constraints.txt has.

Usage: PYTHONPATH=<where they are> frameworks.py <adapter> lowest|newest [arguments of pytest]

An adapter is a folder of integrations; the versions come from its frameworks. They are printed
first, and a run on any others fails. So does one that leaves out a test for want of a version that
it has.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import cast

import pytest

INTEGRATIONS = Path("integrations")
LEFT_OUT = {
    ("langchain", "lowest"): "needs a langchain-core before",
    ("langchain", "newest"): "needs langchain",
    ("llama_index", "lowest"): "needs a llama-index-core before",
}
"""Reasons of skips that no run on these versions may have."""

MODULES = {
    "langgraph-checkpoint": "langgraph",
    "langgraph-prebuilt": "langgraph",
    "langgraph-sdk": "langgraph",
    "llama-index-core": "llama_index.core",
    "llama-index-workflows": "workflows",
}
"""What is imported of a distribution, where that is not its name."""


class Skips:
    """Collects why tests were skipped."""

    def __init__(self) -> None:
        self.reasons: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test of a file."""
        self._note(report.longrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A whole file."""
        self._note(report.longrepr)

    def _note(self, why: object) -> None:
        if isinstance(why, tuple):  # of a skip: file, line and reason
            self.reasons.add(str(cast("tuple[object, ...]", why)[-1]).removeprefix("Skipped: "))


def pins(adapter: str, name: str) -> dict[str, str]:
    """The versions of a list, by distribution."""
    text = (INTEGRATIONS / adapter / "frameworks" / f"{name}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.MULTILINE))


def found(distribution: str) -> str:
    """The version that would be imported, with a remark if that is not what is on PYTHONPATH."""
    folder = Path(os.environ["PYTHONPATH"].split(os.pathsep)[0]).resolve()
    installed = importlib.metadata.distribution(distribution)
    spec = importlib.util.find_spec(MODULES.get(distribution, distribution.replace("-", "_")))
    places = (spec.submodule_search_locations if spec else None) or [""]
    here = folder in Path(next(iter(places))).resolve().parents
    return installed.version if here else f"{installed.version} from elsewhere"


def main(adapter: str, name: str, *arguments: str) -> int:
    """Run the tests; the status is that of pytest, or 1."""
    wanted = pins(adapter, name)
    versions = {distribution: found(distribution) for distribution in wanted}
    listed = ", ".join(f"{key} {version}" for key, version in versions.items())
    print(f"{adapter}, {name}: {listed}", flush=True)
    if versions != wanted:
        print(f"these are not the versions of {name}.txt", file=sys.stderr)
        return 1
    skips = Skips()
    tests = str(INTEGRATIONS / adapter / "tests")
    status = pytest.main(["-q", tests, *arguments], plugins=[skips])
    left_out = LEFT_OUT[adapter, name]
    if missed := [why for why in skips.reasons if why.startswith(left_out)]:
        print("tests of these versions did not run:", *missed, sep="\n  ", file=sys.stderr)
        return 1
    return int(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
