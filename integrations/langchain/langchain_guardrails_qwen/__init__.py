"""Qwen3Guard guardrails as LangChain runnables: `guard | llm | guard`.

`GuardRunnable` judges whatever passes it in a chain, and passes it on, changes it or raises
`GuardViolation`. Guards, policies and decisions are those of `guardrails_qwen`.
"""

from langchain_guardrails_qwen.runnable import GuardRunnable

__all__ = ["GuardRunnable", "__version__"]

__version__ = "0.1.0"
