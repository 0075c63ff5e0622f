"""Letting go of the memory of weight files once their contents have been copied.

Weights are read from mapped files and packed for the device: from then on the same numbers
are in memory twice, as pages of the file that nobody reads again. On Linux only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_DONTNEED = 4  # MADV_DONTNEED: what is read after all comes from the file again


def forget_pages(files: Iterable[Path]) -> None:
    """Give up the pages of files that this process has mapped and has not written to."""
    paths = {str(path.resolve()) for path in files}
    try:
        lines = _MAPS.read_text().splitlines()
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in lines:
        addresses, *_, path = line.split(maxsplit=5)
        if path in paths:
            start, end = (int(address, 16) for address in addresses.split("-"))
            madvise(start, end - start, _DONTNEED)
