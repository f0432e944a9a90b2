"""The moderation endpoint through a real connection to a server that answers as it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from guardrails_qwen import (
    Category,
    Conversation,
    ConversationError,
    Engine,
    EngineClosed,
    EngineError,
    Guard,
    GuardError,
    Outcome,
    Severity,
    TextTooLong,
    UnreadableVerdict,
    Verdict,
    Windows,
)
from guardrails_qwen.engines.cached import CachedEngine
from guardrails_qwen.engines.openai_moderation import OpenAIModerationEngine
from guardrails_qwen.engines.reliability import Reliability
from guardrails_qwen.errors import EngineUnavailable, RequestRejected
from tests.dialects.test_openai_moderation import result
from tests.servers.loopback import LoopbackServer, Reply, Request, Response

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

CAT, BOMB = "https://example.com/cat.png", "data:image/png;base64,Ym9tYg=="
KEY = "sk-nobody-may-see-this"
SMALL = Windows(tokens=20, overlap=0, history=0, sentences=False, limit=200)
ONCE = Reliability(attempts=1)


Spoil = Callable[[list[Any]], object]
"""What is answered to an input in place of its results: others, or a whole response."""


@dataclass
class Endpoint:
    """Flags a bomb in words or in a picture; `spoil` changes what it answers."""

    bodies: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    keys: list[str] = field(default_factory=list[str])
    spoil: Spoil = lambda _: None

    async def __call__(self, request: Request) -> Reply:
        assert (request.method, request.path) == ("POST", "/v1/moderations")
        body = request.json
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization", ""))
        spoilt = self.spoil(body["input"])
        if isinstance(spoilt, Response):
            return spoilt
        answered = self._results(body["input"]) if spoilt is None else spoilt
        return Response.of({"id": "modr-1", "model": body["model"], "results": answered})

    @property
    def inputs(self) -> list[Any]:
        return [body["input"] for body in self.bodies]

    def _results(self, asked: list[Any]) -> list[Any]:
        if isinstance(asked[0], str):
            return [result(violence=0.9 if "bomb" in text else 0.01) for text in asked]
        images = [part["image_url"]["url"] for part in asked if part["type"] == "image_url"]
        if len(images) > 1:
            raise AssertionError("the endpoint takes one image")
        shown = any("bomb" in part.get("text", "") for part in asked) or BOMB in images
        return [result(image=True, violence=0.9 if shown else 0.01)]


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint()


Asking = Callable[..., list[Outcome]]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest, endpoint: Endpoint) -> Iterator[Asking]:
    """Judges values with an engine of its own, through one of its doors."""

    def asked(*values: Any, **options: Any) -> list[Outcome]:
        conversations = [Conversation.of(value) for value in values]
        with engine_of(server, **options) as engine:
            if request.param:
                return asyncio.run(engine.ajudge(conversations))
            return engine.judge(conversations)

    with LoopbackServer(endpoint) as server:
        yield asked


@contextmanager
def engine_of(server: LoopbackServer, **options: Any) -> Generator[OpenAIModerationEngine]:
    given: dict[str, Any] = {"base_url": server.base_url, "reliability": ONCE, **options}
    with OpenAIModerationEngine(KEY, **given) as engine:
        yield engine


def severities(outcomes: Sequence[Outcome]) -> list[object]:
    return [o.severity.label if isinstance(o, Verdict) else type(o).__name__ for o in outcomes]


def shown(*parts: Any) -> list[Any]:
    """A user's turn of texts and images."""
    urls = (CAT, BOMB)
    content = [
        {"type": "image_url", "image_url": {"url": part}} if part in urls else part
        for part in parts
    ]
    return [{"role": "user", "content": content}]


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_texts_are_judged_in_one_request(ask: Asking, endpoint: Endpoint) -> None:
    outcomes = ask("a cake", "a bomb", "a cake")
    assert severities(outcomes) == ["Safe", "Unsafe", "Safe"]
    assert endpoint.bodies == [{"model": "omni-moderation-latest", "input": ["a cake", "a bomb"]}]
    assert endpoint.keys == [f"Bearer {KEY}"]
    [_, bomb, _] = outcomes
    assert isinstance(bomb, Verdict)
    assert (bomb.categories, bomb.labels) == ({Category.VIOLENT}, {"violence"})
    assert bomb.label_scores["violence"] == 0.9
    assert bomb.probability(Severity.UNSAFE, Category.VIOLENT) == 0.9
    assert bomb.model == "omni-moderation-latest"
    assert bomb.fingerprint
    assert bomb.seconds is not None


