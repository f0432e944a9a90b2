"""Queries on their way to a query engine: what is asked about them, and what goes on. Pure.

But for pictures, which are read from where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole
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
from llama_index_guardrails_qwen.content import images
from llama_index_guardrails_qwen.gate import Asked, Gate, Unjudgeable

_FIELDS = frozenset({"query_str", "image_path", "embedding"})
"""Fields that are not texts beside the query: itself, a picture, and numbers."""

_LINKS = ("http:", "https:", "data:")


def query_of(query: object) -> QueryBundle:
    """A query in the form in which engines get it."""
    return query if isinstance(query, QueryBundle) else QueryBundle(query)  # type: ignore[arg-type]


def asked_about_query(query: QueryBundle) -> list[Asked]:
    """The query with its picture, and all that is to be embedded in its place as one text."""
    try:
        if not isinstance(query.query_str, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConversationError(
                f"a query is {type(query.query_str).__name__}: give a text or a QueryBundle"
            )
        message = Message(role=Role.USER, text=query.query_str, images=_pictures(query))
        asked: list[Asked] = [Conversation((message,))]
        if beside := "\n".join(text for text in _beside(query) if text != query.query_str):
            asked.append(Conversation.of(beside))
    except GuardError as error:
        return [Unjudgeable(error=error, stage=Stage.INPUT)]
    return asked


def admitted(gate: Gate, query: QueryBundle, decisions: Sequence[Decision]) -> QueryBundle | str:
    """The query as it may go on, the very same if nothing changed; or the answer in its place.

    Raises:
        GuardViolation: It is blocked, and callers get no reply.
    """
    own, *others = decisions
    worst = max(decisions, key=lambda decision: decision.action)
    if worst.action is Action.BLOCK:
        reply = gate.reply_to(worst)
        if reply is None:
            raise GuardViolation(worst)
        return reply
    if own.action is Action.DROP:
        return ""
    if not own.allowed:
        return QueryBundle(own.text or "")
    if not all(other.allowed for other in others):
        return QueryBundle(query.query_str, image_path=query.image_path)
    return query


def context_of(query: QueryBundle) -> tuple[Message, ...]:
    """What an answer is read with: the query as it went on, without its picture.

    It is not judged there, so that a broken character in it keeps no answer from being judged.
    """
    text = query.query_str.encode("utf-8", "replace").decode()
    return (Message(role=Role.USER, text=text),) if text else ()


def _beside(query: QueryBundle) -> list[str]:
    fields: dict[str, Any] = vars(query)
    return [text for key, item in fields.items() if key not in _FIELDS for text in texts_in([item])]


def _pictures(query: QueryBundle) -> tuple[str, ...]:
    if not query.image_path:
        return ()
    try:
        place = "url" if query.image_path.startswith(_LINKS) else "path"
        block = ImageBlock.model_validate({place: query.image_path})
        return images(ChatMessage(role=MessageRole.USER, blocks=[block]))
    except GuardError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it may quote the path
        cause = type(error).__name__
    raise ConversationError(f"the picture of a query cannot be read ({cause})")
