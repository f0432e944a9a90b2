"""Slots: no more at once than there are, and callers take turns."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from guardrails_qwen.engines.slots import Slots, caller


class Log:
    """Who held a slot, in order, and how many at once."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.order: list[str] = []
        self.held = 0
        self.most = 0

    async def work(self, name: str) -> None:
        async with self.slots:
            self.order.append(name)
            self.held += 1
            self.most = max(self.most, self.held)
            await asyncio.sleep(0)
            self.held -= 1

    def call(self, name: str, requests: int) -> list[asyncio.Task[None]]:
        """All requests of one caller."""
        caller.set(name)
        return [asyncio.ensure_future(self.work(name)) for _ in range(requests)]


@pytest.mark.parametrize("most", [1, 2, 7])
async def test_no_more_at_once_than_there_are(most: int) -> None:
    log = Log(Slots(most))
    await asyncio.gather(*log.call("a", 20), *log.call("b", 5))
    assert log.most == most
    assert sorted(log.order) == ["a"] * 20 + ["b"] * 5


async def test_callers_take_turns() -> None:
    log = Log(Slots(1))
    await asyncio.gather(*log.call("bulk", 100), *log.call("one", 1), *log.call("two", 2))
    assert log.order.index("one") <= 3
    assert [i for i, name in enumerate(log.order) if name == "two"][1] <= 6


async def test_a_callers_own_requests_keep_their_order() -> None:
    slots, order = Slots(1), list[int]()

    async def work(number: int) -> None:
        async with slots:
            order.append(number)

    await asyncio.gather(*(work(number) for number in range(10)))
    assert order == list(range(10))


async def test_who_gives_up_frees_its_place() -> None:
    log = Log(Slots(1))
    async with log.slots:
        waiting = log.call("a", 3)
        await asyncio.sleep(0)
        waiting[0].cancel()
        waiting[1].cancel()
        await asyncio.sleep(0)
    await waiting[2]
    assert log.order == ["a"]
    await asyncio.wait_for(log.work("b"), 5)


async def test_who_gives_up_when_its_turn_comes_passes_it_on() -> None:
    log = Log(Slots(1))
    async with log.slots:
        first, second = log.call("a", 2)
        await asyncio.sleep(0)
    first.cancel()  # its slot was handed over already, and it does not know
    with suppress(asyncio.CancelledError):
        await first
    await asyncio.wait_for(second, 5)
    assert log.order == ["a"]


async def test_a_failure_gives_the_slot_back() -> None:
    slots = Slots(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with slots:
                raise ZeroDivisionError
