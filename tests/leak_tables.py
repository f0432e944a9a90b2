"""The tables of docs/what-is-guarded.md, made of what runs showed, for every adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "what-is-guarded.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """In how many scenarios a word was observed on one surface."""

    scenarios: int
    leaks: int = 0
    before: int = 0
    """Where it was there before anything could be judged, and later nowhere."""

    def __str__(self) -> str:
        if self.leaks:
            return f"**leaks** {self.leaks}/{self.scenarios}"
        return "first" if self.before else "clean"


Column = Mapping[str, Cell]
"""A cell for each surface."""


def table(
    surfaces: Mapping[str, str], columns: Mapping[str, Column], unguarded: Column | None = None
) -> str:
    """A row for each surface on which anything was seen, with its title.

    Args:
        surfaces: The titles.
        columns: The columns, by their heads.
        unguarded: What is seen without any guard, if that is none of the columns.
    """
    shown = [*columns.values(), *([unguarded] if unguarded else [])]
    rows = [
        f"| {title} | {' | '.join(str(cells[surface]) for cells in columns.values())} |"
        for surface, title in surfaces.items()
        if any(str(cells[surface]) != "clean" for cells in shown)
    ]
    head = "| what is observed | " + " | ".join(columns) + " |"
    return "\n".join([head, "|---" * (len(columns) + 1) + "|", *rows])


def observed_with(*packages: str) -> str:
    """The sentence that says what was observed."""
    named = [f"{package} {version(package)}" for package in packages]
    return f"Observed with {', '.join(named[:-1])} and {named[-1]}."


def said(page: str, name: str) -> str:
    """What a page says in the place of this name."""
    return page[_place(page, name)]


def write(made: Mapping[str, str]) -> None:
    """Put texts into the page, by the names of their places."""
    page = PAGE.read_text(encoding="utf-8")
    for name, text in made.items():
        place = _place(page, name)
        page = page[: place.start] + text + page[place.stop :]
    PAGE.write_text(page, encoding="utf-8")


def cells_of(table: str, columns: Sequence[int]) -> list[tuple[str, ...]]:
    """Some columns of a table, the first one included."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return [(line[0], *(line[number] for number in columns)) for line in lines]


def _place(page: str, name: str) -> slice:
    found = re.search(rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- end -->)", page, re.DOTALL)
    assert found, f"no place for {name}"
    return slice(*found.span())
