"""What the deployment page and its compose files tell people to run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "serving.md"
COMPOSE = {path.stem: path for path in sorted((ROOT / "examples" / "serving").glob("*.yaml"))}

API_SERVER = ["python", "-m", "vllm.entrypoints.openai.api_server"]
SERVE = ["vllm", "serve"]

_FENCE = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


def composed(path: Path) -> dict[str, Any]:
    """A compose file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def service(path: Path) -> dict[str, Any]:
    """The only service of a compose file."""
    [found] = composed(path)["services"].values()
    return found


def started(path: Path) -> list[str]:
    """The words of the command that a compose file starts."""
    found = service(path)
    return [*found["entrypoint"], *found["command"]]


def commands() -> Iterator[list[str]]:
    """The words of each command on the page, without the variables that it is run with."""
    for fence in _FENCE.finditer(PAGE.read_text(encoding="utf-8")):
        for line in fence[1].replace("\\\n", " ").splitlines():
            words = shlex.split(line) if "'" not in line else line.split()
            while words and _ASSIGNMENT.fullmatch(words[0]):
                words.pop(0)
            yield words


def vllm_commands() -> list[list[str]]:
    """Those that start vLLM, with the compose file's."""
    starting = [SERVE, API_SERVER]
    found = [one for one in commands() if one[:2] == SERVE or one[:3] == API_SERVER]
    assert all(any(one[: len(start)] == start for one in found) for start in starting)
    return [*found, started(COMPOSE["vllm"])]


def flags(words: list[str]) -> dict[str, str | bool]:
    """Options of a command by name; those without a value are true."""
    joined = [word.partition("=") for word in words]
    found: dict[str, str | bool] = {}
    for place, (name, equals, value) in enumerate(joined):
        if name.startswith("--"):
            after = words[place + 1] if place + 1 < len(words) else "--"
            found[name] = value if equals else after if not after.startswith("--") else True
    return found
