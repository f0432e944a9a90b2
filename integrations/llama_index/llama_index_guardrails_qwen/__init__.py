"""Qwen3Guard guardrails for LlamaIndex: models, agents, engines, retrieval and ingestion.

- `GuardedLLM` is a model of which nobody hears what its guard does not let through. It goes where
  models do; in agents it is the place to guard, together with `guarded_tools`.
- `GuardedQueryEngine` and `GuardedChatEngine` judge what goes into an engine and what comes out;
  `guard_query_engine` and `guard_chat_engine` make them in one line.
- `GuardPostprocessor` judges what was retrieved, `GuardTransform` what is ingested; `guard_note`
  reads what they leave in a node.
- `SafetyEvaluator` evaluates answers.
- `GuardCheckStartEvent`, `GuardCheckEndEvent` and `GuardViolationEvent` are what LlamaIndex's
  instrumentation is told, without any text.

Guards, policies and decisions are those of `guardrails_qwen`.

The first call of a `GuardedLLM` changes one thing for all of LlamaIndex in the process: dispatchers
and callback managers are silent about what runs inside of it (see `unheard`).
"""

from llama_index_guardrails_qwen.chat_engine import GuardedChatEngine, guard_chat_engine
from llama_index_guardrails_qwen.evaluator import SafetyEvaluator
from llama_index_guardrails_qwen.events import (
    GuardCheckEndEvent,
    GuardCheckStartEvent,
    GuardViolationEvent,
)
from llama_index_guardrails_qwen.llm import GuardedLLM
from llama_index_guardrails_qwen.postprocessor import GuardPostprocessor
from llama_index_guardrails_qwen.query_engine import GuardedQueryEngine, guard_query_engine
from llama_index_guardrails_qwen.tools import guarded_tool, guarded_tools
from llama_index_guardrails_qwen.transform import GuardTransform
from llama_index_guardrails_qwen.verdict_notes import guard_note

__all__ = [
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

__version__ = "0.1.0"
