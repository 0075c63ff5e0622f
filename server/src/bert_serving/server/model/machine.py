"""How fast this machine multiplies matrices: the limit that no model on it can pass.

A process of its own, for whoever must not load torch: prints the rate, or the reason why
there is none, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from .compiled import load_compiled
from .device import choose_device, choose_dtype
from .kernels_cpu import PanelLinear, library_linear
from .kernels_int8 import Int8Product
from .replica import ModelLoadError

# tokens, inputs, outputs: as in BERT-base's widest layer, in cache; and what many cores need
_CPU_SHAPES = ((1024, 768, 3072), (4096, 1024, 4096))
_GPU_SHAPES = ((8192, 8192, 8192),)

_LIMIT_S = 1.0  # a shape
_LEAST_ROUNDS = 3


def matrix_gflops(dtype: torch.dtype, device: torch.device, limit_s: float = _LIMIT_S) -> float:
    """Return the rate of the best matrix product found, in GFLOP/s, all cores at work.

    Args:
        dtype: to multiply in.
        device: where.
        limit_s: seconds to look for it, for each shape tried.

    """
    shapes = _CPU_SHAPES if device.type == "cpu" else _GPU_SHAPES
    return max(_gflops(shape, dtype, device, limit_s) for shape in shapes)


def _gflops(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, limit_s: float
) -> float:
    rows, width, outputs = shape
    seconds = best_seconds(_products(shape, dtype, device), limit_s, lambda: _wait_for(device))
    return 2.0 * rows * width * outputs / min(seconds) / 1e9


def _products(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> list[Callable[[], object]]:
    """Return the ways to multiply that may be the best one."""
    rows, width, outputs = shape
    if dtype == torch.int8:
        product = Int8Product(torch.randn(outputs, width))
        return [partial(product, torch.randint(256, (rows, width), dtype=torch.uint8))]
    x = torch.randn(rows, width, device=device).to(dtype)
    weight = torch.randn(outputs, width, device=device).to(dtype)
    if device.type != "cpu":
        return [partial(torch.matmul, x, weight.T)]
    bias = torch.zeros(outputs, dtype=dtype)
    linears = [library_linear(weight, bias)]
    compiled = load_compiled()
    if dtype == torch.float32 and compiled is not None and compiled.knows_weight(outputs, width):
        linears.append(PanelLinear(weight, bias, None, compiled))
    return [partial(linear, x) for linear in linears]


def best_seconds(
    works: Sequence[Callable[[], object]],
    limit_s: float,
    wait: Callable[[], object] = lambda: None,
) -> list[float]:
    """Return the least time that each of some works took, in turns.

    Args:
        works: what to time.
        limit_s: seconds for all of them, about.
        wait: waits until a work is done where its return does not say so.

    """
    best = [float("inf")] * len(works)
    deadline = time.perf_counter() + limit_s
    rounds = 0
    while rounds < _LEAST_ROUNDS or time.perf_counter() < deadline:
        for number, work in enumerate(works):
            wait()
            started = time.perf_counter()
            work()
            wait()
            best[number] = min(best[number], time.perf_counter() - started)
        rounds += 1
    return best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure in the type and on the device that the arguments name, and print the rate."""
    dtype, device_name = sys.argv[1:]
    try:
        device = choose_device(device_name)
        answer = {
            "gflops": matrix_gflops(choose_dtype(dtype, device), device),
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        }
    except (ModelLoadError, RuntimeError) as error:  # torch's, such as no memory left on a GPU
        answer = {"error": " ".join(str(error).split())[:300]}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
