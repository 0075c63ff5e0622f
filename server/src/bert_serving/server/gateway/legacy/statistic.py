"""bert-as-service's statistic of what its clients have asked, for SHOW_STATUS: pure, bounded."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

MAX_CLIENTS = 500  # that are remembered, those heard of last
MAX_INTERVALS = 200
MAX_SIZES = 1000
ACTIVE_S = 180.0  # a client that has sent data in that time is active


@dataclass
class _Client:
    num_requests: int = 0
    last_data: float = float("-inf")


class Statistic:
    """Counts of the requests that old clients have sent."""

    def __init__(self) -> None:
        self._clients: OrderedDict[bytes, _Client] = OrderedDict()
        self._num_forgotten = 0
        self._sizes: deque[int] = deque(maxlen=MAX_SIZES)
        self._intervals: deque[float] = deque(maxlen=MAX_INTERVALS)
        self._last_data: float | None = None
        self._num_data = self._num_sys = self._num_rows = 0

    def on_command(self, identity: bytes) -> None:
        """Count a request for configuration or status."""
        self._num_sys += 1
        self._heard_of(identity)

    def on_rows(self, identity: bytes, rows: int, now: float) -> None:
        """Count a request with rows to encode."""
        self._num_data += 1
        self._num_rows += rows
        self._sizes.append(rows)
        if self._last_data is not None:
            self._intervals.append(now - self._last_data)
        self._last_data = now
        self._heard_of(identity).last_data = now

    def value(self, now: float) -> dict[str, Any]:
        """Return the numbers under bert-as-service's names."""
        clients = self._clients.values()
        return {
            "num_data_request": self._num_data,
            "num_total_seq": self._num_rows,
            "num_sys_request": self._num_sys,
            "num_total_request": self._num_data + self._num_sys,
            "num_total_client": len(clients) + self._num_forgotten,
            "num_active_client": sum(now - client.last_data < ACTIVE_S for client in clients),
            **_spread("request_per_client", [client.num_requests for client in clients]),
            **_spread("size_per_request", self._sizes),
            **_spread("last_two_interval", self._intervals),
            **_spread("request_per_second", [1 / max(s, 1e-6) for s in self._intervals]),
        }

    def _heard_of(self, identity: bytes) -> _Client:
        client = self._clients.setdefault(identity, _Client())
        self._clients.move_to_end(identity)
        client.num_requests += 1
        if len(self._clients) > MAX_CLIENTS:
            self._clients.popitem(last=False)
            self._num_forgotten += 1
        return client


def _spread(name: str, values: Collection[float]) -> dict[str, float]:
    if not values:
        return {}
    least, most = min(values), max(values)
    return {
        f"avg_{name}": sum(values) / len(values),
        f"min_{name}": least,
        f"max_{name}": most,
        f"num_min_{name}": sum(value == least for value in values),
        f"num_max_{name}": sum(value == most for value in values),
    }
