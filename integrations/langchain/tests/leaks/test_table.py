"""The page says what the runs showed."""

import pytest

from integrations.langchain.tests.leaks.results import column
from integrations.langchain.tests.leaks.subjects import PEERS, Subject
from integrations.langchain.tests.leaks.table import table, versions
from integrations.langchain.tests.leaks.threats import Threat
from tests.leak_tables import PAGE, cells_of, said

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")

OURS = (1, 2)
"""The columns with this project's guards."""


@pytest.mark.parametrize("threat", Threat, ids=lambda threat: threat.name.lower())
async def test_the_page_shows_what_was_observed(threat: Threat) -> None:
    page = PAGE.read_text(encoding="utf-8")
    told, seen = said(page, threat.name.lower()), await table(threat)
    if versions() in page:
        assert told == seen, "make the tables anew, see the page"
    else:  # what peers do in other versions is not ours to say
        assert {*cells_of(seen, OURS)} <= {*cells_of(told, OURS)}


@pytest.mark.parametrize("threat", Threat, ids=lambda threat: threat.name.lower())
@pytest.mark.parametrize("peer", PEERS, ids=str)
async def test_a_peer_leaks_somewhere(peer: Subject, threat: Threat) -> None:
    assert any(cell.leaks for cell in (await column([peer], threat)).values())
