"""Whether the compiled matrix product is faster than oneDNN's on this machine.

With AVX2 it is: on two cores of a Zen 3 it took 0.8 of the time, with GELU 0.65, and of a few
tokens half. Elsewhere it depends on the processor and on how oneDNN knows it, and is measured
once; where others disturb that, it may stay with oneDNN.
"""

from __future__ import annotations

import logging
from functools import partial

import torch

from .cache import cache_folder, digest, keep, read_kept
from .compiled import CompiledKernels
from .kept_calibration import machine_key
from .kernels_cpu import PanelLinear, library_linear
from .machine import best_seconds

logger = logging.getLogger(__name__)

# as in BERT-base's feed-forward part, where half of a model's products are
_TOKENS, _INPUTS, _OUTPUTS = 512, 768, 3072
_LIMIT_S = 0.5
_CLEARLY = 0.95


def is_compiled_faster(compiled: CompiledKernels) -> bool:
    """Return whether the compiled product is the faster one in float32; it may be measured."""
    if compiled.level == "avx2":
        return True
    kept = cache_folder() / f"product-{digest(machine_key(torch.device('cpu')))}.json"
    try:
        ratio = read_kept(kept)
    except (OSError, ValueError) as error:
        logger.warning("%s: no ratio in it: measuring again (%s)", kept, error)
        ratio = None
    if not isinstance(ratio, float):
        ratio = _ratio(compiled)
        logger.info("compiled matrix products take %.2f of oneDNN's time; kept in %s", ratio, kept)
        keep(kept, ratio)
    return ratio < _CLEARLY


def _ratio(compiled: CompiledKernels) -> float:
    """Return the compiled product's time over that of the library's, with GELU, in turns."""
    x, weight, bias = (
        torch.randn(size) for size in ((_TOKENS, _INPUTS), (_OUTPUTS, _INPUTS), (_OUTPUTS,))
    )
    linears = [
        PanelLinear(weight, bias, "gelu", compiled),
        library_linear(weight, bias, "gelu"),
    ]
    own, other = best_seconds([partial(linear, x) for linear in linears], _LIMIT_S)
    return own / other
