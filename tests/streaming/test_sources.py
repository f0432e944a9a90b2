"""Closing what chunks come from."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from guardrails_qwen.streaming import aclose_source, aclosed_after


async def slowly_closed() -> AsyncIterator[int]:
    try:
        yield 1
    finally:
        await asyncio.sleep(0)


async def closing(source: AsyncIterator[int]) -> AsyncIterator[int]:
    try:
        async for number in source:
            yield number
    finally:
        await aclose_source(source)


async def closing_after(source: AsyncIterator[int]) -> AsyncIterator[int]:
    async with aclosed_after(source):
        async for number in source:
            yield number


@pytest.mark.parametrize("around", [closing, closing_after])
def test_a_loop_that_ends_closes_what_was_left_open_without_a_word(
    around: Callable[[AsyncIterator[int]], AsyncIterator[int]],
) -> None:
    problems, left = list[str](), list[AsyncIterator[int]]()

    async def leave() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: problems.append(context["message"])
        )
        left.append(around(slowly_closed()))
        async for _ in left[0]:
            break

    asyncio.run(leave())
    assert problems == []


async def test_an_error_of_a_source_is_raised() -> None:
    class Broken:
        async def aclose(self) -> None:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await aclose_source(Broken())


async def test_but_not_in_place_of_another_one() -> None:
    class Broken:
        async def aclose(self) -> None:
            raise RuntimeError("broken")

    with pytest.raises(ValueError, match="first"):
        async with aclosed_after(Broken()):
            raise ValueError("first")
