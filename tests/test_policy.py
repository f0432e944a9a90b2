"""From a verdict to a decision: pure, and again under another policy."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guardrails_qwen import (
    Action,
    Category,
    ConversationError,
    Decision,
    EngineError,
    GuardError,
    OnError,
    Policy,
    PolicyError,
    Rule,
    Scores,
    Severity,
    Span,
    Stage,
    StagePolicy,
    TextTooLong,
    UnreadableVerdict,
    Verdict,
)

SAFE = Verdict(severity=Severity.SAFE, fingerprint="m")
CONTROVERSIAL = Verdict(severity=Severity.CONTROVERSIAL, fingerprint="m")
UNSAFE = Verdict(severity=Severity.UNSAFE, fingerprint="m")
BLOCK = Rule(action=Action.BLOCK)


def verdict(
    severity: Severity, *categories: Category, p: float | None = None, **of: float
) -> Verdict:
    """A verdict, with P(unsafe) = `p` and P(category) by the category's name."""
    scores = None
    if p is not None:
        scores = Scores(
            severity={Severity.SAFE: 1 - p, Severity.CONTROVERSIAL: 0.0, Severity.UNSAFE: p},
            category={Category[name]: share for name, share in of.items()},
        )
    return Verdict(severity=severity, categories=frozenset(categories), scores=scores)


def policy(*rules: Rule, **fields: Any) -> Policy:
    return Policy(name="p", default=StagePolicy(rules=rules, **fields))


def decided(verdict: Verdict, *rules: Rule) -> Action:
    return policy(*rules).decide(Stage.INPUT, verdict).action


@pytest.mark.parametrize("severity", list(Severity))
@pytest.mark.parametrize("threshold", list(Severity))
def test_a_rule_holds_from_its_severity_up(severity: Severity, threshold: Severity) -> None:
    rule = Rule(action=Action.BLOCK, severity=threshold)
    assert rule.holds(Verdict(severity=severity)) == (severity >= threshold)


@pytest.mark.parametrize(
    ("p", "holds"), [(0.49, False), (0.5, True), (0.51, True), (1.0, True), (0.0, False)]
)
@pytest.mark.parametrize("severity", list(Severity))
def test_a_probability_decides_instead_of_the_verdict(
    p: float, holds: bool, severity: Severity
) -> None:
    rule = Rule(action=Action.BLOCK, severity=Severity.UNSAFE, probability=0.5)
    assert rule.holds(verdict(severity, p=p)) == holds


def test_a_category_threshold_holds_although_the_verdict_names_another() -> None:
    rule = Rule(action=Action.BLOCK, category=Category.PII, probability=0.2)
    assert rule.holds(verdict(Severity.SAFE, p=0.3, PII=0.25))
    assert not rule.holds(verdict(Severity.UNSAFE, Category.PII, p=0.9, PII=0.1))


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_an_impossible_threshold_is_an_error(probability: float) -> None:
    with pytest.raises(PolicyError, match="probability"):
        Rule(action=Action.BLOCK, probability=probability)


@pytest.mark.parametrize(
    "fields",
    [{"action": "stop"}, {"severity": 7}, {"category": "Rude"}, {"severity": float("nan")}],
    ids=repr,
)
def test_a_rule_of_unknown_names_is_an_error(fields: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=next(iter(fields))):
        Rule(**dict[str, Any](action=Action.BLOCK) | fields)


def test_a_category_given_by_value_counts() -> None:
    rule = Rule(action=Action.BLOCK, category="PII")  # pyright: ignore[reportArgumentType]
    assert decided(verdict(Severity.UNSAFE, Category.PII), rule) is Action.BLOCK


def test_an_unknown_on_error_is_an_error() -> None:
    with pytest.raises(PolicyError, match="on_error"):
        StagePolicy(on_error="ignore")  # pyright: ignore[reportArgumentType]


PII = Category.PII
VIOLENT = Category.VIOLENT
FLAG_PII = Rule(action=Action.FLAG, category=PII)
DROP_VIOLENT = Rule(action=Action.DROP, category=VIOLENT)
FLAG = Rule(action=Action.FLAG)
BLOCK_UNSAFE = Rule(action=Action.BLOCK, severity=Severity.UNSAFE)
BLOCK_LIKELY_PII = Rule(
    action=Action.BLOCK, severity=Severity.UNSAFE, category=PII, probability=0.5
)

