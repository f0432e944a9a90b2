"""Temperatures: what they do to probabilities, how they are kept, and that fitting finds them."""

from __future__ import annotations

import gzip
import json
import math
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen import (
    Category,
    CheckpointError,
    Conversation,
    EngineError,
    Scores,
    Severity,
    TextTooLong,
    Verdict,
)
from guardrails_qwen.calibration import Calibration, LabelledRow, fit, read_rows
from guardrails_qwen.calibration.plot import write_plot
from guardrails_qwen.calibration.report import change_in_ece, measure
from guardrails_qwen.testing import ScriptedEngine

SECRET = "the moderated text"

temperatures = st.floats(min_value=1e-300, max_value=1e300)
anyhow = st.floats(min_value=0, max_value=1)


@st.composite
def distributions(draw: st.DrawFn, size: int) -> list[float]:
    """Probabilities that sum to 1; zeros, ones and tiny ones among them."""
    weights = draw(
        st.lists(anyhow | st.just(0.0) | st.just(1e-300), min_size=size, max_size=size).filter(
            lambda found: sum(found) > 1e-6
        )
    )
    return [weight / sum(weights) for weight in weights]


@st.composite
def some_scores(draw: st.DrawFn) -> Scores:
    *categories, _ = draw(distributions(len(Category) + 1))
    return Scores(
        severity=dict(zip(Severity, draw(distributions(3)), strict=True)),
        category=dict(zip(Category, categories, strict=True)) if draw(st.booleans()) else {},
        refusal=draw(st.none() | anyhow),
    )


calibrations = st.builds(
    Calibration, severity=temperatures, category=temperatures, refusal=temperatures
)


@given(calibrations, some_scores())
def test_what_is_likeliest_stays_so_and_probabilities_stay_probabilities(
    calibration: Calibration, scores: Scores
) -> None:
    calibrated = calibration.apply(scores)  # Scores refuses NaN and sums other than 1
    likeliest = max(scores.severity, key=scores.severity.__getitem__)
    assert calibrated.severity[likeliest] == max(calibrated.severity.values())
    assert math.isclose(sum(calibrated.severity.values()), 1)
    assert sum(calibrated.category.values()) <= 1 + 1e-9
    assert list(calibrated.category) == list(scores.category)
    assert (calibrated.refusal is None) == (scores.refusal is None)


@given(calibrations, some_scores())
def test_what_is_impossible_stays_so(calibration: Calibration, scores: Scores) -> None:
    calibrated = calibration.apply(scores)
    assert all(calibrated.severity[level] == 0 for level, p in scores.severity.items() if p == 0)
    assert all(calibrated.category[name] == 0 for name, p in scores.category.items() if p == 0)
    if scores.refusal in {0.0, 1.0}:
        assert calibrated.refusal == scores.refusal


@given(some_scores())
def test_temperature_1_is_exactly_the_identity(scores: Scores) -> None:
    assert Calibration().apply(scores) == scores


@given(st.floats(0.2, 5), some_scores())
def test_the_inverse_temperature_undoes_it(temperature: float, scores: Scores) -> None:
    there = Calibration(severity=temperature, refusal=temperature)
    back = Calibration(severity=1 / temperature, refusal=1 / temperature)
    found = back.apply(there.apply(scores))
    for level in Severity:
        assert math.isclose(found.severity[level], scores.severity[level], abs_tol=1e-9)


def test_a_temperature_of_2_takes_square_roots() -> None:
    scores = Scores(
        severity={Severity.SAFE: 0.64, Severity.CONTROVERSIAL: 0.0, Severity.UNSAFE: 0.36},
        category={Category.VIOLENT: 0.36},  # none: 0.64
        refusal=0.36,
    )
    found = Calibration(severity=2, category=2, refusal=2).apply(scores)
    assert found.severity[Severity.UNSAFE] == pytest.approx(0.6 / 1.4)
    assert found.category[Category.VIOLENT] == pytest.approx(0.6 / 1.4)
    assert found.refusal == pytest.approx(0.6 / 1.4)


