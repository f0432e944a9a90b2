"""A guard: text that has not passed never leaves it, and failure is never safe."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails_qwen import (
    Action,
    Category,
    CheckpointError,
    Conversation,
    ConversationError,
    Decision,
    EngineClosed,
    EngineError,
    Guard,
    GuardError,
    GuardViolation,
    Message,
    OnError,
    Outcome,
    Policy,
    Role,
    Rule,
    Severity,
    Span,
    Stage,
    StagePolicy,
    TextTooLong,
    UnreadableVerdict,
    Verdict,
)
from guardrails_qwen.testing import FailingEngine, ScriptedEngine
from tests.doors import Doors

ASK = "How can I make a bomb?"
BOMB = "Safety: Unsafe\nCategories: Violent"
HARM = Verdict(severity=Severity.UNSAFE, categories=frozenset({Category.VIOLENT}))
SAFE = Verdict(severity=Severity.SAFE)
CALL = {"role": "assistant", "content": " ", "tool_calls": [{"name": "f", "args": {"q": "bomb"}}]}
REDACT = Policy.strict(action=Action.REDACT)


def bombs(policy: Policy | None = None) -> Guard:
    return Guard(ScriptedEngine({"bomb": BOMB}), policy)


def on_error(choice: OnError) -> Policy:
    return Policy.strict(on_error=choice)


def test_without_a_policy_a_guard_is_strict(doors: Doors) -> None:
    decision = doors.check(Guard(ScriptedEngine(Verdict(severity=Severity.CONTROVERSIAL))), ASK)
    assert (decision.action, decision.policy) == (Action.BLOCK, "strict")


def test_a_safe_text_passes_unchanged(doors: Doors) -> None:
    decision = doors.check(bombs(), "How can I bake a cake?")
    assert (decision.action, decision.text) == (Action.ALLOW, "How can I bake a cake?")
    assert decision.verdict is not None
    assert decision.seconds is not None


def test_a_harmful_text_does_not_leave_a_guard(doors: Doors) -> None:
    decision = doors.check(bombs(), ASK)
    assert (decision.action, decision.text) == (Action.BLOCK, None)
    with pytest.raises(GuardViolation) as caught:
        doors.enforce(bombs(), ASK)
    assert caught.value.decision == decision
    assert "bomb" not in str(caught.value)


STAGES: list[tuple[Any, Stage]] = [
    ("hi", Stage.INPUT),
    (("system", "hi"), Stage.INPUT),
    (("developer", "hi"), Stage.INPUT),
    (("user", "hi"), Stage.INPUT),
    (("assistant", "hi"), Stage.OUTPUT),
    (("tool", "hi"), Stage.TOOL_RESULT),
    (CALL, Stage.TOOL_CALL),
    ({**CALL, "content": "I call"}, Stage.OUTPUT),
]


@pytest.mark.parametrize(("message", "stage"), STAGES)
def test_the_stage_is_what_the_last_message_is(doors: Doors, message: Any, stage: Stage) -> None:
    guard = Guard(ScriptedEngine())
    assert doors.check(guard, ["first", message]).stage is stage
    assert doors.check(guard, ["first", message], stage=Stage.CONTEXT).stage is Stage.CONTEXT


def test_tool_calls_are_judged(doors: Doors) -> None:
    assert doors.check(bombs(), ["hi", CALL]).action is Action.BLOCK


def test_only_the_last_message_is_judged_and_the_others_are_context(doors: Doors) -> None:
    engine = ScriptedEngine({"bomb": BOMB})
    assert doors.check(Guard(engine), [ASK, ("assistant", "No.")]).action is Action.ALLOW
    assert engine.seen == [Conversation.of([ASK, ("assistant", "No.")])]


ENFORCED = [
    (Action.ALLOW, ASK),
    (Action.FLAG, ASK),
    (Action.REPLACE, "instead"),
    (Action.DROP, ""),
]


@pytest.mark.parametrize(("action", "text"), ENFORCED)
def test_enforce_gives_the_text_to_pass_on(doors: Doors, action: Action, text: str) -> None:
    policy = Policy(
        name="p", default=StagePolicy(rules=(Rule(action=action),), replacement="instead")
    )
    assert doors.enforce(bombs(policy), ASK) == text


def test_a_batch_is_judged_at_once_and_in_order(doors: Doors) -> None:
    engine = ScriptedEngine({"bomb": BOMB})
    decisions = doors.many(Guard(engine), iter(["a", ASK, "b", ASK]))
    assert [d.action.label for d in decisions] == ["allow", "block", "allow", "block"]
    assert [d.text for d in decisions] == ["a", None, "b", None]
    assert engine.batches == [4]


def test_an_empty_batch_asks_nothing(doors: Doors) -> None:
    assert doors.many(Guard(FailingEngine()), []) == []


SINGLES = [ASK, b"bytes", {"role": "user", "content": ASK}, Message.of(ASK), Conversation.of(ASK)]


@pytest.mark.parametrize("single", SINGLES, ids=lambda single: type(single).__name__)
def test_a_single_value_is_no_batch(doors: Doors, single: Any) -> None:
    with pytest.raises(ConversationError, match="single"):
        doors.many(Guard(ScriptedEngine()), single)


def test_a_bad_conversation_spares_its_neighbours(doors: Doors) -> None:
    values: list[Any] = ["a", [("bot", "x")], ASK, "lone \ud800"]
    results = doors.settled(bombs(), values)
    assert [type(r) for r in results] == [Decision, ConversationError, Decision, ConversationError]
    assert isinstance(results[2], Decision)
    assert results[2].action is Action.BLOCK
    with pytest.raises(ConversationError, match="bot"):
        doors.many(bombs(), values)


SHOWN = {
    "role": "user",
    "content": ["hi", {"type": "image_url", "image_url": {"url": "https://example.com/bomb"}}],
}


@pytest.mark.parametrize("choice", OnError)
@pytest.mark.parametrize("value", [SHOWN, [SHOWN, "a"]], ids=["judged", "in the history"])
def test_an_image_is_never_waved_through_by_a_text_model(
    doors: Doors, choice: OnError, value: Any
) -> None:
    image, neighbour = doors.settled(Guard(ScriptedEngine(), on_error(choice)), [value, "a"])
    assert isinstance(neighbour, Decision)
    assert neighbour.allowed
    assert neighbour.verdict is not None
    if choice is OnError.RAISE:
        assert isinstance(image, ConversationError)
    else:
        assert isinstance(image, Decision)
        assert (image.action, image.degraded) == (Action.BLOCK, True)
    assert "example.com" not in str(image)


# Failure is never safe.

ERRORS: list[EngineError] = [
    EngineError("gone"),
    EngineClosed("closed"),
    UnreadableVerdict("I think it's fine!"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("whole", [True, False], ids=["raised", "returned"])
class TestAFailingEngine:
    def guard(self, error: EngineError, whole: bool, choice: OnError) -> Guard:
        return Guard(FailingEngine(error) if whole else ScriptedEngine(error), on_error(choice))

    def test_blocks(self, doors: Doors, error: EngineError, whole: bool) -> None:
        guard = self.guard(error, whole, OnError.BLOCK)
        decision = doors.check(guard, ASK)
        assert (decision.action, decision.text) == (Action.BLOCK, None)
        assert decision.degraded
        assert type(error).__name__ in decision.summary
        with pytest.raises(GuardViolation):
            doors.enforce(guard, ASK)

    def test_allows_where_told_to_but_not_nonsense_and_says_so(
        self, doors: Doors, error: EngineError, whole: bool
    ) -> None:
        decision = doors.check(self.guard(error, whole, OnError.ALLOW), ASK)
        nonsense = isinstance(error, UnreadableVerdict)
        expected = (Action.BLOCK, None) if nonsense else (Action.ALLOW, ASK)
        assert (decision.action, decision.text) == expected
        assert decision.degraded
        assert decision.verdict is None

    def test_raises_where_told_to(self, doors: Doors, error: EngineError, whole: bool) -> None:
        guard = self.guard(error, whole, OnError.RAISE)
        with pytest.raises(type(error)):
            doors.check(guard, ASK)
        assert doors.settled(guard, [ASK, ASK]) == [error, error]


AUTHORS_CHOICE = [TextTooLong(9, 8), ConversationError("no text"), UnreadableVerdict("x")]


@pytest.mark.parametrize("error", AUTHORS_CHOICE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("choice", [OnError.ALLOW, OnError.BLOCK])
def test_what_its_author_made_unjudgeable_is_blocked(
    doors: Doors, error: ConversationError, choice: OnError
) -> None:
    decision = doors.check(Guard(ScriptedEngine(error), on_error(choice)), ASK)
    assert (decision.action, decision.text, decision.degraded) == (Action.BLOCK, None, True)


@pytest.mark.parametrize("value", ["a\ud800", [("bot", "x")], []], ids=repr)
def test_what_is_no_conversation_is_an_error_whatever_the_policy(doors: Doors, value: Any) -> None:
    for choice in OnError:
        with pytest.raises(ConversationError):
            doors.check(Guard(ScriptedEngine(), on_error(choice)), value)


class OddEngine:
    """An engine that returns what it is told to, or raises it."""

    name = "odd"
    fingerprint = "odd"

    def __init__(self, answer: Callable[[int], Any]) -> None:
        self.answer = answer

    def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        return cast("list[Outcome]", self.answer(len(conversations)))

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        return self.judge(conversations)


def _raise(error: Exception) -> Any:
    raise error


ODD: list[Any] = [
    pytest.param(lambda _: [], id="nothing"),  # pyright: ignore
    pytest.param(lambda n: [SAFE] * (n - 1), id="one too few"),  # pyright: ignore
    pytest.param(lambda n: [SAFE] * (n + 1), id="one too many"),  # pyright: ignore
    pytest.param(lambda n: [None] * n, id="None"),  # pyright: ignore
    pytest.param(lambda n: ["Safe"] * n, id="texts"),  # pyright: ignore
    pytest.param(lambda n: [True] * n, id="truth"),  # pyright: ignore
    pytest.param(lambda n: [{"severity": "Safe"}] * n, id="dicts"),  # pyright: ignore
    pytest.param(lambda n: [Severity.SAFE] * n, id="severities"),  # pyright: ignore
    pytest.param(lambda n: [ValueError("x")] * n, id="foreign errors"),  # pyright: ignore
    pytest.param(lambda n: [SAFE] * (n - 1) + [None], id="junk at the end"),  # pyright: ignore
    pytest.param(lambda _: None, id="no list"),  # pyright: ignore
    pytest.param(lambda n: dict.fromkeys(range(n), SAFE), id="a dict"),  # pyright: ignore
    pytest.param(lambda n: iter([SAFE] * n), id="an iterator"),  # pyright: ignore
    pytest.param(lambda n: "S" * n, id="a text"),  # pyright: ignore
]


@pytest.mark.parametrize("answer", ODD)
def test_an_engine_that_answers_oddly_has_failed(
    doors: Doors, answer: Callable[[int], Any]
) -> None:
    engine = OddEngine(answer)
    decisions = doors.many(Guard(engine), ["a", "b", "c"])
    assert [d.action for d in decisions] == [Action.BLOCK] * 3
    assert all(d.degraded and d.text is None for d in decisions)
    with pytest.raises(EngineError, match="the engine returned"):
        doors.check(Guard(engine, on_error(OnError.RAISE)), "a")


@pytest.mark.parametrize(
    "error", [RuntimeError("bug"), TextTooLong(9, 8), CheckpointError("x")], ids=repr
)
@pytest.mark.parametrize("choice", list(OnError))
def test_no_exception_of_an_engine_lets_a_text_pass(
    doors: Doors, error: Exception, choice: OnError
) -> None:
    guard = Guard(OddEngine(lambda _: _raise(error)), on_error(choice))
    with pytest.raises(GuardError):
        doors.enforce(guard, ASK)


NONSENSE = ["", "I think it's fine!", "Safety: Safe", "Safe\nNone", "Safety: Unsafe or Safe"]


@pytest.mark.parametrize("answer", NONSENSE)
def test_gibberish_is_never_safe(doors: Doors, answer: str) -> None:
    decision = doors.check(Guard(ScriptedEngine(answer)), ASK)
    assert (decision.action, decision.text) == (Action.BLOCK, None)
    with pytest.raises(UnreadableVerdict):
        doors.check(Guard(ScriptedEngine(answer), on_error(OnError.RAISE)), ASK)


ODD_TEXTS = ["", " \n", "\x00", "\u202e\u200b", "<|im_end|>", "<END CONVERSATION>", "x" * 10**6]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: repr(text[:20]))
def test_odd_text_is_judged_like_any_other(doors: Doors, text: str) -> None:
    engine = ScriptedEngine()
    assert doors.check(Guard(engine), text).text == text
    assert engine.seen == [Conversation.of(text)]
    assert doors.check(Guard(ScriptedEngine(HARM), REDACT), text).text != text


# Redaction.


def test_offending_sentences_are_taken_out_and_the_rest_is_judged_again(doors: Doors) -> None:
    engine = ScriptedEngine({"bomb": BOMB})
    text = "First cake. Then a bomb. Then tea."
    decision = doors.check(Guard(engine, REDACT), ["before", text])
    assert decision.action is Action.REDACT
    assert decision.text == "First cake. [removed: Violent] Then tea."
    assert decision.redactions == (Span(start=12, end=24, categories=HARM.categories),)
    assert decision.verdict is not None
    assert decision.verdict.severity is Severity.UNSAFE
    assert engine.batches == [1, 3, 1]
    assert [seen.last.text for seen in engine.seen] == [
        text,
        "First cake.",
        "Then a bomb.",
        "Then tea.",
        "First cake. [removed: Violent] Then tea.",
    ]
    assert all(seen.messages[0].text == "before" for seen in engine.seen)


def test_a_batch_of_redactions_takes_three_requests(doors: Doors) -> None:
    engine = ScriptedEngine({"bomb": BOMB})
    texts = ["A bomb. Tea.", "Cake.", "Tea. Two bombs. A bomb.", "One bomb"]
    decisions = doors.many(Guard(engine, REDACT), texts)
    assert engine.batches == [4, 6, 3]
    assert [d.text for d in decisions] == [
        "[removed: Violent] Tea.",
        "Cake.",
        "Tea. [removed: Violent]",
        "[removed: Violent]",
    ]
    assert doors.enforce(Guard(engine, REDACT), texts[0]) == "[removed: Violent] Tea."


def test_where_the_verdict_has_spans_other_sentences_are_not_judged(doors: Doors) -> None:
    text = "Tea. A bomb. Cake. Another bomb. Milk."
    spans = (Span(start=19, end=32), Span(start=0, end=12))

    def judge(conversation: Conversation) -> Verdict:
        said = conversation.last.text
        return replace(HARM, spans=spans if said == text else ()) if "bomb" in said else SAFE

    engine = ScriptedEngine(judge)
    decision = doors.check(Guard(engine, REDACT), text)
    assert decision.text == "Tea. [removed: Violent] Cake. [removed: Violent] Milk."
    assert [seen.last.text for seen in engine.seen[1:-1]] == ["Tea.", "A bomb.", "Another bomb."]


def test_spans_that_miss_the_harm_do_not_let_it_pass(doors: Doors) -> None:
    verdict = replace(HARM, spans=(Span(start=0, end=4),))
    decision = doors.check(Guard(ScriptedEngine({"bomb": verdict}), REDACT), "Tea. A bomb.")
    assert replaced(decision)


def test_what_is_suspect_in_a_long_text_is_affordable(doors: Doors) -> None:
    harmless = "Tea is nice. " * 10_000
    text = f"{harmless}A bomb. {harmless}"
    span = Span(start=len(harmless), end=len(harmless) + 7)

    def judge(conversation: Conversation) -> Verdict:
        return replace(HARM, spans=(span,)) if "bomb" in conversation.last.text else SAFE

    decision = doors.check(Guard(ScriptedEngine(judge), REDACT), text)
    assert decision.text == text.replace("A bomb.", "[removed: Violent]")


def replaced(decision: Decision) -> bool:
    return (
        decision.action is Action.REPLACE
        and decision.text == REDACT.default.replacement
        and decision.redactions == ()
    )


def test_what_offends_only_as_a_whole_is_replaced(doors: Doors) -> None:
    def judge(conversation: Conversation) -> Verdict:
        text = conversation.last.text
        return HARM if "mix" in text and "heat" in text else SAFE

    decision = doors.check(Guard(ScriptedEngine(judge), REDACT), "First mix. Then heat.")
    assert replaced(decision)


def test_a_redacted_text_that_does_not_pass_is_replaced(doors: Doors) -> None:
    def judge(conversation: Conversation) -> Verdict:
        text = conversation.last.text
        return HARM if "bomb" in text or "[removed" in text else SAFE

    decision = doors.check(Guard(ScriptedEngine(judge), REDACT), "Cake. A bomb.")
    assert replaced(decision)


@pytest.mark.parametrize("failing_from", [2, 3])
@pytest.mark.parametrize("choice", [OnError.BLOCK, OnError.ALLOW])
def test_a_redaction_that_cannot_be_judged_is_replaced(
    doors: Doors, failing_from: int, choice: OnError
) -> None:
    requests = 0

    def answer(count: int) -> list[Outcome]:
        nonlocal requests
        requests += 1
        if requests >= failing_from:
            raise EngineError("gone")
        return [HARM] * count

    policy = Policy.strict(action=Action.REDACT, on_error=choice)
    decision = doors.check(Guard(OddEngine(answer), policy), "Cake. A bomb.")
    assert replaced(decision)


def test_a_sentence_that_cannot_be_judged_is_taken_out(doors: Doors) -> None:
    error = UnreadableVerdict("x")
    script = {"A bomb. Odd.": HARM, "bomb": HARM, "Odd": error}
    decision = doors.check(Guard(ScriptedEngine(script), REDACT), "Tea. A bomb. Odd.")
    assert decision.text == "Tea. [removed: Violent]"


def test_text_beside_harmful_tool_calls_is_replaced(doors: Doors) -> None:
    decision = doors.check(bombs(REDACT), ["hi", {**CALL, "content": "I look it up."}])
    assert replaced(decision)


def test_a_name_that_offends_is_not_redacted_around(doors: Doors) -> None:
    message = Message(role=Role.USER, name="bomb", text="Tea. Cake.")
    assert replaced(doors.check(bombs(REDACT), message))


words = st.sampled_from(
    ["tea.", "a bomb.", "mix", "heat", "bomb", "!", "\n", "\x85", "你好。", " "]
)


def unsafe(conversation: Conversation) -> Verdict:
    """Harm in a sentence, across sentences, and across what redaction leaves together."""
    text = conversation.last.text
    across = "mix" in text and "heat" in text
    return HARM if "bomb" in text or across else SAFE


@settings(max_examples=60)
@given(st.lists(words, max_size=12).map(" ".join), st.sampled_from(list(Action)))
def test_text_that_has_not_passed_never_leaves_a_guard(text: str, action: Action) -> None:
    guard = Guard(ScriptedEngine(unsafe), Policy.strict(action=action))
    decision = guard.check(text)
    if decision.allowed:
        assert action <= Action.FLAG or unsafe(Conversation.of(text)) == SAFE
    elif decision.text is not None:
        assert unsafe(Conversation.of(decision.text)) == SAFE


# Nothing that was said is written down.


def _everything(record: logging.LogRecord) -> str:
    return record.getMessage() + repr(vars(record))


SECRET = "poison"
SAYINGS: list[Any] = [
    pytest.param(ScriptedEngine(), Policy.strict(), id="allowed"),
    pytest.param(ScriptedEngine(HARM), Policy.strict(), id="blocked"),
    pytest.param(ScriptedEngine(HARM), Policy.strict(action=Action.FLAG), id="flagged"),
    pytest.param(ScriptedEngine(HARM), Policy.strict(action=Action.DROP), id="dropped"),
    pytest.param(ScriptedEngine(HARM), Policy.strict(action=Action.REPLACE), id="replaced"),
    pytest.param(ScriptedEngine(HARM), REDACT, id="redacted in vain"),
    pytest.param(ScriptedEngine({SECRET: HARM}), REDACT, id="redacted"),
    pytest.param(ScriptedEngine(f"{SECRET}!"), Policy.strict(), id="unreadable"),
    pytest.param(ScriptedEngine(f"{SECRET}!"), on_error(OnError.ALLOW), id="unreadable, allowed"),
    pytest.param(FailingEngine(), Policy.strict(), id="failed"),
    pytest.param(ScriptedEngine(TextTooLong(9, 8)), Policy.strict(), id="too long"),
]


@pytest.mark.parametrize(("engine", "policy"), SAYINGS)
def test_moderated_text_is_in_no_log_and_no_repr(
    doors: Doors, engine: ScriptedEngine, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    guard = Guard(engine, policy)
    with caplog.at_level(logging.DEBUG):
        decision = doors.check(guard, [SECRET, ("assistant", f"Cake. Take {SECRET}.")])
    records = [record for record in caplog.records if record.name == "guardrails_qwen"]
    assert len(records) == 1
    shown = [*map(_everything, caplog.records), repr(decision), str(decision), decision.summary]
    shown += [repr(guard), json.dumps(decision.to_dict(text=False)), repr(GuardViolation(decision))]
    for text in shown:
        assert SECRET not in text


LEVELS = [
    (ScriptedEngine(), Policy.strict(), logging.DEBUG),
    (ScriptedEngine(HARM), Policy.strict(action=Action.FLAG), logging.INFO),
    (ScriptedEngine(HARM), Policy.strict(), logging.INFO),
    (FailingEngine(), Policy.strict(), logging.WARNING),
    (FailingEngine(), on_error(OnError.ALLOW), logging.WARNING),
]


@pytest.mark.parametrize(("engine", "policy", "level"), LEVELS)
def test_decisions_are_logged_at_their_level(
    engine: ScriptedEngine, policy: Policy, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="guardrails_qwen"):
        decision = Guard(engine, policy).check(ASK)
    [record] = caplog.records
    assert record.levelno == level
    assert record.getMessage() == decision.summary
    assert vars(record)["decision"] == decision.to_dict(text=False)


def test_a_fingerprint_is_that_of_policy_and_model(doors: Doors) -> None:
    guard = bombs()
    assert guard.fingerprint == f"{guard.policy.fingerprint}.{guard.engine.fingerprint}"
    assert doors.check(guard, ASK).fingerprint == guard.fingerprint


def test_a_repr_names_the_policy() -> None:
    assert repr(bombs()) == "Guard(ScriptedEngine(name='scripted'), policy='strict')"


def test_errors_in_a_batch_keep_their_places(doors: Doors) -> None:
    error = EngineError("gone")
    guard = Guard(ScriptedEngine({"odd": error, "bomb": HARM}), on_error(OnError.RAISE))
    results: list[Decision | GuardError] = doors.settled(guard, ["a", "odd", "bomb", "b"])
    assert results[1] is error
    assert [r.action for r in results if isinstance(r, Decision)] == [
        Action.ALLOW,
        Action.BLOCK,
        Action.ALLOW,
    ]


class TestAMessageWithTextAndToolCalls:
    """The stricter of both stages decides."""

    policy = Policy.from_yaml("""
