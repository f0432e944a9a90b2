"""A guard model behind vLLM, SGLang or any other OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import anyio

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.dialects.base import Dialect
from guardrails_qwen.dialects.families import dialect_named, dialect_of
from guardrails_qwen.dialects.turns import judges_response
from guardrails_qwen.engines.asking import Way
from guardrails_qwen.engines.base import Outcome
from guardrails_qwen.engines.estimate import estimated
from guardrails_qwen.engines.health import Health
from guardrails_qwen.engines.reliability import Reliability
from guardrails_qwen.engines.remote import RemoteEngine, judge_windows, require_type
from guardrails_qwen.engines.server import Server, Wanted, explore
from guardrails_qwen.engines.transport import Address, Deadline, Transport
from guardrails_qwen.errors import EngineTimeout, EngineUnavailable, GuardError, WrongServer
from guardrails_qwen.longtext import Window, Windows, windows
from guardrails_qwen.verdict import Verdict

if TYPE_CHECKING:
    from typing_extensions import Self

    from guardrails_qwen.engines.prompting import Prompting

_SLACK = 32
"""Tokens that a text may take more in a prompt than by itself."""
_LEAST_ROOM = 64
_EXPLORING = 60.0
"""Seconds that finding out what a server can do may take; a cold server is slow at first."""
_REST = 30.0
"""Seconds before a server that was out of order is explored anew: it may be another one."""


class RemoteOptions(TypedDict, total=False):
    """Options of `OpenAICompatibleEngine.from_url`."""

    model: str | None
    api_key: str | None
    headers: Mapping[str, str] | None
    dialect: Dialect | str | None
    way: Way | str | None
    tokenizer: str | Path | Prompting | None
    windows: Windows
    deadline: float | None
    max_concurrency: int
    reliability: Reliability
    http_client: Callable[[], Any] | None


class OpenAICompatibleEngine(RemoteEngine):
    """Asks a server that speaks OpenAI's protocol for verdicts.

    The first call finds out what the server can do, with harmless texts: whether it serves the
    guard at all, whether it judges replies as replies, and how it can be asked; see `Way`. Nothing
    is believed that was not seen, and every answer is checked for what was asked.

    Args:
        address: The server.
        model: The name under which it serves the guard; None if it serves only one model.
        dialect: The model's family.
        way: How to ask, None for the best that works.
        prompting: The model's tokenizer and template, for the tokens way.
        windows: How a long text is cut. Without `prompting` lengths are estimated.
        deadline: Seconds that a call may take in all, retries included; None for any.
        max_concurrency: Requests that may be under way at once.
        reliability: Retries, circuit breaker, hedging.
        http_client: Makes the HTTP client that openai's is to use, for proxies or certificates.
    """

    def __init__(  # noqa: PLR0913
        self,
        address: Address,
        *,
        model: str | None = None,
        dialect: Dialect | None = None,
        way: Way | None = None,
        prompting: Prompting | None = None,
        windows: Windows = Windows(),
        deadline: float | None = 30.0,
        max_concurrency: int = 64,
        reliability: Reliability = Reliability(),
        http_client: Callable[[], Any] | None = None,
    ) -> None:
        require_type("max_concurrency", max_concurrency, int)
        require_type("reliability", reliability, Reliability)
        require_type("windows", windows, Windows)
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency is {max_concurrency}: use at least 1")
        dialect = dialect or dialect_of(model)
        if way is Way.TOKENS and dialect.name != "qwen3guard":
            raise ValueError(f"the tokens way is for Qwen3Guard: {dialect.name} is asked by chat")
        self.address = address
        self.demonstration = prompting.demonstration if prompting else False
        self._known = _Known()
        super().__init__(
            partial(
                _Session,
                partial(
                    Transport,
                    address,
                    reliability,
                    concurrency=max_concurrency,
                    http_client=http_client,
                ),
                reliability,
                Wanted(model=model, dialect=dialect, way=way, prompting=prompting),
                windows,
                self._known,
            ),
            name=model or address.base_url,
            fingerprint=_fingerprint(address, model, dialect, way, prompting, windows),
            deadline=deadline,
        )

    @classmethod
    def from_url(  # noqa: PLR0913
        cls,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        dialect: Dialect | str | None = None,
        way: Way | str | None = "auto",
        tokenizer: str | Path | Prompting | None = None,
        windows: Windows = Windows(),
        deadline: float | None = 30.0,
        max_concurrency: int = 64,
        reliability: Reliability = Reliability(),
        http_client: Callable[[], Any] | None = None,
    ) -> Self:
        """An engine for a server. Nothing is sent before the first call.

        Args:
            base_url: With the version, as `http://localhost:8000/v1`.
            model: The name under which the server has the guard; not needed if it has only one.
            api_key: Sent as a bearer token, if given. No key is read from the environment; proxies
                and certificates are, as by any HTTP client (HTTPS_PROXY, SSL_CERT_FILE …).
            headers: Sent with every request.
            dialect: The model's family, or its name: `qwen3guard`, `llama_guard` or
                `gpt_oss_safeguard`. By default what the model's name says.
            way: `tokens`, `chat`, `constrained`, or the best that works.
            tokenizer: The folder or hub name of the checkpoint, of which the tokenizer and the chat
                template are loaded, for the tokens way; without it the server's `/tokenize` is
                asked, where it has one.
            windows: How a long text is cut.
            deadline: Seconds that a call may take in all, waiting and retries included.
            max_concurrency: Requests that may be under way at once.
            reliability: Retries, circuit breaker, hedging.
            http_client: Makes the HTTP client that openai's is to use, for proxies or certificates.

        Raises:
            CheckpointError: The tokenizer cannot be used.
            ImportError: A package for the tokenizer is missing.
            ValueError: The URL or an option is wrong.
        """
        return cls(
            Address(base_url=base_url, api_key=api_key, headers=headers or {}),
            model=model,
            dialect=dialect_named(dialect) if isinstance(dialect, str) else dialect,
            way=_way(way),
            prompting=_prompting(tokenizer),
            windows=windows,
            deadline=deadline,
            max_concurrency=max_concurrency,
            reliability=reliability,
            http_client=http_client,
        )

    @property
    def name(self) -> str:
        """The model as the server calls it; until that is known, as it was asked for."""
        return self._known.server.model if self._known.server else self._name

    def __repr__(self) -> str:
        server = self._known.server
        found = f"way {server.way.value}, {server.software or 'a server'}" if server else "untried"
        shown = "" if self.name == self.address.base_url else f"{self.name!r} at "
        kind = ", a demonstration, not protection" if self.demonstration else ""
        return f"OpenAICompatibleEngine({shown}{self.address.base_url!r}, {found}{kind})"

    def explore(self) -> Server:
        """What the server can do and how it is asked; found out now if it was not yet.

        Raises:
            WrongServer: It does not serve the guard, or cannot be asked in the way that is wanted.
            EngineError: It cannot be asked at all.
        """
        return self._thread.run(_explored)

    async def aexplore(self) -> Server:
        """`explore`, without blocking the event loop."""
        return await self._thread.arun(_explored)


@dataclass(slots=True)
class _Known:
    """What was last found out about a server, for an engine's repr."""

    server: Server | None = None


