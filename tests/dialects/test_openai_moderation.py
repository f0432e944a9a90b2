"""The moderation endpoint's results, as OpenAI documents them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen import Action, Category, Policy, Rule, Severity, StagePolicy, UnreadableVerdict
from guardrails_qwen.dialects.openai_moderation import (
    CATEGORIES,
    IMAGE_CATEGORIES,
    OpenAIModeration,
)
from guardrails_qwen.rules import Stage

C = Category
NOTHING = frozenset[Category]()
NO_LABEL = frozenset[str]()
DIALECT = OpenAIModeration()


def result(flagged: bool | None = None, *, image: bool = False, **scores: float) -> dict[str, Any]:
    """A result in the published shape; what scores one half or more is flagged."""
    told = dict.fromkeys(CATEGORIES, 0.0001) | {
        name.replace("__", "/").replace("_", "-"): score for name, score in scores.items()
    }
    found = {name: score >= 0.5 for name, score in told.items()}
    return {
        "flagged": any(found.values()) if flagged is None else flagged,
        "categories": found,
        "category_scores": told,
        "category_applied_input_types": {
            name: ["text", "image"] if image and name in IMAGE_CATEGORIES else ["text"]
            for name in told
        },
    }


def changed(where: str, **changes: Any) -> dict[str, Any]:
    """A flagged result with fields of one part changed; those that become `...` are missing."""
    whole = result(violence=0.8)
    part = {**whole[where], **changes}
    return {**whole, where: {name: value for name, value in part.items() if value is not ...}}


# In the words of the API reference, its numbers shortened.
PUBLISHED = json.loads("""
{
  "flagged": true,
  "categories": {
    "sexual": false, "hate": false, "harassment": false, "self-harm": false,
    "sexual/minors": false, "hate/threatening": false, "violence/graphic": false,
    "self-harm/intent": false, "self-harm/instructions": false, "harassment/threatening": true,
    "violence": true, "illicit": false, "illicit/violent": false
  },
  "category_scores": {
    "sexual": 0.0000234, "hate": 0.0016, "harassment": 0.116, "self-harm": 0.0009,
    "sexual/minors": 0.0000107, "hate/threatening": 0.0031, "violence/graphic": 0.03,
    "self-harm/intent": 0.0000232, "self-harm/instructions": 0.0000012,
    "harassment/threatening": 0.81, "violence": 0.9, "illicit": 0.03, "illicit/violent": 0.008
  },
  "category_applied_input_types": {
    "sexual": ["text", "image"], "hate": ["text"], "harassment": ["text"],
    "self-harm": ["text", "image"], "sexual/minors": ["text"], "hate/threatening": ["text"],
    "violence/graphic": ["text", "image"], "self-harm/intent": ["text", "image"],
    "self-harm/instructions": ["text", "image"], "harassment/threatening": ["text"],
    "violence": ["text", "image"], "illicit": ["text"], "illicit/violent": ["text"]
  }
}
""")


def test_a_published_result_is_read() -> None:
    verdict = DIALECT.read(PUBLISHED, images=True)
    assert verdict.severity is Severity.UNSAFE
    assert verdict.categories == {C.VIOLENT, C.UNETHICAL_ACTS}
    assert verdict.labels == {"violence", "harassment/threatening"}
    assert verdict.label_scores == PUBLISHED["category_scores"]
    assert verdict.refusal is None


def test_what_is_not_flagged_is_safe() -> None:
    verdict = DIALECT.read(result(sexual=0.3))
    assert (verdict.severity, verdict.categories, verdict.labels) == (
        Severity.SAFE,
        NOTHING,
        NO_LABEL,
    )
    assert verdict.label_scores["sexual"] == 0.3


@pytest.mark.parametrize("name", CATEGORIES)
def test_each_category_is_one_of_ours(name: str) -> None:
    verdict = DIALECT.read(changed("categories", **{"violence": False, name: True}))
    assert verdict.severity is Severity.UNSAFE
    assert verdict.labels == {name}
    assert verdict.categories == CATEGORIES[name]
    assert CATEGORIES[name]


OLD = dict.fromkeys(("illicit", "illicit/violent"), ...)
ODD: list[Any] = [
    pytest.param(result(flagged=True), NOTHING, NO_LABEL, id="a flag without a category"),
    pytest.param(
        result(flagged=False, violence=0.8), {C.VIOLENT}, {"violence"}, id="a category without flag"
    ),
    pytest.param(
        changed("category_scores", illicit=None),
        {C.VIOLENT},
        {"violence"},
        id="a newer category without a score",
    ),
    pytest.param(changed("categories", **OLD), {C.VIOLENT}, {"violence"}, id="an older model"),
    pytest.param(
        {**result(violence=0.8), "category_applied_input_types": None, "more": 1},
        {C.VIOLENT},
        {"violence"},
        id="no input types, and more",
    ),
    pytest.param(
        result(violence__cartoon=0.8), {C.VIOLENT}, {"violence/cartoon"}, id="a new part of one"
    ),
    pytest.param(result(fraud=0.8), {C.UNETHICAL_ACTS}, {"fraud"}, id="a new category"),
]


@pytest.mark.parametrize(("told", "categories", "labels"), ODD)
def test_what_is_in_doubt_is_unsafe(told: Any, categories: Any, labels: Any) -> None:
    verdict = DIALECT.read(told)
    assert verdict.severity is Severity.UNSAFE
    assert (verdict.categories, verdict.labels) == (categories, labels)
    assert verdict.probability(Severity.UNSAFE) >= 0.5


UNREADABLE: list[Any] = [
    pytest.param(None, id="nothing"),
    pytest.param([], id="a list"),
    pytest.param({}, id="no field"),
    pytest.param({"flagged": False, "categories": {}, "category_scores": {}}, id="no category"),
    pytest.param({**result(), "flagged": "false"}, id="a word for a truth value"),
    pytest.param({**result(), "flagged": None}, id="no flag"),
    pytest.param(changed("categories", violence=...), id="a category missing"),
    pytest.param(changed("categories", violence=None), id="a category without a value"),
    pytest.param(changed("categories", violence=0.8), id="a number for a truth value"),
    pytest.param(changed("category_scores", violence=...), id="a score missing"),
    pytest.param(changed("category_scores", violence="0.8"), id="a text for a number"),
    pytest.param(changed("category_scores", violence=1.1), id="a score above one"),
    pytest.param(changed("category_scores", violence=-0.1), id="a negative score"),
    pytest.param(changed("category_scores", violence=math.nan), id="a score that is no number"),
    pytest.param(changed("categories", **{"a text of many words": True}), id="a text as category"),
    pytest.param(changed("category_scores", fraud=0.1), id="a score of nothing"),
    pytest.param({"error": {"message": "the text was: bomb"}}, id="an error"),
]


@pytest.mark.parametrize("told", UNREADABLE)
def test_anything_else_is_no_verdict(told: Any) -> None:
    with pytest.raises(UnreadableVerdict) as caught:
        DIALECT.read(told)
    assert "bomb" not in f"{caught.value}{caught.value.__cause__}"


def test_an_image_that_nothing_looked_at_is_not_judged() -> None:
    assert DIALECT.read(result(image=True), images=True).severity is Severity.SAFE
    for told in (result(), {**result(), "category_applied_input_types": None}):
        with pytest.raises(UnreadableVerdict, match="image"):
            DIALECT.read(told, images=True)


# Controversial, by a threshold

THRESHOLDS: list[Any] = [
    pytest.param(0.3, result(sexual=0.3), Severity.CONTROVERSIAL, {C.SEXUAL_CONTENT}, id="reached"),
    pytest.param(0.3, result(sexual=0.29), Severity.SAFE, NOTHING, id="not reached"),
    pytest.param(
        0.3, result(sexual=0.4, violence=0.9), Severity.UNSAFE, {C.VIOLENT}, id="beside a flag"
    ),
]


@pytest.mark.parametrize(("threshold", "told", "severity", "categories"), THRESHOLDS)
def test_a_threshold_makes_controversial(
    threshold: float, told: Any, severity: Severity, categories: Any
) -> None:
    verdict = OpenAIModeration(controversial=threshold).read(told)
    assert (verdict.severity, verdict.categories) == (severity, categories)
    assert (verdict.probability(Severity.CONTROVERSIAL) >= 0.5) == bool(severity)


@pytest.mark.parametrize("threshold", [0, -1, 1.1, math.nan])
def test_a_threshold_is_a_score(threshold: float) -> None:
    with pytest.raises(ValueError, match="controversial is"):
        OpenAIModeration(controversial=threshold)


def test_the_threshold_is_in_the_fingerprint() -> None:
    assert OpenAIModeration(controversial=0.3).fingerprint != DIALECT.fingerprint


# Scores and policies

shares = st.fixed_dictionaries({name: st.floats(0, 1) for name in CATEGORIES})
flags = st.fixed_dictionaries({name: st.booleans() for name in CATEGORIES})
levels = st.sampled_from([Severity.CONTROVERSIAL, Severity.UNSAFE])


@given(
    shares,
    flags,
    st.none() | st.floats(0.01, 1),
    levels,
    st.none() | st.sampled_from(Category),
    st.floats(0.01, 0.5),
)
def test_a_rule_with_a_low_threshold_holds_wherever_one_without_holds(
    scores: dict[str, float],
    found: dict[str, bool],
    threshold: float | None,
    level: Severity,
    category: Category | None,
    probability: float,
) -> None:
    told = {"flagged": any(found.values()), "categories": found, "category_scores": scores}
    verdict = OpenAIModeration(controversial=threshold).read(told)
    rule = Rule(action=Action.BLOCK, severity=level, category=category)
    sure = Rule(action=Action.BLOCK, severity=level, category=category, probability=probability)
    assert sure.holds(verdict) or not rule.holds(verdict)


def test_a_policy_may_have_thresholds_of_its_own_below_the_endpoints() -> None:
    rule = Rule(
        action=Action.BLOCK, severity=Severity.UNSAFE, category=C.SEXUAL_CONTENT, probability=0.2
    )
    policy = Policy(name="own", default=StagePolicy(rules=(rule,)))
    decided = [
        policy.decide(Stage.INPUT, DIALECT.read(told)).action
        for told in (result(sexual__minors=0.25), result(violence=0.4), result())
    ]
    assert decided == [Action.BLOCK, Action.ALLOW, Action.ALLOW]


def test_the_documentation_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z/-]+)` \| ([^|]+) \| (yes|no) \|", page, re.MULTILINE)
    assert {
        name: ({C(label) for label in labels.strip().split(", ")}, images == "yes")
        for name, labels, images in rows
    } == {name: (ours, name in IMAGE_CATEGORIES) for name, ours in CATEGORIES.items()}
