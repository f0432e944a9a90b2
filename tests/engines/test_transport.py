"""Requests of many callers at once: none lost, none left, no more under way than allowed."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from guardrails_qwen import (
    Conversation,
    EngineClosed,
    EngineTimeout,
    EngineUnavailable,
    Outcome,
    RequestRejected,
    UnreadableVerdict,
    Verdict,
    WrongServer,
)
from guardrails_qwen.engines.openai_compatible import OpenAICompatibleEngine
from guardrails_qwen.engines.reliability import Reliability
from guardrails_qwen.engines.transport import Address, Deadline, Transport
from tests.engines.remote import engine_at, eventually, under_way, warmed
from tests.servers.faults import STALLED, Bytes, End
from tests.servers.faulty import FaultyServer, always
from tests.servers.loopback import LoopbackServer, Reply, Request, Response

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

PATIENT = Reliability(timeout=60)


class Gate:
    """Answers as a guard does, but holds texts with a certain word until it is opened."""

    def __init__(self, *, at_once: int = 0) -> None:
        self.held = 0
        self.at_once = at_once
        """Opens by itself when so many are held."""
        self._open = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, request: Request) -> Reply:
        self._loop = asyncio.get_running_loop()
        if b"waiting" in request.body:
            self.held += 1
            if self.held == self.at_once:
                self._open.set()
            await self._open.wait()
        return Response.of(_answer(request))

    def open(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._open.set)


def _answer(request: Request) -> object:
    """Safe, whatever is asked, in the form of what is asked."""
    if request.path == "/v1/models":
        return {"data": [{"id": "guard", "owned_by": "us"}]}
    roles = [message["role"] for message in request.json["messages"]]
    refusal = "\nRefusal: No" if roles[-1] == "assistant" else ""
    words = sum(len(message["content"]) for message in request.json["messages"])
    return {
        "choices": [
            {
                "message": {"content": f"Safety: Safe\nCategories: None{refusal}"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 200 + words, "completion_tokens": 9},
    }


def waiting(count: int) -> list[Conversation]:
    return [Conversation.of(f"waiting {n}") for n in range(count)]


def at(server: LoopbackServer, **options: Any) -> OpenAICompatibleEngine:
    return engine_at(server, **{"reliability": PATIENT, "deadline": 60, **options})


class TestMany:
    """Hundreds of callers."""

    def test_250_are_held_at_once_and_none_is_lost(self) -> None:
        """Half of them threads, half of them tasks."""
        gate = Gate(at_once=250)

        async def tasks(engine: OpenAICompatibleEngine) -> list[list[Outcome]]:
            return await asyncio.gather(*(engine.ajudge([one]) for one in waiting(250)[125:]))

        with LoopbackServer(gate) as server, at(server, max_concurrency=250) as engine:
            with ThreadPoolExecutor(125) as pool:
                threads = [pool.submit(engine.judge, [one]) for one in waiting(125)]
                found = [*asyncio.run(tasks(engine)), *(one.result() for one in threads)]
            assert server.traffic.most_in_flight == 250
        assert len(found) == 250
        assert all(isinstance(outcome, Verdict) for [outcome] in found)

    @pytest.mark.parametrize("most", [1, 7])
    def test_no_more_are_under_way_than_allowed(self, most: int) -> None:
        gate = Gate(at_once=most)
        with LoopbackServer(gate) as server, at(server, max_concurrency=most) as engine:
            found = engine.judge(waiting(60))
            assert server.traffic.most_in_flight == most
            assert server.traffic.most_open <= most
        assert all(isinstance(outcome, Verdict) for outcome in found)

    def test_waiting_for_a_slot_ends_with_the_deadline(self) -> None:
        gate = Gate()
        with LoopbackServer(gate) as server:
            with at(server, max_concurrency=2, deadline=3) as engine:
                warmed(engine)
                found = engine.judge(waiting(6))
            gate.open()
        assert [type(one) for one in found] == [RequestRejected] * 6, "others are judged"
        assert gate.held == 2

    def test_a_server_that_hangs_on_everything_is_an_outage(self) -> None:
        server = FaultyServer(answer=Gate())
        once = Reliability(attempts=1, timeout=0.5)
        with server, at(server, max_concurrency=6, reliability=once) as engine:
            warmed(engine)
            server.play(always(STALLED["silence"]))
            found = engine.judge(waiting(6))
        assert [type(one) for one in found] == [EngineTimeout] * 6

    def test_cancelled_callers_free_their_slots_and_end_their_requests(self) -> None:
        async def give_up(engine: OpenAICompatibleEngine) -> None:
            tasks = [asyncio.create_task(engine.ajudge([one])) for one in waiting(5)]
            assert await asyncio.to_thread(eventually, lambda: server.traffic.in_flight == 2)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) for one in ended)

        server = LoopbackServer(_hang)
        with server, at(server, max_concurrency=2) as engine:
            warmed(engine)
            before = server.traffic.requests
            asyncio.run(give_up(engine))
            assert eventually(lambda: under_way(engine) == 0)
            assert eventually(lambda: server.traffic.in_flight == 0)
            found = engine.judge([Conversation.of(f"free {n}") for n in range(4)])
            assert all(isinstance(outcome, Verdict) for outcome in found)
            assert server.traffic.requests - before == 2 + 4

    def test_memory_stays_flat(self) -> None:
        with LoopbackServer(Gate(), remembers=10) as server, at(server) as engine:

            def counted() -> tuple[int, int, int]:
                for n in range(5):
                    engine.judge([Conversation.of(f"{n} {i}") for i in range(100)])
                gc.collect()
                return len(gc.get_objects()), under_way(engine), server.traffic.open

            counted()
            first, *rest = [counted() for _ in range(4)]
        for objects, tasks, connections in rest:
            assert objects < first[0] + 500
            assert tasks == 0
            assert connections <= 64
        assert server.traffic.opened <= 64


class TestLoops:
    """Event loops that come and go share one pool of connections."""

    def test_one_after_another_and_at_once(self) -> None:
        def once(n: int) -> Outcome:
            return asyncio.run(engine.ajudge([Conversation.of(f"Hello {n}")]))[0]

        with LoopbackServer(Gate()) as server, at(server) as engine:
            found = [once(n) for n in range(3)]
            assert server.traffic.opened == 1
            with ThreadPoolExecutor(6) as pool:
                found += pool.map(once, range(24))
            assert server.traffic.opened <= 6
        assert all(isinstance(outcome, Verdict) for outcome in found)


class TestClosing:
    """What is left behind: nothing."""

    def test_calls_under_way_are_answered(self) -> None:
        gate = Gate()
        with LoopbackServer(gate) as server, ThreadPoolExecutor(2) as pool:
            engine = at(server)
            asked = pool.submit(engine.judge, waiting(20))
            assert eventually(lambda: gate.held == 20)
            closing = pool.submit(engine.close)
            gate.open()
            closing.result(timeout=30)
            assert all(isinstance(outcome, Verdict) for outcome in asked.result(timeout=30))
            assert eventually(lambda: server.traffic.open == 0)
            with pytest.raises(EngineClosed):
                engine.judge(waiting(1))
            with pytest.raises(EngineClosed):
                asyncio.run(engine.ajudge(waiting(1)))

    async def test_the_asynchronous_doors(self) -> None:
        with LoopbackServer(Gate()) as server:
            async with at(server) as engine:
                [outcome] = await engine.ajudge([Conversation.of("Hello")])
            assert isinstance(outcome, Verdict)
            assert eventually(lambda: server.traffic.open == 0)

    def test_an_engine_that_is_only_dropped_leaves_nothing(self) -> None:
        with LoopbackServer(Gate()) as server, warnings.catch_warnings():
            warnings.simplefilter("error")
            engine = at(server, model="dropped")
            engine.judge([Conversation.of("Hello")])
            del engine
            gc.collect()
            assert eventually(lambda: server.traffic.open == 0)
            assert eventually(lambda: not _named("dropped"))

    def test_a_server_that_hangs_does_not_keep_an_engine_from_closing(self) -> None:
        server = FaultyServer(always(STALLED["silence"]))
        with server, ThreadPoolExecutor(1) as pool:
            engine = at(server, deadline=0.3)
            assert isinstance(engine.judge(waiting(1))[0], EngineTimeout)
            assert server.traffic.in_flight == 1
            pool.submit(engine.close).result(timeout=20)
            assert eventually(lambda: server.traffic.in_flight == server.traffic.open == 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_judges_and_its_parent_goes_on() -> None:
    gate = Gate()
    with LoopbackServer(gate) as server, at(server) as engine, ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(engine.judge, waiting(3))
        assert eventually(lambda: gate.held == 3)
        pid = os.fork()
        if pid == 0:
            _exit_well_if(
                lambda: isinstance(engine.judge([Conversation.of("From a child")])[0], Verdict)
            )
        _, status = os.waitpid(pid, 0)
        assert status == 0
        gate.open()
        assert all(isinstance(outcome, Verdict) for outcome in under_way.result())
        assert isinstance(engine.judge([Conversation.of("Afterwards")])[0], Verdict)


class TestTransport:
    """JSON out, JSON in."""

    @pytest.fixture
    async def transport(self) -> AsyncIterator[Transport]:
        with LoopbackServer(_echo) as server:
            found = Transport(Address(base_url=server.base_url), PATIENT, concurrency=2)
            yield found
            await found.aclose()

    async def test_paths_are_below_the_version_or_the_root(self, transport: Transport) -> None:
        assert await transport.post("/a", {"x": "ü"}, Deadline(9)) == ["POST", "/v1/a", {"x": "ü"}]
        assert await transport.post("//b", {}, Deadline(9)) == ["POST", "/b", {}]
        assert await transport.get("/models", Deadline(None)) == ["GET", "/v1/models", None]

    async def test_a_deadline_that_is_over(self, transport: Transport) -> None:
        deadline = Deadline(0.01)
        await asyncio.sleep(0.02)
        assert deadline.left == 0
        with pytest.raises(EngineTimeout):
            await transport.post("/a", {}, deadline)

    async def test_a_text_is_no_json(self, transport: Transport) -> None:
        with pytest.raises(UnreadableVerdict, match="something else than JSON"):
            await transport.get("/text", Deadline(9))

    async def test_a_missing_page_is_named(self, transport: Transport) -> None:
        with pytest.raises(WrongServer, match="404 to /missing"):
            await transport.get("/missing", Deadline(9))

    async def test_a_client_of_ones_own(self) -> None:
        def handle(request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, json=[request.url.path])

        def client() -> httpx.AsyncClient:
            return httpx.AsyncClient(transport=httpx.MockTransport(handle))

        address = Address(base_url="http://guard.invalid/v1")
        transport = Transport(address, PATIENT, concurrency=1, http_client=client)
        assert await transport.get("/models", Deadline(9)) == ["/v1/models"]
        await transport.aclose()

    async def test_nobody_there(self) -> None:
        server = LoopbackServer(_echo)
        with server:
            url = server.base_url
        once = Reliability(attempts=1)
        transport = Transport(Address(base_url=url), once, concurrency=1)
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            await transport.get("/models", Deadline(9))
        await transport.aclose()


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"attempts": 1.5},
        {"failures": 0},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"first_wait": -1},
        {"longest_wait": float("inf")},
        {"rest": "long"},
        {"hedge": 0},
    ],
    ids=str,
)
def test_patience_that_makes_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Reliability(**options)


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://host:8000/v1", "http://host:8000"),
        ("http://host:8000/v1/", "http://host:8000"),
        ("https://host/gateway/v1", "https://host/gateway"),
        ("https://host/api", "https://host/api"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("https://host/a/b/v1", "https://host/a/b"),
    ],
)
def test_the_root_of_an_address(url: str, root: str) -> None:
    assert Address(base_url=url).root == root


@pytest.mark.parametrize(
    "url",
    [
        "http://host:80000/v1",
        "http://host:0/v1",
        "http://host:-1/v1",
        "http://host:port/v1",
        "http://ho st/v1",
        "http://host/v1 ",
        "http://host/v1\n",
        "http://host/v1?api-version=1",
        "http://host/v1#part",
        "http://user:word@host/v1",
        "http://[::1/v1",
        "http://höst/v1",
    ],
)
def test_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="URL") as caught:
        Address(base_url=url)
    assert "word" not in str(caught.value)


@pytest.mark.parametrize(
    "secret", ["sk-word\n", "sk-word\r\nx: y", "sk-wörd", "sk-word\x00", "😀word"]
)
def test_a_key_that_http_does_not_take(secret: str) -> None:
    options: list[dict[str, Any]] = [
        {"api_key": secret},
        {"headers": {"x-key": secret}},
        {"headers": {secret: "x"}},
    ]
    for given in options:
        with pytest.raises(ValueError, match="strip") as caught:
            Address(base_url="http://host/v1", **given)
        assert secret.strip() not in str(caught.value)
        assert "word" not in str(caught.value)


def test_an_address_does_not_show_its_secrets() -> None:
    address = Address(base_url="http://h/v1", api_key="secret", headers={"X-Key": "secret"})
    assert "secret" not in repr(address)


async def _hang(request: Request) -> Reply:
    """Answers as a guard does, and not at all to a text with a certain word."""
    return Bytes(end=End.STALL) if b"waiting" in request.body else Response.of(_answer(request))


async def _echo(request: Request) -> Reply:
    if request.path == "/v1/missing":
        return Response(status=404)
    if request.path == "/v1/text":
        return Response(body=b"fine", headers={"content-type": "text/plain"})
    return Response.of([request.method, request.path, request.json if request.body else None])


def _named(name: str) -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.endswith(name)]


def _exit_well_if(holds: Callable[[], bool]) -> None:
    """End a child process, with status 0 if something holds."""
    status = 1
    try:
        status = 0 if holds() else 2
    finally:
        os._exit(status)
