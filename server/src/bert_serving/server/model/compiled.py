"""The compiled kernels of `kernels_cpu.c`: found beside it, loaded, called on tensors.

They were compiled when the package was built (`hatch_build.py`), for a few levels of the
processor's instructions. Where there is no library for this machine, there is nothing to load,
and `kernels_cpu` does the same with torch.
"""

from __future__ import annotations

import ctypes
import logging
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

LANES = 16
"""Numbers of a vector: widths of heads and hidden sizes have to be multiples."""

LONGEST_ROW, WIDEST_HEAD = 512, 256
"""The most that a thread's stack has to have room for: about 1 MB of keys and values."""

# torch's name for what an x86 processor can, and the libraries for it
_LEVELS = {"AVX512": "avx512", "AVX2": "avx2"}

_SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_ATTEND = (*(_POINTER,) * 4, *(_INT,) * 3)
_ADD_NORM = (*(_POINTER,) * 4, ctypes.c_float, *(_INT,) * 2)

log = logging.getLogger(__name__)


class CompiledKernels:
    """The library's functions, checked and typed. Threads are those of torch, as many."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._attend = _functions(library, "attend", _ATTEND)
        self._add_norm = _functions(library, "add_norm", _ADD_NORM)

    def attend(
        self,
        qkv: torch.Tensor,
        mixed: torch.Tensor,
        starts: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        num_heads: int,
    ) -> None:
        """Attend over rows, each over its own tokens.

        Args:
            qkv: `[tokens, 3 * hidden]`, as `Attention` takes it.
            mixed: where the result goes, `[tokens, hidden]`; tokens of no row stay as they are.
            starts: the number of each row's first token, `[rows]`.
            lengths: tokens of each row, at most `LONGEST_ROW`, `[rows]`.
            num_heads: heads, each of a width that `knows_heads` agrees to.

        """
        hidden = mixed.shape[1]
        assert qkv.shape == (len(mixed), 3 * hidden) and knows_heads(hidden, num_heads)
        assert int(lengths.max()) <= LONGEST_ROW
        assert starts.shape == lengths.shape and int((starts + lengths).max()) <= len(mixed)
        self._attend[qkv.dtype](
            *(_address(qkv), _address(mixed), starts.ctypes.data, lengths.ctypes.data),
            *(len(starts), hidden, num_heads),
        )

    def add_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        """Return `LayerNorm(x + residual)` in x, all `[tokens, hidden]` of one type."""
        tokens, hidden = x.shape
        assert x.shape == residual.shape and hidden % LANES == 0
        assert weight.shape == bias.shape == (hidden,)
        assert x.dtype == residual.dtype == weight.dtype == bias.dtype
        addresses = map(_address, (x, residual, weight, bias))
        self._add_norm[x.dtype](*addresses, eps, tokens, hidden)
        return x


def knows_heads(hidden: int, num_heads: int) -> bool:
    """Return whether so many heads of a hidden state have a width that can be attended."""
    return hidden % (num_heads * LANES) == 0 and hidden // num_heads <= WIDEST_HEAD


@cache
def load_compiled() -> CompiledKernels | None:
    """Return the kernels for this machine; None where there are none, which is logged."""
    if platform.machine() == "aarch64":  # as every one of them has it; not run on one yet
        level: str | None = "neon"
    else:
        level = _LEVELS.get(torch.backends.cpu.get_cpu_capability())
    path = Path(__file__).with_name(f"kernels_cpu.{level}.so")
    if not path.exists():
        log.info("no compiled kernels for this machine: torch's own take their place, slower")
        return None
    try:
        # what it needs of OpenMP is found in torch's, which is loaded for all to see
        return CompiledKernels(ctypes.CDLL(str(path)))
    except OSError as error:
        log.warning("the compiled kernels cannot be loaded, torch's own are slower: %s", error)
        return None


def _functions(
    library: ctypes.CDLL, name: str, arguments: tuple[Any, ...]
) -> dict[torch.dtype, Callable[..., None]]:
    functions = {}
    for dtype, suffix in _SUFFIXES.items():
        function = getattr(library, f"{name}_{suffix}")
        function.argtypes, function.restype = arguments, None
        functions[dtype] = function
    return functions


def _address(tensor: torch.Tensor) -> int:
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return tensor.data_ptr()
