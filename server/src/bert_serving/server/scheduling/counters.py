"""How many requests came, and how they ended: what the metrics and the status page show.

Counted where it is decided, so that no shell has to guess it from the actions.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """What has happened since the start, in requests.

    Whatever happens, `accepted` is `delivered`, `failed` and `cancelled` together with
    what is open.

    Attributes:
        refused: answered with an error instead of being accepted, by wire code.
        failed: accepted, then answered with an error, by wire code.
        cancelled: withdrawn by their client, or lost with it.

    """

    accepted: int = 0
    delivered: int = 0
    cancelled: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def expired(self) -> int:
        """Accepted, then answered that their deadline had come."""
        return self.failed["deadline_exceeded"]
