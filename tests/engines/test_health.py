"""Outages told from texts that a server cannot bear, without any server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from guardrails_qwen import (
    EngineError,
    EngineOverloaded,
    EngineTimeout,
    EngineUnavailable,
    GuardError,
    RequestRejected,
    UnreadableVerdict,
    WrongServer,
)
from guardrails_qwen.engines.health import Health
from guardrails_qwen.engines.reliability import Reliability
from guardrails_qwen.engines.transport import Deadline

NEVER = 3600.0

OUTAGES = {
    "unavailable": EngineUnavailable("down"),
    "timeout": EngineTimeout("late"),
    "overloaded": EngineOverloaded("busy"),
    "key": EngineError("the key is refused"),
    "model": WrongServer("no such model"),
}
"""What looks like an outage."""

TEXTS = {
    "rejected": RequestRejected("refused"),
    "unreadable": UnreadableVerdict("", "something else"),
}
"""What speaks of a text in any case."""


@dataclass
class Server:
    """Answers, or fails, as it is told to; one answer for texts, one for harmless ones."""

    text: BaseException | None = None
    harmless: BaseException | None = None
    asked: int = 0
    looked: int = 0
    left: list[float | None] = field(default_factory=list[float | None])
    """Of the deadlines, in the order of what was asked."""
    gate: asyncio.Event | None = None
    """What a harmless text waits for."""

    async def judge(self, deadline: Deadline) -> str:
        self.asked += 1
        self.left.append(deadline.left)
        await asyncio.sleep(0)
        if self.text is not None:
            raise self.text
        return "verdict"

    async def look(self, deadline: Deadline) -> str:
        self.looked += 1
        self.left.append(deadline.left)
        if self.gate is not None:
            await self.gate.wait()
        if self.harmless is not None:
            raise self.harmless
        return "harmless"


def health(*, failures: int = 2, rest: float = NEVER) -> Health:
    return Health(Reliability(failures=failures, rest=rest))


async def outcome(of: Health, server: Server, *, deadline: float | None = 10.0) -> object:
    try:
        return await of.ask(server.judge, server.look, Deadline(deadline))
    except GuardError as error:
        return error


async def is_open(of: Health) -> bool:
    return "left alone" in str(await outcome(of, Server()))


class TestOfOneText:
    """A failure, and what a harmless text says about it."""

    async def test_an_answer_asks_about_nothing_else(self) -> None:
        server = Server()
        assert await outcome(health(), server) == "verdict"
        assert (server.asked, server.looked) == (1, 0)

    @pytest.mark.parametrize("error", OUTAGES.values(), ids=list(OUTAGES))
    async def test_it_is_the_text_if_a_harmless_one_is_judged(self, error: EngineError) -> None:
        of, server = health(), Server(text=error)
        for _ in range(5):
            found = await outcome(of, server)
            assert type(found) is RequestRejected
            assert str(error) in str(found)
        assert not await is_open(of)

    @pytest.mark.parametrize("error", OUTAGES.values(), ids=list(OUTAGES))
    async def test_it_is_an_outage_if_that_fails_too(self, error: EngineError) -> None:
        of, server = health(), Server(text=error, harmless=EngineUnavailable("down"))
        assert await outcome(of, server) is error
        assert not await is_open(of)

    @pytest.mark.parametrize("error", OUTAGES.values(), ids=list(OUTAGES))
    async def test_outages_in_a_row_open_the_breaker(self, error: EngineError) -> None:
        of, server = health(), Server(text=error, harmless=error)
        assert [await outcome(of, server) for _ in range(2)] == [error] * 2
        assert await is_open(of)
        assert server.asked == 2

    @pytest.mark.parametrize("error", TEXTS.values(), ids=list(TEXTS))
    async def test_what_speaks_of_the_text_asks_about_nothing_else(self, error: GuardError) -> None:
        of, server = health(), Server(text=error)
        assert [await outcome(of, server) for _ in range(5)] == [error] * 5
        assert server.looked == 0
        assert not await is_open(of)

    @pytest.mark.parametrize("error", TEXTS.values(), ids=list(TEXTS))
    async def test_a_harmless_text_that_is_answered_oddly_is_answered(
        self, error: GuardError
    ) -> None:
        server = Server(text=EngineUnavailable("down"), harmless=error)
        assert type(await outcome(health(), server)) is RequestRejected

    async def test_what_is_no_failure_of_the_server_stays_what_it_is(self) -> None:
        server = Server(text=KeyError("a mistake of ours"))
        with pytest.raises(KeyError):
            await outcome(health(), server)
        assert server.looked == 0


class TestOfSeveral:
    """Who is judged beside a text says as much as a harmless one."""

    async def test_50_failures_look_once(self) -> None:
        of = health(failures=1000)
        server = Server(text=EngineUnavailable("down"), gate=asyncio.Event())
        asking = [asyncio.ensure_future(outcome(of, server)) for _ in range(50)]
        await _passed(lambda: server.looked == 1)
        assert server.asked == 50
        assert server.gate
        server.gate.set()
        assert {type(one) for one in await asyncio.gather(*asking)} == {RequestRejected}
        assert server.looked == 1

    async def test_another_answer_in_the_meantime_is_enough(self) -> None:
        of, failed = health(), asyncio.Event()

        async def slow(_: Deadline) -> str:
            await failed.wait()
            raise EngineTimeout("late")

        server = Server(harmless=EngineUnavailable("down"))
        asking = asyncio.ensure_future(of.ask(slow, server.look, Deadline(10)))
        await asyncio.sleep(0.01)
        assert await outcome(of, Server()) == "verdict"
        failed.set()
        with pytest.raises(RequestRejected):
            await asking
        assert server.looked == 0

    async def test_an_answer_before_it_says_nothing(self) -> None:
        of = health()
        assert await outcome(of, Server()) == "verdict"
        await asyncio.sleep(0.01)
        error = EngineUnavailable("down")
        assert await outcome(of, Server(text=error, harmless=error)) is error

    async def test_who_gives_up_does_not_spoil_the_look_of_the_others(self) -> None:
        of, server = health(), Server(text=EngineUnavailable("down"), gate=asyncio.Event())
        first, second = (asyncio.ensure_future(outcome(of, server)) for _ in range(2))
        await _passed(lambda: server.looked == 1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert server.gate
        server.gate.set()
        assert type(await second) is RequestRejected
        assert server.looked == 1


class TestDeadlines:
    """Both questions fit into one."""

    async def test_a_text_leaves_time_for_a_harmless_one(self) -> None:
        server = Server(text=EngineTimeout("late"))
        await outcome(health(), server, deadline=100)
        text, harmless = server.left
        assert text == pytest.approx(80, abs=5)
        assert harmless is not None
        assert 80 < harmless < 100

    @pytest.mark.parametrize("deadline", [None, 0.5])
    async def test_a_look_has_time_of_its_own(self, deadline: float | None) -> None:
        """However little a caller has left, or if it would wait for ever."""
        server = Server(text=EngineTimeout("late"))
        await outcome(health(), server, deadline=deadline)
        _, harmless = server.left
        assert harmless is not None
        assert 1.5 < harmless <= 10

    async def test_what_cannot_be_told_in_time_is_no_outage_and_still_found_out(self) -> None:
        of = health(failures=1)
        down, gate = EngineUnavailable("down"), asyncio.Event()
        server = Server(text=down, harmless=down, gate=gate)
        assert type(await outcome(of, server, deadline=0.05)) is RequestRejected
        assert not await is_open(of)
        server = Server(text=down, harmless=down)
        gate.set()
        await asyncio.sleep(0.01)
        assert await is_open(of)


class TestBreaker:
    """Half-open, one request sees whether the server is back."""

    @pytest.fixture
    async def resting(self) -> Health:
        """Open, and at the end of its rest."""
        of = health(failures=1, rest=0.05)
        down = EngineUnavailable("down")
        assert await outcome(of, Server(text=down, harmless=down)) is down
        assert await is_open(of)
        await asyncio.sleep(0.06)
        return of

    async def test_a_success_closes_it(self, resting: Health) -> None:
        assert await outcome(resting, Server()) == "verdict"
        assert not await is_open(resting)

    async def test_another_outage_opens_it_again(self, resting: Health) -> None:
        down = EngineUnavailable("down")
        assert await outcome(resting, Server(text=down, harmless=down)) is down
        assert await is_open(resting)

    async def test_a_probe_that_is_to_blame_itself_closes_it(self, resting: Health) -> None:
        found = await outcome(resting, Server(text=EngineUnavailable("down")))
        assert type(found) is RequestRejected
        assert not await is_open(resting)

    @pytest.mark.parametrize("looking", [False, True], ids=["asking", "looking"])
    async def test_a_probe_that_is_given_up_lets_the_next_one_through(
        self, resting: Health, looking: bool
    ) -> None:
        gate = asyncio.Event()
        server = Server(text=EngineTimeout("late"), gate=gate)

        async def hang(_: Deadline) -> str:
            server.asked += 1
            await gate.wait()
            return "verdict"

        ask = server.judge if looking else hang
        probe = asyncio.ensure_future(resting.ask(ask, server.look, Deadline(10)))
        await _passed(lambda: bool(server.looked if looking else server.asked))
        assert "under way" in str(await outcome(resting, Server()))
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        assert await outcome(resting, Server()) == "verdict"
        gate.set()

    @pytest.mark.parametrize("text", [True, False], ids=["text", "harmless"])
    async def test_a_probe_that_ends_by_a_mistake_lets_the_next_one_through(
        self, resting: Health, text: bool
    ) -> None:
        bug = KeyError("a mistake of ours")
        server = Server(text=bug) if text else Server(text=EngineTimeout("late"), harmless=bug)
        with pytest.raises(KeyError):
            await outcome(resting, server)
        assert await outcome(resting, Server()) == "verdict"


class TestHarmless:
    """What no text has a part in, as exploring."""

    async def test_its_answer_is_passed_on(self) -> None:
        server = Server()
        assert await health().harmless(lambda: server.look(Deadline(None))) == "harmless"

    @pytest.mark.parametrize("error", OUTAGES.values(), ids=list(OUTAGES))
    async def test_its_outages_open_the_breaker(self, error: EngineError) -> None:
        of, server = health(failures=3), Server(harmless=error)
        for _ in range(3):
            with pytest.raises(type(error)) as caught:
                await of.harmless(lambda: server.look(Deadline(None)))
            assert caught.value is error
        with pytest.raises(EngineUnavailable, match="left alone"):
            await of.harmless(lambda: server.look(Deadline(None)))
        assert server.looked == 3

    @pytest.mark.parametrize("error", TEXTS.values(), ids=list(TEXTS))
    async def test_odd_answers_do_not(self, error: GuardError) -> None:
        of, server = health(failures=1), Server(harmless=error)
        for _ in range(3):
            with pytest.raises(type(error)):
                await of.harmless(lambda: server.look(Deadline(None)))
        assert not await is_open(of)

    async def test_it_counts_as_somebody_who_was_judged(self) -> None:
        of, server = health(failures=2), Server(harmless=EngineUnavailable("down"))
        for fine in (False, True, False, True):
            server.harmless = None if fine else EngineUnavailable("down")
            await asyncio.gather(
                of.harmless(lambda: server.look(Deadline(None))), return_exceptions=True
            )
        assert not await is_open(of)


async def _passed(holds: Callable[[], bool]) -> None:
    """Let others go on until something holds."""
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")
