"""The tables of docs/what-is-guarded.md, made of what the runs showed.

`python -m integrations.langchain.tests.leaks.table` writes them anew.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping, Sequence

from integrations.langchain.tests.leaks.results import SURFACES, column
from integrations.langchain.tests.leaks.subjects import MODELS, OURS, PEERS, UNGUARDED, Subject
from integrations.langchain.tests.leaks.threats import Threat
from tests import leak_tables

COLUMNS: Mapping[str, Sequence[Subject]] = {
    "GuardrailMiddleware": OURS,
    "GuardedChatModel": MODELS,
    **{peer.column: [peer] for peer in PEERS},
}


async def table(threat: Threat) -> str:
    """The table of a threat: a row for each surface on which it was seen at all."""
    columns = {f"`{name}`": await column(subjects, threat) for name, subjects in COLUMNS.items()}
    return leak_tables.table(SURFACES, columns, await column([UNGUARDED], threat))


def versions() -> str:
    """The sentence that says what was observed."""
    return leak_tables.observed_with(
        *("langchain", "langchain-core", "langgraph", "langchain-openai")
    )


async def _made() -> dict[str, str]:
    return {threat.name.lower(): await table(threat) for threat in Threat}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    leak_tables.write({**asyncio.run(_made()), "versions": versions()})
