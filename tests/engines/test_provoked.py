"""What a text can provoke from a server, or from what stands before it, waves nothing through."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator, Mapping

import pytest

from guardrails_qwen import (
    Action,
    Conversation,
    Decision,
    EngineTimeout,
    EngineUnavailable,
    Guard,
    GuardError,
    OnError,
    Policy,
    RequestRejected,
    UnreadableVerdict,
    Verdict,
)
from guardrails_qwen.engines.openai_compatible import OpenAICompatibleEngine
from guardrails_qwen.engines.reliability import Reliability
from tests.doors import Doors
from tests.engines.remote import engine_at, eventually, holds, ready, under_way, warmed
from tests.servers import faults
from tests.servers.faults import AtConnection, Fault, Quoting, error, redirect
from tests.servers.faulty import FaultyServer, always, honest

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

MARK = "xylophone ninety-one"
FRAGILE = Reliability(
    attempts=2, timeout=0.5, first_wait=0.01, longest_wait=0.05, failures=2, rest=3600
)
"""Two outages open the breaker, and it stays open for the whole of a test."""
DEADLINE = 8.0
ALLOW = Policy.strict(on_error=OnError.ALLOW)
BAKE = Conversation.of("What is a good recipe for bread?")

PERMANENT = {name: faults.PERMANENT[name] for name in ("401", "404", "404-html")}
LIKE_OUTAGES: Mapping[str, Fault] = {
    name: fault
    for name, fault in {
        **faults.BROKEN,
        **faults.STALLED,
        **faults.TRANSIENT,
        **PERMANENT,
        "302": redirect(f"http://127.0.0.1:9/?q={MARK.replace(' ', '+')}", 302),
        "408": error(408),
        "520": error(520),
    }.items()
    if not isinstance(fault, AtConnection)
}
"""What would be an outage if it struck every text."""
FAULTS: Mapping[str, Fault] = {
    **LIKE_OUTAGES,
    **faults.MALFORMED,
    **faults.LOGPROBS,
    **faults.PERMANENT,
    **{f"{status}-quoting": Quoting(status) for status in (401, 404, 429, 500, 503)},
}


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    """It strikes only what is about a marked text."""
    ready()
    with FaultyServer(hits=lambda request: holds(request, MARK)) as server:
        yield server


@pytest.fixture(scope="module")
def everywhere() -> Iterator[FaultyServer]:
    """It strikes whatever it is asked."""
    with FaultyServer() as server:
        yield server


def marked(count: int = 1, *, reply: bool = False) -> list[Conversation]:
    texts = [f"How can I make a bomb? {MARK} {i}" for i in range(count)]
    return [Conversation.exchange("Hi", one) if reply else Conversation.of(one) for one in texts]


@pytest.fixture(scope="module", params=["chat", "tokens"])
def engine(
    server: FaultyServer, request: pytest.FixtureRequest
) -> Iterator[OpenAICompatibleEngine]:
    server.play(honest())
    options = {"way": request.param, "reliability": FRAGILE, "deadline": DEADLINE}
    with engine_at(server, **options) as engine:
        yield warmed(engine)


@pytest.mark.parametrize("name", LIKE_OUTAGES)
def test_it_is_refused_and_everybody_else_is_judged(
    engine: OpenAICompatibleEngine, server: FaultyServer, name: str, doors: Doors
) -> None:
    """More often than outages that would open the breaker, alone and beside others."""
    server.play(always(LIKE_OUTAGES[name]))
    before = server.struck
    alone = doors.settled(Guard(engine, ALLOW), [*marked(3), *marked(2, reply=True)])
    for decision in alone:
        assert isinstance(decision, Decision)
        assert decision.action is Action.BLOCK
        assert decision.verdict is None
    beside = engine.judge([BAKE, *marked(3), BAKE.with_last_text("What is a good pie?")])
    assert [type(one) for one in beside] == [Verdict, *[RequestRejected] * 3, Verdict]
    assert server.struck > before
    [afterwards] = doors.settled(Guard(engine, ALLOW), [BAKE])
    assert isinstance(afterwards, Decision)
    assert afterwards.verdict is not None
    assert eventually(lambda: under_way(engine) == 0)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and all that it came from, whether it is shown or not."""
    left, seen = [error], set[int]()
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [one.__cause__, one.__context__]


def _shown(error: BaseException) -> str:
    formatted = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return f"{error!s} {error!r} {error.args!r} {formatted}"


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("all_texts", [False, True], ids=["one", "all"])
def test_no_foreign_exception_and_no_text_is_in_the_chain(
    server: FaultyServer, everywhere: FaultyServer, name: str, all_texts: bool
) -> None:
    used = everywhere if all_texts else server
    used.play(honest())
    once = Reliability(attempts=1, timeout=0.3, failures=1000)
    with engine_at(used, reliability=once, deadline=3.0) as engine:
        warmed(engine)
        used.play(always(FAULTS[name]))
        [outcome] = engine.judge(marked())
    if isinstance(outcome, Verdict):
        assert name in faults.LOGPROBS
        return
    for one in _chain(outcome):
        assert isinstance(one, GuardError), type(one)
        assert MARK not in _shown(one)


