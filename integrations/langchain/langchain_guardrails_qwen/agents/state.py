"""What guards keep in the state of an agent."""

from __future__ import annotations

from typing import Annotated, Any

from langchain.agents.middleware.types import AgentState, PrivateStateAttr
from typing_extensions import NotRequired

from langchain_guardrails_qwen.ledgers import Ledgers, merged


class GuardrailState(AgentState[Any]):
    """The state of an agent that is guarded.

    The ledgers are no part of its input and output. Who may send commands to a graph, or update its
    state, can write them as well as anything else.
    """

    guardrails: NotRequired[Annotated[Ledgers, PrivateStateAttr, merged]]
