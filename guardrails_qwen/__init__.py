"""Guardrails for LLM applications on the Qwen3Guard safety models.

A conversation goes in; an engine runs a safety model over it and returns a verdict; a policy turns
the verdict into a decision. A guard is an engine and a policy together. Importing this package
loads neither torch nor transformers nor any framework; engines are in `guardrails_qwen.engines`.
"""

from guardrails_qwen.calibration.temperatures import Calibration
from guardrails_qwen.conversation import Conversation, Message, Role, ToolCall
from guardrails_qwen.decision import Decision
from guardrails_qwen.engines.base import Engine, Outcome
from guardrails_qwen.engines.batching import Batching
from guardrails_qwen.engines.reliability import Reliability
from guardrails_qwen.engines.session_limits import AtLimit, Sessions
from guardrails_qwen.errors import (
    CheckpointError,
    ConversationError,
    EngineClosed,
    EngineError,
    EngineOverloaded,
    EngineTimeout,
    EngineUnavailable,
    GuardError,
    GuardViolation,
    PolicyError,
    RequestRejected,
    TextTooLong,
    UnreadableVerdict,
    WrongServer,
)
from guardrails_qwen.guard import Guard
from guardrails_qwen.longtext import Windows
from guardrails_qwen.policy import Policy
from guardrails_qwen.rules import Action, OnError, Rule, Stage, StagePolicy
from guardrails_qwen.streaming import (
    Debounce,
    GuardedStream,
    HoldBack,
    Streaming,
    StreamModerator,
)
from guardrails_qwen.token_verdict import TokenVerdict
from guardrails_qwen.verdict import Category, Scores, Severity, Span, Verdict

__all__ = [
    "Action",
    "AtLimit",
    "Batching",
    "Calibration",
    "Category",
    "CheckpointError",
    "Conversation",
    "ConversationError",
    "Debounce",
    "Decision",
    "Engine",
    "EngineClosed",
    "EngineError",
    "EngineOverloaded",
    "EngineTimeout",
    "EngineUnavailable",
    "Guard",
    "GuardError",
    "GuardViolation",
    "GuardedStream",
    "HoldBack",
    "Message",
    "OnError",
    "Outcome",
    "Policy",
    "PolicyError",
    "Reliability",
    "RequestRejected",
    "Role",
    "Rule",
    "Scores",
    "Sessions",
    "Severity",
    "Span",
    "Stage",
    "StagePolicy",
    "StreamModerator",
    "Streaming",
    "TextTooLong",
    "TokenVerdict",
    "ToolCall",
    "UnreadableVerdict",
    "Verdict",
    "Windows",
    "WrongServer",
    "__version__",
]

__version__ = "0.1.0"
