"""The examples run, and show what they say they show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(example: str) -> str:
    program = [sys.executable, str(EXAMPLES / example)]
    return subprocess.run(program, capture_output=True, check=True).stdout.decode()


def test_quickstart_langchain() -> None:
    out = run("quickstart_langchain.py")
    for shown in (
        "input allowed: Safe",
        "input blocked: Unsafe (Violent)",
        "input flagged: Controversial (Suicide & Self-Harm)",
        "input redacted: Unsafe (PII)",
        "output allowed: Safe",
        "output redacted: Unsafe (Violent)",
        "output blocked: Unsafe (Non-violent Illegal Acts)",
        "A:  Talk to him over a cup of tea. [removed: Violent] He may like roses.",
        "a demonstration, not protection",
    ):
        assert shown in out


def test_stream_langchain() -> None:
    out = run("stream_langchain.py")
    by_token, by_sentence = out.split("== ")[1:]
    recipe = "A:  Mix flour, milk and two eggs, and fry in butter.\n\n"
    for part in (by_token, by_sentence):
        assert recipe in part
        assert "A:  \n--  input blocked: " in part
        assert "A:  Talk to him over a cup of tea." in part
    assert "\n--  output blocked: " in by_token
    closing = "A:  Talk to him over a cup of tea. [The rest is not fit to be read.]"
    assert f"{closing}\n--  finish reason content_filter" in by_sentence
    assert "burn" not in out
    assert "never sees" not in out


def test_stream_any_framework() -> None:
    out = run("stream_any_framework.py")
    generator, asynchronous, beside, without_io = out.split("== ")[1:]
    recipe = "A:  Mix flour, milk and two eggs. Let it rest, then fry it in butter. \n"
    assert recipe in generator
    for part in (generator, asynchronous):
        assert "A:  Talk to him over a cup of tea." in part
        assert "\n--  output blocked: " in part
    assert "\n    (the model was stopped)\n" in asynchronous
    assert recipe in beside
    assert "A:  \n    (the model was stopped)\n--  input blocked: " in beside
    assert "    release 'Talk'\n    release ' to'\n" in without_io
    assert without_io.splitlines()[-1].startswith("    output blocked: ")
    assert "burn" not in out
