"""Which refusals are worth a line in the log: pure.

Whoever can reach a port can be refused as often as they like; that must not fill a disk.
"""

from __future__ import annotations

from dataclasses import dataclass

QUIET_S = 60.0
MAX_LINES = 1_000
OTHERS = "many addresses"


@dataclass
class _Noted:
    since: float
    unsaid: int = 0


class Refusals:
    """The addresses that a line was written for lately, and the kinds of these lines."""

    def __init__(self) -> None:
        self._noted: dict[tuple[str, str], _Noted] = {}

    def line(self, address: str, kind: str, why: str, now: float) -> str | None:
        """Return the line to log; None if one of its kind was for this address within a minute.

        Args:
            address: of the peer.
            kind: of the refusal; not the peer's own words, which could always be new ones.
            why: what the line is to say.
            now: the time.

        """
        if (address, kind) not in self._noted and len(self._noted) >= MAX_LINES:
            self._forget(now)
            if len(self._noted) >= MAX_LINES:
                address = OTHERS  # whose one line a minute stands for all of them
        noted = self._noted.get((address, kind))
        if noted is not None and now < noted.since + QUIET_S:
            noted.unsaid += 1
            return None
        self._noted[address, kind] = _Noted(now)
        more = f" ({noted.unsaid} more since the last line)" if noted and noted.unsaid else ""
        return f"refused {address}: {why}{more}"

    def _forget(self, now: float) -> None:
        self._noted = {
            about: noted for about, noted in self._noted.items() if now < noted.since + QUIET_S
        }