CASES = [
    pytest.param(verdict(Severity.UNSAFE), [], Action.ALLOW, id="no rules"),
    pytest.param(SAFE, [BLOCK], Action.ALLOW, id="safe"),
    pytest.param(CONTROVERSIAL, [FLAG, BLOCK_UNSAFE], Action.FLAG, id="the rule that holds"),
    pytest.param(UNSAFE, [FLAG, BLOCK_UNSAFE], Action.BLOCK, id="a higher severity beats"),
    pytest.param(UNSAFE, [BLOCK_UNSAFE, FLAG], Action.BLOCK, id="in any order"),
    pytest.param(UNSAFE, [FLAG, BLOCK], Action.BLOCK, id="of equals the stricter"),
    pytest.param(
        verdict(Severity.UNSAFE, PII), [BLOCK, FLAG_PII], Action.FLAG, id="a category beats none"
    ),
    pytest.param(
        verdict(Severity.UNSAFE, PII, VIOLENT),
        [BLOCK, FLAG_PII],
        Action.BLOCK,
        id="an exempt category does not cover another",
    ),
    pytest.param(
        verdict(Severity.UNSAFE, PII, VIOLENT),
        [BLOCK, FLAG_PII, DROP_VIOLENT],
        Action.DROP,
        id="the strictest of the categories",
    ),
    pytest.param(verdict(Severity.UNSAFE), [BLOCK, FLAG_PII], Action.BLOCK, id="no category named"),
    pytest.param(
        verdict(Severity.UNSAFE, VIOLENT), [FLAG_PII], Action.ALLOW, id="another category"
    ),
    pytest.param(
        verdict(Severity.UNSAFE, VIOLENT, p=0.9, PII=0.8),
        [BLOCK, Rule(action=Action.ALLOW, category=PII, probability=0.5)],
        Action.BLOCK,
        id="a likely category exempts nothing but itself",
    ),
    pytest.param(
        verdict(Severity.SAFE, p=0.6, PII=0.55), [BLOCK_LIKELY_PII], Action.BLOCK, id="likely"
    ),
    pytest.param(
        verdict(Severity.UNSAFE, PII, p=0.6, PII=0.45),
        [BLOCK_LIKELY_PII],
        Action.ALLOW,
        id="unlikely",
    ),
]


@pytest.mark.parametrize(("judged", "rules", "action"), CASES)
def test_which_rule_decides(judged: Verdict, rules: list[Rule], action: Action) -> None:
    assert decided(judged, *rules) is action
    assert decided(judged, *reversed(rules)) is action


PRESETS = [
    (Policy.strict(), Stage.INPUT, [Action.ALLOW, Action.BLOCK, Action.BLOCK]),
    (Policy.strict(), Stage.CONTEXT, [Action.ALLOW, Action.DROP, Action.DROP]),
    (Policy.loose(), Stage.OUTPUT, [Action.ALLOW, Action.FLAG, Action.BLOCK]),
    (Policy.loose(), Stage.CONTEXT, [Action.ALLOW, Action.FLAG, Action.DROP]),
    (
        Policy.strict(action=Action.REDACT),
        Stage.CONTEXT,
        [Action.ALLOW, Action.REDACT, Action.REDACT],
    ),
    (Policy.loose(action=Action.REPLACE), Stage.INPUT, [Action.ALLOW, Action.FLAG, Action.REPLACE]),
]


@pytest.mark.parametrize(("preset", "stage", "actions"), PRESETS)
def test_presets(preset: Policy, stage: Stage, actions: list[Action]) -> None:
    found = [preset.decide(stage, v).action for v in (SAFE, CONTROVERSIAL, UNSAFE)]
    assert found == actions


@pytest.mark.parametrize("stage", list(Stage))
def test_presets_block_what_cannot_be_judged(stage: Stage) -> None:
    for preset in (Policy.strict(), Policy.loose()):
        decision = preset.decide_unjudged(stage, EngineError("gone"), "text")
        assert (decision.action, decision.text, decision.degraded) == (Action.BLOCK, None, True)


