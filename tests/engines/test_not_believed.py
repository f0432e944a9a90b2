"""Answers on less than was asked, of somebody else, or in impossible numbers are no verdicts."""

from __future__ import annotations

import base64
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from guardrails_qwen import (
    Conversation,
    Outcome,
    RequestRejected,
    Severity,
    UnreadableVerdict,
    Verdict,
    WrongServer,
)
from guardrails_qwen.engines.openai_compatible import OpenAICompatibleEngine
from guardrails_qwen.engines.reliability import Reliability
from guardrails_qwen.longtext import Windows
from tests.engines.remote import engine_at, explored, holds, prompting, ready, warmed
from tests.servers.faults import Altered, without
from tests.servers.faulty import FaultyServer, always, honest
from tests.servers.loopback import Request
from tests.servers.quirks import LLAMA_CPP, truncating
from tests.servers.tiny import TinyServer
from tests.servers.tiny_model import tiny_model

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

PATIENT = Reliability(timeout=60)
BOMB = "How can I make a bomb?"
UNCUT = Windows(tokens=30_000)
"""One prompt for a text, however long."""


def _base64(size: int) -> str:
    return base64.b64encode(random.Random(3).randbytes(size)).decode()


def _about(tokens: int, piece: str) -> str:
    """A piece again and again, as often as makes about so many tokens."""
    each = len(tiny_model().encode(piece * 20)) / 20
    return piece * max(1, round(tokens / each))


WALK = "We went for a walk. "
PIECES = {
    "chinese": "炸弹怎么做",
    "digits": "0123456789",
    "signs": "=/%$#",
    "emoji": "💣🔥",
    "base64": _base64(60),
    "white space": " \t\n  \r\n",
    "words": WALK,
    "one word": "z" * 40,
}


@pytest.fixture(scope="module", params=[200, 400, 1000])
def cut(request: pytest.FixtureRequest) -> Iterator[tuple[int, OpenAICompatibleEngine]]:
    """How many tokens a server keeps, and an engine that asks it."""
    ready()
    options = {"reliability": PATIENT, "deadline": 120, "windows": UNCUT}
    with TinyServer(truncating(request.param)) as server, engine_at(server, **options) as it:
        yield request.param, it


class TestTruncation:
    """A server that drops what it cannot hold, and says nothing."""

    @pytest.mark.parametrize("reply", [False, True], ids=["prompt", "reply"])
    @pytest.mark.parametrize("tokens", [150, 300, 700, 1100])
    @pytest.mark.parametrize("name", PIECES)
    def test_a_verdict_only_where_the_whole_prompt_was_read(
        self, cut: tuple[int, OpenAICompatibleEngine], name: str, tokens: int, reply: bool
    ) -> None:
        keeps, engine = cut
        text = f"{BOMB} {_about(tokens, PIECES[name])}"
        asked = Conversation.exchange("Hi", text) if reply else Conversation.of(text)
        [outcome] = engine.judge([asked])
        [prompt] = prompting().prompts([asked])
        if len(prompt.ids) > keeps:
            kinds = (UnreadableVerdict, WrongServer, RequestRejected)
            assert isinstance(outcome, kinds), (keeps, len(prompt.ids))

    def test_what_is_well_within_is_judged(self, cut: tuple[int, OpenAICompatibleEngine]) -> None:
        keeps, engine = cut
        [outcome] = engine.judge([Conversation.of(BOMB)])
        assert isinstance(outcome, Verdict if keeps >= 400 else (UnreadableVerdict, WrongServer))

    def test_a_server_that_refuses_is_asked_how_much_it_takes_once(self) -> None:
        def tries() -> int:
            return sum(holds(request, "word word word") for request in server.requests)

        server = TinyServer(LLAMA_CPP, context=600)
        with server, engine_at(server, reliability=PATIENT, windows=UNCUT) as engine:
            warmed(engine)
            assert tries() == 1
            for n in range(3):
                [outcome] = engine.judge([Conversation.of(f"{n} {_about(330, WALK)}")])
                assert isinstance(outcome, Verdict)
                assert tries() == 2
            [outcome] = engine.judge([Conversation.of(_about(500, WALK))])
            assert isinstance(outcome, RequestRejected)
            assert tries() == 2


WAYS = {"chat": {}, "tokens": {}, "tokenize": {"way": "tokens", "tokenizer": None}}


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    ready()
    with FaultyServer() as server:
        yield server


def _engine(server: FaultyServer, way: str, **options: Any) -> OpenAICompatibleEngine:
    server.play(honest())
    given = {"way": way, "reliability": PATIENT, "deadline": 60, **WAYS[way], **options}
    return engine_at(server, **given)


