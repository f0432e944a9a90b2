"""What guards keep in the state of an agent."""

from __future__ import annotations

from typing import Annotated, Any

from langchain.agents.middleware.types import AgentState, PrivateStateAttr
from typing_extensions import NotRequired

from langchain_guardrails_qwen.threads import Ledgers, merged


class GuardrailState(AgentState[Any]):
    """The state of an agent that is guarded. Callers can neither send the ledgers nor get them."""

    guardrails: NotRequired[Annotated[Ledgers, PrivateStateAttr, merged]]
