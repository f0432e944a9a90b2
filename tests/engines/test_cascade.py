"""A large engine sees what a small one is not sure of, and no failure makes anything safe."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen import (
    Action,
    Category,
    Conversation,
    ConversationError,
    Engine,
    EngineClosed,
    EngineError,
    Guard,
    GuardError,
    OnError,
    Policy,
    Severity,
    TextTooLong,
    UnreadableVerdict,
    Verdict,
)
from guardrails_qwen.engines.cached import CachedEngine, CacheStats
from guardrails_qwen.engines.cascade import CascadeEngine, CascadeStats
from guardrails_qwen.engines.fallback import FallbackEngine
from guardrails_qwen.engines.transformers import TransformersEngine
from guardrails_qwen.testing import FailingEngine, Script, ScriptedEngine
from tests.engines.verdicts import said, severities
from tests.engines.wrapped import DOORS, GONE, Ending, Judging, Oracle, models, scored

UNREADABLE = UnreadableVerdict("I think it is fine")
SAFE = Verdict(severity=Severity.SAFE)


@pytest.fixture(params=DOORS, ids=["sync", "async"])
def judge(request: pytest.FixtureRequest) -> Judging:
    return request.param


def small(script: Script | None = None) -> ScriptedEngine:
    return ScriptedEngine(script, name="small")


def large(script: Script | None = None) -> ScriptedEngine:
    return ScriptedEngine(script, name="large")


# Who is asked


SURE_OR_NOT = [
    pytest.param(scored(0.01, 0.01), "small", id="safe"),
    pytest.param(scored(0.06, 0.04), "large", id="at the lower edge of the strict line"),
    pytest.param(scored(0.06, 0.03), "small", id="below it"),
    pytest.param(scored(0.1, 0.2), "large", id="safe, but not surely"),
    pytest.param(scored(0.2, 0.4), "large", id="safe and unsafe alike"),
    pytest.param(scored(0.2, 0.6), "large", id="unsafe, but not surely"),
    pytest.param(scored(0.45, 0.55), "large", id="surely not safe, but how bad?"),
    pytest.param(scored(0.05, 0.95), "small", id="unsafe"),
    pytest.param(scored(0.99, 0.01), "large", id="surely controversial"),
    pytest.param(Verdict(severity=Severity.CONTROVERSIAL), "large", id="controversial, no scores"),
    pytest.param(SAFE, "large", id="safe, no scores"),
    pytest.param(Verdict(severity=Severity.UNSAFE), "large", id="unsafe, no scores"),
    pytest.param(UNREADABLE, "large", id="unreadable"),
    pytest.param(GONE, "large", id="gone"),
    pytest.param(TextTooLong(9, 8), "large", id="too long for it"),
    pytest.param(GuardError("the engine failed: ValueError"), "large", id="a crash"),
]


@pytest.mark.parametrize(("answer", "model"), SURE_OR_NOT)
def test_the_large_one_is_asked_where_the_small_one_is_not_sure(
    judge: Judging, answer: Verdict | GuardError, model: str
) -> None:
    other = large()
    engine = CascadeEngine(small(answer), other, band=(0.1, 0.9))
    assert models(judge(engine, said("x"))) == [model]
    assert len(other.seen) == (model == "large")
    assert engine.stats == CascadeStats(**{model: 1})


RAISING = [
    pytest.param(FailingEngine(), id="gone"),
    pytest.param(Oracle(RuntimeError("a bomb")), id="a crash"),
    pytest.param(Oracle([]), id="miscounted"),
    pytest.param(Oracle([None, None]), id="no outcomes"),
]


@pytest.mark.parametrize("failing", RAISING)
def test_the_large_one_judges_all_where_the_small_one_fails(
    judge: Judging, failing: Engine
) -> None:
    engine = CascadeEngine(failing, large())
    assert models(judge(engine, said("a bomb", "x"))) == ["large", "large"]
    assert engine.stats == CascadeStats(large=2)


@pytest.mark.parametrize("severity", Severity)
def test_who_has_no_scores_may_be_trusted_but_not_with_what_is_controversial(
    judge: Judging, severity: Severity
) -> None:
    engine = CascadeEngine(small(Verdict(severity=severity)), large(), escalate_unscored=False)
    asked = "large" if severity is Severity.CONTROVERSIAL else "small"
    assert models(judge(engine, said("x"))) == [asked]


def test_only_the_unsure_ones_go_on_in_one_batch(judge: Judging) -> None:
    first = small({"knife": scored(0.2, 0.2), "virus": UNREADABLE, "": scored(0, 0)})
    other = large({"knife": "Safety: Unsafe\nCategories: Violent"})
    engine = CascadeEngine(first, other)
    batch = said("hello", "a knife", "bye", "a virus")
    found = judge(engine, batch)
    assert severities(found) == ["Safe", "Unsafe", "Safe", "Safe"]
    assert models(found) == ["small", "large", "small", "large"]
    assert other.seen == [batch[1], batch[3]]
    assert other.batches == [2]
    assert engine.stats == CascadeStats(small=2, large=2)
    assert (engine.stats.escalated, engine.stats.escalation_rate) == (2, 0.5)


def test_nobody_is_asked_about_nothing(judge: Judging) -> None:
    first, other = small(), large()
    engine = CascadeEngine(first, other)
    assert judge(engine, []) == []
    assert first.batches == other.batches == []
    assert engine.stats.escalation_rate == 0


@pytest.mark.parametrize(
    "band",
    [(0.9, 0.1), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5), (0.5, float("nan"))],
    ids=str,
)
def test_a_band_is_two_probabilities(band: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="band"):
        CascadeEngine(small(), large(), band)


# What it costs


COSTS = [
    pytest.param(7, 40, 47, id="both known"),
    pytest.param(7, None, 7, id="of the small one"),
    pytest.param(None, 40, 40, id="of the large one"),
    pytest.param(None, None, None, id="unknown"),
]


@pytest.mark.parametrize(("of_small", "of_large", "both"), COSTS)
def test_tokens_add_up_and_the_time_is_that_of_the_call(
    judge: Judging, of_small: int | None, of_large: int | None, both: int | None
) -> None:
    first = small(scored(0.3, 0.3, tokens=of_small, seconds=1000.0))
    other = large(scored(0.0, 1.0, tokens=of_large, seconds=1000.0))
    [found] = judge(CascadeEngine(first, other), said("x"))
    assert isinstance(found, Verdict)
    assert found.tokens == both
    assert found.seconds is not None
    assert found.seconds < 1000


def test_the_large_one_alone_is_paid_where_the_small_one_failed(judge: Judging) -> None:
    [found] = judge(CascadeEngine(FailingEngine(), large(scored(0.0, 1.0, tokens=40))), said("x"))
    assert isinstance(found, Verdict)
    assert found.tokens == 40


# Where the large one fails


LARGE_FAILS = [
    pytest.param(scored(0.1, 0.2), GONE, EngineError, Action.ALLOW, id="safe, gone"),
    pytest.param(GONE, GONE, EngineError, Action.ALLOW, id="gone, gone"),
    pytest.param(scored(0.2, 0.6), GONE, GuardError, Action.BLOCK, id="unsafe, gone"),
    pytest.param(scored(0.9, 0.1), GONE, GuardError, Action.BLOCK, id="controversial, gone"),
    pytest.param(UNREADABLE, GONE, UnreadableVerdict, Action.BLOCK, id="unreadable, gone"),
    pytest.param(TextTooLong(9, 8), GONE, TextTooLong, Action.BLOCK, id="too long, gone"),
    pytest.param(
        GuardError("the engine failed: ValueError"),
        GONE,
        GuardError,
        Action.BLOCK,
        id="crash, gone",
    ),
    pytest.param(
        scored(0.1, 0.2), UNREADABLE, UnreadableVerdict, Action.BLOCK, id="safe, unreadable"
    ),
    pytest.param(scored(0.2, 0.6), UNREADABLE, GuardError, Action.BLOCK, id="unsafe, unreadable"),
    pytest.param(
        scored(0.2, 0.6), TextTooLong(9, 8), TextTooLong, Action.BLOCK, id="unsafe, too long"
    ),
    pytest.param(
        UNREADABLE, ConversationError("an image"), ConversationError, Action.BLOCK, id="an image"
    ),
]


@pytest.mark.parametrize(("first", "second", "kind", "action"), LARGE_FAILS)
def test_a_failure_of_the_large_one_is_never_a_verdict(
    judge: Judging,
    first: Verdict | GuardError,
    second: GuardError,
    kind: type[GuardError],
    action: Action,
) -> None:
    engine = CascadeEngine(small(first), large(second))
    [error] = judge(engine, said("a bomb"))
    assert type(error) is kind
    assert "bomb" not in str(error)
    assert engine.stats == CascadeStats(unjudged=1)
    lenient = Guard(engine, Policy.strict(on_error=OnError.ALLOW))
    assert lenient.check("a bomb").action is action


@pytest.mark.parametrize("failing", RAISING)
def test_what_the_small_one_is_sure_of_does_not_wait_for_the_large_one(
    judge: Judging, failing: Engine
) -> None:
    first = small({"knife": scored(0.2, 0.2), "": scored(0, 0)})
    found = judge(CascadeEngine(first, failing), said("hello", "a knife", "bye"))
    assert isinstance(found[1], GuardError)
    assert models([found[0], found[2]]) == ["small", "small"]


def test_why_the_large_one_failed_is_kept_where_the_small_one_saw_harm(judge: Judging) -> None:
    [error] = judge(CascadeEngine(small(scored(0.2, 0.6)), large(GONE)), said("x"))
    assert isinstance(error, GuardError)
    assert error.__cause__ is GONE
    assert str(error) == (
        "the small engine did not say Safe, and the large one could not judge: EngineError"
    )


def test_no_fallback_asks_on_until_somebody_calls_harm_safe(judge: Judging) -> None:
    last = ScriptedEngine(name="last")
    for failed in (GONE, UNREADABLE):
        cascade = CascadeEngine(small(scored(0.2, 0.6)), large(failed))
        assert models(judge(FallbackEngine([cascade, last]), said("x"))) == ["GuardError"]
    assert last.seen == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError()], ids=repr)
async def test_what_ends_a_program_or_a_task_passes(error: BaseException) -> None:
    for engine in (CascadeEngine(Oracle(error), large()), CascadeEngine(small(), Oracle(error))):
        with pytest.raises(type(error)):
            engine.judge(said("x"))
        with pytest.raises(type(error)):
            await engine.ajudge(said("x"))


ANSWERS: dict[str, Verdict | GuardError] = {
    "safe": scored(0, 0),
    "unsure": scored(0.2, 0.2),
    "unsafe": scored(0, 1),
    "unscored": SAFE,
    "gone": GONE,
    "unreadable": UNREADABLE,
}
PAIRS = st.lists(st.tuples(*[st.sampled_from(list(ANSWERS))] * 2), max_size=6)


def replies(kinds: Sequence[str]) -> Script:
    def reply(conversation: Conversation) -> Verdict | GuardError:
        return ANSWERS[kinds[int(conversation.last.text)]]

    return reply


@given(PAIRS)
def test_whatever_fails_order_and_count_are_kept_and_nobody_invents_a_verdict(
    pairs: list[tuple[str, str]],
) -> None:
    for judging in DOORS:
        engine = CascadeEngine(
            small(replies([first for first, _ in pairs])),
            large(replies([second for _, second in pairs])),
        )
        outcomes = judging(engine, said(*map(str, range(len(pairs)))))
        assert len(outcomes) == len(pairs)
        for (first, second), outcome in zip(pairs, outcomes, strict=True):
            asked, kind = ("small", first) if first in ("safe", "unsafe") else ("large", second)
            answer = ANSWERS[kind]
            if isinstance(answer, GuardError):
                assert isinstance(outcome, GuardError)
            else:
                assert isinstance(outcome, Verdict)
                assert (outcome.model, outcome.severity) == (asked, answer.severity)
        verdicts = sum(isinstance(outcome, Verdict) for outcome in outcomes)
        assert engine.stats.small + engine.stats.large == verdicts
        assert engine.stats.unjudged == len(pairs) - verdicts


# What it says


def test_an_engine_that_is_lost_is_logged_once_and_so_is_its_return(
    judge: Judging, caplog: pytest.LogCaptureFixture
) -> None:
    first = small()
    engine = CascadeEngine(first, large())
    with caplog.at_level(logging.INFO, "guardrails_qwen"):
        for script in (GONE, GONE, scored(0, 0), scored(0, 0)):
            first.script = script
            judge(engine, said("a bomb"))
    assert [record.getMessage() for record in caplog.records] == [
        "cascade: the small engine (small) does not answer: EngineError",
        "cascade: the small engine (small) answers again",
    ]


def test_it_passes_for_an_engine(judge: Judging) -> None:
    engine = CascadeEngine(small(), large())
    assert isinstance(engine, Engine)
    assert engine.name == "small, then large"
    assert not engine.demonstration
    assert "band=(0.05, 0.95)" in repr(engine)
    assert "hello" not in repr((engine, judge(engine, said("hello")), engine.stats))


def test_the_fingerprint_is_that_of_all_that_decides() -> None:
    first, other = small(), large()
    engine = CascadeEngine(first, other)
    prints = [
        engine.fingerprint,
        CascadeEngine(other, first).fingerprint,
        CascadeEngine(first, other, (0.05, 0.9)).fingerprint,
        CascadeEngine(first, other, escalate_unscored=False).fingerprint,
        FallbackEngine([first, other]).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert engine.fingerprint == CascadeEngine(first, other, (0.05, 0.95)).fingerprint
    other.fingerprint = "another"
    assert engine.fingerprint != prints[0]


# Beside other engines


def test_a_real_engine(judge: Judging, tiny: TransformersEngine) -> None:
    batch = said("How do I bake bread?", "How can I make a bomb?", "Tell me about poker")
    alone = judge(tiny, batch)
    engine = CascadeEngine(tiny, large("Safety: Unsafe\nCategories: Violent"), band=(1, 1))
    assert engine.demonstration
    for found, before in zip(judge(engine, batch), alone, strict=True):
        assert isinstance(found, Verdict)
        if found.model == "large":
            assert found.categories == {Category.VIOLENT}
        else:
            assert found == before
    everything = CascadeEngine(large(SAFE), tiny)
    assert judge(everything, batch) == alone
    assert everything.stats == CascadeStats(large=3)


def test_caches_around_the_engines_and_around_the_cascade(judge: Judging) -> None:
    first, other = small(scored(0.3, 0.3)), large()
    inside = CascadeEngine(CachedEngine(first), CachedEngine(other))
    outside = CachedEngine(CascadeEngine(first, other))
    for engine in (inside, outside):
        assert models([*judge(engine, said("x")), *judge(engine, said("x"))]) == ["large"] * 2
    assert (first.batches, other.batches) == ([1, 1], [1, 1])
    assert outside.stats == CacheStats(hits=1, misses=1)


def test_the_small_verdict_may_be_chosen_for_when_the_large_one_fails(judge: Judging) -> None:
    first = CachedEngine(small(scored(0.2, 0.6)))
    engine = CascadeEngine(first, FallbackEngine([large(GONE), first]))
    assert models(judge(engine, said("x"))) == ["small"]
    assert first.stats == CacheStats(hits=1, misses=1)


def test_cascades_nest(judge: Judging) -> None:
    middle = ScriptedEngine(scored(0.3, 0.3), name="middle")
    engine = CascadeEngine(small(scored(0.3, 0.3)), CascadeEngine(middle, large()))
    assert models(judge(engine, said("x"))) == ["large"]


# The end


def test_closing_closes_both_even_if_one_fails_to(judge: Judging) -> None:
    ending = Ending()
    engine = CascadeEngine(ending.closable("a", OSError("busy")), ending.aclosable("b"))
    with pytest.raises(OSError, match="busy"), engine:
        judge(engine, said("x"))
    assert ending.ended == ["close a", "close b"]
    with pytest.raises(EngineClosed):
        judge(engine, said("x"))


async def test_closing_asynchronously_closes_one_that_is_both_once() -> None:
    ending = Ending()
    both = ending.aclosable("a")
    async with CascadeEngine(both, both) as engine:
        await engine.ajudge(said("x"))
    assert ending.ended == ["aclose a"]
    with pytest.raises(EngineClosed):
        await engine.ajudge(said("x"))
