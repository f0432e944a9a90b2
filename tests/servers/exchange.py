"""HTTP/1.1 on one connection: requests as values, replies that may break it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as it arrived, header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""

    @property
    def json(self) -> Any:
        """The body, parsed.

        Raises:
            ValueError: It is not JSON.
        """
        return json.loads(self.body)


class Wire:
    """One connection as a reply sees it: bytes may be written, or the connection broken."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.sent = 0
        self.broken = False

    async def write(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            ConnectionError: The client has gone.
        """
        self._writer.write(data)
        await self._writer.drain()
        self.sent += len(data)

    def close(self) -> None:
        """End the connection properly, whatever was promised."""
        self.broken = True
        self._writer.close()

    def reset(self) -> None:
        """Break the connection: the client gets RST, not an end of file."""
        self.broken = True
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def gone(self) -> None:
        """Wait until the client gives up."""
        self.broken = True
        while await self._reader.read(65536):
            pass


class Reply(Protocol):
    """What is done on a connection in answer to a request."""

    async def send(self, wire: Wire) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A well-formed reply."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, value: object, status: int = 200, **headers: str) -> Response:
        """A value as JSON; `retry_after="1"` becomes a header."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(
            status=status,
            body=json.dumps(value, separators=(",", ":")).encode(),
            headers={"content-type": "application/json", **named},
        )

    def head(self, *, length: int | None = None) -> bytes:
        """The status line and the headers, with the length of the body or one that is claimed."""
        lines = [f"HTTP/1.1 {self.status} {_reason(self.status)}"]
        size = len(self.body) if length is None else length
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, f"content-length: {size}", "", ""]).encode()

    async def send(self, wire: Wire) -> None:
        await wire.write(self.head() + self.body)


async def read_request(reader: asyncio.StreamReader) -> Request:
    """The next request.

    Raises:
        IncompleteReadError: The client has closed the connection.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *fields = head.split("\r\n")[:-2]
    method, path, _ = line.split(" ")
    pairs = (entry.partition(":") for entry in fields)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method=method, path=path, headers=headers, body=body)


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
