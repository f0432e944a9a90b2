"""Model families by name."""

from __future__ import annotations

import re

from guardrails_qwen.dialects.base import Dialect
from guardrails_qwen.dialects.gpt_oss_safeguard import GptOssSafeguard
from guardrails_qwen.dialects.llama_guard import LlamaGuard
from guardrails_qwen.dialects.qwen3guard import Qwen3Guard

_FAMILIES: dict[str, type[Qwen3Guard | LlamaGuard | GptOssSafeguard]] = {
    "qwen3guard": Qwen3Guard,
    "llamaguard": LlamaGuard,
    "gptosssafeguard": GptOssSafeguard,
}


def dialect_named(name: str) -> Dialect:
    """The dialect of a family, by its name.

    Raises:
        ValueError: There is no such family.
    """
    families = {family().name: family for family in _FAMILIES.values()}
    if name not in families:
        raise ValueError(f"there is no dialect {name!r}: use one of {', '.join(families)}")
    return families[name]()


def dialect_of(model: str | None) -> Dialect:
    """The dialect of a model, by its name; that of Qwen3Guard-Gen where the name tells none.

    A wrong guess is found out: an engine tries its dialect before it trusts a server.
    """
    plain = re.sub(r"[^a-z0-9]", "", (model or "").lower())
    return next((family() for name, family in _FAMILIES.items() if name in plain), Qwen3Guard())
