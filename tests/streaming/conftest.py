"""Fixtures of the tests of streams."""

from __future__ import annotations

import pytest

from tests.streaming.doors import StreamDoors


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def doors(request: pytest.FixtureRequest) -> StreamDoors:
    """The two doors of streams, tried in turn: every test that uses this proves that both agree."""
    return StreamDoors(asynchronous=request.param)
