"""Where a model is computed, in which type, and whether it fits there; the ways there and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from .replica import ModelLoadError

# beside the weights: activations, the tokenizer, and what torch itself takes
_HEADROOM_BYTES = 256 << 20

_NO_MEMORY = (
    "can't allocate memory",
    "could not create a primitive",  # what oneDNN has computed before fails for little else
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def choose_device(name: str) -> torch.device:
    """Return the device of a name such as `cpu` or `cuda:0`; ModelLoadError if it is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelLoadError(f"device={name!r}: expected cpu, cuda, or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ModelLoadError(f"device={name!r}: expected cpu, cuda, or cuda:N")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ModelLoadError(f"device={name!r}: this torch finds no CUDA device")
    number = device.index if device.index is not None else torch.cuda.current_device()
    if number >= torch.cuda.device_count():
        raise ModelLoadError(
            f"device={name!r}: expected a number below {torch.cuda.device_count()}"
        )
    return torch.device("cuda", number)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type to multiply in; ModelLoadError for one that the device is no good at."""
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float16
    lack = cpu_lack(name) if device.type == "cpu" else "it is for CPUs" if name == "int8" else None
    if lack is not None:
        raise ModelLoadError(f"dtype={name!r} on {device}: {lack}: expected {_others(name)}")
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of the hidden states where it is `dtype` that is multiplied."""
    return torch.bfloat16 if dtype == torch.int8 else dtype


def cpu_lack(name: str) -> str | None:
    """Return what this CPU lacks for multiplying in a type; None if it does so fast."""
    if name == "float16":
        return "no CPU is good at it"
    if name == "int8" and not _has_int8_products():
        return "it needs AVX-512 VNNI, AVX-VNNI or AMX"
    if name == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001
        return "it needs AVX-512, AVX-NE-CONVERT, or an ARM CPU with bfloat16"
    return None


def _others(name: str) -> str:
    names = [other for other in ("float32", "bfloat16") if other != name]
    return ", ".join(other for other in names if cpu_lack(other) is None) + " or auto"


def _has_int8_products() -> bool:
    """Return whether this CPU multiplies 8-bit integers fast, and torch can have it do so."""
    features = torch.cpu.get_capabilities()
    # without these oneDNN adds up in 16 bits, which overflow
    is_able = any(features.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    return is_able and hasattr(torch.ops.onednn, "qlinear_prepack")


@contextmanager
def compiler_needed() -> Iterator[None]:
    """Make whatever goes wrong in a block that compiles a ModelLoadError."""
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:  # noqa: BLE001  without a compiler, torch raises anything
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelLoadError(
            f"the model cannot be compiled: {text}: start without -compile, or install a compiler "
            "for C and C++"
        ) from None


def make_current(device: torch.device) -> None:
    """Have a GPU be the one that this process means where it names none."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def to_device(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return an array on a device; to a GPU it may still be on its way, as all work there is."""
    tensor = torch.from_numpy(values)
    if device.type == "cpu":
        return tensor
    # pinned, as other memory is copied while the caller waits
    return tensor.pin_memory().to(device, non_blocking=True)


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was told; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that a device's memory does not suffice."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # torch's allocator for CPUs, oneDNN and cuBLAS say it in words
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def is_lost(device: torch.device) -> bool:
    """Return whether a device computes nothing any more, not even a sum: a CPU always does.

    After an illegal access or a failed assertion of a kernel, or when a GPU has fallen off the
    bus, every call of the process fails, whatever its error says: so it is asked.
    """
    if device.type == "cpu":
        return False
    try:
        torch.ones(2, device=device).sum().item()
    except RuntimeError as error:
        return not is_out_of_memory(error)
    return False


def free_memory(device: torch.device) -> None:
    """Give back to a GPU what was kept for later; others may need it, or a larger piece."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def limit_memory(fraction: float | None, device: torch.device) -> None:
    """Take no more than this share of a GPU's memory; a CPU's has no such limit."""
    if fraction is not None and device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(fraction, device)


def check_memory(weights_bytes: int, device: torch.device) -> None:
    """Raise ModelLoadError if weights of this size cannot fit on the device."""
    needed = weights_bytes + _HEADROOM_BYTES
    available = available_bytes(device)
    if available is not None and needed > available:
        raise ModelLoadError(
            f"not enough memory on {device}: the model needs about {needed / 1e9:.1f} GB, "
            f"{available / 1e9:.1f} GB are available; a 16-bit dtype halves it"
        )


def available_bytes(device: torch.device) -> int | None:
    """Return the memory that is free on a device; None where that cannot be told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    limits = [_mem_available(Path("/proc/meminfo")), _cgroup_available(Path("/sys/fs/cgroup"))]
    return min((limit for limit in limits if limit is not None), default=None)


def _mem_available(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def _cgroup_available(cgroup: Path) -> int | None:
    """Return what a container's limit leaves; file pages count as free, as they can be."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))
