"""Closing what chunks come from."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from guardrails_qwen.streaming import aclose_source


async def slowly_closed(log: list[str]) -> AsyncIterator[int]:
    try:
        yield 1
    finally:
        await asyncio.sleep(0.01)
        log.append("closed")


async def test_a_generator_that_somebody_else_closes_is_left_to_them() -> None:
    log = list[str]()
    source = slowly_closed(log)
    await anext(source)
    closing = asyncio.ensure_future(aclose_source(source))
    await asyncio.sleep(0)
    await aclose_source(source)
    assert log == []
    await closing
    assert log == ["closed"]


async def test_an_error_of_a_source_is_raised() -> None:
    class Broken:
        async def aclose(self) -> None:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await aclose_source(Broken())
