"""Who asks a server: our engine in each of its ways, and openai's client as people use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import openai

from guardrails_qwen import Conversation, GuardError
from guardrails_qwen.dialects import qwen3guard
from guardrails_qwen.dialects.turns import judges_response
from guardrails_qwen.engines.asking import Way
from guardrails_qwen.engines.base import Outcome
from guardrails_qwen.engines.openai_compatible import OpenAICompatibleEngine
from guardrails_qwen.engines.prompting import Prompting

PLAIN = "openai client"
PLAIN_LOGPROBS = "openai client, log-probabilities"
CHAT, CONSTRAINED, TOKENS = (way.value for way in (Way.CHAT, Way.CONSTRAINED, Way.TOKENS))
ALL = (PLAIN, PLAIN_LOGPROBS, CHAT, CONSTRAINED, TOKENS)

_LONGEST_ANSWER = 128
"""Tokens, as in the model card."""
_LOGPROBS = 20

Count = Callable[[bytes], None]
"""Told every body that a server answers with."""


class Contender(Protocol):
    """Asks one question at a time, by either door."""

    name: str

    def judge(self, conversation: Conversation) -> Outcome:
        """The verdict, or what kept it from being had."""
        ...

    async def ajudge(self, conversation: Conversation) -> Outcome:
        """`judge`, without blocking. On one event loop only."""
        ...

    async def aclose(self) -> None:
        """Let go of all connections."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server, and how many may ask it at once."""

    url: str
    model: str
    prompting: Prompting
    callers: int = 64
    count: Count | None = None

    def at(self, url: str, model: str) -> Target:
        """The same with another server."""
        return replace(self, url=url, model=model)

    def contender(self, name: str) -> Contender:
        """One of `ALL`."""
        if name in {PLAIN, PLAIN_LOGPROBS}:
            return PlainClient(self, name)
        return EngineContender(self, name)

    def engine(
        self, way: str, *, deadline: float | None = 30.0, exact: bool = False
    ) -> OpenAICompatibleEngine:
        """Our engine, asking in that way; `exact` if it cuts long texts by tokens in any way."""
        return OpenAICompatibleEngine.from_url(
            self.url,
            model=self.model,
            way=Way(way),
            tokenizer=self.prompting if exact or way == TOKENS else None,
            deadline=deadline,
            max_concurrency=self.callers,
            http_client=self._http_client if self.count else None,
        )

    def _http_client(self) -> Any:
        return openai.DefaultAsyncHttpxClient(event_hooks=_ahooks(self.count))


class EngineContender:
    """Our engine."""

    def __init__(self, target: Target, name: str) -> None:
        self.name = name
        self._engine = target.engine(name)

    def judge(self, conversation: Conversation) -> Outcome:
        return self._engine.judge([conversation])[0]

    async def ajudge(self, conversation: Conversation) -> Outcome:
        return (await self._engine.ajudge([conversation]))[0]

    async def aclose(self) -> None:
        self._engine.close()


class PlainClient:
    """What one writes without this library: a chat completion, and its text read."""

    def __init__(self, target: Target, name: str) -> None:
        self.name = name
        options: dict[str, Any] = {"base_url": target.url, "api_key": "none"}
        self._here: Any = openai.OpenAI(**options, http_client=_client(target.count))
        self._loops: Any = openai.AsyncOpenAI(**options, http_client=_aclient(target.count))
        self._options: dict[str, Any] = {
            "model": target.model,
            "temperature": 0,
            "max_tokens": _LONGEST_ANSWER,
        }
        if name == PLAIN_LOGPROBS:
            self._options |= {"logprobs": True, "top_logprobs": _LOGPROBS}

    def judge(self, conversation: Conversation) -> Outcome:
        messages = _messages(conversation)
        completion = self._here.chat.completions.create(messages=messages, **self._options)
        return _read(completion.choices[0].message.content, conversation)

    async def ajudge(self, conversation: Conversation) -> Outcome:
        messages = _messages(conversation)
        completion = await self._loops.chat.completions.create(messages=messages, **self._options)
        return _read(completion.choices[0].message.content, conversation)

    async def aclose(self) -> None:
        self._here.close()
        await self._loops.close()


def _messages(conversation: Conversation) -> Any:
    return [{"role": one.role.value, "content": one.text} for one in conversation.messages]


def _read(answer: str | None, conversation: Conversation) -> Outcome:
    try:
        return qwen3guard.read(answer or "", response=judges_response(conversation))
    except GuardError as error:
        return error


def _client(count: Count | None) -> Any:
    if count is None:
        return None

    def read(response: Any) -> None:
        count(response.read())

    return openai.DefaultHttpxClient(event_hooks={"response": [read]})


def _aclient(count: Count | None) -> Any:
    return openai.DefaultAsyncHttpxClient(event_hooks=_ahooks(count)) if count else None


def _ahooks(count: Count | None) -> Any:
    async def read(response: Any) -> None:
        body = await response.aread()
        if count is not None:
            count(body)

    return {"response": [read]}
