"""What may be told of a provider's answer beside the reply: what says nothing. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from pydantic import BaseModel

from guardrails_qwen import Decision
from guardrails_qwen.fields import is_token

NOTE = "guardrails_qwen"
"""The field of `additional_kwargs` with what was decided about a reply, as plain data, no text."""

_MARKS = frozenset(
    {"id", "model", "created", "created_at", "finish_reason", "stop_reason", "done_reason"}
    | {"system_fingerprint", "service_tier", "object"}
)
"""Fields of which a mark or an id is kept."""

_USAGE = frozenset({"usage", "usage_metadata", "token_usage"})
"""Fields of which the numbers are kept."""


def told_of(raw: object) -> dict[str, Any] | None:
    """Of a provider's own answer its ids, its reasons to stop and its counts of tokens.

    All else may repeat the reply, or hold another one that nobody has judged.
    """
    fields = _fields(raw)
    usage = {key: _numbers(item) for key, item in fields.items() if key in _USAGE}
    kept = {key: item for key, item in fields.items() if key in _MARKS and _is_mark(item)}
    return {**kept, **{key: item for key, item in usage.items() if item}} or None


def extra_of(response: ChatResponse | CompletionResponse) -> dict[str, Any]:
    """The additional arguments of a response."""
    return cast("dict[str, Any]", cast("Any", response).additional_kwargs)


def counts_in(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a mapping, where their names are no more than that."""
    return {key: item for key, item in fields.items() if is_token(str(key)) and _is_number(item)}


def noted(fields: Mapping[str, Any], decision: Decision | None) -> dict[str, Any]:
    """The numbers of additional arguments, and what was decided."""
    note = {NOTE: decision.to_dict(text=False)} if decision else {}
    return {**counts_in(fields), **note}


def _fields(value: object) -> Mapping[str, Any]:
    if isinstance(value, BaseModel):
        return vars(value)
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _numbers(value: object) -> dict[str, Any]:
    fields = _fields(value)
    inner = {key: _numbers(item) for key, item in fields.items() if is_token(str(key))}
    return {**counts_in(fields), **{key: item for key, item in inner.items() if item}}


def _is_mark(value: object) -> bool:
    return is_token(value) if isinstance(value, str) else _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))
