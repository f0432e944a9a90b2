"""A server that misbehaves: always a decision by the policy, in time, and nothing left behind."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from guardrails_qwen import (
    Action,
    Conversation,
    Decision,
    EngineError,
    EngineOverloaded,
    EngineTimeout,
    EngineUnavailable,
    Guard,
    GuardError,
    OnError,
    Policy,
    RequestRejected,
    Stage,
    UnreadableVerdict,
    Verdict,
    WrongServer,
)
from guardrails_qwen.engines.asking import Way
from guardrails_qwen.engines.openai_compatible import OpenAICompatibleEngine
from guardrails_qwen.engines.reliability import Reliability
from tests.doors import Doors
from tests.engines.remote import (
    engine_at,
    eventually,
    explored,
    holds,
    ready,
    threads,
    under_way,
    warmed,
)
from tests.servers import faults
from tests.servers.faults import AtConnection, Fault, Fixed, error, redirect
from tests.servers.faulty import (
    FaultyServer,
    always,
    half,
    honest,
    needs_openssl,
    self_signed,
    then,
)
from tests.servers.loopback import Answer, LoopbackServer, Reply, Request, Response
from tests.servers.tiny import TinyApi

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

SECRET = "xylophone ninety-one"
ASK = f"How can I make a bomb? {SECRET}"
DEADLINE = 5.0

KINDS: Mapping[str, type[GuardError]] = {
    **dict.fromkeys(faults.BROKEN, EngineUnavailable),
    **dict.fromkeys(faults.STALLED, EngineTimeout),
    **dict.fromkeys(faults.MALFORMED, UnreadableVerdict),
    **dict.fromkeys(faults.TRANSIENT, EngineUnavailable),
    **{name: EngineOverloaded for name in faults.TRANSIENT if name.startswith("429")},
    **dict.fromkeys(faults.PERMANENT, RequestRejected),
    "500": RequestRejected,
    "401": EngineError,
    "404": WrongServer,
    "404-html": WrongServer,
}
FAULTS: Mapping[str, Fault] = {
    **faults.BROKEN,
    **faults.STALLED,
    **faults.MALFORMED,
    **faults.TRANSIENT,
    **faults.PERMANENT,
}
IN_TEXT = {name for name in faults.MALFORMED if name.startswith(("content", "message"))}
"""Faults of an answer's text, which the tokens way does not read."""

TRIED_TWICE = {
    *faults.BROKEN,
    *faults.STALLED,
    *faults.TRANSIENT,
    "empty-body",
    "truncated-json",
    "html-200",
    "html-as-json",
    "not-utf-8",
    "null",
    "number",
    "string",
} - {"429-absurd"}
"""Everything else is an answer, and asked for once."""


EVERY = Policy(
    name="every kind of on_error",
    default=Policy.strict(on_error=OnError.RAISE).default,
    stages={
        Stage.INPUT: Policy.strict(on_error=OnError.BLOCK).default,
        Stage.OUTPUT: Policy.strict(on_error=OnError.ALLOW).default,
    },
)
"""A prompt is blocked, a reply let pass, and a tool's result raises when it cannot be judged."""


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    ready()
    with FaultyServer() as server:
        yield server


@pytest.fixture(scope="module", params=["chat", "tokens"])
def one_engine(
    server: FaultyServer, request: pytest.FixtureRequest
) -> Iterator[OpenAICompatibleEngine]:
    """An engine that knows its server already."""
    server.play(honest())
    with engine_at(server, way=request.param, deadline=DEADLINE) as engine:
        explored(engine)
        yield engine


@pytest.fixture
def engine(server: FaultyServer, one_engine: OpenAICompatibleEngine) -> OpenAICompatibleEngine:
    """The same, when it has just judged: after an outage it explores its server again."""
    server.play(honest())
    return warmed(one_engine)


