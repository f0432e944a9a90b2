"""Fixtures of the core's tests."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.doors import Doors

settings.register_profile("loaded machine", deadline=None)
settings.load_profile("loaded machine")


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def doors(request: pytest.FixtureRequest) -> Doors:
    """A guard's two doors, tried in turn: every test that uses this proves that both agree."""
    return Doors(asynchronous=request.param)
