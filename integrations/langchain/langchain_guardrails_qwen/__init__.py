"""Qwen3Guard guardrails for LangChain: `guard | llm | guard`, and chat models that are guarded.

`GuardRunnable` judges whatever passes it in a chain, and passes it on, changes it or raises
`GuardViolation`; replies that stream are moderated while they are written. `GuardedChatModel` is a
chat model of which callbacks and traces hear nothing either that its guard does not let through.
Guards, policies and decisions are those of `guardrails_qwen`.
"""

from langchain_guardrails_qwen.chat_model import GuardedChatModel
from langchain_guardrails_qwen.runnable import GuardRunnable

__all__ = ["GuardRunnable", "GuardedChatModel", "__version__"]

__version__ = "0.1.0"
