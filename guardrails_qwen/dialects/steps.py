"""Probabilities in the log-probabilities of a written answer. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from guardrails_qwen.dialects.base import Step

_LEAST_COVERED = 0.98
"""The least probability that the choices listed must have for a distribution over them: a server
that lists too few alternatives would make the others impossible."""


def shares(steps: Sequence[Step], name: str, choices: Sequence[str]) -> dict[str, float] | None:
    """P(choice) of the line `name: choice`, given the lines before it as they were written.

    Each token that could have begun the choice counts for the choice that it begins. None where
    the line is not there, or where the tokens listed do not tell the choices apart.
    """
    found = _first_of_value(steps, f"{name}:")
    if found is None:
        return None
    weights = dict.fromkeys(choices, 0.0)
    for token, logprob in found.logprobs.items():
        begun = [choice for choice in choices if _begins(token.strip(), choice)]
        if len(begun) == 1:
            weights[begun[0]] += math.exp(min(0.0, logprob))
    total = sum(weights.values())
    if not total >= _LEAST_COVERED:
        return None
    return {choice: weight / total for choice, weight in weights.items()}


def _first_of_value(steps: Sequence[Step], label: str) -> Step | None:
    """The step that writes the first character behind a label that is not white space."""
    written = ""
    for step in steps:
        line = written.rpartition("\n")[2]
        if line.rstrip() == label and step.text.strip():
            return step
        written += step.text
    return None


def _begins(token: str, choice: str) -> bool:
    return bool(token) and (choice.startswith(token) or token.startswith(choice))
