"""The examples run, and show what they say they show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_quickstart_langchain() -> None:
    program = [sys.executable, str(EXAMPLES / "quickstart_langchain.py")]
    out = subprocess.run(program, capture_output=True, check=True).stdout.decode()
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
