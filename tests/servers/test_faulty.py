"""The misbehaving server does what it is said to do."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers import faults
from tests.servers.asking import ASK, chat, content
from tests.servers.faults import Fault, Quoting, error, redirect
from tests.servers.faulty import (
    FaultyServer,
    Script,
    always,
    every,
    half,
    honest,
    needs_openssl,
    self_signed,
    then,
)

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

VERDICT = "Safety: Unsafe\nCategories: Violent"


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        yield server


def written(reply: httpx.Response) -> object:
    """What a careless client would take for the answer."""
    try:
        return content(reply)
    except (ValueError, TypeError, LookupError):
        return None


def case(name: str, kind: type[Exception]) -> Any:
    return pytest.param({**faults.BROKEN, **faults.STALLED}[name], kind, id=name)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        case("accept-then-close", httpx.RemoteProtocolError),
        case("close-unanswered", httpx.RemoteProtocolError),
        case("reset-unanswered", httpx.ReadError),
        case("reset-mid-headers", httpx.ReadError),
        case("reset-mid-body", httpx.ReadError),
        case("close-mid-body", httpx.RemoteProtocolError),
        case("no-http", httpx.RemoteProtocolError),
        case("silent-connection", httpx.ReadTimeout),
        case("silence", httpx.ReadTimeout),
        case("stall-mid-body", httpx.ReadTimeout),
        case("gigantic-length", httpx.ReadTimeout),
    ],
)
def test_what_a_client_sees(server: FaultyServer, fault: Fault, kind: type[Exception]) -> None:
    server.play(always(fault))
    # A connection that is closed before the request was read may be reset as well.
    kinds = (kind, httpx.ReadError) if kind is httpx.RemoteProtocolError else kind
    with pytest.raises(kinds):
        httpx.get(f"{server.base_url}/models", timeout=0.3 if kind is httpx.ReadTimeout else 30)


@pytest.mark.parametrize("name", ["drip", "drip-headers", "endless-body"])
def test_endless_replies_keep_a_client_waiting(server: FaultyServer, name: str) -> None:
    server.play(always(faults.STALLED[name]))

    async def read() -> None:
        async with httpx.AsyncClient(timeout=10) as client:
            await client.get(server.url)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(asyncio.wait_for(read(), 0.3))


@pytest.mark.parametrize(
    "reply",
    [*faults.TRANSIENT.items(), *faults.PERMANENT.items()],
    ids=[*faults.TRANSIENT, *faults.PERMANENT],
)
def test_statuses(server: FaultyServer, reply: tuple[str, Fault]) -> None:
    name, fault = reply
    server.play(always(fault))
    assert chat(server.url, ASK).status_code == int(name[:3])


@pytest.mark.parametrize("name", faults.MALFORMED)
def test_no_verdict_in_a_200(server: FaultyServer, name: str) -> None:
    server.play(always(faults.MALFORMED[name]))
    reply = chat(server.url, ASK)
    assert reply.status_code == 200
    assert written(reply) != VERDICT


@pytest.mark.parametrize("name", [*faults.HARMLESS, *faults.LOGPROBS])
def test_odd_but_readable(server: FaultyServer, name: str) -> None:
    server.play(always({**faults.HARMLESS, **faults.LOGPROBS}[name]))
    reply = chat(server.url, ASK, logprobs=True)
    assert content(reply) == VERDICT
    server.play(honest())
    assert reply.json() != chat(server.url, ASK, logprobs=True).json() or name in {
        "late",
        "wrong-content-type",
    }


def test_an_error_quotes_the_text(server: FaultyServer) -> None:
    server.play(always(Quoting(422)))
    assert "bomb" in chat(server.url, ASK).text


def test_a_redirect(server: FaultyServer) -> None:
    server.play(then(redirect(f"{server.url}/health")))
    assert httpx.get(f"{server.url}/v1/models", follow_redirects=True).text == ""
    assert server.requests[-1].path == "/health"


@pytest.mark.parametrize(
    ("script", "statuses"),
    [
        (then(error(503), None, error(429)), [503, 200, 429, 200, 200, 200]),
        (every(3, error(500)), [200, 200, 500, 200, 200, 500]),
    ],
    ids=["then", "every"],
)
def test_scripts(server: FaultyServer, script: Script, statuses: list[int]) -> None:
    server.play(script)
    url = f"{server.url}/health"
    assert [httpx.get(url).status_code for _ in statuses] == statuses


def test_half_is_about_half_and_repeats() -> None:
    script, again = half(error(500), seed=3), half(error(500), seed=3)
    struck = [script(i) is not None for i in range(1000)]
    assert 400 < sum(struck) < 600
    assert struck == [again(i) is not None for i in range(1000)]


def test_only_some_requests_count() -> None:
    with FaultyServer(
        always(error(500)), hits=lambda request: request.path.endswith("completions")
    ) as server:
        assert httpx.get(f"{server.base_url}/models").status_code == 200
        assert chat(server.url, ASK).status_code == 500
    assert server.struck == 1


@needs_openssl
def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    context, certificate = self_signed(tmp_path)
    with FaultyServer(tls=context) as server:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{server.url}/health")
        trusting = ssl.create_default_context(cafile=str(certificate))
        assert httpx.get(f"{server.url}/health", verify=trusting).status_code == 200
