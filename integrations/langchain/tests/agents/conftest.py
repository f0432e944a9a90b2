"""The two colours."""

from typing import Any

import pytest
from langchain_core.runnables import Runnable, RunnableConfig

from integrations.langchain.tests.agents.building import THREAD, Run


async def _run(graph: Runnable[Any, Any], value: Any, config: RunnableConfig = THREAD) -> Any:
    return graph.invoke(value, config)


async def _arun(graph: Runnable[Any, Any], value: Any, config: RunnableConfig = THREAD) -> Any:
    return await graph.ainvoke(value, config)


@pytest.fixture(params=[_run, _arun], ids=["invoke", "ainvoke"])
def run(request: pytest.FixtureRequest) -> Run:
    """Both colours of an agent or a graph, tried in turn, in the thread `THREAD`."""
    return request.param
