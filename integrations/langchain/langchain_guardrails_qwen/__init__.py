"""Qwen3Guard guardrails for LangChain: `guard | llm | guard`, and what else text passes through.

- `GuardRunnable` judges whatever passes it in a chain, and passes it on, changes it or raises
  `GuardViolation`; replies that stream are moderated while they are written.
- `GuardedChatModel` is a chat model of which callbacks and traces hear nothing either that its
  guard does not let through.
- `GuardedRetriever`, `GuardDocumentCompressor` and `GuardDocumentTransformer` judge documents.
- `langchain_guardrails_qwen.agents` has middleware for agents, and needs langchain;
  `langchain_guardrails_qwen.graph` has a node for graphs, and needs langgraph;
  `langchain_guardrails_qwen.decisions` has a decision model, and needs langchain-core 1.8.

Guards, policies and decisions are those of `guardrails_qwen`.
"""

from langchain_guardrails_qwen.chat_model import GuardedChatModel
from langchain_guardrails_qwen.documents import GuardDocumentCompressor, GuardDocumentTransformer
from langchain_guardrails_qwen.retriever import GuardedRetriever
from langchain_guardrails_qwen.runnable import GuardRunnable

__all__ = [
    "GuardDocumentCompressor",
    "GuardDocumentTransformer",
    "GuardRunnable",
    "GuardedChatModel",
    "GuardedRetriever",
    "__version__",
]

__version__ = "0.1.0"
