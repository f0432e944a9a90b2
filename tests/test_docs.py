"""Every fence in the README and the docs does what it says."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from pytest_examples import CodeExample, EvalExample, find_examples

from guardrails_qwen import Policy

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "integrations" / "langchain" / "README.md",
    ROOT / "integrations" / "llama_index" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
DISTRIBUTIONS = {"guardrails-qwen", "langchain-guardrails-qwen", "llama-index-guardrails-qwen"}

_FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(language: str) -> list[object]:
    """The fences in a language, with where they stand."""
    found = list[object]()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            if match[1] == language:
                line = text.count("\n", 0, match.start()) + 1
                found.append(pytest.param(match[2], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


@pytest.fixture
def own_event_loop() -> Generator[None, None, None]:
    """A loop that is closed: LlamaIndex's synchronous doors leave that of their thread open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


# workflows of LlamaIndex look at all that an agent has, what is deprecated too
@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")
@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince211")
@pytest.mark.usefixtures("own_event_loop")
@pytest.mark.parametrize("example", list(find_examples(*map(str, PAGES))), ids=str)
def test_python(example: CodeExample, eval_example: EvalExample) -> None:
    settings = example.prefix_settings()
    if settings.get("test") == "skip":
        assert "Qwen/Qwen3Guard" in example.source  # what needs a model hub, and nothing else
        compile(example.source, str(example), "exec")
        return
    eval_example.set_config(line_length=120)
    eval_example.run_print_check(example)


@pytest.mark.parametrize("text", fences("yaml"))
def test_yaml_is_a_policy(text: str) -> None:
    policy = Policy.from_yaml(text)
    assert Policy.from_yaml(policy.to_yaml()) == policy


@pytest.mark.parametrize("text", fences("bash"))
def test_commands(text: str) -> None:
    for line in text.splitlines():
        words = shlex.split(line)
        if words[0] == "make":
            run = subprocess.run(
                ["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, check=False
            )
            assert run.returncode == 0, line
        elif words[:2] == ["pip", "install"]:
            assert {word.split("[")[0] for word in words[2:]} <= DISTRIBUTIONS
        else:
            assert words[0] == "guardrails-qwen", f"an unknown command: {line}"
            program = [sys.executable, "-m", "guardrails_qwen", *words[1:]]
            run = subprocess.run(program, capture_output=True, check=False)
            refused = "--response" in words  # the reply in the examples declines
            assert run.returncode == (0 if refused else 1), line


def test_no_other_language_goes_unchecked() -> None:
    languages = {
        match[1] for page in PAGES for match in _FENCE.finditer(page.read_text(encoding="utf-8"))
    }
    assert languages <= {"python", "yaml", "bash", "text"}
