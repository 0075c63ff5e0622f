"""A progress bar for long calls: tqdm's where it is installed, else a plain line."""

from __future__ import annotations

import sys
import time
from typing import Protocol

PLAIN_INTERVAL_S = 0.5


class Progress(Protocol):
    """Shows rows done, the rate, and the time left."""

    def update(self, rows: int, /) -> object:
        """Count rows that have been answered."""

    def close(self) -> None:
        """Show the end."""


def progress_bar(total: int | None) -> Progress:
    """Return a progress bar on standard error for so many rows (None: not known)."""
    try:
        from tqdm import tqdm
    except ImportError:
        return PlainProgress(total)
    bar: Progress = tqdm(total=total, unit="row", unit_scale=True, desc="encode")
    return bar


class PlainProgress:
    """One line on standard error, rewritten twice a second."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._done = 0
        self._started = self._shown = time.monotonic()

    def update(self, rows: int) -> None:
        """Count rows that have been answered."""
        self._done += rows
        if time.monotonic() - self._shown >= PLAIN_INTERVAL_S:
            self._show()

    def close(self) -> None:
        """Show the end."""
        self._show()
        sys.stderr.write("\n")

    def _show(self) -> None:
        self._shown = time.monotonic()
        rate = self._done / max(self._shown - self._started, 1e-9)
        line = f"encode: {self._done}"
        if self._total is not None:
            left_s = (self._total - self._done) / max(rate, 1e-9)
            line += f"/{self._total} rows, {rate:.0f} rows/s, {left_s:.0f} s left"
        else:
            line += f" rows, {rate:.0f} rows/s"
        sys.stderr.write(f"\r{line}   ")
        sys.stderr.flush()
