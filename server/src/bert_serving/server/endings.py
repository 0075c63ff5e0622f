"""How a process's life ended, and what was seen of it before: for the one line that says so."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import exit_codes
from .cgroups import Cgroups
from .tally import Tally

LOOK_S = 1.0


@dataclass(frozen=True)
class Ending:
    """The end of a process.

    Attributes:
        status: `Popen.returncode`.
        lived_s: how long it lived.
        batches: how many it has computed; None for a process that computes none.
        memory_bytes: what it had of the machine's memory when it was last looked at.
        oom_kills: processes that the kernel has ended since for want of memory, of the same
            cgroup or, where that is not known, of the machine; None if neither is known.
        was_told: the supervisor has ended it.

    """

    status: int
    lived_s: float
    batches: int | None = None
    memory_bytes: int | None = None
    oom_kills: int | None = None
    was_told: bool = False

    def __str__(self) -> str:
        """Return it in words, to stand after the process's name."""
        lived = f"after {self.lived_s:.1f} s"
        if self.batches is not None:
            lived += f" and {self.batches} batches"
        if self.memory_bytes is not None:
            lived += f", last seen with {self.memory_bytes / 1e9:.2f} GB"
        return f"{exit_codes.describe(self.status, self._hint)} {lived}"

    @property
    def _hint(self) -> str | None:
        if self.was_told:
            return "by the supervisor"
        if exit_codes.signal_name(self.status) != "SIGKILL" or self.oom_kills is None:
            return None
        if self.oom_kills:
            return "out of memory, as the kernel has counted: more memory, or fewer workers"
        return "not for want of memory, as the kernel has counted: by somebody"

    def fields(self) -> dict[str, Any]:
        """Return it for a log in JSON."""
        return {
            "exit_status": max(self.status, 0) if self.status >= 0 else None,
            "signal": exit_codes.signal_name(self.status),
            "lived_s": round(self.lived_s, 3),
            "batches": self.batches,
            "memory_bytes": self.memory_bytes,
            "oom_kills": self.oom_kills,
            "by_supervisor": self.was_told,
        }


class Vitals:
    """What is seen of one process while it lives.

    Args:
        pid: the process.
        tally: of its batches; None if it computes none.

    """

    def __init__(self, pid: int, tally: Tally | None = None) -> None:
        self._pid = pid
        self._tally = tally
        self._born = time.monotonic()
        self._next_look = self._born + LOOK_S  # a process has next to nothing when it is born
        self._memory_bytes: int | None = None
        self._cgroups = Cgroups()
        self._kills = self._kills_before = self._cgroups.oom_kills()
        self.was_told = False

    def look(self) -> None:
        """Look at the process, if it is time to."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        self.look_at_memory()
        # counted before its end is noticed, a kill must not be forgotten: hence the one before
        self._kills_before, self._kills = self._kills, self._cgroups.oom_kills()

    def look_at_memory(self) -> None:
        """Look at what it has of the machine's memory, now; one that is ending has none."""
        self._memory_bytes = _memory_bytes(self._pid) or self._memory_bytes

    def ending(self, status: int) -> Ending:
        """Return how the life has ended."""
        now, before = self._cgroups.oom_kills(), self._kills_before
        return Ending(
            status=status,
            lived_s=time.monotonic() - self._born,
            batches=None if self._tally is None else self._tally.value,
            memory_bytes=self._memory_bytes,
            oom_kills=None if now is None or before is None else now - before,
            was_told=self.was_told,
        )


def _memory_bytes(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return None
