"""Multiplying by a weight matrix, in the precision that the processor is good at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

import torch
from torch import Tensor

from guardrails_qwen.errors import CheckpointError

Linear = Callable[[Tensor], Tensor]
"""x [tokens, in] to x · weightᵀ [tokens, out], in the dtype of x."""


class Precision(str, Enum):
    """What the matrices of a model are multiplied in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"
    """Weights in 8 bits with a scale for each output channel, activations quantised on the fly with
    a scale for each token, so that a verdict does not depend on what runs beside it."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the weights are loaded in; int8 is made of float32."""
        return torch.float32 if self is Precision.INT8 else getattr(torch, self.value)

    @classmethod
    def of(cls, dtype: str | torch.dtype, device: torch.device) -> Precision:
        """The precision of that name; `auto` is what suits the device.

        bfloat16 on CUDA and on processors with instructions for it, without which it is slower than
        float32; float32 elsewhere.

        Raises:
            CheckpointError: There is none of that name, or the device cannot do it.
        """
        name = str(dtype).removeprefix("torch.")
        if name == "auto":
            fast = device.type == "cuda" or (device.type == "cpu" and native_bfloat16())
            return cls.BFLOAT16 if fast else cls.FLOAT32
        if name not in {precision.value for precision in cls}:
            raise CheckpointError(
                f"unknown dtype {name!r}: use auto, {', '.join(p.value for p in cls)}"
            )
        precision = cls(name)
        if precision is cls.INT8 and not (device.type == "cpu" and native_int8()):
            raise CheckpointError(
                "int8 needs a CPU with VNNI or AMX instructions: use bfloat16 on a GPU, or auto"
            )
        return precision


@cache
def native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 by instructions of its own."""
    return _processor_has("avx512_bf16", "amx_bf16")


@cache
def native_int8() -> bool:
    """Whether this processor multiplies 8-bit integers by instructions of its own."""
    return _processor_has("avx512_vnni", "avx_vnni", "amx_int8") and _onednn()


def linear(weight: Tensor, precision: Precision) -> Linear:
    """A multiplication by `weight` [out, in], which may be taken apart for it."""
    if weight.device.type != "cpu" or not _onednn():
        return _Plain(weight)
    if precision is Precision.INT8:
        return _Int8.of(weight)
    if precision is Precision.FLOAT16:
        return _Plain(weight)
    return _OneDNN(_reordered(weight), weight.dtype)


def unpacked(weight: Tensor) -> Linear:
    """A multiplication by a matrix that is used for something else as well, as it lies."""
    supported = weight.dtype in {torch.float32, torch.bfloat16}
    if weight.device.type == "cpu" and _onednn() and supported:
        return _OneDNN(weight, weight.dtype)
    return _Plain(weight)


@dataclass(frozen=True, slots=True)
class _Plain:
    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight)


@dataclass(frozen=True, slots=True)
class _OneDNN:
    """Through oneDNN itself: torch's own choice for float32 is far slower on some processors."""

    weight: Tensor
    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        product = _ops().mkldnn._linear_pointwise(
            x.to(self.dtype), self.weight, None, "none", [], ""
        )
        return product.to(x.dtype)


@dataclass(frozen=True, slots=True)
class _Int8:
    weight: Tensor
    """[in, out], 8 bits."""
    scale: Tensor
    """[out]"""

    @classmethod
    def of(cls, weight: Tensor) -> _Int8:
        scale = weight.abs().amax(1).clamp_(min=1e-12) / 127
        quantised = (weight / scale[:, None]).round_().to(torch.int8)
        return cls(quantised.t(), scale)

    def __call__(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True).mul_(1 / 127).clamp_(min=1e-12)
        quantised = (x / scale).round_().to(torch.int8)
        product: Tensor = _ops().aten._int_mm(quantised, self.weight)
        return product.float().mul_(self.scale).mul_(scale)


def _processor_has(*flags: str) -> bool:
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict[str, object])()
    return any(capabilities.get(flag) for flag in flags)


@cache
def _onednn() -> bool:
    """Whether torch was built with oneDNN, and offers it as it did in the tested versions."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight = torch.arange(24.0).view(3, 8), torch.arange(40.0).view(5, 8)
    try:
        return torch.allclose(_OneDNN(_reordered(weight), x.dtype)(x), x @ weight.t(), rtol=1e-5)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _reordered(weight: Tensor) -> Tensor:
    """The matrix in the blocks that oneDNN multiplies fastest, which only it can read."""
    return _ops().mkldnn._reorder_linear_weight(weight.contiguous(), None)


def _ops() -> Any:
    """Operators of torch that have no types."""
    return torch.ops
