"""A text in place of what a query engine would answer, of the kind that its callers expect."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable
from typing import cast

from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)


def answered(text: str, engine: object) -> Response | StreamingResponse:
    """A text as an answer: as a stream where the engine answers in streams."""
    return StreamingResponse(_once(text)) if streams(engine) else Response(text)


def aanswered(text: str, engine: object) -> Response | AsyncStreamingResponse:
    """The same for callers that wait."""
    return AsyncStreamingResponse(_aonce(text)) if streams(engine) else Response(text)


def streams(engine: object, depth: int = 8) -> bool:
    """Whether an engine answers in streams, as far as that can be seen before it is asked.

    LlamaIndex has no public name for it. Looked at are the fields in which its own engines keep it,
    their synthesizer, or the engines that they are made of; all of several have to stream.
    """
    own = getattr(engine, "_streaming", None)
    if isinstance(own, bool):
        return own
    synthesizer = getattr(engine, "_response_synthesizer", None)
    if synthesizer is not None:
        return getattr(synthesizer, "_streaming", None) is True
    inner = _inner(engine)
    return depth > 0 and bool(inner) and all(streams(one, depth - 1) for one in inner)


def _inner(engine: object) -> list[object]:
    one = getattr(engine, "_query_engine", None)
    several = getattr(engine, "_query_engines", None)
    if isinstance(several, list):
        return cast("list[object]", several)
    return [] if one is None else [one]


def _once(text: str) -> Generator[str, None, None]:
    yield from _said(text)


async def _aonce(text: str) -> AsyncGenerator[str, None]:
    for piece in _said(text):
        yield piece


def _said(text: str) -> Iterable[str]:
    return [text] if text else []