name: tools
extends: loose
stages:
  output: {rules: [{action: flag}]}
  tool_call: {rules: [{action: block}]}
""")

    @pytest.mark.parametrize("text", ["", "ok"])
    def test_decides_at_both_stages(self, doors: Doors, text: str) -> None:
        decision = doors.check(
            Guard(ScriptedEngine(HARM), self.policy), [{**CALL, "content": text}]
        )
        assert (decision.action, decision.stage) == (Action.BLOCK, Stage.TOOL_CALL)

    def test_is_plain_output_without_calls(self, doors: Doors) -> None:
        asked = [{"role": "assistant", "content": "ok"}]
        decision = doors.check(Guard(ScriptedEngine(HARM), self.policy), asked)
        assert (decision.action, decision.stage) == (Action.FLAG, Stage.OUTPUT)


@pytest.mark.parametrize(
    ("stage", "role"),
    [
        (Stage.OUTPUT, Role.ASSISTANT),
        (Stage.TOOL_RESULT, Role.TOOL),
        (Stage.INPUT, Role.USER),
        (Stage.CONTEXT, Role.USER),
    ],
)
def test_a_plain_text_is_said_by_whoever_speaks_at_a_stage(stage: Stage, role: Role) -> None:
    engine = ScriptedEngine()
    Guard(engine).check("hi", stage=stage)
    assert [conversation.last.role for conversation in engine.seen] == [role]


def test_a_redaction_that_would_cost_too_much_is_a_replacement(doors: Doors) -> None:
    engine = ScriptedEngine({"bomb": HARM})
    history = [("user", "x" * 10_000), ("assistant", "y" * 10_000)]
    decision = doors.check(Guard(engine, REDACT), [*history, ("user", "Hi! " * 50 + "A bomb.")])
    assert replaced(decision)
    assert max(engine.batches) == 1


def test_an_engine_that_fails_while_redacting_leaves_a_degraded_decision(doors: Doors) -> None:
    asked = 0

    def answer(count: int) -> list[object]:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise EngineError("gone")
        return [HARM] * count

    decision = doors.check(Guard(OddEngine(answer), REDACT), "Cake. A bomb.")
    assert replaced(decision)
    assert decision.error == "EngineError: gone"


def test_a_foreign_exception_is_named_by_its_type_only(doors: Doors) -> None:
    secret = RuntimeError("secret words")
    decision = doors.check(Guard(OddEngine(lambda _: _raise(secret))), "secret words")
    assert decision.error == "GuardError: the engine failed: RuntimeError"
