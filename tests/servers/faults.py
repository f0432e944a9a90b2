"""What can go wrong between a client and a server, each a small value.

A fault is given the request and the honest answer to it, and makes a reply of them. `script` has
ways to say when which one strikes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from enum import Enum
from typing import Any, cast

from tests.servers.exchange import Reply, Request, Response, Wire
from tests.servers.loopback import Answer

Fault = Callable[[Request, Answer], Awaitable[Reply]]


class End(Enum):
    """How a reply that is not finished comes to an end."""

    RESET = "the connection is reset"
    CLOSE = "the connection is closed"
    STALL = "nothing follows, and the connection stays open"

    async def come(self, wire: Wire) -> None:
        if self is End.RESET:
            await asyncio.sleep(0.05)  # a reset makes the client lose what it has not read
            wire.reset()
        elif self is End.CLOSE:
            wire.close()
        else:
            await wire.gone()


@dataclass(frozen=True, slots=True)
class Fixed:
    """One reply, whatever is asked."""

    reply: Reply

    async def __call__(self, request: Request, answer: Answer) -> Reply:
        return self.reply


@dataclass(frozen=True, slots=True)
class AtConnection:
    """It strikes when a connection is opened, before a request is read."""

    reply: Reply

    async def __call__(self, request: Request, answer: Answer) -> Reply:
        return self.reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """These bytes, then an end. Is a reply."""

    data: bytes = b""
    end: End = End.CLOSE

    async def send(self, wire: Wire) -> None:
        await wire.write(self.data)
        await self.end.come(wire)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forever:
    """A head, then a piece again and again with a pause in seconds between. Is a reply."""

    head: bytes
    piece: bytes
    pause: float = 0.0

    async def send(self, wire: Wire) -> None:
        wire.broken = True
        await wire.write(self.head)
        while True:
            await wire.write(self.piece)
            await asyncio.sleep(self.pause)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The honest reply up to a share of its body, then an end; its length was promised whole."""

    share: float = 0.5
    end: End = End.RESET

    async def __call__(self, request: Request, answer: Answer) -> Reply:
        honest = await _honest(request, answer)
        part = honest.body[: int(len(honest.body) * self.share)]
        return Bytes(data=honest.head() + part, end=self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """The honest reply, after so many seconds."""

    seconds: float

    async def __call__(self, request: Request, answer: Answer) -> Reply:
        await asyncio.sleep(self.seconds)
        return await answer(request)


@dataclass(frozen=True, slots=True)
class Altered:
    """The honest reply with its JSON changed; a reply of another status than 200 stays."""

    change: Callable[[Any], object]

    async def __call__(self, request: Request, answer: Answer) -> Reply:
        honest = await _honest(request, answer)
        if honest.status != 200 or not honest.body:
            return honest
        return replace(honest, body=json.dumps(self.change(json.loads(honest.body))).encode())


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """The honest reply, its bytes or headers changed."""

    change: Callable[[Response], Response]

    async def __call__(self, request: Request, answer: Answer) -> Reply:
        return self.change(await _honest(request, answer))


@dataclass(frozen=True, slots=True)
class Quoting:
    """An error that quotes what was sent, as validators do."""

    status: int

    async def __call__(self, request: Request, answer: Answer) -> Reply:
        quoted = request.body.decode(errors="replace")
        message = f"Input should be a valid string, input: {quoted}"
        return Response.of({"error": {"message": message, "type": "BadRequest"}}, self.status)


def error(status: int, message: str = "refused", **headers: str) -> Fault:
    """An error of the OpenAI interface."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": status}}
    return Fixed(Response.of(body, status, **headers))


def json_body(value: object) -> Fault:
    """A value with status 200."""
    return Fixed(Response.of(value))


def redirect(location: str, status: int = 307) -> Fault:
    """The way to somewhere else."""
    return Fixed(Response(status=status, headers={"location": location}))


def retry_at(seconds: float) -> Fault:
    """429 whose Retry-After is a date, so many seconds from when this is called."""
    when = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    return error(429, "slow down", retry_after=format_datetime(when, usegmt=True))


def in_choice(**changes: object) -> Fault:
    """The honest reply with fields of its choices replaced, `message.content` as `content`."""
    return Altered(lambda body: _with_choices(body, changes))


def without(*names: str) -> Fault:
    """The honest reply without some of its fields."""
    return Altered(lambda body: {k: v for k, v in body.items() if k not in names})


_JSON_HEAD = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
_HTML = b"<!doctype html><html><head><title>Oops</title></head><body>Bad gateway</body></html>"
_AS_HTML = {"content-type": "text/html; charset=utf-8"}

BROKEN: Mapping[str, Fault] = {
    "accept-then-close": AtConnection(Bytes()),
    "close-unanswered": Fixed(Bytes()),
    "reset-unanswered": Fixed(Bytes(end=End.RESET)),
    "reset-mid-headers": Fixed(Bytes(data=b"HTTP/1.1 200 OK\r\ncontent-ty", end=End.RESET)),
    "reset-mid-body": Cut(),
    "close-mid-body": Cut(end=End.CLOSE),
    "no-http": Fixed(Bytes(data=b"SSH-2.0-OpenSSH_9.6\r\n")),
}
"""Connections that break at once."""

STALLED: Mapping[str, Fault] = {
    "silent-connection": AtConnection(Bytes(end=End.STALL)),
    "silence": Fixed(Bytes(end=End.STALL)),
    "stall-mid-body": Cut(end=End.STALL),
    "drip": Fixed(
        Forever(
            head=f"{_JSON_HEAD}content-length: 1000000000\r\n\r\n".encode(), piece=b" ", pause=0.02
        )
    ),
    "drip-headers": Fixed(Forever(head=b"HTTP/1.1 200 OK\r\nx-pad: ", piece=b"x", pause=0.02)),
    "gigantic-length": Fixed(
        Bytes(data=f"{_JSON_HEAD}content-length: {10**15}\r\n\r\n{{".encode(), end=End.STALL)
    ),
    "endless-body": Fixed(
        Forever(
            head=f"{_JSON_HEAD}transfer-encoding: chunked\r\n\r\n".encode(),
            piece=b"400\r\n" + b" " * 1024 + b"\r\n",
            pause=0.002,
        )
    ),
}
"""Replies that never end: only a deadline helps."""

MALFORMED: Mapping[str, Fault] = {
    "empty-body": Fixed(Response(headers={"content-type": "application/json"})),
    "truncated-json": Rewrapped(lambda r: replace(r, body=r.body[: len(r.body) // 2])),
    "html-200": Fixed(Response(body=_HTML, headers=_AS_HTML)),
    "html-as-json": Fixed(Response(body=_HTML, headers={"content-type": "application/json"})),
    "not-utf-8": Fixed(Response(body=b"\xff\xfe{", headers={"content-type": "application/json"})),
    "list": json_body([]),
    "null": json_body(None),
    "number": json_body(1),
    "string": json_body("fine"),
    "empty-object": json_body({}),
    "error-with-200": json_body({"error": {"message": "overloaded", "code": 503}}),
    "choices-absent": without("choices"),
    "choices-null": Altered(lambda body: {**body, "choices": None}),
    "choices-empty": Altered(lambda body: {**body, "choices": []}),
    "choices-of-null": Altered(lambda body: {**body, "choices": [None]}),
    "choices-an-object": Altered(lambda body: {**body, "choices": {}}),
    "content-null": in_choice(content=None, text=None),
    "content-empty": in_choice(content="", text=""),
    "content-a-list": in_choice(content=[], text=[]),
    "content-a-number": in_choice(content=5, text=5),
    "message-null": in_choice(message=None, text=None),
}
"""Status 200, and no verdict in it."""

HARMLESS: Mapping[str, Fault] = {
    "wrong-content-type": Rewrapped(lambda r: replace(r, headers={"content-type": "text/plain"})),
    "logprobs-null": in_choice(logprobs=None),
    "usage-null": Altered(lambda body: {**body, "usage": None}),
    "usage-absent": without("usage"),
    "id-absent": without("id", "created", "object", "model"),
    "late": Late(seconds=0.05),
}
"""Odd, but the verdict is there."""

_TEXT_FOR_NUMBERS: Mapping[str, object] = {
    "content": [{"token": "Safety", "logprob": "high", "top_logprobs": list[object]()}],
    "tokens": ["Safety"],
    "token_logprobs": ["high"],
    "top_logprobs": [{"Safety": "high"}],
}

LOGPROBS: Mapping[str, Fault] = {
    "empty": in_choice(logprobs={}),
    "content-null": in_choice(logprobs={"content": None, "top_logprobs": None, "tokens": None}),
    "content-of-null": in_choice(logprobs={"content": [None], "top_logprobs": [None]}),
    "a-list": in_choice(logprobs=[]),
    "text-for-numbers": in_choice(logprobs=_TEXT_FOR_NUMBERS),
}
"""The answer is there, and its log-probabilities are of the wrong shape."""

TRANSIENT: Mapping[str, Fault] = {
    "429": error(429, "slow down"),
    "429-seconds": error(429, "slow down", retry_after="0"),
    "429-date": retry_at(0),
    "429-absurd": error(429, "slow down", retry_after="31536000"),
    "429-nonsense": error(429, "slow down", retry_after="soon"),
    "429-negative": error(429, "slow down", retry_after="-5"),
    "500": error(500),
    "502": error(502),
    "502-html": Fixed(Response(status=502, body=_HTML, headers=_AS_HTML)),
    "503": error(503),
    "503-seconds": error(503, "loading", retry_after="0"),
    "504": error(504),
    "529": error(529),
}
"""Statuses that another attempt may not meet."""

PERMANENT: Mapping[str, Fault] = {
    "400": error(400),
    "400-quoting": Quoting(400),
    "401": error(401, "invalid key"),
    "403": error(403, "not yours"),
    "404": error(404, "The model `guard` does not exist."),
    "404-html": Fixed(Response(status=404, body=_HTML, headers=_AS_HTML)),
    "405": error(405),
    "413": error(413, "too large"),
    "422": error(422),
    "422-quoting": Quoting(422),
}
"""Statuses that every attempt would meet."""


async def _honest(request: Request, answer: Answer) -> Response:
    reply = await answer(request)
    assert isinstance(reply, Response)
    return reply


def _with_choices(body: dict[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    choices = cast("list[dict[str, Any]] | None", body.get("choices"))
    if choices is None:
        return body
    return {**body, "choices": [_with(choice, changes) for choice in choices]}


def _with(choice: dict[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """The choice with those of its fields replaced that it has."""
    changed = {name: value for name, value in changes.items() if name in choice}
    if "content" in changes and "message" in choice:
        changed["message"] = {**choice["message"], "content": changes["content"]}
    return {**choice, **changed}
