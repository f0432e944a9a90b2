"""GuardDecisionModel where langchain-core has no decision models: it says what to install."""

from importlib import import_module
from importlib.util import find_spec

import pytest


@pytest.mark.skipif(
    find_spec("langchain_core.decisions") is not None,
    reason="needs a langchain-core before 1.8, which has no decision models",
)
def test_importing_says_what_to_install() -> None:
    with pytest.raises(ImportError, match=r"pip install 'langchain-core>=1\.8'"):
        import_module("langchain_guardrails_qwen.decisions")