class _Session:
    """Connections to a server, and how it is asked. Fits `remote.Session`."""

    def __init__(
        self,
        transport: Callable[[], Transport],
        reliability: Reliability,
        wanted: Wanted,
        settings: Windows,
        known: _Known,
    ) -> None:
        self._transport = transport()
        self._health = Health(reliability)
        self._wanted = wanted
        self._settings = settings
        self._known = known
        self._exploring: asyncio.Task[Server] | None = None
        self._explored = 0.0

    async def server(self, deadline: Deadline) -> Server:
        """What is known of the server; all callers wait for one exploration."""
        if self._exploring is None or _failed(self._exploring):
            self._exploring = asyncio.ensure_future(self._explore())
        try:
            with anyio.fail_after(deadline.left):
                return await asyncio.shield(self._exploring)
        except TimeoutError:
            raise EngineTimeout(f"no answer within {deadline.seconds:g} s") from None

    async def judge(
        self, conversations: Sequence[Conversation], deadline: Deadline
    ) -> list[Outcome]:
        """One outcome for each conversation, in order."""
        if not conversations:
            return []
        try:
            server = await self.server(deadline)
            cut = self._cutter(server)
        except GuardError as error:
            return [error] * len(conversations)

        harmless = partial(server.ask, self._wanted.dialect.probes[0])

        async def ask(conversation: Conversation) -> Verdict:
            return await self._health.ask(partial(server.ask, conversation), harmless, deadline)

        outcomes = await judge_windows(conversations, cut, ask)
        if any(isinstance(outcome, EngineUnavailable) for outcome in outcomes):
            self._doubt()
        return outcomes

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    async def _explore(self) -> Server:
        exploring = partial(explore, self._transport, self._wanted, Deadline(_EXPLORING))
        server = await self._health.harmless(exploring)
        self._known.server = server
        self._explored = asyncio.get_running_loop().time()
        return server

    def _doubt(self) -> None:
        """Explore anew at the next call: what comes back after a failure may be another server."""
        done = self._exploring is not None and self._exploring.done()
        if done and asyncio.get_running_loop().time() - self._explored > _REST:
            self._exploring = None

    def _cutter(self, server: Server) -> Callable[[Conversation], list[Window]]:
        prompting = self._wanted.prompting
        measure = prompting.lengths if prompting else estimated
        settings = {
            response: _within(self._settings, server, self._wanted.dialect, response=response)
            for response in (False, True)
        }

        def cut(conversation: Conversation) -> list[Window]:
            return windows(conversation, measure, settings[judges_response(conversation)])

        return cut