@pytest.mark.parametrize("name", ["silence", "503", "404-quoting"])
def test_what_exploring_raises_has_no_text_and_nothing_foreign(
    everywhere: FaultyServer, name: str
) -> None:
    everywhere.play(always(FAULTS[name]))
    once = Reliability(attempts=1, timeout=0.3)
    with engine_at(everywhere, reliability=once, deadline=3.0) as engine:
        [outcome] = engine.judge(marked())
    assert isinstance(outcome, GuardError)
    assert all(isinstance(one, GuardError) for one in _chain(outcome))
    assert not any(MARK in _shown(one) for one in _chain(outcome))


def test_50_that_fail_at_once_share_one_harmless_request(server: FaultyServer) -> None:
    server.play(honest())
    once = Reliability(attempts=1, timeout=20, failures=2, rest=3600)
    with engine_at(server, reliability=once, deadline=60) as engine:
        warmed(engine)
        server.play(always(error(503)))
        server.requests.clear()
        found = engine.judge(marked(50))
        others = [one for one in server.requests if not holds(one, MARK)]
        assert isinstance(engine.judge([BAKE])[0], Verdict)
    assert [type(one) for one in found] == [RequestRejected] * 50
    assert len(others) == 1


class TestOutages:
    """What strikes every text counts, whoever waits for it and how long."""

    @pytest.mark.parametrize("way", ["chat", "tokens"])
    def test_calls_shorter_than_an_attempt_open_the_breaker(
        self, everywhere: FaultyServer, way: str
    ) -> None:
        everywhere.play(honest())
        patient = Reliability(attempts=3, timeout=60, failures=2, rest=0.5)
        with engine_at(everywhere, way=way, reliability=patient, deadline=1.0) as engine:
            warmed(engine)
            everywhere.play(always(faults.STALLED["silence"]))
            found = list[str]()
            for _ in range(20):
                [outcome] = engine.judge(marked())
                assert isinstance(outcome, (EngineTimeout, EngineUnavailable, RequestRejected))
                found.append(str(outcome))
                if "left alone" in found[-1]:
                    break
            assert "left alone" in found[-1], found
            everywhere.play(honest())
            assert eventually(lambda: isinstance(engine.judge([BAKE])[0], Verdict))

    def test_exploring_in_vain_opens_the_breaker(self, everywhere: FaultyServer) -> None:
        everywhere.play(always(error(503)))
        once = Reliability(attempts=1, failures=3, rest=3600)
        with engine_at(everywhere, reliability=once, deadline=20) as engine:
            before = everywhere.struck
            found = [engine.judge(marked())[0] for _ in range(6)]
            assert everywhere.struck - before == 3
        assert [type(one) for one in found] == [EngineUnavailable] * 6
        assert "left alone" not in str(found[2])
        assert "left alone" in str(found[3])

    def test_half_open_a_marked_text_closes_it_as_well_as_any(self, server: FaultyServer) -> None:
        """Its harmless companion is judged, which shows that the server is back."""
        server.play(honest())
        once = Reliability(attempts=1, timeout=20, failures=1, rest=0.3)
        with engine_at(server, reliability=once, deadline=60) as engine:
            warmed(engine)
            with server.paused():
                assert isinstance(engine.judge([BAKE])[0], EngineUnavailable)
                assert "left alone" in str(engine.judge([BAKE])[0])
            server.play(always(error(503)))
            assert eventually(lambda: isinstance(engine.judge(marked())[0], RequestRejected))
            assert isinstance(engine.judge([BAKE])[0], Verdict)

    def test_a_caller_who_gives_up_half_open_lets_the_next_one_through(
        self, everywhere: FaultyServer
    ) -> None:
        async def give_up(engine: OpenAICompatibleEngine) -> None:
            asking = asyncio.create_task(engine.ajudge([BAKE]))
            arrived = everywhere.traffic
            assert await asyncio.to_thread(eventually, lambda: arrived.in_flight == 1)
            asking.cancel()
            await asyncio.wait([asking])

        everywhere.play(honest())
        once = Reliability(attempts=1, timeout=20, failures=1, rest=0.3)
        with engine_at(everywhere, reliability=once, deadline=60) as engine:
            warmed(engine)
            with everywhere.paused():
                assert isinstance(engine.judge([BAKE])[0], EngineUnavailable)
            everywhere.play(always(faults.STALLED["silence"]))
            asyncio.run(asyncio.wait_for(asyncio.sleep(0.4), 1))
            asyncio.run(give_up(engine))
            everywhere.play(honest())
            assert isinstance(engine.judge([BAKE])[0], Verdict)


def test_a_page_in_place_of_json_is_nobodys_outage(server: FaultyServer) -> None:
    server.play(always(faults.MALFORMED["html-200"]))
    with engine_at(server, reliability=FRAGILE, deadline=20) as engine:
        found = engine.judge([*marked(5), BAKE])
    assert [type(one) for one in found] == [*[UnreadableVerdict] * 5, Verdict]
