"""The page says what the runs showed."""

import pytest

from integrations.langchain.tests.leaks.results import column
from integrations.langchain.tests.leaks.subjects import PEERS, Subject
from integrations.langchain.tests.leaks.table import PAGE, committed, own, table, versions
from integrations.langchain.tests.leaks.threats import Threat

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")


@pytest.mark.parametrize("threat", Threat, ids=lambda threat: threat.name.lower())
async def test_the_page_shows_what_was_observed(threat: Threat) -> None:
    page = PAGE.read_text(encoding="utf-8")
    said, seen = committed(page, threat), await table(threat)
    if versions() in page:
        assert said == seen, "make the tables anew, see the page"
    else:  # what peers do in other versions is not ours to say
        assert set(map(tuple, own(seen))) <= set(map(tuple, own(said)))


@pytest.mark.parametrize("threat", Threat, ids=lambda threat: threat.name.lower())
@pytest.mark.parametrize("peer", PEERS, ids=str)
async def test_a_peer_leaks_somewhere(peer: Subject, threat: Threat) -> None:
    assert any(cell.leaks for cell in (await column([peer], threat)).values())
