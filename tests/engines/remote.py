"""What the tests of remote engines share: short patience, and a look at what is left behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from guardrails_qwen import Conversation, EngineTimeout, Outcome, Verdict
from guardrails_qwen.engines.openai_compatible import OpenAICompatibleEngine
from guardrails_qwen.engines.prompting import Prompting
from guardrails_qwen.engines.reliability import Reliability
from guardrails_qwen.engines.remote import RemoteEngine
from tests.servers.loopback import LoopbackServer, Request
from tests.servers.tiny_model import Wish, tiny_model, worker

HASTY = Reliability(attempts=2, timeout=1, first_wait=0.01, longest_wait=0.05, failures=1000)
"""Two attempts, short waits, and a breaker that stays out of it. A machine that runs other tests
beside may stand still for half a second."""


@lru_cache(maxsize=1)
def prompting() -> Prompting:
    """Tokenizer and template of the bundled checkpoint, loaded once."""
    return Prompting.from_pretrained("tiny")


@lru_cache(maxsize=1)
def ready() -> None:
    """Have the servers' model loaded, and run once, before somebody waits for it."""
    worker().submit(lambda: tiny_model().generate((5,), 1, Wish())).result()


def explored(engine: OpenAICompatibleEngine) -> OpenAICompatibleEngine:
    """The engine when it knows its server, which a loaded machine may take several tries for."""
    for _ in range(20):
        with suppress(EngineTimeout):
            engine.explore()
            return engine
    raise AssertionError("the server does not answer")


def warmed(engine: OpenAICompatibleEngine) -> OpenAICompatibleEngine:
    """The engine when it has judged: explored, and sure that the server reads a whole prompt."""
    explored(engine)
    asked = Conversation.of("What is a good recipe for a loaf of bread without any yeast in it?")
    assert eventually(lambda: isinstance(engine.judge([asked])[0], Verdict))
    return engine


def holds(request: Request, text: str) -> bool:
    """Whether a request is about a text, which the tokens way sends as numbers."""
    if text.encode() in request.body:
        return True
    sent: Any = request.json.get("prompt") if request.body else None
    return isinstance(sent, list) and text in tiny_model().tokenizer.decode(sent)


def engine_at(server: LoopbackServer, **options: Any) -> OpenAICompatibleEngine:
    """An engine for a server, asked by chat if nothing else is said."""
    options = {"way": "chat", "reliability": HASTY, **options}
    if options["way"] == "tokens":
        options.setdefault("tokenizer", prompting())
    return OpenAICompatibleEngine.from_url(server.base_url, **options)


def said(outcome: Outcome) -> tuple[object, ...]:
    """What a verdict says, scores apart."""
    assert isinstance(outcome, Verdict), repr(outcome)
    return outcome.severity, outcome.categories, outcome.refusal


def under_way(engine: RemoteEngine) -> int:
    """Tasks on an engine's own event loop."""

    async def count(_: object) -> int:
        return len(asyncio.all_tasks()) - 1

    return engine._thread.run(count)  # pyright: ignore[reportPrivateUsage]


def threads() -> list[threading.Thread]:
    """Threads of remote engines."""
    return [one for one in threading.enumerate() if one.name.startswith("guardrails-qwen")]


def eventually(holds: Callable[[], bool], *, seconds: float = 20.0) -> bool:
    """Whether something comes true before long."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
