"""What the system allows this process's group, a container or a unit: memory, CPU, and its kills.

Both versions of cgroups are read. A limit may stand in any group above; the tightest counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NO_LIMIT_BYTES = 1 << 60  # version 1 writes a huge number where there is no limit


@dataclass(frozen=True)
class Memory:
    """A group's memory: what it may have, and what of that is left, file pages not counted."""

    limit_bytes: int
    left_bytes: int


class Cgroups:
    """The groups that this process is in.

    Args:
        root: where they are mounted.
        own: the file that names them.

    """

    def __init__(
        self, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
    ) -> None:
        self._root = root
        self._own = own

    def memory(self) -> Memory | None:
        """Return the tightest limit of memory; None if there is none."""
        found = []
        for folder in self._folders("memory"):
            limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
            used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
            if limit is not None and used is not None and limit < NO_LIMIT_BYTES:
                stat = _entries(folder / "memory.stat")
                pages = stat.get("total_inactive_file", stat.get("inactive_file", 0))
                found.append(Memory(limit, max(limit - used + pages, 0)))
        return min(found, key=lambda memory: memory.left_bytes, default=None)

    def cpu_quota(self) -> float | None:
        """Return how many cores' worth of time may be used; None if that is not limited."""
        found = []
        for folder in self._folders("cpu"):
            words = _text(folder / "cpu.max").split()
            quota = int(words[0]) if words and words[0].isdecimal() else None
            period = int(words[1]) if len(words) == 2 else None
            quota = quota or _number(folder / "cpu.cfs_quota_us")
            period = period or _number(folder / "cpu.cfs_period_us")
            if quota and period and quota > 0:
                found.append(quota / period)
        return min(found, default=None)

    def oom_kills(self) -> int | None:
        """Return how many processes the kernel has killed for want of memory, as far as known.

        Of this process's group and those below it; else of the whole machine.
        """
        for folder in self._folders("memory"):
            for name in ("memory.events", "memory.oom_control"):
                if (kills := _entries(folder / name).get("oom_kill")) is not None:
                    return kills
        return _entries(Path("/proc/vmstat")).get("oom_kill")

    def _folders(self, controller: str) -> Iterator[Path]:
        """Go from this process's own group up to the root, of both versions."""
        for line in _text(self._own).splitlines():
            _, names, path = line.split(":", 2)
            if names and controller not in names.split(","):
                continue
            for top in [self._root / names, self._root / controller] if names else [self._root]:
                own = top / path.lstrip("/")
                if ".." not in own.parts and own.is_dir():
                    yield from [own, *(up for up in own.parents if up.is_relative_to(top))]
                    break
                if top.is_dir():  # in a container its own group is mounted as the root
                    yield top
                    break


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdecimal() else None


def _entries(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
