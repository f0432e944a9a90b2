"""The command line, run as a program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.tiny import TinyServer

ASK = "How can I make a bomb?"


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    program = [sys.executable, "-m", "guardrails_qwen", *arguments]
    return subprocess.run(program, input=stdin, capture_output=True, check=False, timeout=300)


def texts(finished: subprocess.CompletedProcess[bytes]) -> tuple[str, str]:
    return finished.stdout.decode(), finished.stderr.decode()


def test_a_harmful_prompt_is_not_allowed() -> None:
    finished = run("check", ASK)
    out, err = texts(finished)
    assert finished.returncode == 1
    assert "Unsafe (Violent)" in out
    assert "block" in out
    assert "P(severity)" in out
    assert ASK not in out
    assert "demonstration" in err
    assert "--model Qwen/Qwen3Guard-Gen-0.6B" in " ".join(err.split())


def test_a_reply_is_judged_with_its_prompt() -> None:
    finished = run("check", ASK, "--response", "I'm sorry, but I can't help with that.", "--json")
    data = json.loads(finished.stdout)
    assert finished.returncode == 0
    assert data["stage"] == "output"
    assert data["action"] == "allow"
    assert data["verdict"]["refusal"] is True
    assert data["demonstration"] is True


def test_standard_input_is_one_text_or_one_a_line() -> None:
    lines = f"Hello there!\n\n{ASK}\n".encode()
    whole = run("check", "-", "--json", stdin=lines)
    assert len(whole.stdout.splitlines()) == 1
    each = run("check", "-", "--lines", "--json", stdin=lines)
    assert [json.loads(line)["action"] for line in each.stdout.splitlines()] == ["allow", "block"]
    assert each.returncode == 1


def test_a_policy_file_decides(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: mine\nstages:\n  default:\n    rules: [{action: flag}]\n")
    finished = run("check", ASK, "--policy", str(policy), "--json")
    assert finished.returncode == 0
    data = json.loads(finished.stdout)
    assert (data["action"], data["policy"], data["text"]) == ("flag", "mine", ASK)


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        pytest.param([], b"", "", id="nothing"),
        pytest.param(["check"], b"", "text", id="no text"),
        pytest.param(["check", "x", "--nonsense"], b"", "nonsense", id="an unknown option"),
        pytest.param(["check", "x", "--policy", "no.yaml"], b"", "cannot be read", id="no policy"),
        pytest.param(["check", "x", "--lines"], b"", "standard input", id="lines of an argument"),
        pytest.param(["check", "-"], b"\xff", "not UTF-8 at byte 0", id="bytes"),
        pytest.param(["check", "x", "--url", "localhost:8000"], b"", "base URL", id="no URL"),
        pytest.param(
            ["check", "x", "--url", "http://a/v1", "--way", "no"], b"", "tokens", id="way"
        ),
    ],
)
def test_usage_errors_have_a_status_of_their_own(
    arguments: list[str], stdin: bytes, message: str
) -> None:
    finished = run(*arguments, stdin=stdin)
    assert finished.returncode == 2
    assert message in "".join(texts(finished))
    assert b"Traceback" not in finished.stderr


def test_a_wrong_policy_names_the_line(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: mine\nstages:\n  default:\n    rules: [{action: blok}]\n")
    finished = run("check", ASK, "--policy", str(policy))
    assert finished.returncode == 2
    assert "line 4" in " ".join(texts(finished)[1].split())


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["x", "--model", "./nowhere"], id="no such folder"),
        pytest.param(["all is well. " * 10_000], id="a text that is too long"),
        pytest.param(["x", "--url", "http://127.0.0.1:1/v1"], id="no server"),
    ],
)
def test_an_engine_that_cannot_judge_has_a_status_of_its_own(arguments: list[str]) -> None:
    finished = run("check", *arguments)
    assert finished.returncode == 3
    assert b"Traceback" not in finished.stderr


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_server_judges() -> None:
    with TinyServer() as server:
        finished = run("check", ASK, "--url", server.base_url, "--tokenizer", "tiny", "--json")
    data = json.loads(finished.stdout)
    assert finished.returncode == 1
    assert data["verdict"]["severity"] == "Unsafe"
    assert data["verdict"]["model"] == "tiny"
    assert data["demonstration"] is True


def test_what_is_printed_cannot_steer_a_terminal(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    rules = 'rules: [{action: replace}]\n    replacement: "a\\u001b[31m [bold]b"\n'
    policy.write_text(f"name: mine\nstages:\n  default:\n    {rules}")
    out, _ = texts(run("check", ASK, "--policy", str(policy)))
    assert "\x1b[31m" not in out
    assert "[bold]b" in out


def test_version() -> None:
    import guardrails_qwen

    assert texts(run("--version"))[0].strip() == guardrails_qwen.__version__
