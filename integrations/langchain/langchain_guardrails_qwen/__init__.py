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

The import changes two things for all of LangChain in the process, and for as long as that lives: a
handler hears where each chain begins, so that a reply finds its prompt (see `lineage`), and replies
that a guard took back are read as refusals, where langchain-core knows these (see `refusals`).
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