@pytest.mark.parametrize("stage", list(Stage))
def test_each_stage_has_its_own_rules(stage: Stage) -> None:
    own = Policy(name="p", default=StagePolicy(), stages={stage: StagePolicy(rules=(BLOCK,))})
    for each in Stage:
        assert (own.decide(each, UNSAFE).action is Action.BLOCK) == (each is stage)


PASSED_ON = [
    (Action.ALLOW, "text", True),
    (Action.FLAG, "text", True),
    (Action.REDACT, None, False),
    (Action.REPLACE, "instead", False),
    (Action.DROP, None, False),
    (Action.BLOCK, None, False),
]


@pytest.mark.parametrize(("action", "text", "allowed"), PASSED_ON)
def test_what_a_decision_passes_on(action: Action, text: str | None, allowed: bool) -> None:
    replacing = policy(Rule(action=action), replacement="instead")
    decision = replacing.decide(Stage.OUTPUT, UNSAFE, "text")
    assert (decision.text, decision.allowed) == (text, allowed)
    assert not decision.degraded


def test_a_verdict_is_decided_again_under_another_policy() -> None:
    first = Policy.strict().decide(Stage.INPUT, CONTROVERSIAL, "text")
    assert first.verdict is not None
    second = Policy.loose().decide(Stage.INPUT, first.verdict, "text")
    assert (first.action, second.action) == (Action.BLOCK, Action.FLAG)
    assert first.verdict == second.verdict
    assert first.fingerprint != second.fingerprint


FAILURES = [
    pytest.param(EngineError("gone"), Action.ALLOW, id="the engine failed"),
    pytest.param(ConversationError("no text"), Action.BLOCK, id="its author sent no text"),
    pytest.param(UnreadableVerdict("x"), Action.BLOCK, id="the model answered nonsense"),
    pytest.param(TextTooLong(9, 8), Action.BLOCK, id="its author sent too much"),
]


@pytest.mark.parametrize(("error", "action"), FAILURES)
def test_on_error_allow_is_for_failures_that_the_author_cannot_choose(
    error: GuardError, action: Action
) -> None:
    allowing = policy(on_error=OnError.ALLOW)
    decision = allowing.decide_unjudged(Stage.INPUT, error, "text")
    assert decision.action is action
    assert decision.text == ("text" if action is Action.ALLOW else None)
    assert decision.degraded
    assert decision.error == f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("error", [EngineError("gone"), UnreadableVerdict("x"), TextTooLong(9, 8)])
def test_on_error_raise_raises_that_error(error: GuardError) -> None:
    with pytest.raises(type(error)) as caught:
        policy(on_error=OnError.RAISE).decide_unjudged(Stage.INPUT, error, "text")
    assert caught.value is error


stage_policies = st.builds(
    StagePolicy,
    rules=st.lists(
        st.builds(
            Rule,
            action=st.sampled_from(list(Action)),
            severity=st.sampled_from(list(Severity)),
            category=st.none() | st.sampled_from(list(Category)),
            probability=st.none() | st.floats(0, 1, exclude_min=True),
        ),
        max_size=3,
    ).map(tuple),
    on_error=st.sampled_from(list(OnError)),
    replacement=st.text(st.characters(exclude_categories=["Cs"])),
    marker=st.text(st.characters(exclude_categories=["Cs"])),
)
policies = st.builds(
    Policy,
    name=st.text(st.characters(exclude_categories=["Cs"])),
    default=stage_policies,
    stages=st.dictionaries(st.sampled_from(list(Stage)), stage_policies, max_size=2),
)


@settings(max_examples=40)
@given(policies)
@example(Policy(name="a\x85b\u2028", default=StagePolicy(marker="\ufeff: #")))
def test_a_policy_survives_dict_json_and_yaml(some: Policy) -> None:
    for again in (
        Policy.from_dict(json.loads(json.dumps(some.to_dict()))),
        Policy.from_yaml(some.to_yaml()),
    ):
        assert again == some
        assert again.fingerprint == some.fingerprint


