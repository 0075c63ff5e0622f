"""What the broker knows of its workers, and what it tells clients of them."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import zmq

from bert_serving.client.messages import MAX_ROWS, Limits, Welcome
from bert_serving.client.rows import MAX_ROWS_BYTES

from .clients import Clients
from .groups import Groups
from .roles import BrokerConfig
from .scheduling.scheduler import Scheduler
from .version import __version__

MAX_ROWS_A_REQUEST = 256  # beyond that a larger request is not cheaper a row any more
TOKENS_A_ROW = 16  # of a short sentence: what a request's rows are reckoned at
BYTES_A_TOKEN = 8  # generous: Latin script has about 4
SHAPE = ("hidden_size", "num_layers", "max_length", "head_sizes")
LEAST_ROWS = 16  # of a request of a large call: below, the way there and back tells
MAX_WINDOW = 256  # full requests that a client may have unanswered
BATCHES_IN_FLIGHT = 6  # a worker has two in hand; the others hide the way there and back


@dataclass
class WorkerRecord:
    """One life of a worker."""

    id: int
    pid: int
    host: str
    device: str
    state: str = "starting"
    max_batch_tokens: int = 0
    model: Mapping[str, Any] = field(default_factory=dict)


class Roster:
    """The workers by route, and the words about them: welcome and status."""

    def __init__(self, config: BrokerConfig) -> None:
        self._config = config
        self._num_worker = config.num_worker
        self._settings = config.settings
        self._retired: set[bytes] = set()
        self._records: dict[bytes, WorkerRecord] = {}
        self._started = time.time()
        self._model: Mapping[str, Any] = config.model
        self._budget = 0

    def add(self, route: bytes, header: Mapping[str, Any]) -> None:
        """Note a worker that has begun to load its model."""
        self._records[route] = WorkerRecord(
            id=header["worker"], pid=header["pid"], host=header["host"], device=header["device"]
        )

    def misfit(self, model: Mapping[str, Any]) -> str | None:
        """Say why a model can't be served beside the one that is; None if it can.

        What clients have been told of the model's shape holds for all workers at all times.
        """
        for name in SHAPE if self._model else ():
            if model.get(name) != self._model.get(name):
                return (
                    f"{model.get('name')} has another shape than {self._model.get('name')}, which "
                    f"is served: {name} {model.get(name)} instead of {self._model.get(name)}"
                )
        return None

    def mark_ready(self, route: bytes, header: Mapping[str, Any]) -> WorkerRecord:
        """Note a worker that can compute; a broker that is new may not have heard of it yet."""
        if route not in self._records:
            self.add(route, header)
        record = self._records[route]
        record.state = "retiring" if route in self._retired else "ready"
        record.max_batch_tokens = self._budget = header["max_batch_tokens"]
        record.model = self._model = header["model"]
        return record

    def retire(self, route: bytes) -> None:
        """Note that a worker, which may not be known yet, is to get no more batches."""
        self._retired.add(route)
        if route in self._records:
            self._records[route].state = "retiring"

    def is_retired(self, route: bytes) -> bool:
        """Whether a worker is to get no more batches."""
        return route in self._retired

    def remove(self, route: bytes) -> None:
        """Forget a worker that is gone."""
        self._records.pop(route, None)
        self._retired.discard(route)

    def set(self, num_worker: int, settings: Mapping[str, Any]) -> None:
        """Note what was changed since the start."""
        self._num_worker, self._settings = num_worker, dict(settings)

    def __contains__(self, route: bytes) -> bool:
        return route in self._records

    def __iter__(self) -> Any:
        return iter(self._records)

    @property
    def model(self) -> Mapping[str, Any]:
        """The model that is served; empty before a worker has told it."""
        return self._model

    @property
    def num_ready(self) -> int:
        """How many workers can compute."""
        return sum(record.state == "ready" for record in self._records.values())

    def state(self, *, is_draining: bool) -> str:
        """Return the server's state in one word."""
        if is_draining:
            return "draining"
        return "ready" if self.num_ready else "starting"

    def limits(self) -> Limits:
        """Return how clients should cut: requests about as large as what a worker takes.

        A request that fills a worker's budget costs the least per row; more in flight
        than the workers can hold would only wait here instead of there. The parts of a large
        call must not be taken for small requests, however little a slow worker takes, or how
        many share it.
        """
        most = min(self._config.max_request_bytes, MAX_ROWS_BYTES)
        if not self._budget:
            return Limits(max_bytes=min(Limits.max_bytes, most), max_request_bytes=most)
        share = _share(self._config)
        a_part = max(2 * self._config.limits.priority_batch_size, LEAST_ROWS)
        max_rows = min(max(self._budget // TOKENS_A_ROW, a_part), _most_rows(self._config), share)
        max_bytes = max(max_rows * TOKENS_A_ROW * BYTES_A_TOKEN, 4096)
        a_batch = max(self._budget / (max_rows * TOKENS_A_ROW), 1)
        window = int(BATCHES_IN_FLIGHT * a_batch * self._num_worker) + 1
        window = min(window, share // max_rows, MAX_WINDOW)
        return Limits(
            max_rows=max_rows,
            max_bytes=min(max_bytes, most),
            window=window,
            max_request_bytes=most,
            workers=max(self._num_worker, self.num_ready),  # other machines' compute as well
            min_rows=min(self._config.limits.priority_batch_size + 1, max_rows),
        )

    def welcome(self, *, is_draining: bool, connection: str = "") -> Welcome:
        """Return the answer to a hello that came by a connection."""
        return Welcome(
            server=f"bert-serving-server {__version__}",
            state=self.state(is_draining=is_draining),
            limits=self.limits(),
            default_view=self._config.default_view,
            model=self._model,
            connection=connection,
        )

    def status(self, scheduler: Scheduler, clients: Clients, groups: Groups) -> dict[str, Any]:
        """Return the answer to a status request: bert-as-service's fields, and our own."""
        counters, num_clients = scheduler.counters, clients.count()
        refused, failed = dict(counters.refused), dict(counters.failed)
        return {
            **self._settings,
            "state": self.state(is_draining=scheduler.is_draining),
            "workers": [_status(record) for record in self._sorted()],
            "model": dict(self._model),
            "default_view": self._config.default_view.to_wire(),
            "status": 200,
            "server_version": __version__,
            "server_start_time": _timestamp(self._started),
            "server_current_time": _timestamp(time.time()),
            "python_version": platform.python_version(),
            "pyzmq_version": zmq.pyzmq_version(),
            "zmq_version": zmq.zmq_version(),
            "num_concurrent_socket": num_clients,
            "statistic": {
                "num_active_client": num_clients,
                "num_total_request": counters.accepted + sum(refused.values()),
                "num_data_request": counters.accepted,
                "num_delivered": counters.delivered,
                "num_cancelled": counters.cancelled,
                "num_groups": groups.num_groups,
                "num_members": groups.num_members,
                "num_refused": refused,
                "num_failed": failed,
                "queued_requests": scheduler.queued_requests,
                "queued_rows": scheduler.queued_rows,
                "queued_bytes": scheduler.queued_bytes,
                "requests_in_hand": scheduler.requests_in_hand,
                "unread_bytes": clients.unread_bytes,
            },
        }

    def _sorted(self) -> list[WorkerRecord]:
        return sorted(self._records.values(), key=lambda record: record.id)


def most_unanswered(config: BrokerConfig) -> int:
    """Return how many requests a client may have unanswered by any limits that it can be told."""
    rows = min(MAX_WINDOW * _most_rows(config), _share(config))  # of which each may have one
    return max(rows, Limits.window * Limits.max_rows)


def _most_rows(config: BrokerConfig) -> int:
    return min(config.settings["max_batch_size"] or MAX_ROWS_A_REQUEST, MAX_ROWS)


def _share(config: BrokerConfig) -> int:
    """Return how many rows one client may hold."""
    return max(config.limits.max_queue_rows // 2, 1)


def _status(record: WorkerRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "pid": record.pid,
        "host": record.host,
        "device": record.device,
        "state": record.state,
        "max_batch_tokens": record.max_batch_tokens,
    }


def _timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S%z", time.localtime(seconds))
