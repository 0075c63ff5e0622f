"""The compiled kernels of `native/`: found beside their sources, loaded, called on tensors.

They were compiled when the package was built (`hatch_build.py`), for a few levels of the
processor's instructions. Where there is no library for this machine, there is nothing to load,
and `kernels_cpu` does the same with torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import platform
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

LANES = 16
"""Numbers of the widest vector: widths of heads and hidden sizes have to be multiples."""

LONGEST_ROW, WIDEST_HEAD = 512, 256
"""The most that a thread's stack has to have room for: about 1 MB of keys and values."""

MOST_TABLES = 3
"""Embeddings that are added up, of words, segments and positions; see `native/norms.c`."""

_FOLDER = Path(__file__).with_name("native")
_SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_ATTEND = (*(_POINTER,) * 4, *(_INT,) * 3)
_ADD_NORM = (*(_POINTER,) * 4, ctypes.c_float, *(_INT,) * 2)
_EMBED = (*(_POINTER,) * 3, _INT)
_LINEAR = (*(_POINTER,) * 4, *(_INT,) * 4)
_LAYERS = (_POINTER, _INT, *(_POINTER,) * 6, *(_INT,) * 3)
_QUANTIZE = (*(_POINTER,) * 4, *(_INT,) * 2)
_FINISH = (*(_POINTER,) * 5, *(_INT,) * 3)

Pair = tuple[torch.Tensor, torch.Tensor]

log = logging.getLogger(__name__)


class Codes(NamedTuple):
    """Numbers as integers of 8 bits, a scale and an offset for each token.

    Attributes:
        codes: uint8 `[tokens, width]`; a number is its code times its token's scale, plus an
            offset that is the same for all of a token's.
        scales: float32 `[tokens]`.
        totals: what a token's numbers add up to, float32 `[tokens]`.

    """

    codes: torch.Tensor
    scales: torch.Tensor
    totals: torch.Tensor


class LayerWeights(ctypes.Structure):
    """A layer's float32 weights and sizes, as the library knows them; they must outlive it.

    Args:
        linears: panels (`CompiledKernels.panels`) and bias of `qkv`, `attention_out`, `feed_in`
            and `feed_out`.
        norms: weight and bias of `attention_norm` and `feed_norm`.
        eps: theirs.

    """

    _fields_ = (
        *((name, 2 * _POINTER) for name in ("qkv", "attention_out", "feed_in", "feed_out")),
        *((name, 2 * _POINTER) for name in ("attention_norm", "feed_norm")),
        *(("eps", ctypes.c_float), ("hidden", _INT), ("inner", _INT)),
    )
    hidden: int
    inner: int

    def __init__(self, linears: Sequence[Pair], norms: Sequence[Pair], eps: float) -> None:
        pairs = (*linears, *norms)
        hidden, inner = len(norms[0][0]), len(linears[2][1])
        outputs = 3 * hidden, hidden, inner, hidden
        inputs = hidden, hidden, hidden, inner
        for (panels, bias), width, depth in zip(linears, outputs, inputs, strict=True):
            assert bias.shape == (width,) and panels.numel() == width * depth
        assert all(part.shape == (hidden,) for pair in norms for part in pair)
        assert all(part.dtype == torch.float32 for pair in pairs for part in pair)
        super().__init__(*(tuple(map(_address, pair)) for pair in pairs), eps, hidden, inner)


class LayerStack:
    """Layers, one or more, of one size, as the library takes them.

    Args:
        weights: of each, in order.

    """

    def __init__(self, weights: Sequence[LayerWeights]) -> None:
        self.hidden, self.inner = weights[0].hidden, weights[0].inner
        assert all((of.hidden, of.inner) == (self.hidden, self.inner) for of in weights)
        self._weights = weights  # which the pointers are to
        self.pointers = (_POINTER * len(weights))(*map(ctypes.addressof, weights))


