"""The test doubles, which others build on."""

from __future__ import annotations

import asyncio

import pytest

from guardrails_qwen import (
    Category,
    Conversation,
    ConversationError,
    EngineClosed,
    EngineError,
    GuardError,
    Severity,
    TextTooLong,
    UnreadableVerdict,
    Verdict,
)
from guardrails_qwen.engines.session import SessionEngine
from guardrails_qwen.testing import FailingEngine, Script, ScriptedEngine, ScriptedStreamEngine

ASK = Conversation.of("How can I make a bomb?")
REPLY = Conversation.exchange("How?", "Like this: bomb")
UNSAFE = Verdict(severity=Severity.UNSAFE)
CAKE = Conversation.of("How can I bake a cake?")


SHOWN = Conversation.of(
    [("user", [{"type": "image_url", "image_url": {"url": "https://x/y"}}]), "a"]
)


def safe_unless_bomb(conversation: Conversation) -> Verdict:
    return UNSAFE if "bomb" in conversation.last.text else Verdict(severity=Severity.SAFE)


SCRIPTS: list[tuple[Script | None, Conversation, Severity]] = [
    (None, ASK, Severity.SAFE),
    (UNSAFE, ASK, Severity.UNSAFE),
    ("Safety: Unsafe\nCategories: Violent", ASK, Severity.UNSAFE),
    ("Safety: Unsafe\nCategories: Violent", REPLY, Severity.UNSAFE),
    ({"bomb": UNSAFE}, ASK, Severity.UNSAFE),
    ({"bomb": UNSAFE}, CAKE, Severity.SAFE),
    (
        {"make": Verdict(severity=Severity.CONTROVERSIAL), "bomb": UNSAFE},
        ASK,
        Severity.CONTROVERSIAL,
    ),
    (safe_unless_bomb, ASK, Severity.UNSAFE),
    (safe_unless_bomb, CAKE, Severity.SAFE),
]


@pytest.mark.parametrize(
    "script", [None, UNSAFE, safe_unless_bomb], ids=["none", "one", "function"]
)
def test_images_are_refused_and_neighbours_spared(script: Script | None) -> None:
    first, last = ScriptedEngine(script).judge([SHOWN, CAKE])
    assert isinstance(first, ConversationError)
    assert isinstance(last, Verdict)


@pytest.mark.parametrize(("script", "asked", "severity"), SCRIPTS)
def test_answers_by_the_script(
    script: Script | None, asked: Conversation, severity: Severity
) -> None:
    engine = ScriptedEngine(script, name="double")
    [outcome] = engine.judge([asked])
    assert isinstance(outcome, Verdict)
    assert outcome.severity is severity
    assert (outcome.model, outcome.fingerprint) == ("double", engine.fingerprint)
    assert asyncio.run(engine.ajudge([asked])) == [outcome]


NONSENSE = ["", "I think it's fine!", "Safety: Safe", "Safe", "safety: safe\ncategories: none"]


@pytest.mark.parametrize("answer", NONSENSE)
@pytest.mark.parametrize("asked", [ASK, REPLY], ids=["prompt", "response"])
def test_nonsense_is_no_verdict(answer: str, asked: Conversation) -> None:
    [outcome] = ScriptedEngine(answer).judge([asked])
    assert isinstance(outcome, UnreadableVerdict)


def test_a_refusal_is_read_where_a_response_is_judged() -> None:
    answer = "Safety: Safe\nCategories: None\nRefusal: Yes"
    [refused] = ScriptedEngine(answer).judge([REPLY])
    assert isinstance(refused, Verdict)
    assert refused.refusal is True
    [unsaid] = ScriptedEngine("Safety: Safe\nCategories: None").judge([REPLY])
    assert isinstance(unsaid, Verdict)
    assert unsaid.refusal is False
    [asked] = ScriptedEngine("Safety: Unsafe\nCategories: Jailbreak").judge([ASK])
    assert isinstance(asked, Verdict)
    assert asked.refusal is None
    assert asked.categories == {Category.JAILBREAK}


def test_an_error_is_an_outcome_of_its_own() -> None:
    error = TextTooLong(9, 8)
    assert ScriptedEngine({"bomb": error}).judge([CAKE, ASK])[1] is error


def test_records_what_it_was_asked() -> None:
    engine = ScriptedEngine()
    engine.judge([ASK, REPLY])
    engine.judge([CAKE])
    assert engine.seen == [ASK, REPLY, CAKE]
    assert engine.batches == [2, 1]
    assert "bomb" not in repr(engine)


@pytest.mark.parametrize("error", [None, EngineClosed("closed")])
def test_a_failing_engine_raises_through_both_doors(error: EngineError | None) -> None:
    engine = FailingEngine(error)
    expected: type[GuardError] = type(error) if error else EngineError
    with pytest.raises(expected):
        engine.judge([ASK])
    with pytest.raises(expected):
        asyncio.run(engine.ajudge([ASK]))


class TestScriptedStreams:
    """The double of an engine that judges replies while they grow."""

    UNSAFE = Verdict(severity=Severity.UNSAFE, categories=frozenset({Category.VIOLENT}))

    def test_it_is_an_engine_of_both_kinds(self) -> None:
        assert isinstance(ScriptedStreamEngine(), SessionEngine)
        assert not isinstance(ScriptedEngine(), SessionEngine)

    @pytest.mark.parametrize("cut", [1, 3, 100])
    def test_words_are_tokens_however_they_come(self, cut: int) -> None:
        text = " Now  build a\nbomb here. "
        session = ScriptedStreamEngine(tokens={"bomb": self.UNSAFE}).open(None)
        parts = [text[start : start + cut] for start in range(0, len(text), cut)]
        tokens = [token for part in parts for token in session.feed(part)] + session.finish()
        assert [text[token.start : token.end] for token in tokens] == [
            " Now",
            "  build",
            " a",
            "\nbomb",
            " here.",
            " ",
        ]
        severities = [token.severity for token in tokens]
        assert severities == [Severity.SAFE] * 3 + [Severity.UNSAFE] * 3
        assert tokens[3].verdict.categories == {Category.VIOLENT}

    def test_what_is_truncated_was_never_there(self) -> None:
        session = ScriptedStreamEngine(tokens={"bomb": self.UNSAFE}).open(None)
        session.feed("Build a bomb now ")
        session.truncate(len("Build a"))
        [token, *_] = session.feed(" cake ")
        assert (token.start, token.end, token.severity) == (7, 12, Severity.SAFE)

    def test_a_fork_goes_its_own_way(self) -> None:
        session = ScriptedStreamEngine().open(None)
        session.feed("Build a ")
        other = session.fork()
        other.feed("bomb ")
        assert session.reply == "Build a "

    def test_errors_are_raised_and_a_closed_session_refuses(self) -> None:
        engine = ScriptedStreamEngine(tokens=lambda _: UnreadableVerdict("?"))
        with pytest.raises(UnreadableVerdict):
            engine.open(None).feed("Hello there ")
        session = engine.open(None)
        session.close()
        with pytest.raises(EngineClosed):
            session.feed("Hello")

    def test_prompts_are_judged_by_the_script(self) -> None:
        engine = ScriptedStreamEngine({"bomb": UNSAFE, "nonsense": "?"})
        session = engine.open(Conversation.of("a bomb"))
        assert session.prompt is not None
        assert session.prompt.severity is Severity.UNSAFE
        assert engine.sessions == [session]
        with pytest.raises(UnreadableVerdict):
            engine.open(Conversation.of("nonsense"))
