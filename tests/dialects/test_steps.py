"""Probabilities from the tokens that an answer was written in, whatever the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen.dialects.base import Step
from guardrails_qwen.dialects.steps import shares

SEVERITIES = ("Safe", "Controversial", "Unsafe")


def step(text: str, **probabilities: float) -> Step:
    """A token, and the alternatives in its place; `_` in a name is a space."""
    named = {name.replace("_", " "): math.log(p) for name, p in probabilities.items()}
    return Step(text=text, logprobs=named or {text: 0.0})


def written(*steps: Step) -> list[Step]:
    return [step("Safety"), step(":"), *steps]


UNSURE: Mapping[str, float] = {"_Unsafe": 0.7, "_Safe": 0.2, "_Cont": 0.1}


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(written(step(" Unsafe", **UNSURE)), id="the space belongs to the word"),
        pytest.param(
            written(step(" "), step("Unsafe", Unsafe=0.7, Safe=0.2, Controversial=0.1)),
            id="the space apart",
        ),
        pytest.param(
            [step("Safety: "), step("U", U=0.7, S=0.2, C=0.1), step("nsafe")], id="characters"
        ),
        pytest.param(
            [step("\n"), *written(step(" Unsafe", **UNSURE)), step("\n")], id="a line before"
        ),
        pytest.param(
            written(step(" Un", _Un=0.5, _Unsafe=0.2, _Safe=0.2, _Cont=0.1), step("safe")),
            id="two beginnings of one",
        ),
        pytest.param(
            written(step(" Unsafe", _Unsafe=0.693, _Safe=0.198, _Cont=0.099, _and=0.01)),
            id="something else besides",
        ),
    ],
)
def test_a_distribution(steps: list[Step]) -> None:
    found = shares(steps, "Safety", SEVERITIES)
    assert found == pytest.approx({"Safe": 0.2, "Controversial": 0.1, "Unsafe": 0.7}, abs=1e-6)


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([], id="nothing"),
        pytest.param([step("Refusal"), step(":"), step(" No", _No=1)], id="another line"),
        pytest.param([step("Safety: Unsafe", **{"Safety:_Unsafe": 1})], id="the line is one token"),
        pytest.param(written(Step(text=" Unsafe", logprobs={})), id="no alternatives"),
        pytest.param(written(step(" Unsafe", _Unsafe=0.4, _bad=0.6)), id="mostly something else"),
        pytest.param([step("My"), step(" Safety"), step(":"), step(" Safe", _Safe=1)], id="prose"),
        pytest.param(written(), id="it ends there"),
    ],
)
def test_nothing_where_nothing_can_be_told(steps: list[Step]) -> None:
    assert shares(steps, "Safety", SEVERITIES) is None


def test_a_beginning_of_several_choices_counts_for_none() -> None:
    """`S` could go on as `Sexual Content` or as `Suicide`."""
    steps = [step("Categories: "), step("S", S=0.6, P=0.4)]
    assert shares(steps, "Categories", ("Sexual Content", "Suicide", "PII")) is None


def test_only_the_first_such_line_counts() -> None:
    steps = [*written(step(" Safe", _Safe=1.0)), step("\n"), *written(step(" Unsafe", _Unsafe=1.0))]
    found = shares(steps, "Safety", SEVERITIES)
    assert found is not None
    assert found["Safe"] == 1.0


def test_a_longer_name_is_another_line() -> None:
    steps = [step("Not Safety"), step(":"), step(" Unsafe", _Unsafe=1.0)]
    assert shares(steps, "Safety", SEVERITIES) is None


@given(st.dictionaries(st.text(max_size=8), st.floats(-30, 0.5), max_size=20))
def test_it_is_a_distribution_or_nothing(logprobs: dict[str, float]) -> None:
    steps = [step("Safety:"), Step(text=" Safe", logprobs=logprobs)]
    found = shares(steps, "Safety", SEVERITIES)
    if found is not None:
        assert sum(found.values()) == pytest.approx(1)
        assert set(found) == set(SEVERITIES)
        assert all(0 <= p <= 1 for p in found.values())


def test_a_step_does_not_show_what_it_holds() -> None:
    assert "secret" not in repr(step("secret"))
