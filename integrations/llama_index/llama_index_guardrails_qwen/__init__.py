"""Qwen3Guard guardrails for LlamaIndex: models, agents, engines, retrieval and ingestion.

- `GuardedLLM` is a model of which nobody hears what its guard does not let through; in agents it is
  the place to guard.

Guards, policies and decisions are those of `guardrails_qwen`.
"""

from llama_index_guardrails_qwen.events import (
    GuardCheckEndEvent,
    GuardCheckStartEvent,
    GuardViolationEvent,
)
from llama_index_guardrails_qwen.llm import GuardedLLM

__all__ = [
    "GuardCheckEndEvent",
    "GuardCheckStartEvent",
    "GuardViolationEvent",
    "GuardedLLM",
    "__version__",
]

__version__ = "0.1.0"