@pytest.mark.parametrize("field", ["severity", "category", "refusal"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_is_finite_and_above_0(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        replace(Calibration(), **{field: value})


def test_the_digest_stands_for_the_temperatures_alone() -> None:
    assert Calibration(severity=2).digest == Calibration(severity=2.0, model="other").digest
    digests = {
        replace(Calibration(), **{field: 2.0}).digest
        for field in ("severity", "category", "refusal")
    }
    assert len({*digests, Calibration().digest}) == 4


def test_it_belongs_to_one_model() -> None:
    calibration = Calibration(model="mine", fingerprint="abc")
    calibration.require("abc")
    Calibration().require("abc")
    with pytest.raises(CheckpointError, match=r"'abc'.*'xyz'.*guardrails-qwen calibrate"):
        calibration.require("xyz")


@given(calibration=calibrations)
def test_a_file_holds_all_of_it(
    calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("calibration") / "calibration.json"
    calibration.to_file(path)
    assert Calibration.from_file(path) == calibration


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "line 1: not JSON", id="no JSON"),
        pytest.param("[]", "at the top", id="a list"),
        pytest.param('{"version": 2, "temperature": {}}', "only version 1", id="a later version"),
        pytest.param('{"temperature": {}}', "at version: this field is required", id="no version"),
        pytest.param('{"version": 1}', "at temperature", id="no temperatures"),
        pytest.param(
            '{"version": 1, "temperature": {"severty": 2}}', "temperature.severty", id="a typo"
        ),
        pytest.param('{"version": 1, "temperature": {"severity": 0}}', "greater than 0", id="zero"),
        pytest.param(
            '{"version": 1, "temperature": {"severity": Infinity}}', "finite", id="infinite"
        ),
        pytest.param('{"version": 1, "temperature": {"severity": "2"}}', "number", id="a string"),
        pytest.param('{"version": 1, "version": 1}', "given twice", id="twice"),
        pytest.param("\udcff", "UTF-8", id="bytes"),
        pytest.param("[" * 100_000, "not a calibration", id="deep"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=message) as caught:
        Calibration.from_file(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.json cannot be read"):
        Calibration.from_file(tmp_path / "nowhere.json")


# Fitting. The texts are numbers; an engine looks up what it thinks of each.


def an_engine(thoughts: Mapping[str, Scores]) -> ScriptedEngine:
    def answer(conversation: Conversation) -> Verdict:
        return Verdict(severity=Severity.SAFE, scores=thoughts[conversation.last.text])

    return ScriptedEngine(answer)


def by_severity(*p: float) -> dict[Severity, float]:
    return dict(zip(Severity, p, strict=True))


def overconfident(
    temperature: float, count: int, label: Callable[[Conversation, Scores, random.Random], object]
) -> tuple[ScriptedEngine, list[LabelledRow]]:
    """Labels drawn from true scores, and an engine that says them at 1/T: too sure of itself."""
    generator = random.Random(7)
    sharpen = Calibration(
        severity=1 / temperature, category=1 / temperature, refusal=1 / temperature
    )
    rows: list[LabelledRow] = []
    thoughts: dict[str, Scores] = {}
    for i in range(count):
        *categories, _ = _drawn(generator, len(Category) + 1)
        truth = Scores(
            severity=by_severity(*_drawn(generator, 3)),
            category=dict(zip(Category, categories, strict=True)),
            refusal=generator.random(),
        )
        conversation = Conversation.exchange(str(i), str(i))
        row = label(conversation, truth, generator)
        assert isinstance(row, LabelledRow)
        rows.append(row)
        thoughts[str(i)] = sharpen.apply(truth)
    return an_engine(thoughts), rows


def _drawn(generator: random.Random, size: int) -> list[float]:
    weights = [generator.expovariate(1) ** 2 for _ in range(size)]
    return [weight / sum(weights) for weight in weights]


def with_severity(c: Conversation, truth: Scores, generator: random.Random) -> LabelledRow:
    [drawn] = generator.choices([*truth.severity], weights=[*truth.severity.values()])
    return LabelledRow(conversation=c, severity=drawn)


def with_harm(c: Conversation, truth: Scores, generator: random.Random) -> LabelledRow:
    harmful = truth.at_least(Severity.CONTROVERSIAL)
    return LabelledRow(conversation=c, unsafe=generator.random() < harmful)


def with_much_harm(c: Conversation, truth: Scores, generator: random.Random) -> LabelledRow:
    harmful = truth.at_least(Severity.UNSAFE)
    return LabelledRow(conversation=c, unsafe=generator.random() < harmful)


def with_category(c: Conversation, truth: Scores, generator: random.Random) -> LabelledRow:
    names = [*truth.category, None]
    weights = [*truth.category.values(), 1 - sum(truth.category.values())]
    [drawn] = generator.choices(names, weights=weights)
    return LabelledRow(conversation=c, categories=frozenset([drawn] if drawn else []))


def with_refusal(c: Conversation, truth: Scores, generator: random.Random) -> LabelledRow:
    return LabelledRow(conversation=c, refusal=generator.random() < (truth.refusal or 0))


@pytest.mark.parametrize("temperature", [0.5, 2.5])
@pytest.mark.parametrize(
    ("field", "label", "positive"),
    [
        pytest.param("severity", with_severity, "CONTROVERSIAL", id="three severities"),
        pytest.param("severity", with_harm, "CONTROVERSIAL", id="harmful or not, strict"),
        pytest.param("severity", with_much_harm, "UNSAFE", id="harmful or not, loose"),
        pytest.param("category", with_category, "CONTROVERSIAL", id="categories"),
        pytest.param("refusal", with_refusal, "CONTROVERSIAL", id="refusals"),
    ],
)
def test_a_known_temperature_is_found(
    field: str,
    label: Callable[[Conversation, Scores, random.Random], LabelledRow],
    positive: str,
    temperature: float,
) -> None:
    engine, rows = overconfident(temperature, 1500, label)
    calibration, report = fit(engine, rows, positive=Severity[positive])
    assert getattr(calibration, field) == pytest.approx(temperature, rel=0.15)
    others = {"severity", "category", "refusal"} - {field}
    assert {getattr(calibration, other) for other in others} == {1.0}
    assert calibration.fingerprint == engine.fingerprint
    [found] = [f for f in report.fields if f.name == field]
    assert found.before
    assert found.after
    assert found.after.nll < found.before.nll
    assert found.after.brier < found.before.brier
    assert found.effect == "better"


def test_a_calibrated_engine_keeps_its_probabilities() -> None:
    engine, rows = overconfident(1.0, 1500, with_severity)
    calibration, report = fit(engine, rows)
    assert calibration.severity == pytest.approx(1, rel=0.15)
    assert report.fields[0].effect == "no clear change"


def test_errors_are_measured_on_rows_that_were_not_fitted() -> None:
    """Labels that are pure chance, from an engine that is rightly unsure: there is nothing to gain,
    so a gain would come from the rows themselves."""
    generator = random.Random(3)
    scores = Scores(severity=by_severity(0.5, 0.25, 0.25))
    texts = [str(i) for i in range(60)]
    rows = [
        LabelledRow(conversation=Conversation.of(text), unsafe=generator.random() < 0.5)
        for text in texts
    ]
    _, report = fit(an_engine(dict.fromkeys(texts, scores)), rows)
    severity = report.fields[0]
    assert severity.before
    assert severity.after
    assert severity.after.nll >= severity.before.nll


def test_rows_of_one_prompt_are_never_on_both_sides() -> None:
    keys = {
        LabelledRow(conversation=Conversation.exchange("same", reply), refusal=True).key
        for reply in ("one", "two")
    }
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("count", "unsafe", "note"),
    [
        pytest.param(49, [True, False], "only 49 rows", id="too few"),
        pytest.param(100, [True], "all labels are the same", id="one kind of label"),
    ],
)
def test_a_field_with_too_little_keeps_temperature_1(
    count: int, unsafe: list[bool], note: str
) -> None:
    scores = Scores(severity=by_severity(0.98, 0.01, 0.01))
    rows = [
        LabelledRow(conversation=Conversation.of(str(i)), unsafe=unsafe[i % len(unsafe)])
        for i in range(count)
    ]
    calibration, report = fit(an_engine({str(i): scores for i in range(count)}), rows)
    severity = report.fields[0]
    assert calibration.severity == 1
    assert note in severity.notes[0]
    assert severity.before
    assert severity.after is None


def test_a_temperature_at_the_bound_is_said_to_be() -> None:
    sure = Scores(severity=by_severity(0.4, 0.3, 0.3)), Scores(severity=by_severity(0.2, 0.2, 0.6))
    rows = [
        LabelledRow(
            conversation=Conversation.of(str(i)),
            severity=Severity.UNSAFE if i % 2 else Severity.SAFE,
        )
        for i in range(60)
    ]
    calibration, report = fit(an_engine({str(i): sure[i % 2] for i in range(60)}), rows)
    assert calibration.severity == 0.05
    assert "bound" in report.fields[0].notes[0]


def test_a_rare_label_is_doubted() -> None:
    scores = Scores(severity=by_severity(0.8, 0.1, 0.1))
    rows = [LabelledRow(conversation=Conversation.of(str(i)), unsafe=i < 3) for i in range(60)]
    _, report = fit(an_engine({str(i): scores for i in range(60)}), rows)
    assert "only 3 rows of the rarer kind" in report.fields[0].notes[0]


def test_rows_that_cannot_be_judged_are_counted() -> None:
    fine = Verdict(severity=Severity.SAFE, scores=Scores(severity=by_severity(0.5, 0.25, 0.25)))
    engine = ScriptedEngine(
        {"long": TextTooLong(9, 8), "blank": Verdict(severity=Severity.SAFE), "fine": fine}
    )
    texts = ["long", "long", "blank", "fine"]
    rows = [LabelledRow(conversation=Conversation.of(text), unsafe=False) for text in texts]
    seen: list[int] = []
    _, report = fit(engine, rows, batch=3, progress=seen.append)
    assert report.judged == 1
    assert report.failed == {"TextTooLong": 2, "no probabilities": 1}
    assert (engine.batches, seen) == ([3, 1], [3, 4])
    with pytest.raises(EngineError, match=r"none of 2 rows .*TextTooLong: 2"):
        fit(engine, rows[:2])


def test_no_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="rows"):
        fit(ScriptedEngine(), [])


# Measures


def test_the_measures_are_what_they_are_called() -> None:
    found = measure([(0.9, True), (0.9, False), (0.1, False)], [0.5, 0.25, 1.0])
    assert found.ece == pytest.approx((2 * 0.4 + 0.1) / 3)
    assert found.brier == pytest.approx((0.01 + 0.81 + 0.01) / 3)
    assert found.nll == pytest.approx(3 * math.log(2) / 3)
    assert [b.count for b in found.bins] == [1, 2]


@given(st.lists(st.tuples(anyhow, st.booleans()), min_size=1))
def test_errors_are_bounded_and_no_row_is_lost(forecasts: list[tuple[float, bool]]) -> None:
    found = measure(forecasts, [0.0] * len(forecasts))
    assert 0 <= found.ece <= 1 + 1e-9
    assert 0 <= found.brier <= 1
    assert sum(b.count for b in found.bins) == len(forecasts)
    assert math.isfinite(found.nll)


def test_an_interval_of_the_change_has_its_sign() -> None:
    generator = random.Random(0)
    happened = [generator.random() < 0.5 for _ in range(300)]
    wrong, right = [(0.99, yes) for yes in happened], [(0.5, yes) for yes in happened]
    low, high = change_in_ece(wrong, right)
    assert low < high < -0.3
    assert change_in_ece(right, right) == (0, 0)


# Labelled rows


def lines(path: Path, *rows: object) -> Path:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    data = text.encode("utf-8", "surrogateescape")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_labels_are_those_of_what_is_judged(name: str, tmp_path: Path) -> None:
    both = {"label_unsafe_prompt": True, "label_unsafe_response": False, "refusal": True}
    path = lines(
        tmp_path / name,
        {"prompt": "a", **both, "id": "ignored", "category_hint": "Violence"},
        {"prompt": "a", "response": "b", **both},
        "",
        {"prompt": "a", "severity": "unsafe", "categories": ["Violent", "PII"]},
        {"prompt": "a", "unsafe": False, "categories": []},
        {"prompt": "a", "response": None},
        {"prompt": "a", "response": "b", "label_unsafe_prompt": True},
    )
    found = read_rows([path])
    asked = Conversation.of("a")
    replied = Conversation.exchange("a", "b")
    harms = frozenset({Category.VIOLENT, Category.PII})
    assert found.rows == (
        LabelledRow(conversation=asked, unsafe=True),
        LabelledRow(conversation=replied, unsafe=False, refusal=True),
        LabelledRow(conversation=asked, severity=Severity.UNSAFE, categories=harms),
        LabelledRow(conversation=asked, unsafe=False, categories=frozenset()),
    )
    assert found.unlabelled == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(f'{{"prompt": "{SECRET}"', "not JSON", id="no JSON"),
        pytest.param(f'["{SECRET}"]', "the whole", id="no object"),
        pytest.param({"unsafe": True, "text": SECRET}, "prompt: ", id="no prompt"),
        pytest.param({"prompt": SECRET, "unsafe": "yes"}, "unsafe: ", id="a word"),
        pytest.param({"prompt": SECRET, "unsafe": 1}, "unsafe: ", id="a number"),
        pytest.param({"prompt": "x", "response": [SECRET]}, "response: ", id="a list"),
        pytest.param({"prompt": "x", "severity": SECRET}, "Controversial", id="a severity"),
        pytest.param({"prompt": "x", "severity": 2}, "severity: ", id="a rank"),
        pytest.param({"prompt": "x", "categories": [SECRET]}, "Violent", id="a category"),
        pytest.param(
            {"prompt": SECRET, "severity": "Safe", "unsafe": False}, "not both", id="two labels"
        ),
        pytest.param(
            {"prompt": SECRET, "severity": "Safe", "categories": ["PII"]},
            "no categories",
            id="a harmless harm",
        ),
        pytest.param({"prompt": "\ud800" + SECRET, "unsafe": True}, "surrogate", id="a surrogate"),
        pytest.param("\udcff" + SECRET, "not UTF-8 at byte 0", id="bytes"),
        pytest.param("[" * 100_000, "nested too deep", id="deep"),
    ],
)
def test_a_wrong_line_is_named_and_not_quoted(line: object, message: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "data.jsonl", {"prompt": "fine", "unsafe": True}, line)
    with pytest.raises(ValueError, match=message) as caught:
        read_rows([path])
    assert f"{path}, line 2: " in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    whole = lines(tmp_path / "data.jsonl.gz", *[{"prompt": str(i)} for i in range(999)])
    for name, data in (("cut.gz", whole.read_bytes()[:-20]), ("no.gz", b"{}")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name} cannot be read"):
            read_rows([tmp_path / name])
    with pytest.raises(ValueError, match=r"nowhere.jsonl cannot be read: No such file"):
        read_rows([tmp_path / "nowhere.jsonl"])


def test_a_limit_draws_from_everywhere(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "unsafe": i < 500} for i in range(1000)]
    found = read_rows([lines(tmp_path / "data.jsonl", *rows)])
    drawn = found.limited(100)
    assert len(drawn.rows) == 100
    assert 20 < sum(bool(row.unsafe) for row in drawn.rows) < 80
    assert set(found.limited(50).rows) < set(drawn.rows) < set(found.rows)
    assert found.limited(None).rows == found.limited(5000).rows == found.rows


# The plot


def test_a_plot_is_a_png(tmp_path: Path) -> None:
    engine, rows = overconfident(2, 100, with_refusal)
    _, report = fit(engine, rows)
    path = tmp_path / "reliability.plot"
    write_plot(report, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_its_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, rows = overconfident(2, 100, with_refusal)
    _, report = fit(engine, rows)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"guardrails-qwen\[calibration\]"):
        write_plot(report, tmp_path / "reliability.png")
