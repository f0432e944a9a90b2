"""The first engine that answers counts, and no failure of any becomes a verdict."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen import (
    Action,
    CheckpointError,
    Conversation,
    ConversationError,
    Engine,
    EngineClosed,
    EngineError,
    EngineOverloaded,
    Guard,
    GuardError,
    OnError,
    Outcome,
    Policy,
    Severity,
    TextTooLong,
    UnreadableVerdict,
    Verdict,
)
from guardrails_qwen.engines.cached import CachedEngine
from guardrails_qwen.engines.fallback import FallbackEngine, FallbackStats
from guardrails_qwen.engines.transformers import TransformersEngine
from guardrails_qwen.testing import FailingEngine, ScriptedEngine
from tests.engines.verdicts import SCRIPT, said, severities
from tests.engines.wrapped import DOORS, GONE, Ending, Judging, Oracle, models

HARMFUL = GuardError("a part of the text is not safe and another could not be judged")
UNREADABLE = UnreadableVerdict("I think it is fine")
SECOND = "second"


@pytest.fixture(params=DOORS, ids=["sync", "async"])
def judge(request: pytest.FixtureRequest) -> Judging:
    return request.param


def second() -> ScriptedEngine:
    return ScriptedEngine(name=SECOND)


# Who is asked


def test_the_first_that_answers_counts(judge: Judging) -> None:
    first, other = ScriptedEngine(SCRIPT, name="first"), second()
    with FallbackEngine([first, other]) as engine:
        assert severities(judge(engine, said("a bomb", "hello"))) == ["Unsafe", "Safe"]
        assert engine.stats == FallbackStats(answers=(2, 0))
    assert other.seen == []


FAILURES = [
    pytest.param(FailingEngine(GONE), id="gone"),
    pytest.param(FailingEngine(EngineOverloaded("too many wait")), id="overloaded"),
    pytest.param(FailingEngine(EngineClosed("closed")), id="closed"),
    pytest.param(ScriptedEngine(GONE), id="gone, for one conversation"),
    pytest.param(ScriptedEngine("Sure, here is how"), id="unreadable"),
    pytest.param(Oracle(CheckpointError("no template")), id="no checkpoint"),
    pytest.param(Oracle(RuntimeError("a bomb")), id="a crash"),
    pytest.param(Oracle([]), id="too few outcomes"),
    pytest.param(Oracle([Verdict(severity=Severity.SAFE)] * 2), id="too many outcomes"),
    pytest.param(Oracle(None), id="no outcomes"),
    pytest.param(Oracle([None]), id="no outcome"),
    pytest.param(Oracle(["Safe"]), id="a word for an outcome"),
    pytest.param(Oracle({}), id="no list"),
]


@pytest.mark.parametrize("failing", FAILURES)
def test_a_failure_goes_on_to_the_next(judge: Judging, failing: Engine) -> None:
    engine = FallbackEngine([failing, second()])
    assert models(judge(engine, said("a bomb"))) == [SECOND]
    assert engine.stats == FallbackStats(answers=(0, 1))


ABOUT_THE_TEXT = [
    pytest.param(TextTooLong(9, 8), id="too long"),
    pytest.param(ConversationError("an image"), id="not to be judged"),
    pytest.param(HARMFUL, id="in part not safe"),
]


@pytest.mark.parametrize("error", ABOUT_THE_TEXT)
def test_what_an_error_says_of_the_text_stays(judge: Judging, error: GuardError) -> None:
    other = second()
    engine = FallbackEngine([ScriptedEngine({"bomb": error}, name="first"), other])
    assert judge(engine, said("a bomb", "hello"))[0] is error
    assert other.seen == []
    assert engine.stats == FallbackStats(answers=(1, 0), unjudged=1)


def test_only_what_failed_goes_on(judge: Judging) -> None:
    first = ScriptedEngine({"bomb": GONE, "cake": "Nonsense"}, name="first")
    other = ScriptedEngine({"cake": GONE}, name=SECOND)
    last = ScriptedEngine(name="third")
    engine = FallbackEngine([first, other, last])
    found = judge(engine, said("hello", "a bomb", "a cake", "bye"))
    assert models(found) == ["first", SECOND, "third", "first"]
    assert other.seen == said("a bomb", "a cake")
    assert last.seen == said("a cake")
    assert engine.stats == FallbackStats(answers=(2, 1, 1))


def test_an_engine_that_crashed_on_a_text_of_a_batch_keeps_its_other_verdicts(
    judge: Judging,
) -> None:
    """As the local engine does it: the crash is an outcome, and its cause says what it was."""
    crash = GuardError("the engine failed: RuntimeError")
    crash.__cause__ = RuntimeError("at a bomb")
    engine = FallbackEngine([ScriptedEngine({"bomb": crash}, name="first"), second()])
    assert models(judge(engine, said("hello", "a bomb"))) == ["first", SECOND]


def test_nobody_is_asked_about_nothing(judge: Judging) -> None:
    first = ScriptedEngine()
    assert judge(FallbackEngine([first, second()]), []) == []
    assert first.batches == []


def test_the_time_is_that_of_the_whole_call(judge: Judging) -> None:
    slow = Verdict(severity=Severity.SAFE, tokens=7, seconds=1000.0)
    [found] = judge(FallbackEngine([FailingEngine(), ScriptedEngine(slow)]), said("x"))
    assert isinstance(found, Verdict)
    assert found.tokens == 7
    assert found.seconds is not None
    assert found.seconds < 1000


# Where all fail


CRASH = Oracle(ValueError("a bomb"))
ALL_FAIL = [
    pytest.param([FailingEngine(GONE), FailingEngine()], EngineError, Action.ALLOW, id="gone"),
    pytest.param(
        [FailingEngine(), ScriptedEngine(UNREADABLE)],
        UnreadableVerdict,
        Action.BLOCK,
        id="gone, unreadable",
    ),
    pytest.param(
        [ScriptedEngine(UNREADABLE), FailingEngine()],
        UnreadableVerdict,
        Action.BLOCK,
        id="unreadable, gone",
    ),
    pytest.param([CRASH, FailingEngine()], GuardError, Action.BLOCK, id="a crash, gone"),
    pytest.param([FailingEngine(), CRASH], GuardError, Action.BLOCK, id="gone, a crash"),
    pytest.param([Oracle([]), FailingEngine()], GuardError, Action.BLOCK, id="miscounted, gone"),
    pytest.param(
        [FailingEngine(), ScriptedEngine(TextTooLong(9, 8))],
        TextTooLong,
        Action.BLOCK,
        id="gone, too long",
    ),
    pytest.param(
        [FailingEngine(), ScriptedEngine(HARMFUL)], GuardError, Action.BLOCK, id="gone, harmful"
    ),
    pytest.param(
        [FallbackEngine([FailingEngine(), CRASH]), FailingEngine()],
        GuardError,
        Action.BLOCK,
        id="a crash inside, gone",
    ),
]


@pytest.mark.parametrize(("engines", "kind", "action"), ALL_FAIL)
def test_a_policy_allows_only_what_nobody_was_there_to_judge(
    judge: Judging, engines: list[Engine], kind: type[GuardError], action: Action
) -> None:
    engine = FallbackEngine(engines)
    [error] = judge(engine, said("a bomb"))
    assert type(error) is kind
    assert "bomb" not in str(error)
    assert engine.stats.unjudged == 1
    lenient = Guard(engine, Policy.strict(on_error=OnError.ALLOW))
    assert lenient.check("a bomb").action is action


def test_where_all_are_unavailable_the_first_error_is_the_outcome(judge: Judging) -> None:
    assert judge(FallbackEngine([FailingEngine(GONE), FailingEngine()]), said("x")) == [GONE]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError()], ids=repr)
async def test_what_ends_a_program_or_a_task_passes(error: BaseException) -> None:
    other = second()
    engine = FallbackEngine([Oracle(error), other])
    with pytest.raises(type(error)):
        engine.judge(said("x"))
    with pytest.raises(type(error)):
        await engine.ajudge(said("x"))
    assert other.seen == []


ANSWERS = ["verdict", "gone", "unreadable", "crash", "too long", "harmful", "miscount"]
PATTERNS = st.integers(0, 5).flatmap(
    lambda texts: st.lists(
        st.lists(st.sampled_from(ANSWERS), min_size=texts, max_size=texts), min_size=1, max_size=4
    )
)


def patterned(place: int, pattern: Sequence[str]) -> Oracle:
    """An engine that answers text i by its pattern; a miscount spoils the whole call."""

    def answer(conversations: Sequence[Conversation]) -> list[Outcome]:
        found: list[Outcome] = []
        for conversation in conversations:
            crash = GuardError("the engine failed: ValueError")
            crash.__cause__ = ValueError()
            answers: dict[str, Outcome | None] = {
                "verdict": Verdict(
                    severity=Severity.SAFE, model=f"{place} {conversation.last.text}"
                ),
                "gone": EngineError(f"{place}"),
                "unreadable": UnreadableVerdict(f"{place}"),
                "crash": crash,
                "too long": TextTooLong(place, 1),
                "harmful": HARMFUL,
                "miscount": None,
            }
            outcome = answers[pattern[int(conversation.last.text)]]
            found += [outcome] if outcome else []
        return found

    return Oracle(answer, name=f"{place}")


def expected(texts: int, patterns: Sequence[Sequence[str]]) -> list[str]:
    """Who has to judge each text, or what its error is, told without regard to how it is done."""
    found = ["?"] * texts
    errors: list[list[str]] = [[] for _ in range(texts)]
    for place, pattern in enumerate(patterns):
        asked = [i for i in range(texts) if found[i] == "?"]
        spoilt = any(pattern[i] == "miscount" for i in asked)
        for i in asked:
            answer = "crash" if spoilt else pattern[i]
            if answer == "verdict":
                found[i] = f"{place} {i}"
            elif answer in ("too long", "harmful"):
                found[i] = answer
            else:
                errors[i].append(answer)
    for i, kinds in enumerate(errors):
        if found[i] == "?":
            found[i] = next((kind for kind in kinds if kind != "gone"), "gone")
    return found


def told(outcome: Outcome) -> str:
    if isinstance(outcome, Verdict):
        return outcome.model
    kinds = {"EngineError": "gone", "UnreadableVerdict": "unreadable", "TextTooLong": "too long"}
    plain = "harmful" if outcome is HARMFUL else "crash"
    return kinds.get(type(outcome).__name__, plain)


@given(PATTERNS)
def test_whatever_fails_order_and_count_are_kept_and_nobody_invents_a_verdict(
    patterns: list[list[str]],
) -> None:
    texts = len(patterns[0])
    batch = said(*map(str, range(texts)))
    for judging in DOORS:
        engines = [patterned(place, pattern) for place, pattern in enumerate(patterns)]
        engine = FallbackEngine(engines)
        outcomes = judging(engine, batch)
        assert list(map(told, outcomes)) == expected(texts, patterns)
        verdicts = sum(isinstance(outcome, Verdict) for outcome in outcomes)
        assert sum(engine.stats.answers) == verdicts
        assert engine.stats.unjudged == texts - verdicts


# What it says


def test_a_change_of_engine_is_logged_once_and_so_is_the_return(
    judge: Judging, caplog: pytest.LogCaptureFixture
) -> None:
    first = ScriptedEngine(name="first")
    engine = FallbackEngine([first, second()])
    with caplog.at_level(logging.INFO, "guardrails_qwen"):
        for script in (None, GONE, GONE, TextTooLong(9, 8), GONE, None, None):
            first.script = script or SCRIPT
            judge(engine, said("a bomb"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "fallback: engine 1 of 2 (first) does not answer: EngineError"),
        ("INFO", "fallback: engine 1 of 2 (first) answers again"),
    ]


def test_an_answer_that_nobody_can_read_is_no_change_of_engine(
    judge: Judging, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "guardrails_qwen"):
        judge(FallbackEngine([ScriptedEngine(UNREADABLE), second()]), said("a bomb"))
    assert caplog.records == []


def test_a_crash_is_logged_by_its_type(judge: Judging, caplog: pytest.LogCaptureFixture) -> None:
    judge(FallbackEngine([Oracle(RuntimeError("a bomb")), second()]), said("a bomb"))
    [record] = caplog.records
    assert record.getMessage() == "fallback: engine 1 of 2 (oracle) does not answer: RuntimeError"
    assert "bomb" not in caplog.text


def test_it_passes_for_an_engine(judge: Judging) -> None:
    engines = [ScriptedEngine(name="a"), ScriptedEngine(name="b"), ScriptedEngine(name="a")]
    engine = FallbackEngine(engines)
    assert isinstance(engine, Engine)
    assert engine.name == "a, else b"
    assert not engine.demonstration
    assert "name='b'" in repr(engine)
    assert "hello" not in repr((engine, judge(engine, said("hello")), engine.stats))


def test_a_demonstration_stays_one(judge: Judging, tiny: TransformersEngine) -> None:
    engine = FallbackEngine([FailingEngine(), tiny])
    assert engine.demonstration
    assert judge(engine, said("hello")) == judge(tiny, said("hello"))


def test_the_fingerprint_is_that_of_the_engines_as_they_are_now() -> None:
    a, b = ScriptedEngine(name="a"), ScriptedEngine(name="b")
    engine = FallbackEngine([a, b])
    before = engine.fingerprint
    assert before == FallbackEngine([a, b]).fingerprint
    assert before != FallbackEngine([b, a]).fingerprint
    assert before != FallbackEngine([a]).fingerprint
    b.fingerprint = "another"
    assert engine.fingerprint != before


def test_it_needs_an_engine() -> None:
    with pytest.raises(ValueError, match="at least one"):
        FallbackEngine([])


# Beside other engines


def test_a_cache_around_each_engine_keeps_to_it(judge: Judging) -> None:
    first = ScriptedEngine(GONE, name="first")
    engine = FallbackEngine([CachedEngine(first), CachedEngine(second())])
    assert models(judge(engine, said("x"))) == [SECOND]
    first.script = {}
    assert models(judge(engine, said("x"))) == ["first"]


def test_a_cache_around_all_keeps_whoever_answered(judge: Judging) -> None:
    """The documentation advises against it; the verdict still says whose it is."""
    first = ScriptedEngine(GONE, name="first")
    engine = CachedEngine(FallbackEngine([first, second()]))
    assert models(judge(engine, said("x"))) == [SECOND]
    first.script = {}
    assert models(judge(engine, said("x"))) == [SECOND]


def test_fallbacks_nest(judge: Judging) -> None:
    inner = FallbackEngine([FailingEngine(), Oracle(ValueError())])
    engine = FallbackEngine([inner, FallbackEngine([second()])])
    assert models(judge(engine, said("x"))) == [SECOND]


# The end


def test_closing_closes_each_once_even_if_one_fails_to(judge: Judging) -> None:
    ending = Ending()
    a, b = ending.closable("a", OSError("busy")), ending.aclosable("b")
    engine = FallbackEngine([a, b, a, ScriptedEngine()])
    with pytest.raises(OSError, match="busy"):
        engine.close()
    assert ending.ended == ["close a", "close b"]
    with pytest.raises(EngineClosed):
        judge(engine, said("x"))


async def test_closing_asynchronously() -> None:
    ending = Ending()
    a, b = ending.closable("a"), ending.aclosable("b", OSError("busy"))
    engine = FallbackEngine([b, a, b, ScriptedEngine()])
    with pytest.raises(OSError, match="busy"):
        async with engine:
            await engine.ajudge(said("x"))
    assert ending.ended == ["aclose b", "close a"]
    with pytest.raises(EngineClosed):
        await engine.ajudge(said("x"))
