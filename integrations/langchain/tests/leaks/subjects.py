"""What keeps, or does not keep, an agent's unsafe text from being observed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from langchain.agents.middleware import AgentMiddleware, PIIMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_openai.middleware import OpenAIModerationMiddleware
from openai.types import Moderation
from openai.types.moderation import Categories, CategoryScores

from guardrails_qwen import Guard, Policy
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine
from integrations.langchain.tests.doubles import UNSAFE
from integrations.langchain.tests.leaks.threats import UNSAFE_WORD
from langchain_guardrails_qwen import GuardedChatModel
from langchain_guardrails_qwen.agents import GuardrailMiddleware

SCRIPT = {UNSAFE_WORD: UNSAFE}
Middlewares = Sequence[AgentMiddleware[Any, Any]]


def _same(model: BaseChatModel) -> BaseChatModel:
    return model


def _none() -> Middlewares:
    return []


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """One way to guard an agent: middleware, or a model around its model.

    Args:
        column: Its name in the table; several subjects share one.
        variant: What tells them apart.
        middleware: Makes the middleware of one agent.
        model: Makes the model of the agent.
    """

    column: str
    variant: str = ""
    middleware: Callable[[], Middlewares] = _none
    model: Callable[[BaseChatModel], BaseChatModel] = _same

    def __str__(self) -> str:
        return f"{self.column} {self.variant}".strip()


def guard(engine: str = "tokens") -> Guard:
    """A guard that judges tokens, or whole texts again and again."""
    make = {"tokens": ScriptedStreamEngine, "texts": ScriptedEngine}[engine]
    return Guard(make(SCRIPT), Policy.strict())


def _ours(engine: str, leaving: Any, *, beside: bool = False) -> Subject:
    def middleware() -> Middlewares:
        return [GuardrailMiddleware(guard(engine), exit_behavior=leaving, beside=beside)]

    variant = f"{leaving}, {engine}{', beside' * beside}"
    return Subject(column="GuardrailMiddleware", variant=variant, middleware=middleware)


def _model(engine: str) -> Subject:
    def model(inner: BaseChatModel) -> BaseChatModel:
        return GuardedChatModel(inner=inner, guard=guard(engine))

    return Subject(column="GuardedChatModel", variant=engine, model=model)


class _Endpoint:
    """The moderation endpoint, in this process: it flags what contains the unsafe word."""

    def create(self, **request: Any) -> Any:
        flagged = UNSAFE_WORD in request["input"]
        result = Moderation.model_construct(
            flagged=flagged,
            categories=Categories.model_construct(violence=flagged),
            category_scores=CategoryScores.model_construct(violence=float(flagged)),
        )
        return _Results(results=[result])


class _AsyncEndpoint(_Endpoint):
    async def create(self, **request: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().create(**request)


@dataclass(frozen=True, slots=True)
class _Results:
    results: list[Moderation]


@dataclass(frozen=True, slots=True)
class _Client:
    moderations: _Endpoint


def _openai() -> Middlewares:
    return [
        OpenAIModerationMiddleware(
            check_tool_results=True,
            client=cast("Any", _Client(_Endpoint())),
            async_client=cast("Any", _Client(_AsyncEndpoint())),
        )
    ]


def _pii() -> Middlewares:
    return [
        PIIMiddleware(
            "unsafe",
            detector=rf"{UNSAFE_WORD}\w+",
            apply_to_input=True,
            apply_to_output=True,
            apply_to_tool_results=True,
        )
    ]


UNGUARDED = Subject(column="nothing")
OURS = [_ours(engine, way) for engine in ("tokens", "texts") for way in ("end", "replace", "error")]
BESIDE = _ours("tokens", "end", beside=True)
"""Judges the input while the model answers it, so the model is sent it."""
MODELS = [_model(engine) for engine in ("tokens", "texts")]
PEERS = [
    Subject(column="OpenAIModerationMiddleware", middleware=_openai),
    Subject(column="PIIMiddleware", middleware=_pii),
]
