"""Guarded agents: middleware for `langchain.agents.create_agent`. Needs langchain."""

try:
    import langchain.agents as _agents
except ModuleNotFoundError as error:
    raise ImportError(
        "guarded agents need langchain: pip install 'langchain-guardrails-qwen[agents]'"
    ) from error

from langchain_guardrails_qwen.agents.middleware import GuardrailMiddleware

del _agents

__all__ = ["GuardrailMiddleware"]