class EmbeddingWeights(ctypes.Structure):
    """Embeddings' float32 weights and sizes, as the library knows them; they must outlive it.

    Args:
        tables: `[size, hidden]` each, at most `MOST_TABLES`.
        weight: of their sum's norm, `[hidden]`.
        bias: likewise.
        eps: likewise, a number.

    """

    _fields_ = (
        *(("tables", MOST_TABLES * _POINTER), ("sizes", MOST_TABLES * ctypes.c_int64)),
        *(("weight", _POINTER), ("bias", _POINTER), ("eps", ctypes.c_float)),
        *(("num_tables", _INT), ("hidden", _INT)),
    )
    sizes: Sequence[int]
    num_tables: int
    hidden: int

    def __init__(
        self, tables: Sequence[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> None:
        hidden = len(weight)
        assert hidden % LANES == 0 and weight.shape == bias.shape
        assert 0 < len(tables) <= MOST_TABLES
        assert all(table.shape == (len(table), hidden) for table in tables)
        assert all(of.dtype == torch.float32 for of in (*tables, weight, bias))
        sizes = tuple(len(table) for table in tables)
        norm = _address(weight), _address(bias), eps
        super().__init__(tuple(map(_address, tables)), sizes, *norm, len(tables), hidden)


class Spans:
    """Where rows lie on a token axis, as the library reads it.

    Args:
        starts: the number of each row's first token, int64 `[rows]`.
        lengths: tokens of each row, at most `LONGEST_ROW`, int64 `[rows]`.

    Attributes:
        end: no row has a token of this number, or of a higher one.

    """

    def __init__(self, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> None:
        assert starts.dtype == lengths.dtype == np.int64 and starts.shape == lengths.shape
        assert lengths.max(initial=0) <= LONGEST_ROW  # there is room for it on a thread's stack
        self._arrays = np.ascontiguousarray(starts), np.ascontiguousarray(lengths)
        self.addresses = tuple(of.__array_interface__["data"][0] for of in self._arrays)
        self.end = int((starts + lengths).max(initial=0))

    def __len__(self) -> int:
        return len(self._arrays[0])


class CompiledKernels:
    """The library's functions, checked and typed. Threads are those of torch, as many.

    Args:
        library: which has them.
        level: the instructions that it was compiled for.

    Attributes:
        level: the same.
        build: names what was compiled, so that what is measured of it is not taken for another's.

    """

    def __init__(self, library: ctypes.CDLL, level: str) -> None:
        self.level = level
        self.build = hashlib.sha256(Path(library._name).read_bytes()).hexdigest()[:16]  # noqa: SLF001
        self._attend = _functions(library, "attend", _ATTEND)
        self._add_norm = _functions(library, "add_norm", _ADD_NORM)
        self._embed = _function(library, "embed_float32", _EMBED, _INT)
        self._linear = _function(library, "linear_float32", _LINEAR)
        self._layers = _function(library, "layers_float32", _LAYERS)
        self._panel: int = library.panel_width()
        self._quantize = _function(library, "quantize", _QUANTIZE)
        self._finish = _function(library, "finish", _FINISH)

    def attend(
        self,
        qkv: torch.Tensor,
        mixed: torch.Tensor,
        spans: Spans,
        num_heads: int,
    ) -> None:
        """Attend over rows, each over its own tokens.

        Args:
            qkv: `[tokens, 3 * hidden]`, as `Attention` takes it.
            mixed: where the result goes, `[tokens, hidden]`; tokens of no row stay as they are.
            spans: where the rows lie.
            num_heads: heads, each of a width that `knows_heads` agrees to.

        """
        hidden = mixed.shape[1]
        assert qkv.shape == (len(mixed), 3 * hidden) and knows_heads(hidden, num_heads)
        assert spans.end <= len(mixed)
        self._attend[qkv.dtype](
            *(_address(qkv), _address(mixed), *spans.addresses, len(spans), hidden, num_heads)
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

    def embed(self, weights: EmbeddingWeights, numbers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the LayerNorm of a sum of embeddings, float32 `[tokens, hidden]`.

        Args:
            weights: of the embeddings.
            numbers: the lines of each of its tables, int64 `[tokens]`.

        Raises:
            IndexError: a number is of no line.

        """
        (tokens,) = numbers[0].shape
        assert len(numbers) == weights.num_tables
        assert {(of.shape, of.dtype) for of in numbers} == {((tokens,), torch.int64)}
        y = torch.empty(tokens, weights.hidden)
        lists = (_POINTER * len(numbers))(*map(_address, numbers))
        if self._embed(ctypes.addressof(weights), lists, _address(y), tokens):
            sizes = list(weights.sizes)[: len(numbers)]
            raise IndexError(f"an id or a position beyond the {sizes} embeddings there are")
        return y

    def knows_weight(self, outputs: int, inputs: int) -> bool:
        """Return whether a weight of these sizes can be multiplied with, in float32."""
        return outputs % self._panel == 0 and inputs % LANES == 0

    def panels(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a float32 `[out, in]` weight as `linear` reads it: `[panels, in, outputs]`."""
        assert self.knows_weight(*weight.shape) and weight.dtype == torch.float32
        return weight.reshape(-1, self._panel, weight.shape[1]).transpose(1, 2).contiguous()

    def linear(
        self, x: torch.Tensor, panels: torch.Tensor, bias: torch.Tensor, *, has_gelu: bool
    ) -> torch.Tensor:
        """Return `x @ weight.T + bias`, or its GELU: float32, `[tokens, in]` to `[tokens, out]`."""
        (tokens, inputs), outputs = x.shape, len(bias)
        assert panels.shape == (outputs // self._panel, inputs, self._panel)
        y = x.new_empty(tokens, outputs)
        assert x.dtype == panels.dtype == bias.dtype == torch.float32
        self._linear(*map(_address, (x, panels, bias, y)), tokens, inputs, outputs, has_gelu)
        return y

    def layers(
        self,
        stack: LayerStack,
        x: torch.Tensor,
        spans: Spans,
        num_heads: int,
    ) -> torch.Tensor:
        """Return the hidden state behind layers, float32 `[tokens, hidden]` as x before them.

        Spans and heads are as in `attend`.
        """
        tokens, hidden = x.shape
        assert x.dtype == torch.float32 and hidden == stack.hidden
        assert knows_heads(hidden, num_heads)
        assert spans.end <= tokens
        y = torch.empty_like(x)
        wide = x.new_empty(tokens, max(3 * hidden, stack.inner))
        narrow = x.new_empty(2, tokens, hidden)
        self._layers(
            *(stack.pointers, len(stack.pointers), *map(_address, (x, y, wide, narrow))),
            *(*spans.addresses, len(spans), tokens, num_heads),
        )
        return y

    def quantize(self, x: torch.Tensor) -> Codes:
        """Return the codes of bfloat16 numbers; see `kernels_int8.quantize`."""
        tokens, width = x.shape
        assert x.dtype == torch.bfloat16 and width % LANES == 0
        codes = Codes(
            torch.empty(x.shape, dtype=torch.uint8), torch.empty(tokens), torch.empty(tokens)
        )
        self._quantize(_address(x), *map(_address, codes), tokens, width)
        return codes

    def finish(
        self,
        product: torch.Tensor,
        codes: Codes,
        means: torch.Tensor,
        bias: torch.Tensor,
        *,
        has_gelu: bool,
    ) -> torch.Tensor:
        """Return numbers, or their GELU, in place of a product; see `kernels_int8.finish`."""
        tokens, width = product.shape
        assert product.dtype == torch.bfloat16 and width % LANES == 0
        of_tokens, of_outputs = (codes.scales, codes.totals), (means, bias)
        assert all(of.shape == (tokens,) and of.dtype == torch.float32 for of in of_tokens)
        assert all(of.shape == (width,) and of.dtype == torch.float32 for of in of_outputs)
        addresses = map(_address, (product, *of_tokens, *of_outputs))
        self._finish(*addresses, tokens, width, has_gelu)
        return product


def knows_heads(hidden: int, num_heads: int) -> bool:
    """Return whether so many heads of a hidden state have a width that can be attended."""
    return hidden % (num_heads * LANES) == 0 and hidden // num_heads <= WIDEST_HEAD


def levels_here() -> list[str]:
    """Return the levels of instructions that this machine has kernels for, the best first."""
    if platform.machine() == "aarch64":  # as every one of them has it; not run on one yet
        return ["neon"]
    levels = {"AVX512": ["avx512", "avx2"], "AVX2": ["avx2"]}.get(
        torch.backends.cpu.get_cpu_capability(), []
    )
    if "avx512" in levels and torch.cpu.get_capabilities().get("avx512_bf16"):
        return ["avx512_bf16", *levels]
    return levels


def load_level(level: str) -> CompiledKernels:
    """Return the kernels for a level of instructions; OSError if they were not compiled."""
    # what it needs of OpenMP is found in torch's, which is loaded for all to see
    return CompiledKernels(ctypes.CDLL(str(_library(level))), level)


@cache
def load_compiled() -> CompiledKernels | None:
    """Return the kernels for this machine; None where there are none, which is logged."""
    # an older compiler does not know the newest instructions, and has left that level out
    levels = [level for level in levels_here() if _library(level).exists()]
    if not levels:
        log.info("no compiled kernels for this machine: torch's own take their place, slower")
        return None
    try:
        return load_level(levels[0])
    except OSError as error:
        log.warning("the compiled kernels cannot be loaded, torch's own are slower: %s", error)
        return None


def _library(level: str) -> Path:
    return _FOLDER / f"kernels.{level}.so"


def _functions(
    library: ctypes.CDLL, name: str, arguments: tuple[Any, ...]
) -> dict[torch.dtype, Callable[..., None]]:
    return {
        dtype: _function(library, f"{name}_{suffix}", arguments)
        for dtype, suffix in _SUFFIXES.items()
    }


def _function(
    library: ctypes.CDLL, name: str, arguments: tuple[Any, ...], result: Any = None
) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(library, name)
    function.argtypes, function.restype = arguments, result  # type: ignore[attr-defined]
    return function


def _address(tensor: torch.Tensor) -> int:
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return tensor.data_ptr()
