"""Guarded agents: middleware for `langchain.agents.create_agent`. Needs langchain."""

from langchain_guardrails_qwen.agents.middleware import GuardrailMiddleware

__all__ = ["GuardrailMiddleware"]
