"""The public surface, and what importing it costs."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import guardrails_qwen

ROOT = Path(guardrails_qwen.__file__).parents[1]

PUBLIC = {
    "Action",
    "AtLimit",
    "Batching",
    "Calibration",
    "Category",
    "CheckpointError",
    "Conversation",
    "ConversationError",
    "Debounce",
    "Decision",
    "Engine",
    "EngineClosed",
    "EngineError",
    "EngineOverloaded",
    "EngineTimeout",
    "EngineUnavailable",
    "Guard",
    "GuardError",
    "GuardViolation",
    "GuardedStream",
    "HoldBack",
    "Message",
    "OnError",
    "Outcome",
    "Policy",
    "PolicyError",
    "Reliability",
    "RequestRejected",
    "Role",
    "Rule",
    "Scores",
    "Sessions",
    "Severity",
    "Span",
    "Stage",
    "StagePolicy",
    "StreamModerator",
    "Streaming",
    "TextTooLong",
    "TokenVerdict",
    "ToolCall",
    "UnreadableVerdict",
    "Verdict",
    "Windows",
    "WrongServer",
    "__version__",
}

LIGHT = [
    "guardrails_qwen",
    "guardrails_qwen.testing",
    "guardrails_qwen.policy_file",
    "guardrails_qwen.redaction",
    "guardrails_qwen.dialects.qwen3guard",
    "guardrails_qwen.dialects.token_tree",
    "guardrails_qwen.engines",
    "guardrails_qwen.engines.base",
    "guardrails_qwen.engines.batching",
    "guardrails_qwen.engines.cached",
    "guardrails_qwen.engines.verdict_store",
    "guardrails_qwen.engines.disk_store",
    "guardrails_qwen.engines.closing",
    "guardrails_qwen.engines.fallback",
    "guardrails_qwen.engines.cascade",
    "guardrails_qwen.engines.families",
    "guardrails_qwen.engines.reliability",
    "guardrails_qwen.dialects.families",
    "guardrails_qwen.calibration",
    "guardrails_qwen.cli",
    "guardrails_qwen.longtext",
]
HEAVY = [
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "langchain_core",
    "llama_index",
    "fastapi",
    "openai",
    "diskcache",
    "matplotlib",
]


def test_the_public_names_are_these() -> None:
    assert set(guardrails_qwen.__all__) == PUBLIC
    assert list(guardrails_qwen.__all__) == sorted(guardrails_qwen.__all__)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_exists(name: str) -> None:
    assert getattr(guardrails_qwen, name) is not None


@pytest.mark.parametrize("module", LIGHT)
def test_importing_loads_neither_torch_nor_a_framework(module: str) -> None:
    program = (
        f"import sys, importlib; importlib.import_module({module!r}); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_test_doubles_are_public() -> None:
    testing = importlib.import_module("guardrails_qwen.testing")
    assert isinstance(testing.ScriptedEngine(), guardrails_qwen.Engine)
    assert isinstance(testing.FailingEngine(), guardrails_qwen.Engine)


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "guardrails_qwen" / "py.typed").is_file()
