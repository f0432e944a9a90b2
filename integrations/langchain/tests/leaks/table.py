"""The tables of docs/what-is-guarded.md, made of what the runs showed.

`python -m integrations.langchain.tests.leaks.table` writes them anew.
"""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from integrations.langchain.tests.leaks.results import SURFACES, Cell, column
from integrations.langchain.tests.leaks.subjects import MODELS, OURS, PEERS, UNGUARDED, Subject
from integrations.langchain.tests.leaks.threats import Threat

PAGE = Path(__file__).parents[4] / "docs" / "what-is-guarded.md"
COLUMNS: Mapping[str, Sequence[Subject]] = {
    "GuardrailMiddleware": OURS,
    "GuardedChatModel": MODELS,
    **{peer.column: [peer] for peer in PEERS},
}
_HEAD = "| what is observed | " + " | ".join(f"`{name}`" for name in COLUMNS) + " |"


async def table(threat: Threat) -> str:
    """The table of a threat: a row for each surface on which it was seen at all."""
    columns = {name: await column(subjects, threat) for name, subjects in COLUMNS.items()}
    shown = [*columns.values(), await column([UNGUARDED], threat)]
    rows = [
        f"| {title} | {_cells(surface, columns)} |"
        for surface, title in SURFACES.items()
        if any(str(cells[surface]) != "clean" for cells in shown)
    ]
    return "\n".join([_HEAD, "|---" * (len(COLUMNS) + 1) + "|", *rows])


def _cells(surface: str, columns: Mapping[str, Mapping[str, Cell]]) -> str:
    return " | ".join(str(cells[surface]) for cells in columns.values())


def committed(page: str, threat: Threat) -> str:
    """The table of a threat in the page."""
    return page[_place(page, threat.name.lower())]


def versions() -> str:
    """The sentence that says what was observed."""
    packages = ["langchain", "langchain-core", "langgraph", "langchain-openai"]
    named = [f"{package} {version(package)}" for package in packages]
    return f"Observed with {', '.join(named[:-1])} and {named[-1]}."


def _place(page: str, name: str) -> slice:
    found = re.search(rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- end -->)", page, re.DOTALL)
    assert found, f"no place for the table of {name}"
    return slice(*found.span())


def own(table: str) -> list[list[str]]:
    """Of a table what it says of this project's guards."""
    return [line.split(" | ")[:3] for line in table.splitlines()]


async def _write() -> None:
    page = PAGE.read_text(encoding="utf-8")
    made = {threat.name.lower(): await table(threat) for threat in Threat}
    for name, text in {**made, "versions": versions()}.items():
        place = _place(page, name)
        page = page[: place.start] + text + page[place.stop :]
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    asyncio.run(_write())
