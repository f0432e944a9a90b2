"""An HTTP/1.1 server on loopback, in a thread of its own, that counts what it is sent."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from typing_extensions import Self

from tests.servers.exchange import Reply, Request, Response, Wire, read_request

HOST = "127.0.0.1"

Answer = Callable[[Request], Awaitable[Reply]]
Greeting = Callable[[], Reply | None]


@dataclass(slots=True)
class Traffic:
    """What a server has seen so far."""

    opened: int = 0
    """Connections, those that were closed included."""
    open: int = 0
    most_open: int = 0
    requests: int = 0
    in_flight: int = 0
    """Requests that are being answered."""
    most_in_flight: int = 0
    received: int = 0
    """Bytes of requests."""
    sent: int = 0
    """Bytes of replies."""


class LoopbackServer:
    """Serves `answer` on a port of 127.0.0.1, with keep-alive, until it is stopped.

    The port is kept while it is stopped: connections are refused then, and `start` serves on the
    same one again. What `answer` raises is answered with 500 and raised when the server is left.

    Args:
        answer: What is done on a request. It runs on the server's event loop.
        greet: What is done on a new connection in place of reading a request, if anything.
        tls: Serves https with this context.
        remembers: How many of the latest requests `requests` holds.
        port: Where to serve; 0 for a free port.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        greet: Greeting = lambda: None,
        tls: ssl.SSLContext | None = None,
        remembers: int = 1000,
        port: int = 0,
    ) -> None:
        self.traffic = Traffic()
        self.requests: deque[Request] = deque(maxlen=remembers)
        self.failures: list[Exception] = []
        self._answer = answer
        self._greet = greet
        self._tls = tls
        self._wanted = port
        self._reserved: socket.socket | None = None
        self._running: _Running | None = None

    @property
    def port(self) -> int:
        """The port, from the first `start` on."""
        assert self._reserved is not None, "the server has not been started"
        return self._reserved.getsockname()[1]

    @property
    def url(self) -> str:
        """The root: `http://127.0.0.1:PORT`."""
        return f"{'https' if self._tls else 'http'}://{HOST}:{self.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client is given."""
        return f"{self.url}/v1"

    def start(self) -> None:
        """Serve, on the same port as before if there was one."""
        self._reserved = self._reserved or _bound(self._wanted)
        self._running = _Running(_bound(self.port), self._connected, self._tls)

    def stop(self) -> None:
        """Refuse connections from now on, and reset those that are open."""
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Stopped for a while."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def close(self) -> None:
        """Stop, and give the port back."""
        self.stop()
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        if error is None and self.failures:
            raise self.failures[0]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire, traffic = Wire(reader, writer), self.traffic
        traffic.opened += 1
        traffic.open += 1
        traffic.most_open = max(traffic.most_open, traffic.open)
        try:
            await self._converse(reader, wire)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            traffic.open -= 1
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, wire: Wire) -> None:
        greeting = self._greet()
        if greeting is not None:
            return await greeting.send(wire)
        while not wire.broken:
            request = await read_request(reader)
            self.requests.append(request)
            self.traffic.requests += 1
            self.traffic.received += len(request.body)
            await self._reply(request, wire)
            if request.headers.get("connection", "").lower() == "close":
                return None
        return None

    async def _reply(self, request: Request, wire: Wire) -> None:
        traffic, before = self.traffic, wire.sent
        traffic.in_flight += 1
        traffic.most_in_flight = max(traffic.most_in_flight, traffic.in_flight)
        try:
            await (await self._answered(request)).send(wire)
        finally:
            traffic.in_flight -= 1
            traffic.sent += wire.sent - before

    async def _answered(self, request: Request) -> Reply:
        try:
            return await self._answer(request)
        except Exception as error:  # noqa: BLE001 - a double's own mistake has to be seen
            self.failures.append(error)
            return Response(status=500)


Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class _Running:
    """An event loop in a thread that serves connections from a bound socket."""

    def __init__(
        self, listening: socket.socket, connected: Connected, tls: ssl.SSLContext | None
    ) -> None:
        self._connected = connected
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        listening.listen(1024)
        self._thread = threading.Thread(
            target=self._run, args=(listening, tls), name="loopback", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _run(self, listening: socket.socket, tls: ssl.SSLContext | None) -> None:
        try:
            self._loop.run_until_complete(self._serve(listening, tls))
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()

    async def _serve(self, listening: socket.socket, tls: ssl.SSLContext | None) -> None:
        server = await asyncio.start_server(self._tracked, sock=listening, ssl=tls, backlog=1024)
        await self._end.wait()
        server.close()
        for task, writer in list(self._tasks.items()):
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _tracked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = writer
        try:
            await self._connected(reader, writer)
        except asyncio.CancelledError:
            pass  # the server stops
        finally:
            del self._tasks[task]


def _bound(port: int) -> socket.socket:
    """A socket on a port, or on a free one for 0. Until it listens, connections are refused."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    return bound
