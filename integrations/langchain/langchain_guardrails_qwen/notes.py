"""What a reply says of how it was judged: notes in its response metadata. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, cast

from langchain_core.messages import AIMessageChunk, BaseMessage

from guardrails_qwen import Decision, Stage
from langchain_guardrails_qwen.trace import Results

NOTES = "guardrails_qwen"
"""The key of the notes, a dict that is there only where it says something:

- "refusal": True: the reply passed, and the guard's model reads it as a refusal.
- "judged": False: by the policy's `on_error`, something of the call was decided without a verdict.
"""

_Message = TypeVar("_Message", bound=BaseMessage)


def notes_on(prompt: Results, reply: Results) -> dict[str, Any]:
    """Response metadata about a reply, perhaps none.

    Args:
        prompt: What was decided about what it answers.
        reply: What was decided about itself.
    """
    decisions = [result for result in (*prompt, *reply) if isinstance(result, Decision)]
    unjudged = any(decision.degraded for decision in decisions)
    refusal = any(isinstance(result, Decision) and _is_refusal(result) for result in reply)
    notes = {**({"refusal": True} if refusal else {}), **({"judged": False} if unjudged else {})}
    return {NOTES: notes} if notes else {}


def noted(message: _Message, notes: dict[str, Any]) -> _Message:
    """A message with notes: the very same one where there are none."""
    if not notes:
        return message
    return message.model_copy(update={"response_metadata": message.response_metadata | notes})


def ending(chunks: Iterable[Any], notes: dict[str, Any], like: object) -> Iterator[Any]:
    """The last chunks of a stream, the last one with notes. Texts have none.

    Args:
        chunks: They may end with an error.
        notes: The notes.
        like: Any chunk of the same stream; after it one is made where none is left.
    """
    if not notes or not isinstance(like, AIMessageChunk):
        yield from chunks
        return
    held = list[Any]()
    try:
        for chunk in chunks:
            yield from held
            held = [chunk]
    except Exception:
        yield from held
        raise
    yield from (noted(chunk, notes) for chunk in held or [_empty(like)])


def is_judged(message: BaseMessage) -> bool:
    """Whether a reply was judged, and all that it answers."""
    notes = message.response_metadata.get(NOTES)
    return (
        not isinstance(notes, dict) or cast("dict[str, object]", notes).get("judged") is not False
    )


def _is_refusal(decision: Decision) -> bool:
    said = decision.allowed and decision.stage is Stage.OUTPUT
    return bool(said and decision.verdict and decision.verdict.refusal)


def _empty(like: AIMessageChunk) -> AIMessageChunk:
    return AIMessageChunk(content="" if isinstance(like.content, str) else [], id=like.id)
