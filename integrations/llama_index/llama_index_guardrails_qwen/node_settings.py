"""Settings that the postprocessor and the transform share, checked where they are given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from llama_index.core.schema import MetadataMode
from pydantic import BeforeValidator, Field

from llama_index_guardrails_qwen.nodes_gate import OnNodeViolation
from llama_index_guardrails_qwen.nodes_text import Reading
from llama_index_guardrails_qwen.verdict_notes import Signer


def _on_violation(value: object) -> object:
    if value not in ("drop", "annotate", "raise"):
        raise ValueError("on_violation is drop, annotate or raise")
    return value


def _fields(value: object) -> object:
    if isinstance(value, str):
        raise TypeError("metadata_fields is a text: give a list of names")
    return value


def _secret(value: object) -> object:
    if value is not None and (not isinstance(value, (str, bytes)) or not value):
        raise TypeError("the secret is a text or bytes, and not empty")
    return value


Violation = Annotated[OnNodeViolation, BeforeValidator(_on_violation)]
"""What becomes of a node that may not pass."""
Fields = Annotated[list[str] | tuple[str, ...] | frozenset[str] | None, BeforeValidator(_fields)]
"""Names of fields of metadata."""
Secret = Annotated[bytes | str | None, BeforeValidator(_secret), Field(exclude=True, repr=False)]
"""What notes are signed with."""


def reading_of(mode: MetadataMode, fields: Collection[str] | None) -> Reading:
    """Which metadata is read by these settings."""
    chosen = None if fields is None else frozenset(fields)
    return Reading(metadata_mode=mode, metadata_fields=chosen)


def signer_of(secret: bytes | str | None) -> Signer | None:
    """What signs notes; None: they are not signed."""
    if secret is None:
        return None
    return Signer(secret=secret.encode() if isinstance(secret, str) else secret)


def without(told: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """What a component tells of itself, but for what is no setting."""
    return {name: item for name, item in told.items() if name not in names}


REMEMBERED = 4096
"""Nodes whose judgement a component remembers by default."""
