"""Real servers on loopback, as processes that are always ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.servers.loopback import HOST
from tests.servers.tiny_model import CHECKPOINT

VLLM_PYTHON = "GUARDRAILS_QWEN_VLLM"
"""The environment variable that names an interpreter with vLLM; see scripts/vllm_env.sh."""

CONTEXT = 2048
"""Tokens of prompt and answer that the servers take."""

_ROOT = Path(__file__).parents[2]
_HEALTHY_WITHIN = 180.0
_ENDED_WITHIN = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RealServer:
    """Where a server is, and what it calls the bundled checkpoint."""

    url: str
    model: str

    @property
    def base_url(self) -> str:
        """What an OpenAI client is given."""
        return f"{self.url}/v1"


@pytest.fixture(scope="session")
def vllm_server() -> Iterator[RealServer]:
    """vLLM with the bundled checkpoint."""
    python = os.environ.get(VLLM_PYTHON)
    if not python:
        pytest.skip(f"{VLLM_PYTHON} does not name an interpreter with vLLM")
    with running_vllm(Path(python)) as server:
        yield server


@pytest.fixture(scope="session")
def transformers_serve() -> Iterator[RealServer]:
    """`transformers serve` of this environment with the bundled checkpoint."""
    with running_transformers_serve() as server:
        yield server


@contextmanager
def running_vllm(python: Path, *options: str) -> Generator[RealServer]:
    """vLLM from another environment.

    Without TORCHDYNAMO_DISABLE the first request with log-probabilities takes half a minute; with
    the default block size short prompts do not share a prefix.

    Args:
        python: That environment's interpreter.
        options: More of its command line.
    """
    port = _free_port()
    command = [
        *[str(python), "-m", "vllm.entrypoints.openai.api_server"],
        *["--model", str(CHECKPOINT), "--served-model-name", "tiny"],
        *["--dtype", "float32", "--max-model-len", str(CONTEXT), "--block-size", "32"],
        *["--enforce-eager", "--host", HOST, "--port", str(port), *options],
    ]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with _running(command, environment, port) as url:
        yield RealServer(url=url, model="tiny")


@contextmanager
def running_transformers_serve(*options: str) -> Generator[RealServer]:
    """`transformers serve`, pinned to the bundled checkpoint: its folder is the model's name."""
    port = _free_port()
    command = [
        *[sys.executable, "-m", "transformers.cli.transformers", "serve", str(CHECKPOINT)],
        *["--device", "cpu", "--dtype", "float32", "--host", HOST, "--port", str(port), *options],
    ]
    with _running(command, {"OMP_NUM_THREADS": "1"}, port) as url:
        yield RealServer(url=url, model=str(CHECKPOINT))


@contextmanager
def running_tiny(quirks: str = "VLLM") -> Generator[RealServer]:
    """A `TinyServer` as a process of its own, where a test measures its own processor time.

    Args:
        quirks: A name in `tests.servers.quirks`.
    """
    port = _free_port()
    command = [sys.executable, "-m", "tests.servers", quirks, str(port)]
    with _running(command, {"OMP_NUM_THREADS": "1"}, port) as url:
        yield RealServer(url=url, model="tiny")


@contextmanager
def _running(command: Sequence[str], environment: Mapping[str, str], port: int) -> Generator[str]:
    """A process that serves on a port, from the moment that it is healthy."""
    url = f"http://{HOST}:{port}"
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": folder}
        process = subprocess.Popen(
            command,
            env={**os.environ, **offline, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=_ROOT,
            start_new_session=True,
        )
        try:
            _await_health(process, url, Path(log.name))
            yield url
        finally:
            _end(process)


def _await_health(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _HEALTHY_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    last = log.read_text(errors="replace")[-3000:]
    raise RuntimeError(f"{process.args} did not become healthy; its last words:\n{last}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(_ENDED_WITHIN)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
