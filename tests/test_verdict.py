"""What a model thinks: ordered, checked, and the same after a journey."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import guardrails_qwen
from guardrails_qwen import Category, Scores, Severity, Span, Verdict

THIRDS = {Severity.SAFE: 0.25, Severity.CONTROVERSIAL: 0.25, Severity.UNSAFE: 0.5}
SCORES = Scores(severity=THIRDS, category={Category.VIOLENT: 0.4, Category.PII: 0.1})


def test_severities_are_ordered() -> None:
    assert Severity.SAFE < Severity.CONTROVERSIAL < Severity.UNSAFE
    assert max(Severity) is Severity.UNSAFE


@pytest.mark.parametrize("severity", list(Severity))
def test_a_severity_survives_its_label(severity: Severity) -> None:
    for label in (severity.label, severity.label.lower(), severity.label.upper()):
        assert Severity.from_label(label) is severity


def test_an_unknown_severity_is_an_error() -> None:
    with pytest.raises(ValueError, match="Safe, Controversial, Unsafe"):
        Severity.from_label("fine")


def test_categories_are_named_as_the_models_write_them() -> None:
    assert [category.label for category in Category] == [
        "Violent",
        "Non-violent Illegal Acts",
        "Sexual Content or Sexual Acts",
        "PII",
        "Suicide & Self-Harm",
        "Unethical Acts",
        "Politically Sensitive Topics",
        "Copyright Violation",
        "Jailbreak",
    ]


IMPOSSIBLE: list[Any] = [
    pytest.param({"severity": {**THIRDS, Severity.SAFE: math.nan}}, id="NaN"),
    pytest.param({"severity": {**THIRDS, Severity.UNSAFE: math.inf}}, id="infinity"),
    pytest.param({"severity": {**THIRDS, Severity.SAFE: -0.1}}, id="negative"),
    pytest.param({"severity": {**THIRDS, Severity.SAFE: 1.1}}, id="above one"),
    pytest.param({"severity": {**THIRDS, Severity.SAFE: 0.9}}, id="a sum above one"),
    pytest.param({"severity": {}}, id="no severity"),
    pytest.param({"severity": {Severity.SAFE: 1.0}}, id="a severity missing"),
    pytest.param({"severity": THIRDS, "category": {Category.PII: math.nan}}, id="category NaN"),
    pytest.param({"severity": THIRDS, "category": {Category.PII: 2.0}}, id="category above one"),
    pytest.param({"severity": THIRDS, "refusal": math.nan}, id="refusal NaN"),
    pytest.param({"severity": THIRDS, "refusal": -1.0}, id="refusal negative"),
]


@pytest.mark.parametrize("fields", IMPOSSIBLE)
def test_impossible_probabilities_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="probabilit"):
        Scores(**fields)


NO_LABELS: list[Any] = [
    pytest.param({"labels": frozenset({""})}, "short printable", id="nothing"),
    pytest.param({"labels": frozenset({"S1\nS2"})}, "short printable", id="two lines"),
    pytest.param({"labels": frozenset({"x" * 65})}, "short printable", id="a text"),
    pytest.param({"label_scores": {"x" * 65: 0.5}}, "short printable", id="a scored text"),
    pytest.param({"label_scores": {"S1": math.nan}}, "between 0 and 1", id="NaN"),
    pytest.param({"label_scores": {"S1": -0.1}}, "between 0 and 1", id="negative"),
    pytest.param({"label_scores": {"S1": 1.1}}, "between 0 and 1", id="above one"),
]


@pytest.mark.parametrize(("fields", "message"), NO_LABELS)
def test_labels_are_names_and_their_scores_shares(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Verdict(severity=Severity.UNSAFE, **fields)
    assert "xxx" not in str(caught.value)


def test_labels_tell_verdicts_apart_and_their_scores_do_not() -> None:
    found = Verdict(severity=Severity.UNSAFE, labels=frozenset({"S1"}), label_scores={"S1": 0.5})
    assert found == Verdict(severity=Severity.UNSAFE, labels=frozenset({"S1"}))
    assert found != Verdict(severity=Severity.UNSAFE)


def test_a_verdict_from_before_labels_is_read() -> None:
    old = Verdict(severity=Severity.UNSAFE).to_dict()
    del old["labels"], old["label_scores"]
    assert Verdict.from_dict(old) == Verdict(severity=Severity.UNSAFE)


@pytest.mark.parametrize(
    "fields",
    [{"severity": math.nan}, {"severity": "Unsafe"}, {"severity": 3}, {"severity": None}],
    ids=repr,
)
def test_a_verdict_needs_a_severity(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Severity"):
        Verdict(**fields)


def test_a_verdict_of_an_unknown_category_is_refused() -> None:
    with pytest.raises(ValueError, match="Category"):
        Verdict(severity=Severity.UNSAFE, categories=frozenset({"Rude"}))  # pyright: ignore


def test_at_least_sums_from_a_severity_up() -> None:
    assert [SCORES.at_least(severity) for severity in Severity] == [1.0, 0.75, 0.5]


VIOLENT = frozenset({Category.VIOLENT})
UNSAFE = Verdict(severity=Severity.UNSAFE, categories=VIOLENT)
PROBABILITIES = [
    pytest.param(SCORES, Severity.UNSAFE, None, 0.5, id="severity"),
    pytest.param(SCORES, Severity.CONTROVERSIAL, None, 0.75, id="severity or worse"),
    pytest.param(SCORES, Severity.UNSAFE, Category.VIOLENT, 0.4, id="category below severity"),
    pytest.param(SCORES, Severity.UNSAFE, Category.JAILBREAK, 0.0, id="category without a score"),
    pytest.param(
        Scores(severity=THIRDS, category={Category.PII: 0.9}),
        Severity.UNSAFE,
        Category.PII,
        0.5,
        id="category above severity",
    ),
    pytest.param(None, Severity.UNSAFE, None, 1.0, id="no scores"),
    pytest.param(None, Severity.UNSAFE, Category.VIOLENT, 1.0, id="no scores, named"),
    pytest.param(None, Severity.UNSAFE, Category.PII, 0.0, id="no scores, not named"),
    pytest.param(
        Scores(severity=THIRDS), Severity.UNSAFE, Category.VIOLENT, 0.5, id="only severity, named"
    ),
    pytest.param(
        Scores(severity=THIRDS), Severity.UNSAFE, Category.PII, 0.0, id="only severity, not named"
    ),
]


@pytest.mark.parametrize(("scores", "severity", "category", "expected"), PROBABILITIES)
def test_probability(
    scores: Scores | None, severity: Severity, category: Category | None, expected: float
) -> None:
    verdict = Verdict(severity=Severity.UNSAFE, categories=VIOLENT, scores=scores)
    assert verdict.probability(severity, category) == pytest.approx(expected)


def test_without_scores_a_safe_verdict_is_certainly_safe() -> None:
    assert Verdict(severity=Severity.SAFE).probability(Severity.CONTROVERSIAL) == 0


categories = st.frozensets(st.sampled_from(list(Category)))
spans = st.builds(Span, start=st.integers(0, 9), end=st.integers(10, 99), categories=categories)
shares = st.floats(0, 1).map(
    lambda p: {Severity.SAFE: 1 - p, Severity.CONTROVERSIAL: p / 2, Severity.UNSAFE: p / 2}
)
scores_ = st.builds(
    Scores,
    severity=shares,
    category=st.dictionaries(st.sampled_from(list(Category)), st.floats(0, 1)),
    refusal=st.none() | st.floats(0, 1),
)
names = st.sampled_from(["S1", "violence/graphic", "暴力"])
verdicts = st.builds(
    Verdict,
    severity=st.sampled_from(list(Severity)),
    categories=categories,
    refusal=st.none() | st.booleans(),
    scores=st.none() | scores_,
    spans=st.lists(spans, max_size=2).map(tuple),
    labels=st.frozensets(names),
    label_scores=st.dictionaries(names, st.floats(0, 1)),
    model=st.text(),
    fingerprint=st.text(),
    tokens=st.none() | st.integers(0),
    seconds=st.none() | st.floats(0, 9),
)


@given(verdicts)
def test_a_verdict_survives_to_dict_json_and_pickle(verdict: Verdict) -> None:
    for again in (
        Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))),
        pickle.loads(pickle.dumps(verdict)),
    ):
        assert again == verdict
        assert again.scores == verdict.scores
        assert again.label_scores == verdict.label_scores
        assert (again.tokens, again.seconds) == (verdict.tokens, verdict.seconds)


def test_costs_do_not_tell_verdicts_apart() -> None:
    assert Verdict(severity=Severity.SAFE, seconds=1.0, tokens=1) == Verdict(severity=Severity.SAFE)


@pytest.mark.parametrize(
    ("verdict", "summary"),
    [
        (Verdict(severity=Severity.SAFE), "Safe"),
        (UNSAFE, "Unsafe (Violent)"),
        (
            Verdict(severity=Severity.UNSAFE, categories=frozenset(Category)),
            f"Unsafe ({', '.join(c.label for c in Category)})",
        ),
    ],
    ids=["safe", "one category", "all categories, in order"],
)
def test_summary(verdict: Verdict, summary: str) -> None:
    assert verdict.summary == summary


PROGRAM = """
import json
from guardrails_qwen import *
every = frozenset(Category)
span = Span(start=0, end=1, categories=every)
verdict = Verdict(severity=Severity.UNSAFE, categories=every, spans=(span,), labels={"b", "a"})
policy = Policy.loose()
decision = policy.decide(Stage.INPUT, verdict)
facts = [verdict.summary, verdict.to_dict(), decision.to_dict(), policy.to_yaml()]
print(json.dumps([*facts, policy.fingerprint, Policy.strict().fingerprint]))
"""


def test_everything_is_the_same_in_every_process() -> None:
    root = Path(guardrails_qwen.__file__).parents[1]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "42")
    }
    assert len(outputs) == 1
    assert json.loads(outputs.pop())[-1] == guardrails_qwen.Policy.strict().fingerprint
