"""The tables about LlamaIndex in docs/what-is-guarded.md, made of what the runs showed.

`python -m integrations.llama_index.tests.leaks.table` writes them anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from integrations.llama_index.tests.leaks.results import SURFACES, column
from integrations.llama_index.tests.leaks.subjects import (
    AGENTS,
    BOTH,
    ENGINES,
    MODELS,
    PII,
    POSTPROCESSORS,
    UNGUARDED,
    Subject,
)
from integrations.llama_index.tests.leaks.threats import AGENT_PLACES, SCENARIOS, Scenario, Threat
from tests import leak_tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The scenarios of a table and its columns: some subjects for each head."""

    name: str
    scenarios: Sequence[Scenario]
    columns: Mapping[str, Sequence[Subject]]

    def __str__(self) -> str:
        return self.name

    async def made(self) -> str:
        """The table, of what was seen."""
        cells = {
            head: await column(subjects, self.scenarios) for head, subjects in self.columns.items()
        }
        return leak_tables.table(SURFACES, cells)


_NOTHING = {"no guard": [UNGUARDED]}
_MODEL = {"`GuardedLLM`": MODELS}
_OF_AGENTS = {**_NOTHING, **_MODEL, "`GuardedLLM`, `guarded_tools`": AGENTS}
_OF_ENGINES = {
    **_NOTHING,
    **_MODEL,
    "`GuardedQueryEngine`, `GuardedChatEngine`": ENGINES,
    "all three": BOTH,
}
_OF_NODES = {
    **_NOTHING,
    "`GuardPostprocessor`": POSTPROCESSORS,
    **_MODEL,
    "`PIINodePostprocessor`": [PII],
}


def _table(name: str, threat: Threat, columns: Mapping[str, Sequence[Subject]]) -> Table:
    agents = columns is _OF_AGENTS
    scenarios = [
        one for one in SCENARIOS if one.threat is threat and (one.place in AGENT_PLACES) is agents
    ]
    return Table(name=f"llama_index: {name}", scenarios=scenarios, columns=columns)


TABLES = [
    _table("agents, output", Threat.OUTPUT, _OF_AGENTS),
    _table("agents, arguments", Threat.ARGUMENTS, _OF_AGENTS),
    _table("agents, results", Threat.RESULT, _OF_AGENTS),
    _table("agents, input", Threat.INPUT, _OF_AGENTS),
    _table("engines, output", Threat.OUTPUT, _OF_ENGINES),
    _table("engines, input", Threat.INPUT, _OF_ENGINES),
    _table("nodes", Threat.CHUNK, _OF_NODES),
]


def versions() -> str:
    """The sentence that says what was observed."""
    return leak_tables.observed_with(
        "llama-index-core", "llama-index-workflows", "llama-index-instrumentation"
    )


async def _made() -> dict[str, str]:
    return {table.name: await table.made() for table in TABLES}


if __name__ == "__main__":
    leak_tables.write({**asyncio.run(_made()), "llama_index: versions": versions()})