CHANGES = [
    pytest.param(policy(), id="no rules"),
    pytest.param(policy(BLOCK), id="a rule"),
    pytest.param(policy(FLAG), id="another action"),
    pytest.param(policy(BLOCK_UNSAFE), id="another severity"),
    pytest.param(policy(Rule(action=Action.BLOCK, category=PII)), id="a category"),
    pytest.param(policy(Rule(action=Action.BLOCK, probability=0.5)), id="a probability"),
    pytest.param(policy(on_error=OnError.ALLOW), id="on_error"),
    pytest.param(policy(replacement="x"), id="replacement"),
    pytest.param(policy(marker="x"), id="marker"),
    pytest.param(Policy(name="q", default=StagePolicy()), id="name"),
    pytest.param(
        Policy(name="p", default=StagePolicy(), stages={Stage.INPUT: StagePolicy(rules=(BLOCK,))}),
        id="a stage",
    ),
]


def test_a_fingerprint_stands_for_everything() -> None:
    changed = [case.values[0] for case in CHANGES]
    fingerprints = {p.fingerprint for p in changed if isinstance(p, Policy)}
    assert len(fingerprints) == len(CHANGES)
    assert all(len(fingerprint) == 16 for fingerprint in fingerprints)


def test_a_policy_keeps_to_its_fingerprint() -> None:
    stages = {Stage.INPUT: StagePolicy(rules=(BLOCK,))}
    some = Policy(name="p", default=StagePolicy(), stages=stages)
    before = some.fingerprint
    stages[Stage.INPUT] = StagePolicy()
    assert some.decide(Stage.INPUT, UNSAFE).action is Action.BLOCK
    assert some.fingerprint == before == Policy.from_dict(some.to_dict()).fingerprint


DECISIONS = [
    Policy.strict().decide(Stage.INPUT, verdict(Severity.UNSAFE, PII, p=0.9, PII=0.8), "text"),
    Policy.loose().decide(Stage.CONTEXT, SAFE, "text"),
    policy(on_error=OnError.ALLOW).decide_unjudged(Stage.OUTPUT, EngineError("gone"), "text"),
    Decision(
        action=Action.REDACT,
        stage=Stage.TOOL_RESULT,
        text="[removed]",
        rule=BLOCK_LIKELY_PII,
        redactions=(Span(start=0, end=3, categories=frozenset({PII})),),
        seconds=0.5,
    ),
]


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda decision: decision.action.label)
def test_a_decision_survives_to_dict_and_json(decision: Decision) -> None:
    again = Decision.from_dict(json.loads(json.dumps(decision.to_dict())))
    assert again == decision
    assert again.seconds == decision.seconds


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda decision: decision.action.label)
def test_a_decision_without_text_is_fit_for_logs(decision: Decision) -> None:
    data = decision.to_dict(text=False)
    assert "text" not in data
    for shown in (json.dumps(data), repr(decision), decision.summary):
        assert decision.text is None or decision.text not in shown.replace("context", "")


SUMMARIES = [
    (
        Policy.strict().decide(Stage.INPUT, verdict(Severity.UNSAFE, PII)),
        "input blocked: Unsafe (PII), rule «Controversial: block», policy strict",
    ),
    (Policy.loose().decide(Stage.OUTPUT, SAFE), "output allowed: Safe, policy loose"),
    (
        Policy.loose().decide_unjudged(Stage.CONTEXT, EngineError("gone")),
        "context blocked: not judged, policy loose; EngineError: gone",
    ),
    (
        policy(BLOCK_LIKELY_PII).decide(Stage.INPUT, verdict(Severity.UNSAFE, PII)),
        "input blocked: Unsafe (PII), rule «Unsafe PII at p ≥ 0.5: block», policy p",
    ),
]


@pytest.mark.parametrize(("decision", "summary"), SUMMARIES)
def test_summary(decision: Decision, summary: str) -> None:
    assert decision.summary == summary


@pytest.mark.parametrize("action", list(Action))
def test_an_action_survives_its_label(action: Action) -> None:
    assert Action.from_label(action.label.upper()) is action


def test_an_unknown_action_is_an_error() -> None:
    with pytest.raises(ValueError, match="allow, flag, redact, replace, drop, block"):
        Action.from_label("stop")


def test_actions_rise() -> None:
    labels = [action.label for action in sorted(Action)]
    assert labels == ["allow", "flag", "redact", "replace", "drop", "block"]
