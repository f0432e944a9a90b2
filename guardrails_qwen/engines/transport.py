"""JSON requests to one server, on the official `openai` client, within a deadline."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import anyio
import openai
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from guardrails_qwen.engines.loop_thread import THREAD
from guardrails_qwen.engines.reliability import Reliability
from guardrails_qwen.engines.slots import Slots
from guardrails_qwen.errors import (
    EngineError,
    EngineOverloaded,
    EngineTimeout,
    EngineUnavailable,
    GuardError,
    RequestRejected,
    UnreadableVerdict,
    WrongServer,
)

logger = logging.getLogger("guardrails_qwen")

_OUT_OF_ORDER = frozenset({408, 502, 503, 504, 520, 521, 522, 523, 524, 529})
"""Statuses that speak of the server and not of the request."""


_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A server and the right to use it."""

    base_url: str
    """With the version, as OpenAI clients take it: `http://localhost:8000/v1`."""
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    def __post_init__(self) -> None:
        if not _is_url(self.base_url):
            raise ValueError(
                "the base URL of a server looks like http://localhost:8000/v1: "
                "scheme, host, port and the path of the API, and nothing else"
            )
        if "@" in urlsplit(self.base_url).netloc:
            raise ValueError("give credentials as api_key or headers, not in the URL")
        words: list[object] = ["-" if self.api_key is None else self.api_key]
        words += [*self.headers.values()]
        if not all(isinstance(word, str) and _VALUE.fullmatch(word) for word in words) or not all(
            map(_NAME.fullmatch, self.headers)
        ):
            raise ValueError(
                "an api_key or a header is no text that HTTP takes; a line break at its end, "
                "perhaps: strip it"
            )

    @property
    def root(self) -> str:
        """The URL without the version of the API, where servers have endpoints of their own."""
        return self.base_url.rstrip("/").removesuffix("/v1")


