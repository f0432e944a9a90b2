"""LlamaIndex adapter for guardrails-qwen. A skeleton so far: it guards nothing."""

__all__ = ["__version__"]

__version__ = "0.1.0"