async def _explored(session: Any) -> Server:
    return await session.server(Deadline(_EXPLORING))


def _failed(task: asyncio.Task[Server]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _within(settings: Windows, server: Server, dialect: Dialect, *, response: bool) -> Windows:
    """Windows that fit the server's context, as far as it tells."""
    if server.context is None:
        return settings
    overhead = max(0, server.overheads.get(response, 0)) + dialect.answer_tokens + _SLACK
    room = server.context - overhead
    if room < _LEAST_ROOM:
        raise WrongServer(
            f"the server's context of {server.context} tokens has room for {max(0, room)} of text "
            "beside the guard's own instructions: start it with a larger one (vLLM: "
            "--max-model-len 4096)"
        )
    return settings.within(room)


def _way(way: str | None) -> Way | None:
    if way is None or way == "auto":
        return None
    try:
        return Way(way)
    except ValueError:
        ways = ", ".join(one.value for one in Way)
        raise ValueError(f"there is no way {way!r} of asking: use auto, {ways}") from None


def _prompting(tokenizer: str | Path | Prompting | None) -> Prompting | None:
    if tokenizer is None or not isinstance(tokenizer, (str, Path)):
        return tokenizer
    try:
        from guardrails_qwen.engines.prompting import Prompting
    except ModuleNotFoundError as error:
        raise ImportError(
            f"a tokenizer needs {error.name}: pip install 'guardrails-qwen[tokenizer]'"
        ) from error
    return Prompting.from_pretrained(tokenizer)


def _fingerprint(  # noqa: PLR0913, PLR0917
    address: Address,
    model: str | None,
    dialect: Dialect,
    way: Way | None,
    prompting: Prompting | None,
    settings: Windows,
) -> str:
    """Who is asked and how. What weights a server has loaded it does not tell."""
    described = [
        address.base_url,
        model,
        dialect.name,
        dialect.fingerprint,
        way,
        prompting.digest if prompting else None,
        settings,
    ]
    return hashlib.sha256(repr(described).encode()).hexdigest()[:16]