class Deadline:
    """A point in time; `left` says how far away it is."""

    def __init__(self, seconds: float | None) -> None:
        self._at = None if seconds is None else time.monotonic() + seconds
        self.seconds = seconds

    def part(self, share: float) -> Deadline:
        """An earlier one: that of a share, in 0 … 1, of the time that is left."""
        return Deadline(None if self.left is None else share * self.left)

    @property
    def left(self) -> float | None:
        """Seconds, 0 if it is over; None if there is no end."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())


def _tells_no_text(record: logging.LogRecord) -> bool:
    """Whether a line of the log of the `openai` client, or of what it is made of, may be written.

    For debugging they log whole requests, and headers that may repeat a text. Those of other
    clients are not our concern: ours runs on threads of its own, which have our name.
    """
    ours = (record.threadName or "").startswith(THREAD)
    return not ours or record.levelno > logging.DEBUG


for _name in ("connection", "http11", "http2", "proxy", "socks"):
    logging.getLogger(f"httpcore.{_name}").addFilter(_tells_no_text)
    logging.getLogger(f"httpcore2.{_name}").addFilter(_tells_no_text)
logging.getLogger("openai._base_client").addFilter(_tells_no_text)


class Transport:
    """Sends JSON and gets JSON, patiently; see `Reliability`. Lives on one event loop.

    Errors say what the server did, never what it was sent or what it wrote: an error page may quote
    the moderated text. Nothing is sent to wherever a server redirects to.

    Args:
        address: The server.
        reliability: How patient to be.
        concurrency: Requests that may be under way at once; others wait, within their deadline, and
            callers take turns.
        http_client: Makes the HTTP client that openai's is to use, for proxies or certificates.
    """

    def __init__(
        self,
        address: Address,
        reliability: Reliability,
        *,
        concurrency: int,
        http_client: Callable[[], Any] | None = None,
    ) -> None:
        self._root = address.root
        self._options: Any = {"headers": _headers(address), "follow_redirects": False}
        self._reliability = reliability
        self._slots = Slots(concurrency)
        self._client = openai.AsyncOpenAI(
            base_url=address.base_url,
            api_key=address.api_key or "none",
            organization="",  # given, so that the client reads none of the environment
            project="",
            max_retries=0,
            timeout=reliability.timeout,
            http_client=http_client() if http_client else None,
        )
        # It takes headers, keys among them, from OPENAI_CUSTOM_HEADERS, and no argument keeps it.
        self._client._custom_headers = {}  # pyright: ignore[reportPrivateUsage]

    async def post(self, path: str, body: Mapping[str, Any], deadline: Deadline) -> object:
        """The JSON that the server answers to a body.

        Args:
            path: Behind the base URL, as `/completions`; behind the server's root, as `//tokenize`.
            body: What is sent.
            deadline: When to give up.

        Raises:
            EngineTimeout: Nothing came in time.
            EngineUnavailable: The server cannot be reached or is out of order.
            EngineOverloaded: It has no time for us.
            EngineError: It refuses the key, does not know the model, or sends us elsewhere.
            RequestRejected: It refuses the request, or fails on it.
            UnreadableVerdict: The answer is not JSON.
        """
        return await self._patiently("POST", path, body, deadline)

    async def get(self, path: str, deadline: Deadline) -> object:
        """The JSON at a path; see `post`."""
        return await self._patiently("GET", path, None, deadline)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def _patiently(
        self, method: Literal["GET", "POST"], path: str, body: object, deadline: Deadline
    ) -> object:
        """An answer, in as many attempts as are allowed and fit the deadline."""
        waits = _Waits(self._reliability)
        retrying = AsyncRetrying(
            stop=_stop(self._reliability, deadline),
            wait=waits,
            retry=retry_if_exception_type(_Passing),
            before_sleep=_log_retry,
            reraise=True,
        )
        last = _Last()
        failed: GuardError
        try:
            with anyio.fail_after(deadline.left):
                return await retrying(self._hedged, lambda: self._attempt(method, path, body, last))
        except TimeoutError:
            after = f"; before that: {last.error}" if last.error else ""
            failed = EngineTimeout(f"no answer within {deadline.seconds:g} s{after}")
        except _Passing as passing:
            failed = passing.error
        raise failed

    async def _hedged(self, attempt: Callable[[], Awaitable[object]]) -> object:
        """An attempt, and a second one beside it where the first takes long."""
        if self._reliability.hedge is None:
            return await attempt()
        tasks = {asyncio.ensure_future(attempt())}
        try:
            done, _ = await asyncio.wait(tasks, timeout=self._reliability.hedge)
            if not done:
                tasks.add(asyncio.ensure_future(attempt()))
            pending = tasks
            while True:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                answered = [task for task in done if task.exception() is None]
                if answered or not pending:
                    return next(iter(answered or done)).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _attempt(self, method: str, path: str, body: object, last: _Last) -> object:
        async with self._slots:
            try:
                return await self._send(method, path, body)
            except _Passing as passing:
                last.error = passing.error
                raise

    async def _send(self, method: str, path: str, body: object) -> object:
        """One attempt. What it raises has no foreign exception in its context: these quote."""
        url = f"{self._root}{path[1:]}" if path.startswith("//") else path
        seconds = self._reliability.timeout
        failed: Exception
        try:
            with anyio.fail_after(seconds):
                if method == "GET":
                    answer = await self._client.get(url, cast_to=object, options=self._options)
                else:
                    answer = await self._client.post(
                        url, cast_to=object, body=body, options=self._options
                    )
        except (TimeoutError, openai.APITimeoutError):
            failed = _Passing(EngineTimeout(f"no answer within {seconds:g} s"))
        except openai.APIStatusError as error:
            failed = _of_status(error, path)
        except openai.APIConnectionError as error:
            failed = _of_connection(error)
        except (json.JSONDecodeError, UnicodeDecodeError, openai.APIError):
            failed = _Passing(_not_json(path))
        else:
            if isinstance(answer, (dict, list)):  # a text is what the client makes of other types
                return answer  # pyright: ignore[reportUnknownVariableType]
            failed = _Passing(_not_json(path))
        raise failed


class _Passing(Exception):
    """What may be better the next time."""

    def __init__(self, error: GuardError, retry_after: float | None = None) -> None:
        super().__init__()
        self.error = error
        self.retry_after = retry_after


@dataclass(slots=True)
class _Last:
    """The latest failure of a request, for the message when time is up."""

    error: GuardError | None = None


class _Waits:
    """How long to wait for the next attempt: with jitter, or as long as the server asks for."""

    def __init__(self, reliability: Reliability) -> None:
        self._jitter = wait_random_exponential(
            multiplier=reliability.first_wait, max=reliability.longest_wait
        )

    def __call__(self, state: RetryCallState) -> float:
        return self._jitter(state) + (_retry_after(state) or 0.0)


def _stop(reliability: Reliability, deadline: Deadline) -> Callable[[RetryCallState], bool]:
    """No more attempts, or none that would begin in time."""
    enough = stop_after_attempt(reliability.attempts)
    left = deadline.left
    late = stop_before_delay(left) if left is not None else None

    def stop(state: RetryCallState) -> bool:
        asked = _retry_after(state) or 0.0
        return enough(state) or asked > reliability.longest_wait or bool(late and late(state))

    return stop


def _retry_after(state: RetryCallState) -> float | None:
    error = state.outcome.exception() if state.outcome else None
    return error.retry_after if isinstance(error, _Passing) else None


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _Passing):
        logger.info(
            "attempt %d failed, the next is in %.2f s: %s",
            state.attempt_number,
            state.upcoming_sleep,
            error.error,
        )


def _is_url(url: str) -> bool:
    """Whether it is an address of HTTP without query and fragment."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    plain = re.fullmatch(r"[!-~]+", url) and not parts.query and not parts.fragment
    named = parts.scheme in {"http", "https"} and parts.hostname
    return bool(plain and named and port != 0)