TURNS: list[Any] = [
    pytest.param([("user", "a bomb?"), ("assistant", "no")], "no", id="a reply alone"),
    pytest.param([("assistant", "a bomb"), ("user", "why?")], "why?", id="a prompt alone"),
    pytest.param(["a", ("tool", "b")], "a\n\nb", id="neighbours of one side are one turn"),
    pytest.param(
        [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{}"}]}],
        "f({})",
        id="a tool call",
    ),
]


@pytest.mark.parametrize(("value", "said"), TURNS)
def test_the_last_turn_is_judged_by_itself(
    ask: Asking, endpoint: Endpoint, value: Any, said: str
) -> None:
    assert severities(ask(value)) == ["Safe"]
    assert endpoint.inputs == [[said]]


def test_many_texts_are_judged_in_requests_of_so_many(ask: Asking, endpoint: Endpoint) -> None:
    values = [f"{'a bomb' if i % 3 == 0 else 'a cake'} {i}" for i in range(10)]
    outcomes = ask(*values, batch=4)
    assert severities(outcomes) == ["Safe" if i % 3 else "Unsafe" for i in range(10)]
    assert sorted(map(len, endpoint.inputs)) == [2, 4, 4]
    assert sorted(text for texts in endpoint.inputs for text in texts) == sorted(values)


def test_a_request_has_a_bounded_length(ask: Asking, endpoint: Endpoint) -> None:
    values = [letter * 20_000 for letter in "abcde"]
    ask(*values, windows=Windows(tokens=30_000))
    assert sorted(map(len, endpoint.inputs)) == [1, 2, 2]


def test_a_long_text_is_judged_in_windows(ask: Asking, endpoint: Endpoint) -> None:
    text = "A cake is good. " * 10 + "I make a bomb. " + "A cake is good. " * 10
    [outcome] = ask(text, windows=SMALL)
    assert isinstance(outcome, Verdict)
    assert outcome.severity is Severity.UNSAFE
    [span] = outcome.spans
    assert "bomb" in text[span.start : span.end]
    assert outcome.labels == {"violence"}
    assert len(endpoint.inputs[0]) > 1
    assert severities(ask(text * 9, windows=SMALL)) == [TextTooLong.__name__]


IMAGES: list[Any] = [
    pytest.param(shown(CAT), [[picture(CAT)]], "Safe", id="an image"),
    pytest.param(shown(BOMB), [[picture(BOMB)]], "Unsafe", id="a bad one"),
    pytest.param(
        shown("what?", CAT),
        [[{"type": "text", "text": "what?"}, picture(CAT)]],
        "Safe",
        id="with a text",
    ),
    pytest.param(
        shown("a bomb", CAT),
        [[{"type": "text", "text": "a bomb"}, picture(CAT)]],
        "Unsafe",
        id="with a bad text",
    ),
    pytest.param(
        shown("x", CAT, BOMB),
        [[{"type": "text", "text": "x"}, picture(url)] for url in (CAT, BOMB)],
        "Unsafe",
        id="two, one by one",
    ),
    pytest.param(
        [*shown(BOMB), ("assistant", "nice")], [["nice"]], "Safe", id="in an earlier turn"
    ),
    pytest.param(
        [*shown(BOMB), ("user", "nice")],
        [[{"type": "text", "text": "nice"}, picture(BOMB)]],
        "Unsafe",
        id="in an earlier message of the turn",
    ),
]


@pytest.mark.parametrize(("value", "inputs", "severity"), IMAGES)
def test_images_are_passed_through(
    ask: Asking, endpoint: Endpoint, value: Any, inputs: list[Any], severity: str
) -> None:
    assert severities(ask(value)) == [severity]
    assert sorted(endpoint.inputs, key=str) == sorted(inputs, key=str)


def test_an_image_beside_a_long_text_is_judged_apart(ask: Asking, endpoint: Endpoint) -> None:
    [outcome] = ask(shown("A cake is good. " * 10, BOMB), windows=SMALL)
    assert isinstance(outcome, Verdict)
    assert (outcome.severity, outcome.spans) == (Severity.UNSAFE, ())
    assert [picture(BOMB)] in endpoint.inputs
    assert len(endpoint.inputs) == 2


def test_an_image_that_was_not_looked_at_is_not_judged(ask: Asking, endpoint: Endpoint) -> None:
    endpoint.spoil = lambda asked: None if isinstance(asked[0], str) else [result()]
    assert severities(ask("a", shown(CAT), "b")) == ["Safe", "UnreadableVerdict", "Safe"]


def test_a_turn_without_a_word_is_safe_and_not_asked_about(ask: Asking, endpoint: Endpoint) -> None:
    assert severities(ask("", " \n" * 50, windows=SMALL)) == ["Safe", "Safe"]
    assert endpoint.inputs == []
    ask("\u200b")
    assert endpoint.inputs == [["\u200b"]]


def test_a_threshold_makes_controversial(ask: Asking) -> None:
    assert severities(ask("a cake", controversial=0.01)) == ["Controversial"]


# What may go wrong


def each(answer: object) -> Spoil:
    return lambda asked: [answer] * len(asked)


def always(answer: object) -> Spoil:
    return lambda _: answer


def one_less(asked: list[Any]) -> object:
    return [result()] * (len(asked) - 1)


SHAPES: list[Any] = [
    pytest.param(always([]), id="no results"),
    pytest.param(one_less, id="too few"),
    pytest.param(always([result()] * 9), id="too many"),
    pytest.param(always({"flagged": False}), id="no list"),
    pytest.param(each(None), id="nulls"),
    pytest.param(each({"flagged": False}), id="flags only"),
    pytest.param(always(Response.of([result()])), id="a list in place of an answer"),
    pytest.param(always(Response.of({"error": {"message": "bomb"}})), id="an error in 200"),
    pytest.param(always(Response(body=b"<html>bomb</html>")), id="a page"),
]


@pytest.mark.parametrize("spoil", SHAPES)
def test_another_shape_is_no_verdict(ask: Asking, endpoint: Endpoint, spoil: Spoil) -> None:
    endpoint.spoil = spoil
    outcomes = ask("a bomb", "a cake", shown(CAT))
    assert severities(outcomes) == ["UnreadableVerdict"] * 3
    assert "bomb" not in "".join(map(str, outcomes))


def test_a_server_that_takes_one_text_at_a_time_gets_that(ask: Asking, endpoint: Endpoint) -> None:
    endpoint.spoil = lambda asked: [result()] if len(asked) > 1 else None
    assert severities(ask("a cake", "a bomb", "b cake")) == ["Safe", "Unsafe", "Safe"]


def test_one_result_that_cannot_be_read_spares_the_others(ask: Asking, endpoint: Endpoint) -> None:
    endpoint.spoil = lambda asked: [result(), {}, result(violence=0.9)][: len(asked)]
    assert severities(ask("a", "b", "c")) == ["Safe", "UnreadableVerdict", "Unsafe"]
    assert len(endpoint.inputs) == 1


def test_a_text_that_the_server_refuses_spares_the_others(ask: Asking, endpoint: Endpoint) -> None:
    def refuse(asked: list[Any]) -> object:
        refused = any("drop table" in str(part) for part in asked)
        return Response.of({"error": {"message": "drop table"}}, 400) if refused else None

    endpoint.spoil = refuse
    values = ["a cake", "a bomb", "drop table", "b cake", shown(CAT), shown("drop table", CAT)]
    outcomes = ask(*values)
    expected = ["Safe", "Unsafe", "RequestRejected", "Safe", "Safe", "RequestRejected"]
    assert severities(outcomes) == expected
    assert isinstance(outcomes[2], RequestRejected)
    assert "drop" not in str(outcomes)


@pytest.mark.parametrize("status", [302, 401, 404, 408, 429, 502, 503, 520])
def test_a_text_that_provokes_an_outage_spares_the_others(
    ask: Asking, endpoint: Endpoint, status: int
) -> None:
    def refuse(asked: list[Any]) -> object:
        refused = any("drop table" in str(part) for part in asked)
        return Response(status=status) if refused else None

    endpoint.spoil = refuse
    outcomes = ask("a cake", "a bomb", "drop table", "b cake", shown("drop table", CAT), shown(CAT))
    expected = ["Safe", "Unsafe", "RequestRejected", "Safe", "RequestRejected", "Safe"]
    assert severities(outcomes) == expected


STATUSES: list[Any] = [
    pytest.param(401, EngineError, id="the key is refused"),
    pytest.param(404, EngineError, id="no such endpoint or model"),
    pytest.param(429, EngineError, id="too many requests"),
    pytest.param(503, EngineUnavailable, id="out of order"),
]


@pytest.mark.parametrize(("status", "kind"), STATUSES)
def test_a_server_that_fails_fails_all(
    ask: Asking, endpoint: Endpoint, status: int, kind: type[GuardError]
) -> None:
    endpoint.spoil = lambda _: Response.of({"error": {"message": f"bomb {KEY}"}}, status)
    outcomes = ask("a bomb", "a cake", shown(CAT))
    assert all(isinstance(outcome, kind) for outcome in outcomes)
    assert not any(isinstance(outcome, UnreadableVerdict) for outcome in outcomes)
    assert KEY not in str(outcomes)
    assert "bomb" not in str(outcomes)
    asked = [one for one in endpoint.inputs if "bomb" in str(one) or picture(CAT) in one]
    assert len(asked) == 2, "nothing is asked again in halves"


def test_a_guard_decides_about_images(endpoint: Endpoint) -> None:
    with LoopbackServer(endpoint) as server, engine_of(server) as engine:
        assert isinstance(engine, Engine)
        guard = Guard(CachedEngine(engine))
        values = [shown("look", CAT), shown("look", BOMB), shown("look", CAT)]
        assert [d.allowed for d in guard.check_many(values)] == [True, False, True]
        assert guard.check(shown("look", BOMB)).summary.startswith(
            "input blocked: Unsafe (Violent)"
        )
        assert len(endpoint.inputs) == 2


def test_after_it_is_closed_it_says_so(endpoint: Endpoint) -> None:
    with LoopbackServer(endpoint) as server, engine_of(server) as engine:
        assert severities(engine.judge([Conversation.of("a")])) == ["Safe"]
        engine.close()
        with pytest.raises(EngineClosed):
            engine.judge([Conversation.of("a")])


def test_nothing_shows_the_key() -> None:
    engine = OpenAIModerationEngine(KEY, headers={"x-secret": KEY})
    assert repr(engine) == (
        "OpenAIModerationEngine('omni-moderation-latest', 'https://api.openai.com/v1')"
    )
    assert KEY not in str(vars(engine))
    engine.close()


def test_the_key_may_come_from_the_environment(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EngineError, match="OPENAI_API_KEY"):
        OpenAIModerationEngine.from_env()
    monkeypatch.setenv("OPENAI_API_KEY", "of the environment")
    with LoopbackServer(endpoint) as server:
        with engine_of(server, reliability=ONCE) as given:
            given.judge([Conversation.of("a")])
        with OpenAIModerationEngine.from_env(base_url=server.base_url) as engine:
            engine.judge([Conversation.of("a")])
    assert endpoint.keys == [f"Bearer {KEY}", "Bearer of the environment"]


IMPOSSIBLE: list[Any] = [
    pytest.param({"batch": 0}, "batch", id="no batch"),
    pytest.param({"max_concurrency": 0}, "max_concurrency", id="no request at all"),
    pytest.param({"controversial": 2}, "controversial", id="a score above one"),
    pytest.param({"deadline": 0}, "deadline", id="no time"),
    pytest.param({"base_url": "api.openai.com"}, "base URL", id="no URL"),
]


@pytest.mark.parametrize(("options", "message"), IMPOSSIBLE)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpenAIModerationEngine(KEY, **options)


def test_whatever_makes_a_verdict_is_in_the_fingerprint() -> None:
    different: list[dict[str, Any]] = [
        {},
        {"model": "omni-moderation-2024-09-26"},
        {"base_url": "http://localhost:8000/v1"},
        {"controversial": 0.3},
        {"windows": Windows(tokens=100)},
    ]
    prints = [OpenAIModerationEngine(**options).fingerprint for options in different]
    assert len(set(prints)) == len(different)
    assert OpenAIModerationEngine("one key").fingerprint == prints[0]


def test_what_is_no_image_never_gets_here() -> None:
    with pytest.raises(ConversationError):
        Conversation.of(shown("x", {"type": "image_url", "image_url": {"url": "file:///etc"}}))
