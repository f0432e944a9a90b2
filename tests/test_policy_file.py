"""Policies as files: what is wrong is named by line or path, and nothing is ambiguous."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guardrails_qwen import (
    Action,
    Category,
    OnError,
    Policy,
    PolicyError,
    Rule,
    Severity,
    Stage,
    StagePolicy,
)

GOOD = """\
name: ours
stages:
  default:
    rules:
      - {severity: controversial, action: flag}
      - {severity: Unsafe, action: block}
  output:
    on_error: raise
    replacement: Sorry.
    marker: "[{category}]"
    rules:
      - category: PII
        action: redact
      - category: "suicide & self-harm"
        probability: 0.25
        action: BLOCK
"""
EXPECTED = Policy(
    name="ours",
    default=StagePolicy(
        rules=(
            Rule(action=Action.FLAG),
            Rule(action=Action.BLOCK, severity=Severity.UNSAFE),
        )
    ),
    stages={
        Stage.OUTPUT: StagePolicy(
            rules=(
                Rule(action=Action.REDACT, category=Category.PII),
                Rule(
                    action=Action.BLOCK,
                    category=Category.SUICIDE_AND_SELF_HARM,
                    probability=0.25,
                ),
            ),
            on_error=OnError.RAISE,
            replacement="Sorry.",
            marker="[{category}]",
        )
    },
)


def test_a_policy_from_yaml() -> None:
    assert Policy.from_yaml(GOOD) == EXPECTED


@pytest.mark.parametrize("name", ["p.yaml", "p.yml", "p.policy", "p.json", "p.JSON"])
def test_a_policy_from_a_file(tmp_path: Path, name: str) -> None:
    is_json = name.lower().endswith("json")
    path = tmp_path / name
    path.write_text(json.dumps(EXPECTED.to_dict()) if is_json else GOOD, encoding="utf-8")
    assert Policy.from_file(path) == EXPECTED
    assert Policy.from_file(str(path)) == EXPECTED


def test_a_policy_extends_a_preset() -> None:
    extended = Policy.from_yaml(
        "name: x\nextends: strict\nstages: {input: {rules: [{action: flag}]}}"
    )
    assert extended.at(Stage.INPUT).rules == (Rule(action=Action.FLAG),)
    assert extended.at(Stage.OUTPUT) == Policy.strict().at(Stage.OUTPUT)
    assert extended.at(Stage.CONTEXT) == Policy.strict().at(Stage.CONTEXT)
    loose = Policy.from_yaml("name: x\nextends: loose\nstages: {}")
    assert loose.at(Stage.INPUT) == Policy.loose().at(Stage.INPUT)


def test_what_a_file_does_not_say_blocks() -> None:
    some = Policy.from_yaml("name: x\nstages: {default: {rules: [{action: flag}]}}")
    assert some.at(Stage.INPUT).on_error is OnError.BLOCK
    assert some.at(Stage.INPUT).rules[0].severity is Severity.CONTROVERSIAL


def test_a_file_may_name_every_stage_instead_of_a_default() -> None:
    stages: dict[str, Any] = {stage.value: {"rules": []} for stage in Stage}
    assert Policy.from_dict({"name": "x", "stages": stages}).at(Stage.INPUT) == StagePolicy()


HEAD = "name: x\nstages:\n  default:\n    rules:\n"


def rule(fields: str) -> str:
    return f"{HEAD}      - {{{fields}}}\n"


BAD = [
    pytest.param("", ["line 1", "fields"], id="an empty file"),
    pytest.param("a text", ["line 1", "fields"], id="a text"),
    pytest.param("- a", ["line 1", "fields"], id="a list"),
    pytest.param("name: x", ["stages", "required"], id="no stages"),
    pytest.param("name: x\nstages:\n", ["line 2", "stages"], id="empty stages"),
    pytest.param("name: x\nstages: []\n", ["line 2", "stages"], id="a list of stages"),
    pytest.param("stages: {default: {rules: []}}", ["name", "required"], id="no name"),
    pytest.param("name: x\nstages:\n  input: {rules: []}", ["output", "default"], id="no default"),
    pytest.param("name: x\nstages: {}", ["input", "default"], id="stages without any"),
    pytest.param(
        "name: x\nstages:\n  inptu: {rules: []}", ["line 3", "'input'"], id="a misspelt stage"
    ),
    pytest.param("name: x\nstages:\n  default: {}", ["line 3", "rules"], id="no rules"),
    pytest.param("name: x\nstages:\n  default: {rules: }", ["line 3", "rules"], id="empty rules"),
    pytest.param("name: x\nstages:\n  default: block", ["line 3", "fields"], id="a stage as text"),
    pytest.param(
        "name: x\nstages:\n  default: {rules: []}\n  Default: {rules: []}",
        ["line 2", "given twice", "default"],
        id="a stage twice in different case",
    ),
    pytest.param(
        "name: x\nstages:\n  input: {rules: []}\n  input: {rules: []}",
        ["line 4", "'input'", "twice"],
        id="a stage twice",
    ),
    pytest.param("name: x\nname: y\nstages: {}", ["line 2", "'name'", "twice"], id="a name twice"),
    pytest.param(
        "name: x\nextends: srtict\nstages: {}", ["line 2", "extends"], id="a misspelt preset"
    ),
    pytest.param("name: x\nstage: {}\nstages: {}", ["line 2", "stage", "unknown"], id="a field"),
    pytest.param("name: yes\nstages: {}", ["line 1", "name"], id="a name that YAML reads as true"),
    pytest.param(rule("action: blok"), ["line 5", "rules[0].action", "'block'"], id="action"),
    pytest.param(rule("severity: safe"), ["line 5", "rules[0].action", "required"], id="no action"),
    pytest.param(rule("action: off"), ["line 5", "action", "quotes"], id="off is false"),
    pytest.param(rule("action: 5"), ["line 5", "action", "int"], id="an action by number"),
    pytest.param(rule("action: [block]"), ["line 5", "action", "list"], id="a list of actions"),
    pytest.param(rule("action: "), ["line 5", "action", "nothing"], id="an empty action"),
    pytest.param(
        rule("action: block, action: allow"), ["line 5", "'action'", "twice"], id="action twice"
    ),
    pytest.param(
        rule("action: block, category: Violnt"),
        ["line 5", "rules[0].category", "'Violnt'", "did you mean 'Violent'"],
        id="a misspelt category",
    ),
    pytest.param(
        rule("action: block, category: Rudeness of tone"),
        ["line 5", "rules[0].category", "use one of: Violent"],
        id="an unknown category",
    ),
    pytest.param(
        rule("action: allow, category: "), ["line 5", "category", "nothing"], id="empty category"
    ),
    pytest.param(
        rule("action: block, category: null"), ["line 5", "category", "nothing"], id="null category"
    ),
    pytest.param(
        rule("action: block, category: None"), ["line 5", "category", "'None'"], id="None category"
    ),
    pytest.param(
        rule("action: block, severity: unsave"), ["line 5", "severity", "'unsafe'"], id="severity"
    ),
    pytest.param(rule("action: block, severity: 2"), ["line 5", "severity"], id="severity number"),
    pytest.param(rule("action: block, severity: "), ["line 5", "severity"], id="empty severity"),
    pytest.param(
        rule("action: block, severty: safe"), ["line 5", "severty", "unknown"], id="a rule's field"
    ),
    *(
        pytest.param(
            rule(f"action: block, probability: {p}"), ["line 5", "probability"], id=f"p {p}"
        )
        for p in ("0", "-1", "1.5", "50", ".nan", ".inf", "true", "'0.5'", "", "1e-3", "high")
    ),
    pytest.param(
        f"{HEAD}      - action: block\n      - action: flag\n        category: Rude\n",
        ["line 7", "rules[1].category"],
        id="the second rule",
    ),
    pytest.param(
        "name: x\nstages:\n  default: {rules: [], on_error: no}", ["line 3", "quotes"], id="no"
    ),
    pytest.param(
        "name: x\nstages:\n  default: {rules: [], on_error: alow}", ["line 3", "'allow'"], id="alow"
    ),
    pytest.param(
        "name: x\nstages:\n  default: {rules: [], marker: 5}", ["line 3", "marker"], id="marker"
    ),
    pytest.param("name: [x", ["line 1"], id="not YAML"),
    pytest.param("name: x\n\tstages: {}", ["line 2"], id="a tab"),
    pytest.param("name: x\x00", ["not YAML"], id="a NUL"),
    pytest.param("name: x\n---\nname: y", ["line 2"], id="two documents"),
    pytest.param("name: !!python/object/apply:os.getcwd []", ["line 1"], id="an object"),
    pytest.param("name: *nowhere", ["line 1"], id="an unknown alias"),
    pytest.param("? [a]\n: b", ["line 1"], id="a list as a key"),
    pytest.param("name: 2024-13-45", ["month"], id="a date that is none"),
    pytest.param("name: !!int x", ["invalid literal"], id="a number that is none"),
    pytest.param("&a {name: x, stages: *a}", ["line 1", "stages"], id="a circle"),
    pytest.param("[" * 1500, ["nested too deep"], id="deep nesting"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_what_is_wrong_in_yaml_is_named(text: str, said: list[str]) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.from_yaml(text)
    for part in said:
        assert part in str(caught.value)


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.from_yaml(f"{rule('action: blok, category: Rude')}      - {{action: stop}}\n")
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "policy, line 5, at stages.default.rules[0].action",
        "policy, line 5, at stages.default.rules[0].category",
        "policy, line 6, at stages.default.rules[1].action",
    ]


def test_a_merged_stage_says_what_it_says_itself() -> None:
    some = Policy.from_yaml(
        "name: x\n"
        "stages:\n"
        "  default: &d {rules: [{action: block}], on_error: raise}\n"
        "  input:\n"
        "    <<: *d\n"
        "    on_error: allow\n"
    )
    assert some.at(Stage.INPUT).rules == some.default.rules
    assert some.at(Stage.INPUT).on_error is OnError.ALLOW
    assert some.default.on_error is OnError.RAISE


BAD_JSON = [
    pytest.param("{", ["line 1", "not JSON"], id="not JSON"),
    pytest.param('{\n "name": x}', ["line 2", "not JSON"], id="not JSON on line 2"),
    pytest.param("", ["line 1"], id="empty"),
    pytest.param("[]", ["at the top"], id="a list"),
    pytest.param('{"name": "x", "name": "y"}', ["'name'", "twice"], id="a field twice"),
    pytest.param(
        '{"name": "x", "stages": {"default": {"rules": [{"action": "blok"}]}}}',
        ["stages.default.rules[0].action", "'block'"],
        id="an action",
    ),
    pytest.param(
        '{"name": "x", "stages": {"default": {"rules": [{"action": "flag", "probability": NaN}]}}}',
        ["probability"],
        id="NaN",
    ),
    pytest.param(
        '{"name": "x", "stages": {"input": {"rules": []}, "INPUT": {"rules": []}}}',
        ["twice", "input"],
        id="a stage twice in different case",
    ),
    pytest.param("[" * 100_000, ["nested too deep"], id="deep nesting"),
]


@pytest.mark.parametrize(("text", "said"), BAD_JSON)
def test_what_is_wrong_in_json_is_named(tmp_path: Path, text: str, said: list[str]) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PolicyError) as caught:
        Policy.from_file(path)
    for part in ["policy.json", *said]:
        assert part in str(caught.value)


def test_a_yaml_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text(rule("action: blok"), encoding="utf-8")
    with pytest.raises(PolicyError, match=r"ours\.yaml, line 5, at stages\.default\.rules\[0\]"):
        Policy.from_file(path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    for name, reason in [
        ("none.yaml", "No such file"),
        ("latin.yaml", "UTF-8"),
        (".", "directory"),
    ]:
        with pytest.raises(PolicyError, match=reason):
            Policy.from_file(tmp_path / name)


BAD_DATA: list[Any] = [
    pytest.param({"name": "x"}, "stages", id="no stages"),
    pytest.param({"name": "x", "stages": {5: {"rules": []}}}, "stages", id="a number as stage"),
    pytest.param({"name": "x", "stages": {"default": None}}, "stages.default", id="None as stage"),
    pytest.param({"name": "x", "stages": {"default": {"rules": "block"}}}, "rules", id="text"),
    pytest.param({}, "name", id="nothing"),
]


@pytest.mark.parametrize(("data", "said"), BAD_DATA)
def test_what_is_wrong_in_data_is_named(data: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.from_dict(data)
    assert said in str(caught.value)
