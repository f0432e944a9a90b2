"""What Qwen3Guard-Stream adds to a Qwen3 backbone: four small classifiers.

Tensors, shapes and their order of application are those of the published checkpoints (config.json
and state dict of Qwen/Qwen3Guard-Stream-0.6B); what an output stands for is in their config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from guardrails_qwen.errors import CheckpointError
from guardrails_qwen.verdict import Category, Severity

_CATEGORIES = {
    "violent": Category.VIOLENT,
    "sexual content": Category.SEXUAL_CONTENT,
    "self-harm": Category.SUICIDE_AND_SELF_HARM,
    "political": Category.POLITICALLY_SENSITIVE_TOPICS,
    "pii": Category.PII,
    "copyright": Category.COPYRIGHT_VIOLATION,
    "illegal acts": Category.NON_VIOLENT_ILLEGAL_ACTS,
    "unethical": Category.UNETHICAL_ACTS,
    "jailbreak": Category.JAILBREAK,
    **{category.label.lower(): category for category in Category},
}
"""By the names that Qwen3Guard-Stream has for them, and those of Qwen3Guard-Gen."""

_SEVERITIES = {severity.label.lower(): severity for severity in Severity}

_Label = TypeVar("_Label", bound=Enum)


@dataclass(frozen=True, slots=True)
class HeadNames:
    """Where in a state dict and a config one pair of heads is described."""

    prefix: str
    labels: str
    sizes: tuple[str, str]


RESPONSE = HeadNames("", "response", ("num_risk_level", "num_category"))
QUERY = HeadNames("query_", "query", ("num_query_risk_level", "num_query_category"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What the outputs of a pair of heads stand for, in their order."""

    severities: tuple[Severity, ...]
    categories: tuple[Category, ...]

    @classmethod
    def of(cls, config: Any, names: HeadNames) -> Labels:
        """From the label maps of a config.

        Raises:
            CheckpointError: A map is missing, has gaps, or names what is not known here.
        """
        return cls(
            severities=_labels(config, f"{names.labels}_risk_level_map", _SEVERITIES),
            categories=_labels(config, f"{names.labels}_category_map", _CATEGORIES),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """A pair of heads: logits = head(RMSNorm(pre(h))), without an activation in between."""

    labels: Labels
    pre: Tensor
    """[inner, width]"""
    norm: Tensor
    """[inner]"""
    severity: Tensor
    """[severities, inner]"""
    category: Tensor
    """[categories, inner]"""
    eps: float

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], config: Any, names: HeadNames) -> Heads:
        """From a state dict whose tensors are all there, in the shapes that the config gives."""
        own = names.prefix
        return cls(
            labels=Labels.of(config, names),
            pre=weights[f"{own}risk_level_category_pre.weight"].float(),
            norm=weights[f"{own}risk_level_category_layernorm.weight"].float(),
            severity=weights[f"{own}risk_level_head.weight"].float(),
            category=weights[f"{own}category_head.weight"].float(),
            eps=config.rms_norm_eps,
        )

    def to(self, device: torch.device) -> Heads:
        """The heads on a device."""
        return replace(
            self,
            pre=self.pre.to(device),
            norm=self.norm.to(device),
            severity=self.severity.to(device),
            category=self.category.to(device),
        )

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of severities and categories [tokens, labels], from final states."""
        inner = functional.linear(hidden.float(), self.pre)
        inner = functional.rms_norm(inner, (inner.shape[-1],), self.norm, self.eps)
        both = (self.severity, self.category)
        severity, category = (functional.linear(inner, head).log_softmax(-1) for head in both)
        return severity, category


def head_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """The eight tensors by name, with their shapes.

    Raises:
        CheckpointError: The config does not say.
    """
    inner, width = _size(config, "guard_inner_size"), int(config.hidden_size)
    return {
        f"{names.prefix}{name}.weight": shape
        for names in (RESPONSE, QUERY)
        for name, shape in (
            ("risk_level_category_pre", (inner, width)),
            ("risk_level_category_layernorm", (inner,)),
            ("risk_level_head", (_size(config, names.sizes[0]), inner)),
            ("category_head", (_size(config, names.sizes[1]), inner)),
        )
    }


def require_labels(config: Any) -> None:
    """Refuse label maps that do not fit the sizes of the heads.

    Raises:
        CheckpointError: They do not, or name what is not known here.
    """
    for names in (RESPONSE, QUERY):
        labels = Labels.of(config, names)
        sizes = tuple(_size(config, size) for size in names.sizes)
        if (len(labels.severities), len(labels.categories)) != sizes:
            raise CheckpointError(
                f"the {names.labels} label maps have {len(labels.severities)} severities and "
                f"{len(labels.categories)} categories, and the heads {sizes[0]} and {sizes[1]}"
            )
        if set(labels.severities) != set(Severity):
            raise CheckpointError(
                f"{names.labels}_risk_level_map lacks one of "
                + ", ".join(severity.label for severity in Severity)
            )


def _labels(config: Any, name: str, known: Mapping[str, _Label]) -> tuple[_Label, ...]:
    """The labels of a map with the keys "0", "1", …, in their order."""
    given: object = getattr(config, name, None)
    if not isinstance(given, dict):
        raise CheckpointError(f"config.json lacks {name}, which says what the heads stand for")
    labels = {str(key): str(label).strip().lower() for key, label in given.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if set(labels) != {str(index) for index in range(len(labels))}:
        raise CheckpointError(f"the keys of {name} in config.json are not 0, 1, 2 …")
    ordered: Sequence[str] = [labels[str(index)] for index in range(len(labels))]
    unknown = [label for label in ordered if label not in known]
    if unknown or len({known[label] for label in ordered}) < len(ordered):
        raise CheckpointError(
            f"{name} in config.json has labels that are unknown or double: {', '.join(ordered)}"
        )
    return tuple(known[label] for label in ordered)


def _size(config: Any, name: str) -> int:
    size: object = getattr(config, name, None)
    if not isinstance(size, int) or size < 1:
        raise CheckpointError(f"config.json lacks {name}, which every Qwen3Guard-Stream has")
    return size