def _headers(address: Address) -> dict[str, Any]:
    """Headers of every request; without a key no authorization is sent at all."""
    nobody = {} if address.api_key else {"Authorization": openai.omit}
    own = {"OpenAI-Organization": openai.omit, "OpenAI-Project": openai.omit}
    return {**own, **nobody, **address.headers}


TOO_LONG = frozenset({400, 422})
"""Statuses by which a server refuses a prompt that is too long; 413 may be a proxy's."""
_TOO_LONG = "may be longer than the server's context"
_ADVICE: Mapping[int, tuple[type[GuardError], str]] = {
    401: (EngineError, "give it an api_key that it accepts"),
    404: (WrongServer, "check the base URL, which mostly ends in /v1, and the name of the model"),
}


def _of_status(error: openai.APIStatusError, path: str) -> Exception:
    """What a status says: of the server, of the key, or of the request."""
    status = error.status_code
    said = f"the server answered {status} to {path}"
    if status == 429:
        return _Passing(EngineOverloaded(f"{said}: too many requests"), _asked_for(error))
    if status in _OUT_OF_ORDER:
        return _Passing(EngineUnavailable(said), _asked_for(error))
    if status >= 500:
        failed = RequestRejected(f"{said}: it fails on this request", status)
        return _Passing(failed, _asked_for(error))
    if status < 400:
        return WrongServer(f"{said}, a redirect, which is not followed: give the final base URL")
    if status in _ADVICE:
        kind, advice = _ADVICE[status]
        return kind(f"{said}: {advice}")
    too_long = f", which {_TOO_LONG}" if status in TOO_LONG else ""
    return RequestRejected(f"{said}: it refuses this request{too_long}", status)


def _of_connection(error: openai.APIConnectionError) -> Exception:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return EngineError(f"the server's certificate is not trusted: {cause.verify_message}")
        cause = cause.__cause__ or cause.__context__
    kind = type(error.__cause__ or error).__name__
    return _Passing(EngineUnavailable(f"the server cannot be reached: {kind}"))


def _not_json(path: str) -> UnreadableVerdict:
    """It speaks of no outage, because a firewall may answer so to a text that it dislikes."""
    return UnreadableVerdict("", f"the server answered {path} with something else than JSON")


def _asked_for(error: openai.APIStatusError) -> float | None:
    """Seconds of a `Retry-After` header, which holds seconds or a date; None without one."""
    value = error.response.headers.get("retry-after")
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        moment = parsedate_to_datetime(value)
        return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
    return None
