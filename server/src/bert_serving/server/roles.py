"""What each role is told: a small frozen config, which travels to its process as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from bert_serving.client.view import View

from .model.loading import ReplicaConfig
from .scheduling.events import SchedulerLimits

Role = TypeVar("Role", "BrokerConfig", "WorkerConfig")


@dataclass(frozen=True, kw_only=True)
class BrokerConfig:
    """What the broker must know.

    Attributes:
        host, port: where clients connect; port 0 for any free one.
        backend: where workers connect (ipc).
        supervisor: where the supervisor listens (ipc).
        num_worker: workers to expect before the server is ready.
        limits: the scheduler's.
        max_request_bytes: of one frame; a peer that sends more is disconnected.
        default_view: for the welcome.
        settings: the operator's options, for the status.
        verbose: log more.

    """

    host: str
    port: int
    backend: str
    supervisor: str
    num_worker: int
    limits: SchedulerLimits
    max_request_bytes: int
    default_view: View
    settings: dict[str, Any]
    verbose: bool

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BrokerConfig:
        """Return the config that `asdict` and JSON took apart."""
        values["limits"] = SchedulerLimits(**values["limits"])
        values["default_view"] = _view(values["default_view"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What one worker must know.

    Attributes:
        worker_id: its number, kept when it is replaced.
        backend: where the broker listens (ipc).
        replica: what to load.
        cores: the CPU cores it may run on; empty for all.
        default_view: fills the open fields of a request's view.
        max_batch_size: rows a batch, at most; None leaves it to the tokens.
        verbose: log more.

    """

    worker_id: int
    backend: str
    replica: ReplicaConfig
    cores: tuple[int, ...]
    default_view: View
    max_batch_size: int | None
    verbose: bool

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WorkerConfig:
        """Return the config that `asdict` and JSON took apart."""
        values["replica"] = ReplicaConfig(**values["replica"])
        values["default_view"] = _view(values["default_view"])
        values["cores"] = tuple(values["cores"])
        return cls(**values)


def to_json(config: BrokerConfig | WorkerConfig) -> str:
    """Return a role's config as one line of JSON."""
    return json.dumps(asdict(config))


def from_json(role: type[Role], text: str) -> Role:
    """Return a role's config from what `to_json` wrote."""
    return role.from_dict(json.loads(text))


def _view(values: dict[str, Any]) -> View:
    return View.parse(values)
