"""Real servers, once a session. Without vLLM only the tests of transformers serve are collected."""

from __future__ import annotations

import os
from pathlib import Path

from tests.servers.processes import VLLM_PYTHON, transformers_serve, vllm_server

__all__ = ["transformers_serve", "vllm_server"]  # fixtures


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what needs vLLM where there is none; `make serving` provides it."""
    runs_everywhere = collection_path.name.startswith("test_transformers_serve")
    if collection_path.name.startswith("test_") and not runs_everywhere:
        return None if os.environ.get(VLLM_PYTHON) else True
    return None