def _may_pass(kind: type[GuardError]) -> bool:
    """Whether `on_error: allow` waves a failure through: it does where no text can be to blame."""
    return issubclass(kind, EngineError) and not issubclass(kind, UnreadableVerdict)


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_ends_in_a_decision(
    engine: OpenAICompatibleEngine,
    server: FaultyServer,
    name: str,
    doors: Doors,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if name in IN_TEXT and engine.explore().way is Way.TOKENS:
        pytest.skip("the verdict is not in the text")
    kind = KINDS[name]
    server.play(always(FAULTS[name]))
    server.requests.clear()
    before, started = server.struck, time.monotonic()
    with caplog.at_level(logging.DEBUG, logger="guardrails_qwen"):
        found = doors.settled(Guard(engine, EVERY), [ASK, ("assistant", ASK), ("tool", ASK)])
    blocked, allowed, raised = found
    assert time.monotonic() - started < 3 * DEADLINE
    tries = 3 * (2 if name in TRIED_TWICE else 1)
    if isinstance(FAULTS[name], AtConnection):  # harmless texts are not told apart there
        assert tries < server.struck - before <= 2 * tries
    else:
        assert _asked_about(server) == tries
    assert isinstance(blocked, Decision)
    assert isinstance(allowed, Decision)
    assert type(raised) is kind
    assert blocked.action is Action.BLOCK
    assert allowed.action is (Action.ALLOW if _may_pass(kind) else Action.BLOCK)
    assert blocked.verdict is allowed.verdict is None
    logged = [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
    assert SECRET not in "".join([*logged, f"{raised!r} {blocked.error} {allowed.error}"])
    assert len(logged) >= 3
    assert eventually(lambda: under_way(engine) == 0)


@pytest.mark.parametrize("name", [*faults.HARMLESS, *faults.LOGPROBS])
def test_odd_answers_are_read_or_refused_and_never_misread(
    engine: OpenAICompatibleEngine, server: FaultyServer, name: str, doors: Doors
) -> None:
    server.play(always({**faults.HARMLESS, **faults.LOGPROBS}[name]))
    [decision] = doors.settled(Guard(engine, Policy.strict(on_error=OnError.RAISE)), [ASK])
    if isinstance(decision, GuardError):
        assert type(decision) is UnreadableVerdict
    else:
        assert decision.action is Action.BLOCK
        assert decision.verdict is not None
        assert decision.verdict.summary == "Unsafe (Violent)"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_at_first_sight_is_no_verdict_and_leaves_nothing(
    server: FaultyServer, name: str
) -> None:
    server.play(always(FAULTS[name]))
    hasty = Reliability(attempts=1, timeout=0.5, first_wait=0.01)
    others, open_by_others = set(threads()), server.traffic.open
    with engine_at(server, deadline=1.0, reliability=hasty) as engine:
        [outcome] = engine.judge(_asked())
        assert not isinstance(outcome, Verdict)
        assert SECRET not in f"{outcome!r}"
        assert "untried" in repr(engine)
    assert eventually(lambda: set(threads()) <= others)
    assert eventually(lambda: server.traffic.open <= open_by_others)


@pytest.mark.parametrize("way", ["chat", "tokens"])
def test_half_of_the_requests_failing_loses_none(server: FaultyServer, way: str) -> None:
    server.play(honest())
    patient = Reliability(attempts=20, timeout=5, first_wait=0.001, longest_wait=0.01, failures=99)
    with engine_at(server, way=way, reliability=patient, deadline=60) as engine:
        explored(engine)
        server.play(half(error(503), seed=2))
        outcomes = engine.judge(_asked(20))
    assert all(isinstance(outcome, Verdict) for outcome in outcomes)
    assert server.struck


def test_one_failure_spares_the_neighbours(server: FaultyServer, doors: Doors) -> None:
    async def answer(request: Request) -> Reply:
        return Response(status=422) if b"poison" in request.body else await api(request)

    api = TinyApi()
    with LoopbackServer(answer) as picky, engine_at(picky) as engine:
        guard = Guard(engine, Policy.strict(on_error=OnError.RAISE))
        found = doors.settled(guard, ["Bake a cake", "poison", "Make a bomb"])
    assert isinstance(found[1], RequestRejected)
    assert not isinstance(found[0], GuardError)
    assert not isinstance(found[2], GuardError)


def test_the_breaker_opens_rests_and_closes(server: FaultyServer) -> None:
    server.play(honest())
    fragile = Reliability(attempts=1, timeout=2, failures=3, rest=0.3)
    with engine_at(server, reliability=fragile) as engine:
        warmed(engine)
        server.play(always(error(503)))
        server.requests.clear()
        found = [engine.judge(_asked())[0] for _ in range(8)]
        assert _asked_about(server) == 3
        assert [type(one) for one in found] == [EngineUnavailable] * 8
        assert "left alone" in str(found[-1])
        time.sleep(0.35)
        engine.judge(_asked())
        assert _asked_about(server) == 4
        engine.judge(_asked())
        assert _asked_about(server) == 4
        server.play(honest())
        time.sleep(0.35)
        assert isinstance(engine.judge(_asked())[0], Verdict)
        assert isinstance(engine.judge(_asked())[0], Verdict)


@pytest.mark.parametrize(
    "name", ["500", "400", "403", "413", "422", "html-200", "empty-body", "choices-absent"]
)
def test_what_a_text_can_provoke_never_opens_the_breaker(server: FaultyServer, name: str) -> None:
    server.play(honest())
    fragile = Reliability(attempts=1, timeout=5, failures=2, rest=60)
    with engine_at(server, reliability=fragile) as engine:
        explored(engine)
        server.play(always(FAULTS[name]))
        for _ in range(6):
            engine.judge(_asked())
        server.play(honest())
        assert isinstance(engine.judge(_asked())[0], Verdict)


def test_a_redirect_is_not_followed(server: FaultyServer) -> None:
    server.play(honest())
    with LoopbackServer(TinyApi()) as elsewhere, engine_at(server) as engine:
        explored(engine)
        server.play(always(redirect(f"{elsewhere.base_url}/chat/completions")))
        [outcome] = engine.judge(_asked())
        assert isinstance(outcome, WrongServer)
        assert elsewhere.traffic.opened == 0


def test_a_server_that_restarts_is_found_again(server: FaultyServer, doors: Doors) -> None:
    server.play(honest())
    with engine_at(server) as engine:
        guard = Guard(engine, Policy.strict(on_error=OnError.RAISE))
        before = doors.check(guard, ASK)
        with server.paused(), pytest.raises(EngineUnavailable):
            doors.check(guard, ASK)
        after = doors.check(guard, ASK)
    assert (after.action, after.summary) == (before.action, before.summary)


def test_a_restart_within_the_deadline_is_not_noticed(server: FaultyServer) -> None:
    server.play(honest())
    with engine_at(server, reliability=Reliability(first_wait=0.05)) as engine:
        explored(engine)
        with server.paused():
            pass
        assert isinstance(engine.judge(_asked())[0], Verdict)


@needs_openssl
def test_a_certificate_that_nobody_vouches_for(tmp_path: Path, doors: Doors) -> None:
    context, _ = self_signed(tmp_path)
    with FaultyServer(tls=context) as server, engine_at(server) as engine:
        guard = Guard(engine, Policy.strict(on_error=OnError.RAISE))
        with pytest.raises(EngineError, match="certificate is not trusted") as caught:
            doors.check(guard, ASK)
        assert type(caught.value) is EngineError
        assert server.traffic.requests == 0


class TestRetryAfter:
    """How long a server asks to be left alone."""

    @pytest.mark.parametrize("asked", ["0.3", "date"])
    def test_it_is_honoured(self, server: FaultyServer, asked: str) -> None:
        server.play(honest())
        patient = Reliability(attempts=2, first_wait=0.001, longest_wait=5)
        with engine_at(server, reliability=patient) as engine:
            explored(engine)
            fault = faults.retry_at(2) if asked == "date" else error(429, retry_after=asked)
            server.play(then(fault))
            started = time.monotonic()
            assert isinstance(engine.judge(_asked())[0], Verdict)
            assert time.monotonic() - started >= 0.3

    @pytest.mark.parametrize("asked", ["31536000", "1e308", "inf"])
    def test_an_absurd_one_ends_the_attempts(self, server: FaultyServer, asked: str) -> None:
        server.play(honest())
        with engine_at(server) as engine:
            explored(engine)
            server.play(always(error(429, retry_after=asked)))
            server.requests.clear()
            assert isinstance(engine.judge(_asked())[0], EngineOverloaded)
            assert _asked_about(server) == 1

    @pytest.mark.parametrize(
        "asked", ["nan", "-5", "soon", "Wed, 21 Oct 2015 07:28:00 -0000", "", "Wed, 99 Foo 1"]
    )
    def test_nonsense_does_not_matter(self, server: FaultyServer, asked: str) -> None:
        server.play(honest())
        with engine_at(server) as engine:
            explored(engine)
            server.play(then(error(429, retry_after=asked)))
            assert isinstance(engine.judge(_asked())[0], Verdict)

    def test_one_beyond_the_deadline_is_not_waited_for(self, server: FaultyServer) -> None:
        server.play(honest())
        patient = Reliability(attempts=2, longest_wait=60)
        with engine_at(server, reliability=patient, deadline=2) as engine:
            explored(engine)
            server.play(always(error(429, retry_after="30")))
            started = time.monotonic()
            assert isinstance(engine.judge(_asked())[0], EngineOverloaded)
            assert time.monotonic() - started < 2


class TestHedging:
    """A second request where the first takes long."""

    def test_the_first_answer_counts_and_the_loser_is_cancelled(self) -> None:
        server = FaultyServer(hits=_chats)
        with server, engine_at(server, reliability=Reliability(hedge=0.2, attempts=1)) as engine:
            warmed(engine)
            server.play(then(faults.STALLED["silence"]))
            before = server.traffic.requests
            assert isinstance(engine.judge(_asked())[0], Verdict)
            assert server.traffic.requests - before == 2
            assert eventually(lambda: server.traffic.in_flight == 0)
            assert eventually(lambda: under_way(engine) == 0)

    def test_a_quick_answer_is_asked_for_once(self) -> None:
        server = FaultyServer(hits=_chats)
        with server, engine_at(server, reliability=Reliability(hedge=20, attempts=1)) as engine:
            warmed(engine)
            before = server.traffic.requests
            assert isinstance(engine.judge(_asked())[0], Verdict)
            assert server.traffic.requests - before == 1

    def test_a_failure_of_one_waits_for_the_other(self) -> None:
        server = FaultyServer(hits=_chats)
        late = _after(0.5, Response(status=503))
        with server, engine_at(server, reliability=Reliability(hedge=0.1, attempts=1)) as engine:
            explored(engine)
            server.play(then(late, faults.Late(seconds=1.0)))
            assert isinstance(engine.judge(_asked())[0], Verdict)

    def test_two_failures_are_one(self) -> None:
        server = FaultyServer(hits=_chats)
        with server, engine_at(server, reliability=Reliability(hedge=0.1, attempts=1)) as engine:
            explored(engine)
            server.play(always(_after(0.3, Response(status=503))))
            assert isinstance(engine.judge(_asked())[0], EngineUnavailable)


def test_a_deadline_covers_all_attempts(server: FaultyServer) -> None:
    server.play(honest())
    stubborn = Reliability(attempts=1000, first_wait=0.01, longest_wait=0.05, failures=10**6)
    with engine_at(server, reliability=stubborn, deadline=1.0) as engine:
        explored(engine)
        server.play(always(error(503)))
        started = time.monotonic()
        [outcome] = engine.judge(_asked())
        assert isinstance(outcome, (EngineUnavailable, RequestRejected))
        assert "503" in str(outcome)
        assert time.monotonic() - started < 3


def test_the_error_of_a_deadline_says_what_went_wrong_before(server: FaultyServer) -> None:
    server.play(honest())
    stubborn = Reliability(attempts=9, timeout=5)
    with engine_at(server, reliability=stubborn, deadline=1.0) as engine:
        explored(engine)
        server.play(lambda i: faults.STALLED["silence"] if i else error(502))
        [outcome] = engine.judge(_asked())
    assert isinstance(outcome, (EngineTimeout, RequestRejected))
    assert re.search(r"no answer within .* 502", str(outcome))


def _asked(count: int = 1) -> list[Conversation]:
    return [Conversation.of(f"{ASK} {i}") for i in range(count)]


def _asked_about(server: LoopbackServer) -> int:
    """Requests about texts of a test; harmless ones of the engine's own are not counted."""
    return sum(holds(request, SECRET) for request in list(server.requests))


def _chats(request: Request) -> bool:
    return request.path.endswith("/chat/completions")


def _after(seconds: float, reply: Reply) -> Fault:
    async def late(request: Request, answer: Answer) -> Reply:
        await asyncio.sleep(seconds)
        return await Fixed(reply)(request, answer)

    return late
