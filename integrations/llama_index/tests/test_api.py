"""The public names, and nothing beside them."""

import inspect
import subprocess
import sys

import pytest

import llama_index_guardrails_qwen

NAMES = [
    "GuardCheckEndEvent",
    "GuardCheckStartEvent",
    "GuardPostprocessor",
    "GuardTransform",
    "GuardViolationEvent",
    "GuardedChatEngine",
    "GuardedLLM",
    "GuardedQueryEngine",
    "SafetyEvaluator",
    "__version__",
    "guard_chat_engine",
    "guard_note",
    "guard_query_engine",
    "guarded_tool",
    "guarded_tools",
]

IMPORTING = """
import sys
import llama_index_guardrails_qwen
heavy = {"torch", "transformers", "tokenizers", "openai", "langchain_core"} & set(sys.modules)
assert not heavy, heavy
"""


def test_public_names() -> None:
    assert llama_index_guardrails_qwen.__all__ == NAMES


@pytest.mark.parametrize("name", [name for name in NAMES if name != "__version__"])
def test_a_public_name_says_what_it_is(name: str) -> None:
    thing = getattr(llama_index_guardrails_qwen, name)
    assert thing.__name__ == name
    assert thing.__module__.startswith("llama_index_guardrails_qwen.")
    said = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert said
    assert said.splitlines()[0].endswith(".")


def test_importing_loads_no_model_library() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
