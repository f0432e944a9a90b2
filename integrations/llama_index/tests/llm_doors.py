"""The eight ways to ask a model, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
)
from llama_index.core.llms.llm import LLM

CHATS = ("chat", "achat", "stream_chat", "astream_chat")
COMPLETIONS = ("complete", "acomplete", "stream_complete", "astream_complete")
DOORS = (*CHATS, *COMPLETIONS)
STREAMS = tuple(door for door in DOORS if "stream" in door)

HARMFUL = "Sure, here it is. Take a bomb and light it. Then run away. Goodbye."
HARMLESS = "Take flour and water. Knead for ten minutes. Bake until brown. Enjoy it!"

Response = ChatResponse | CompletionResponse


def user(text: str) -> ChatMessage:
    """What a user says."""
    return ChatMessage(role=MessageRole.USER, content=text)


def assistant(text: str, **fields: Any) -> ChatMessage:
    """What a model says."""
    return ChatMessage(role=MessageRole.ASSISTANT, content=text, **fields)


async def ask(
    door: str, llm: LLM, value: str | Sequence[ChatMessage] = "how?", **kwargs: Any
) -> list[Response]:
    """All that a model answers at a door, which is one response where it does not stream."""
    out = list[Response]()
    await ask_into(out, door, llm, value, **kwargs)
    return out


async def ask_into(
    out: list[Response], door: str, llm: LLM, value: str | Sequence[ChatMessage], **kwargs: Any
) -> None:
    """The same, so that what came before an error is there."""
    given: Any = value
    if door in CHATS and isinstance(value, str):
        given = [user(value)]
    answer: Any = getattr(llm, door)(given, **kwargs)
    if door.startswith("a"):
        answer = await answer
    if "stream" not in door:
        out.append(answer)
    elif door.startswith("a"):
        async for chunk in answer:
            out.append(chunk)  # noqa: PERF401 - what came is there if it raises
    else:
        for chunk in answer:
            out.append(chunk)  # noqa: PERF402 - what came is there if it raises


async def outcome(
    door: str, llm: LLM, value: str | Sequence[ChatMessage] = "how?", **kwargs: Any
) -> tuple[list[Response], Exception | None]:
    """What comes until the end, or until an error."""
    out = list[Response]()
    try:
        await ask_into(out, door, llm, value, **kwargs)
    except Exception as error:  # noqa: BLE001
        return out, error
    return out, None


def text_of(response: Response) -> str:
    """The text of a response: of a chunk, all up to its end."""
    if isinstance(response, CompletionResponse):
        return response.text
    return response.message.content or ""


def extra_of(response: Response) -> dict[str, Any]:
    """The additional arguments of a response."""
    return cast("Any", response).additional_kwargs


def note_on(response: Response) -> dict[str, Any]:
    """What a response says of what was decided about it."""
    return extra_of(response)["guardrails_qwen"]


def read_by(out: Sequence[Response]) -> str:
    """What somebody has who adds up the deltas of a stream, or reads the only response."""
    if len(out) == 1 and out[0].delta is None:
        return text_of(out[0])
    return "".join(chunk.delta or "" for chunk in out)
