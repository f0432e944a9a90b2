"""Answers of query engines: reading them for a guard, and putting decisions back. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llama_index.core.base.response.schema import PydanticResponse, Response
from llama_index.core.schema import QueryBundle

from guardrails_qwen import (
    Action,
    Conversation,
    ConversationError,
    Decision,
    GuardError,
    GuardViolation,
    Message,
    Role,
    Stage,
)
from guardrails_qwen.fields import texts_in
from llama_index_guardrails_qwen.gate import Asked, Gate, Unjudgeable
from llama_index_guardrails_qwen.objects import lines_in, said_by
from llama_index_guardrails_qwen.queries import context_of

Whole = Response | PydanticResponse
"""Answers that do not stream."""

ANSWER = "answer"
ASIDE = "aside"
"""What is asked about: an answer, and what its engine tells beside it."""

_FIELDS = frozenset({"response", "source_nodes", "metadata", "response_gen", "response_txt"})


def asked_about_answer(query: QueryBundle, response: object) -> dict[str, Asked]:
    """What is asked about an answer, together with its query; nothing where it says nothing."""
    if not isinstance(response, (Response, PydanticResponse)):
        return {ANSWER: Unjudgeable(error=_unknown(response), stage=Stage.OUTPUT)}
    return asked_with(query, {ANSWER: lambda: _text(response), ASIDE: lambda: aside_text(response)})


def asked_with(query: QueryBundle, texts: Mapping[str, Callable[[], str]]) -> dict[str, Asked]:
    """Texts as answers to a query, those that say nothing left out. What cannot be read is said."""
    asked = {about: _asked(query, read) for about, read in texts.items()}
    return {about: item for about, item in asked.items() if item is not None}


def settled(gate: Gate, response: Whole, decisions: Mapping[str, Decision]) -> Whole:
    """What callers get of an answer: the very same where all of it passes.

    An answer that is changed or blocked comes without source nodes and metadata: both may quote
    what was decided against. Where only what is told beside it does not pass, that is left out.

    Raises:
        GuardViolation: It is blocked, and nothing takes its place.
    """
    if not passes(decisions.get(ANSWER)):
        return _instead(gate, response, decisions[ANSWER])
    return response if passes(decisions.get(ASIDE)) else _without_aside(response)


def passes(decision: Decision | None) -> bool:
    """Whether something passes as it is. What says nothing does."""
    return decision is None or decision.allowed


def text_instead(gate: Gate, decision: Decision) -> str:
    """What callers get in place of an object, or of an answer, that may not pass as it is.

    Raises:
        GuardViolation: It is blocked, and nothing takes its place.
    """
    if decision.action >= Action.DROP:
        return gate.instead(GuardViolation(decision))
    return gate.guard.policy.at(Stage.OUTPUT).replacement


def own_metadata(response: object) -> dict[str, Any]:
    """The part of an answer's metadata that is that of its source nodes, and no more."""
    return {key: item for key, item in _metadata(response).items() if key in _of_nodes(response)}


def aside_text(response: object) -> str:
    """What an engine tells beside an answer and its source nodes: why it chose a tool, its SQL.

    Raises:
        ConversationError: It cannot be read.
    """
    nodes = _of_nodes(response)
    told = {key: item for key, item in _metadata(response).items() if key not in nodes}
    more = {key: item for key, item in vars(response).items() if key not in _FIELDS | {"_lock"}}
    return "\n".join([*lines_in(told), *lines_in(more)])


def _of_nodes(response: object) -> set[str]:
    """The ids of source nodes whose metadata is in the answer's, as LlamaIndex puts it there."""
    metadata = _metadata(response)
    nodes = [found.node for found in getattr(response, "source_nodes", None) or ()]
    return {node.node_id for node in nodes if metadata.get(node.node_id) == node.metadata}


def _metadata(response: object) -> dict[str, Any]:
    return getattr(response, "metadata", None) or {}


def _text(response: Whole) -> str:
    if isinstance(response, PydanticResponse):
        return said_by(response.response) if response.response is not None else ""
    return "\n".join(texts_in([response.response]))


def _unknown(response: object) -> ConversationError:
    return ConversationError(
        f"a guard cannot judge {type(response).__name__} as the answer of a query engine: return "
        "a Response, a PydanticResponse, a StreamingResponse or an AsyncStreamingResponse"
    )


def _asked(query: QueryBundle, read: Callable[[], str]) -> Asked | None:
    try:
        text = read()
        answer = Message(role=Role.ASSISTANT, text=text)
    except GuardError as error:
        return Unjudgeable(error=error, stage=Stage.OUTPUT)
    return Conversation((*context_of(query), answer)) if text else None


def _instead(gate: Gate, response: object, decision: Decision) -> Response:
    spoken = isinstance(response, Response) and isinstance(response.response, str)
    if spoken and decision.action is Action.REDACT:
        return Response(decision.text)
    return Response(text_instead(gate, decision))


def _without_aside(response: Whole) -> Whole:
    kept = own_metadata(response) or None
    if isinstance(response, PydanticResponse):
        return PydanticResponse(response.response, response.source_nodes, kept)
    return Response(response.response, response.source_nodes, kept)
