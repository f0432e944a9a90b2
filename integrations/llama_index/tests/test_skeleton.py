"""The skeleton promises only that it can be installed and imported."""

from importlib.metadata import version

import llama_index_guardrails_qwen


def test_it_exports_nothing_but_its_version():
    assert llama_index_guardrails_qwen.__all__ == ["__version__"]


def test_its_version_is_the_distribution_s():
    installed = version("llama-index-guardrails-qwen")
    assert llama_index_guardrails_qwen.__version__ == installed
