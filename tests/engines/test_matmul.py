"""Matrices in the precisions of a processor."""

from __future__ import annotations

import pytest
import torch

from guardrails_qwen import CheckpointError
from guardrails_qwen.engines import matmul
from guardrails_qwen.engines.matmul import Precision, linear, unpacked

CPU = torch.device("cpu")
ERRORS = {Precision.FLOAT32: 1e-5, Precision.BFLOAT16: 0.02, Precision.INT8: 0.03}
needs_int8 = pytest.mark.skipif(not matmul.native_int8(), reason="no 8-bit instructions here")
PRECISIONS = [
    Precision.FLOAT32,
    Precision.BFLOAT16,
    pytest.param(Precision.INT8, marks=needs_int8),
]


def _product(x: torch.Tensor, weight: torch.Tensor, precision: Precision) -> torch.Tensor:
    return linear(weight.to(precision.dtype), precision)(x)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tokens", [1, 2, 7, 64, 300])
def test_a_product_is_right_within_the_precision(precision: Precision, tokens: int) -> None:
    x, weight = torch.randn(tokens, 192), torch.randn(384, 192)
    exact = x @ weight.t()
    found = _product(x, weight, precision)
    assert found.dtype == x.dtype
    assert found.shape == exact.shape
    error = (found - exact).square().mean().sqrt()
    assert error <= ERRORS[precision] * exact.square().mean().sqrt()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_token_does_not_depend_on_its_neighbours(precision: Precision) -> None:
    x, weight = torch.randn(40, 192), torch.randn(96, 192)
    loud = torch.cat([x[:1], 1000 * torch.randn(39, 192)])
    alone = _product(x, weight, precision)[0]
    beside = _product(loud, weight, precision)[0]
    assert torch.allclose(alone, beside, atol=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(precision: Precision, broken: float) -> None:
    x, weight = torch.ones(3, 32), torch.ones(16, 32)
    x[1, 5] = broken
    found = _product(x, weight, precision)
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


@needs_int8
def test_zeros_and_empty_channels_are_no_division_by_zero() -> None:
    x, weight = torch.zeros(2, 32), torch.zeros(8, 32)
    assert torch.equal(_product(x, weight, Precision.INT8), torch.zeros(2, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matrix_that_is_used_elsewhere_stays_as_it_is(dtype: torch.dtype) -> None:
    weight = torch.randn(50, 32).to(dtype)
    kept = weight.clone()
    x = torch.randn(4, 32)
    assert torch.allclose(unpacked(weight)(x), x @ kept.float().t(), atol=0.2)
    assert torch.equal(weight, kept)


def test_without_onednn_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(5, 64), torch.randn(32, 64)
    fast = linear(weight, Precision.FLOAT32)(x)
    monkeypatch.setattr(matmul, "_onednn", lambda: False)
    assert torch.allclose(linear(weight, Precision.FLOAT32)(x), fast, atol=1e-4)


NATIVE = [
    pytest.param(True, Precision.BFLOAT16, id="with instructions for it"),
    pytest.param(False, Precision.FLOAT32, id="without"),
]


@pytest.mark.parametrize(("native", "precision"), NATIVE)
def test_auto_looks_at_the_processor(
    monkeypatch: pytest.MonkeyPatch, native: bool, precision: Precision
) -> None:
    monkeypatch.setattr(matmul, "native_bfloat16", lambda: native)
    assert Precision.of("auto", CPU) is precision


@pytest.mark.parametrize("name", ["float32", torch.float32, "int8", "bfloat16"])
def test_a_dtype_is_taken_by_name(name: str | torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "native_int8", lambda: True)
    assert Precision.of(name, CPU).value == str(name).removeprefix("torch.")


REFUSED = [
    pytest.param("int4", CPU, "unknown dtype 'int4': use auto, float32, bfloat16", id="unknown"),
    pytest.param(torch.int64, CPU, "unknown dtype 'int64'", id="torch's"),
    pytest.param("int8", torch.device("cuda"), "int8 needs a CPU with VNNI", id="int8 on a GPU"),
]


@pytest.mark.parametrize(("name", "device", "message"), REFUSED)
def test_a_dtype_that_cannot_be_is_refused(
    name: str | torch.dtype, device: torch.device, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        Precision.of(name, device)