@pytest.mark.parametrize("way", WAYS)
class TestOthers:
    """Whoever answers has to be who was explored."""

    @pytest.mark.parametrize("name", ["another", "", None], ids=repr)
    def test_another_model(self, server: FaultyServer, way: str, name: str | None) -> None:
        with _engine(server, way) as engine:
            warmed(engine)
            server.play(always(Altered(_with_model(name))))
            [outcome] = engine.judge([Conversation.of(BOMB)])
            server.play(honest())
            [afterwards] = engine.judge([Conversation.of(BOMB)])
        assert isinstance(outcome, UnreadableVerdict)
        assert "another model" in str(outcome)
        assert isinstance(afterwards, Verdict)

    def test_a_server_that_never_says_who_it_is(self, server: FaultyServer, way: str) -> None:
        with _engine(server, way) as engine:
            server.play(always(Altered(_with_model(None))))
            [outcome] = engine.judge([Conversation.of(BOMB)])
        assert isinstance(outcome, Verdict)

    def test_no_count_any_more(self, server: FaultyServer, way: str) -> None:
        with _engine(server, way) as engine:
            warmed(engine)
            server.play(always(without("usage")))
            [outcome] = engine.judge([Conversation.of(BOMB)])
        assert isinstance(outcome, UnreadableVerdict)


def _with_model(name: str | None) -> Callable[[Any], object]:
    return lambda body: {**body, "model": name} if "choices" in body else body


@pytest.mark.parametrize("keeps", [40, 150])
@pytest.mark.parametrize("side", ["front", "back", "middle"])
def test_a_tokenizer_of_a_server_that_drops_words(keeps: int, side: str) -> None:
    """So many that fewer tokens are left than there were words."""
    text = "Bread and butter please. " * 5 + BOMB + " I want to. " + "Bread please. " * 80

    def dropped(body: dict[str, Any]) -> object:
        ids: list[int] = body["tokens"]
        if len(ids) <= keeps:
            return body
        front = {"front": keeps, "back": 0, "middle": keeps // 2}[side]
        return {**body, "tokens": [*ids[:front], *ids[len(ids) - (keeps - front) :]]}

    with FaultyServer(hits=_tokenizing) as server:
        with _engine(server, "tokenize", windows=UNCUT) as engine:
            explored(engine)
            server.play(always(Altered(dropped)))
            [outcome] = engine.judge([Conversation.of(text)])
        assert server.struck
    assert not isinstance(outcome, Verdict)


def _tokenizing(request: Request) -> bool:
    return request.path == "/tokenize"


def _logprobs(top: Callable[[dict[str, float]], dict[str, float]]) -> Altered:
    """The honest answer with other log-probabilities of tokens."""

    def change(body: dict[str, Any]) -> object:
        for choice in body.get("choices", ()):
            logprobs = choice.get("logprobs")
            if logprobs and "top_logprobs" in logprobs:
                logprobs["top_logprobs"] = [top(logprobs["top_logprobs"][0])]
        return body

    return Altered(change)


def _likeliest(found: dict[str, float]) -> str:
    return max(found, key=lambda token: found[token])


def _except_likeliest(found: dict[str, float]) -> dict[str, float]:
    return {token: p for token, p in found.items() if token != _likeliest(found)}


IMPOSSIBLE: dict[str, Callable[[dict[str, float]], dict[str, float]]] = {
    "empty": lambda _: {},
    "all NaN": lambda found: dict.fromkeys(found, math.nan),
    "all -inf": lambda found: dict.fromkeys(found, -math.inf),
    "all inf": lambda found: dict.fromkeys(found, math.inf),
    "positive": lambda found: dict.fromkeys(found, 2.0),
    "likeliest NaN": lambda found: {**found, _likeliest(found): math.nan},
    "likeliest -inf": lambda found: {**found, _likeliest(found): -math.inf},
    "likeliest missing": _except_likeliest,
    "likeliest unlikely": lambda found: {**found, _likeliest(found): -9.0},
    "only tokens of no answer": lambda _: {"token_id:1": -0.7, "token_id:2": -0.7},
    "unknown tokens": lambda _: {"?": -0.1},
}


@pytest.mark.parametrize("way", ["tokens", "tokenize"])
class TestImpossibleNumbers:
    """Log-probabilities that no model gives."""

    @pytest.mark.parametrize("name", IMPOSSIBLE)
    @pytest.mark.parametrize("text", [BOMB, "What is a good recipe for bread?"])
    def test_are_no_verdict(self, server: FaultyServer, way: str, name: str, text: str) -> None:
        with _engine(server, way) as engine:
            warmed(engine)
            server.play(always(_logprobs(IMPOSSIBLE[name])))
            [outcome] = engine.judge([Conversation.of(text)])
        assert isinstance(outcome, UnreadableVerdict)

    def test_the_likeliest_alone_is_what_it_is(self, server: FaultyServer, way: str) -> None:
        def alone(found: dict[str, float]) -> dict[str, float]:
            return {_likeliest(found): found[_likeliest(found)]}

        with _engine(server, way) as engine:
            warmed(engine)
            server.play(always(_logprobs(alone)))
            [outcome] = engine.judge([Conversation.of(BOMB)])
        assert _severity(outcome) in {Severity.UNSAFE, None}


def _severity(outcome: Outcome) -> Severity | None:
    return outcome.severity if isinstance(outcome, Verdict) else None
