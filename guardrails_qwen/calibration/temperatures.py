"""One temperature for each field of an answer, and what it does to probabilities; pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from guardrails_qwen.errors import CheckpointError
from guardrails_qwen.verdict import Category, Scores, Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Temperatures, and the model that they were fitted on.

    A probability p becomes p^(1/T), normalised again: T above 1 makes a model less sure of itself,
    T below 1 surer, and 1 changes nothing. What is likeliest stays so, therefore no verdict changes
    but for the thresholds that read its probabilities.

    Raises:
        ValueError: A temperature is not a finite number above 0.
    """

    severity: float = 1.0
    category: float = 1.0
    """Of the nine categories and of naming none."""
    refusal: float = 1.0
    model: str = ""
    """The model's name, for people."""
    fingerprint: str = ""
    """The model, exactly; empty fits any."""

    def __post_init__(self) -> None:
        for field in ("severity", "category", "refusal"):
            temperature = getattr(self, field)
            if not (math.isfinite(temperature) and temperature > 0):
                raise ValueError(
                    f"the temperature of {field} is {temperature}: use a number above 0; "
                    "1 changes nothing"
                )

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that stand for the temperatures, in every process."""
        canonical = json.dumps([float(t) for t in (self.severity, self.category, self.refusal)])
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def apply(self, scores: Scores) -> Scores:
        """The calibrated scores. What is missing stays missing, and what is impossible so."""
        return replace(
            scores,
            severity=self._severity(scores),
            category=self._category(scores),
            refusal=self._refusal(scores),
        )

    def require(self, fingerprint: str) -> None:
        """Make sure that a model is the one that this was fitted on.

        Raises:
            CheckpointError: It is another one.
        """
        if self.fingerprint and self.fingerprint != fingerprint:
            raise CheckpointError(
                f"the calibration was fitted on {self.model or 'a model'} with the fingerprint "
                f"{self.fingerprint!r}, and this model has {fingerprint!r}: fit one for it "
                "(guardrails-qwen calibrate), in the precision and with the windows that it runs "
                "with, or load it without"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in a file."""
        temperature = {
            "severity": self.severity,
            "category": self.category,
            "refusal": self.refusal,
        }
        return {
            "version": 1,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "temperature": temperature,
        }

    def to_file(self, path: str | Path) -> None:
        """Write it as JSON; `from_file` reads it back."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_file(cls, path: str | Path) -> Calibration:
        """Read a file that `to_file` or `guardrails-qwen calibrate` wrote.

        Raises:
            CheckpointError: It is missing, no JSON, of another version, or has a field that is
                unknown or wrong; the message names the file and the field.
        """
        from guardrails_qwen.calibration.file import read_file

        return read_file(Path(path))

    def _severity(self, scores: Scores) -> dict[Severity, float]:
        found = tempered([scores.severity[level] for level in Severity], self.severity)
        return dict(zip(Severity, found, strict=True))

    def _category(self, scores: Scores) -> dict[Category, float]:
        if not scores.category:
            return {}
        *found, _ = tempered(with_none(list(scores.category.values())), self.category)
        return dict(zip(scores.category, found, strict=True))

    def _refusal(self, scores: Scores) -> float | None:
        if scores.refusal is None:
            return None
        return tempered([1 - scores.refusal, scores.refusal], self.refusal)[1]


def with_none(categories: Sequence[float]) -> list[float]:
    """Probabilities of categories, and behind them that of naming none."""
    return [*categories, max(0.0, 1 - math.fsum(categories))]


def tempered(probabilities: Sequence[float], temperature: float) -> list[float]:
    """p^(1/T), normalised; in logarithms, so that nothing overflows. 0 stays 0."""
    if temperature == 1:
        return list(probabilities)
    logs = [math.log(p) if p > 0 else -math.inf for p in probabilities]
    highest = max(logs)
    powers = [math.exp((log - highest) / temperature) for log in logs]
    total = math.fsum(powers)
    return [power / total for power in powers]
