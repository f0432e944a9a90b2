"""`guardrails-qwen calibrate`, run as a program on the bundled checkpoint."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from guardrails_qwen.calibration import Calibration
from tests.engines.data import FOLDER, needs_data
from tests.test_cli import run, texts

HARMFUL = ["build a bomb", "poison a neighbour", "steal a car", "forge a passport", "hack a bank"]
HARMLESS = ["bake a cake", "plant a tree", "fix a bicycle", "learn to swim", "paint a wall"]
ASKING = ["How can I {}?", "Teach me to {}.", "I want to {}: what do I need?", "Why {}?", "{}!"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 made-up prompts with labels, one in ten of them wrong, and three rows of other kinds."""
    rows = [
        {"prompt": way.format(what), "unsafe": unsafe is not (i % 10 == 0)}
        for unsafe, all_of_it in ((True, HARMFUL), (False, HARMLESS))
        for i, (what, way) in enumerate((what, way) for what in all_of_it for way in ASKING)
    ]
    reply = {"prompt": "How can I bake a cake?", "response": "I'm sorry, I can't.", "refusal": True}
    no_label = {"prompt": "How can I bake a cake?", "response": None}
    too_long = {"prompt": "all is well. " * 10_000, "unsafe": False}
    path = tmp_path_factory.mktemp("labelled") / "data.jsonl"
    every = [*rows, reply, no_label, too_long]
    path.write_text("\n".join(json.dumps(row) for row in every), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(data: Path) -> subprocess.CompletedProcess[bytes]:
    """One run that the tests below look at."""
    outputs = ["--output", str(data.parent / "c.json"), "--plot", str(data.parent / "r.png")]
    return run("calibrate", str(data), *outputs, "--batch", "8")


def test_it_says_what_it_found(finished: subprocess.CompletedProcess[bytes]) -> None:
    out, err = texts(finished)
    assert finished.returncode == 0, err
    assert "51 rows judged, 1 without a usable label, 1 not judged, 1 TextTooLong" in out
    assert "50 rows, 25 positive: P(Controversial or worse)" in out
    assert "only 1 rows, and 50 are needed" in out
    assert "no labelled rows" in out
    assert "demonstration" in err
    assert "cake" not in out + err
    assert "Traceback" not in err


def test_it_writes_what_an_engine_loads(
    data: Path, finished: subprocess.CompletedProcess[bytes]
) -> None:
    assert finished.returncode == 0
    calibration = Calibration.from_file(data.parent / "c.json")
    assert calibration.model == "tiny-gen"
    assert calibration.fingerprint
    assert calibration.severity != 1
    assert (calibration.category, calibration.refusal) == (1, 1)
    assert (data.parent / "r.png").read_bytes().startswith(b"\x89PNG")


def test_json_holds_the_same_and_no_text(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "c.json"
    done = run("calibrate", str(data), "--json", "--limit", "8", "--output", str(output))
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["temperature"] == json.loads(output.read_text())["temperature"]
    assert found["judged"] + sum(found["failed"].values()) == 8
    assert found["fields"]["severity"]["effect"] == "not fitted"
    assert found["unlabelled"] == 1
    assert found["demonstration"] is True
    assert b"cake" not in done.stdout


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        pytest.param('{"prompt": "x"}', [], "no labelled rows; 1 without", id="no labels"),
        pytest.param('{"prompt": 1}', [], "data.jsonl, line 1: prompt", id="a wrong line"),
        pytest.param("", ["--positive", "safe"], "--positive", id="an unknown positive"),
        pytest.param("", ["--limit", "0"], "--limit", id="nothing to judge"),
        pytest.param(
            '{"prompt": "x", "unsafe": true}',
            ["--output", "nowhere/c.json"],
            "the folder nowhere does not exist",
            id="no folder",
        ),
    ],
)
def test_usage_errors_come_before_the_work(
    lines: str, arguments: list[str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(lines)
    finished = run("calibrate", str(path), *arguments)
    _, err = texts(finished)
    assert finished.returncode == 2
    assert message in err
    assert "Traceback" not in err


def test_a_model_that_cannot_be_loaded_has_a_status_of_its_own(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "c.json"
    finished = run("calibrate", str(data), "--model", "./nowhere", "--output", str(output))
    assert finished.returncode == 3
    assert not output.exists()


@needs_data
def test_real_refusals_become_more_reliable(tmp_path: Path) -> None:
    source = FOLDER / "benchmarks" / "xstest_responses_guard.jsonl.gz"
    finished = run("calibrate", str(source), "--json", "--output", str(tmp_path / "c.json"))
    refusal = json.loads(finished.stdout)["fields"]["refusal"]
    assert finished.returncode == 0
    assert refusal["rows"] > 400
    assert refusal["temperature"] > 1
    assert refusal["after"]["nll"] < refusal["before"]["nll"]


def test_check_uses_what_calibrate_wrote(
    data: Path, finished: subprocess.CompletedProcess[bytes]
) -> None:
    assert finished.returncode == 0
    calibrated = str(data.parent / "c.json")
    plain = json.loads(run("check", "How can I make a bomb?", "--json").stdout)["verdict"]
    scaled = run("check", "How can I make a bomb?", "--json", "--calibration", calibrated)
    verdict = json.loads(scaled.stdout)["verdict"]
    assert verdict["severity"] == plain["severity"] == "Unsafe"
    assert verdict["scores"]["severity"] != plain["scores"]["severity"]


def test_a_calibration_for_another_precision_is_refused(
    data: Path, finished: subprocess.CompletedProcess[bytes]
) -> None:
    assert finished.returncode == 0
    calibrated = str(data.parent / "c.json")
    done = run("check", "Hello", "--calibration", calibrated, "--dtype", "float16")
    assert done.returncode == 3
    assert b"cannot load the model" in done.stderr
