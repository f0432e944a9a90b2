"""Settings that the postprocessor and the transform share, checked where they are given."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from llama_index_guardrails_qwen.nodes_gate import OnNodeViolation


def _on_violation(value: object) -> object:
    if value not in ("drop", "annotate", "raise"):
        raise ValueError("on_violation is drop, annotate or raise")
    return value


def _fields(value: object) -> object:
    if isinstance(value, str):
        raise TypeError("metadata_fields is a text: give a list of names")
    return value


def _secret(value: object) -> object:
    if value is None:
        return None
    if not isinstance(value, (str, bytes)) or not value:
        raise TypeError("the secret is a text or bytes, and not empty")
    return value.encode() if isinstance(value, str) else value


Violation = Annotated[OnNodeViolation, BeforeValidator(_on_violation)]
"""What becomes of a node that may not pass."""
Fields = Annotated[frozenset[str] | None, BeforeValidator(_fields)]
"""Names of fields of metadata."""
Secret = Annotated[bytes | None, BeforeValidator(_secret), Field(exclude=True, repr=False)]
"""What notes are signed with."""

REMEMBERED = 4096
"""Nodes whose judgement a component remembers by default."""
