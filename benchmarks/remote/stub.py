"""A server in another process whose model takes no time: `python -m benchmarks.remote.stub`.

It answers a request as the bundled checkpoint would, and the same request again from memory, at
once or after a delay. What is left to measure is the client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.servers.exchange import Request, Response
from tests.servers.loopback import LoopbackServer
from tests.servers.tiny import TinyApi

MODEL = "tiny"

_ROOT = Path(__file__).parents[2]
_ENDS_WITHIN = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stub:
    """The client's side of it."""

    url: str
    """Of its API, as `http://127.0.0.1:8000/v1`."""

    def seen(self) -> Seen:
        """What it has seen since this was last asked."""
        return Seen(**httpx.get(f"{self.url}/seen", trust_env=False).json())


@dataclass(slots=True, kw_only=True)
class Seen:
    """What a stub has been asked."""

    requests: int = 0
    at_once: int = 0
    """Requests that were being answered at the same time, at most."""


@contextmanager
def running(delay: float = 0.0) -> Generator[Stub]:
    """A stub that takes `delay` seconds for each verdict."""
    command = [sys.executable, "-m", "benchmarks.remote.stub", "--delay", str(delay)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Stub(url=json.loads(process.stdout.readline())["url"])
        finally:
            process.stdin.close()
            try:
                process.wait(_ENDS_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()


class Remembering:
    """Answers from memory what was asked before; what a `LoopbackServer` serves."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._api = TinyApi(name=MODEL)
        self._answers: dict[tuple[str, bytes], Response] = {}
        self._answering = 0
        self._seen = Seen()

    async def __call__(self, request: Request) -> Response:
        if request.path == "/v1/seen":
            seen, self._seen = self._seen, Seen()
            return Response.of({"requests": seen.requests, "at_once": seen.at_once})
        self._answering += 1
        self._seen.requests += 1
        self._seen.at_once = max(self._seen.at_once, self._answering)
        try:
            return await self._answered(request)
        finally:
            self._answering -= 1

    async def _answered(self, request: Request) -> Response:
        key = (request.path, request.body)
        if key not in self._answers:
            self._answers[key] = await self._api(request)
        if self._delay and request.path.endswith("/completions"):
            await asyncio.sleep(self._delay)
        return self._answers[key]


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description="A server whose model takes no time.")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds for each verdict")
    options = parser.parse_args()
    with LoopbackServer(Remembering(options.delay)) as server:
        print(json.dumps({"url": server.base_url}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
