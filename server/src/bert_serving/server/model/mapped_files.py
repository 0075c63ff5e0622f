"""Mapped weight files: whether they are what they were, and letting go of their memory.

Weights are read from mapped files and packed for the device: from then on the same numbers
are in memory twice, as pages of the file that nobody reads again. On Linux only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path

from .replica import DeviceLost

_MAPS = Path("/proc/self/maps")
_DONTNEED = 4  # MADV_DONTNEED: what is read after all comes from the file again


class MappedFiles:
    """Files as they are before they are mapped.

    One that others are put in the place of by renaming stays whole for who has mapped it; one
    that is written over becomes another model's, or none's.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._states = {path: _state(path) for path in files}

    def check(self) -> None:
        """Raise DeviceLost if one was written over: what is read of it now is no such model's."""
        for path, (file, content) in self._states.items():
            try:
                file_now, content_now = _state(path)
            except OSError:  # removed: its pages are there as long as they are mapped
                continue
            if file_now == file and content_now != content:
                raise DeviceLost(f"the model's files were written over: {path}")


NO_FILES = MappedFiles(())


def _state(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return which file it is, and what tells one content of it from another."""
    stat = path.stat()
    return (stat.st_dev, stat.st_ino), (stat.st_size, stat.st_mtime_ns)


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
