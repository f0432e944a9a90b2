"""Fields of a guard as plain data, and back: what is dumped and loaded of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from typing import Annotated, Any, cast

from pydantic import BeforeValidator

from guardrails_qwen import Policy
from guardrails_qwen.streaming import Streaming


def _policy(value: object) -> object:
    return Policy.from_dict(cast("Any", value)) if isinstance(value, Mapping) else value


def _streaming(value: object) -> object:
    return Streaming(**cast("dict[str, Any]", value)) if isinstance(value, Mapping) else value


PolicyField = Annotated[Policy | None, BeforeValidator(_policy)]
"""A policy, or the data of one."""

StreamingField = Annotated[Streaming, BeforeValidator(_streaming)]
"""Settings of streams, or their data."""


def streaming_data(streaming: Streaming) -> dict[str, Any]:
    """Settings of streams as plain data; empty where all of them are the default's."""
    if streaming == Streaming():
        return {}
    data = asdict(streaming)
    return {name: value.value if isinstance(value, Enum) else value for name, value in data.items()}
