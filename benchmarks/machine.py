"""What this machine is and what it can do at most: `python -m benchmarks.machine`.

Prints one line of JSON: the processor, and the best rate that torch reaches here at multiplying
matrices and at reading memory. The time that a workload takes at these rates is the limit that an
engine on torch can be held against.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

_SIZES = [(512, 1024, 6144), (512, 4096, 4096), (2048, 2048, 2048)]
"""Rows, inputs, outputs: as in a model of 0.6B and of 8B, and square."""

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def described() -> dict[str, Any]:
    """Processor, cores, the instructions that matter, GPU, versions."""
    model, flags = _processor()
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "memory": _memory(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def measured(device: str, seconds: float) -> dict[str, Any]:
    """The best of several ways, each tried for about `seconds`.

    `rates` are operations a second by precision, `bandwidth` bytes a second.
    """
    rates = {
        precision: max((_rate(*size, precision, device, seconds) for size in _SIZES), default=0)
        for precision in ("float32", "bfloat16", "int8")
    }
    return {
        "threads": torch.get_num_threads(),
        "rates": {precision: rate for precision, rate in rates.items() if rate},
        "bandwidth": _bandwidth(device, seconds),
    }


def _rate(
    rows: int, inputs: int, outputs: int, precision: str, device: str, budget: float
) -> float:
    """Operations a second; 0 where there is no way."""
    fastest = float("inf")
    for multiply in _ways(rows, inputs, outputs, precision, device):
        with suppress(AttributeError, RuntimeError, NotImplementedError):
            fastest = min(fastest, _fastest(multiply, device, budget))
    return 2 * rows * inputs * outputs / fastest


def _ways(
    rows: int, inputs: int, outputs: int, precision: str, device: str
) -> Iterator[Callable[[], object]]:
    """Torch's own multiplication and, on a CPU, oneDNN's on a matrix that is laid out for it."""
    ops: Any = torch.ops
    if precision == "int8":
        a = torch.randint(-127, 127, (rows, inputs), dtype=torch.int8, device=device)
        b = torch.randint(-127, 127, (outputs, inputs), dtype=torch.int8, device=device)
        yield lambda: ops.aten._int_mm(a, b.t())
        return
    dtype: torch.dtype = getattr(torch, precision)
    x = torch.randn(rows, inputs, dtype=dtype, device=device)
    weight = torch.randn(outputs, inputs, dtype=dtype, device=device)
    yield lambda: torch.nn.functional.linear(x, weight)
    if device == "cpu" and torch.backends.mkldnn.is_available():
        with suppress(AttributeError, RuntimeError):
            packed: torch.Tensor = ops.mkldnn._reorder_linear_weight(weight, None)
            yield lambda: ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def _bandwidth(device: str, budget: float) -> float:
    """Bytes a second of reading what no cache holds."""
    numbers = torch.ones(2**28, device=device)
    matrix, vector = numbers.view(2**14, 2**14), torch.ones(2**14, device=device)
    ways: list[Callable[[], object]] = [numbers.sum, numbers.max, lambda: matrix @ vector]
    return numbers.nbytes / min(_fastest(way, device, budget) for way in ways)


def _fastest(run: Callable[[], object], device: str, budget: float) -> float:
    """Seconds of the fastest of the runs that fit into `budget`, at least three."""
    times = list[float]()
    while len(times) < 3 or sum(times) < budget:
        started = time.perf_counter()
        run()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def _processor() -> tuple[str, set[str]]:
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        pairs = [line.split(":", 1) for line in lines if ":" in line]
        facts = {name.strip(): value.strip() for name, value in pairs}
        return facts.get("model name", platform.machine()), set(facts.get("flags", "").split())
    return platform.processor() or platform.machine(), set()


def _memory() -> str:
    with suppress(OSError, ValueError):
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    return "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description="What this machine can do at most.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=0.5, help="for each way to multiply")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        print(json.dumps(described() | measured(options.device, options.seconds)))


if __name__ == "__main__":
    main()
