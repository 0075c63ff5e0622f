"""What each role is told: a small frozen config, which travels to its process as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias, TypeVar

from bert_serving.client.view import View

from .config import ServerConfig, public_settings
from .control import Addresses
from .devices import Placement
from .listening_ports import legacy_port_out
from .model.loading import ReplicaConfig
from .scheduling.events import SchedulerLimits

Role = TypeVar("Role", "BrokerConfig", "WorkerConfig", "LegacyConfig")


@dataclass(frozen=True, kw_only=True)
class DoorConfig:
    """The keys of one door.

    Attributes:
        server_key: the file with the server's secret key; only its path travels.
        allowed: the folder with the public keys that may come in.
        administrators: the folder with those that may come in and change the server, if any may.

    """

    server_key: str
    allowed: str
    administrators: str | None = None


@dataclass(frozen=True, kw_only=True)
class BrokerConfig:
    """What the broker must know.

    Attributes:
        host, port: where clients connect; port 0 for any free one.
        backend: where workers connect (ipc).
        frontend: where gateways connect, as clients (ipc).
        door: the keys of the clients' port; None lets in who can reach it.
        backend_port: where workers on other machines connect; None for nowhere.
        backend_door: the keys of that port.
        supervisor: where the supervisor listens (ipc).
        num_worker: workers to expect before the server is ready.
        limits: the scheduler's.
        max_request_bytes: of one frame; a peer that sends more is disconnected.
        max_unread_bytes: of answers that wait for clients to read them; beyond it the client
            that most wait for is disconnected.
        default_view: for the welcome.
        settings: the operator's options, for the status.
        model: what the workers of an earlier broker have served, which later ones must fit.
        verbose: log more.
        log_format: text or json.

    """

    host: str
    port: int
    backend: str
    frontend: str
    door: DoorConfig | None
    backend_port: int | None
    backend_door: DoorConfig | None
    supervisor: str
    num_worker: int
    limits: SchedulerLimits
    max_request_bytes: int
    max_unread_bytes: int
    default_view: View
    settings: dict[str, Any]
    verbose: bool
    log_format: str = "text"
    model: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BrokerConfig:
        """Return the config that `asdict` and JSON took apart."""
        values["limits"] = SchedulerLimits(**values["limits"])
        values["default_view"] = _view(values["default_view"])
        for name in ("door", "backend_door"):
            if values[name] is not None:
                values[name] = DoorConfig(**values[name])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """What a worker on another machine than its broker needs, beside the broker's address.

    Attributes:
        server_key: the file with the server's public key, or its characters.
        worker_cert: the file with the worker's own secret key.

    """

    server_key: str
    worker_cert: str


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What one worker must know.

    Attributes:
        worker_id: its number, kept when it is replaced.
        backend: where the broker listens (ipc; tcp for a worker on another machine).
        replica: what to load.
        cores: the CPU cores it may run on; empty for all.
        default_view: fills the open fields of a request's view.
        max_batch_size: rows a batch, at most; None leaves it to the tokens.
        verbose: log more.
        log_format: text or json.
        overlap: read batches and send answers while the device computes; None for yes where
            the device is not a CPU.
        remote: the keys of a worker on another machine; None for one on the broker's.

    """

    worker_id: int
    backend: str
    replica: ReplicaConfig
    cores: tuple[int, ...]
    default_view: View
    max_batch_size: int | None
    verbose: bool
    log_format: str = "text"
    overlap: bool | None = None
    remote: RemoteConfig | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WorkerConfig:
        """Return the config that `asdict` and JSON took apart."""
        values["replica"] = ReplicaConfig(**values["replica"])
        values["default_view"] = _view(values["default_view"])
        values["cores"] = tuple(values["cores"])
        if values["remote"] is not None:
            values["remote"] = RemoteConfig(**values["remote"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class LegacyConfig:
    """What the gateway for clients of bert-as-service must know.

    Attributes:
        host: where these clients connect.
        port: the port they send to; 0 for any free one.
        port_out: the port they get results from; 0 for any free one.
        broker: where the broker listens for gateways (ipc).
        native_port: its port for clients.
        supervisor: where the supervisor listens (ipc).
        show_tokens: tell them each row's tokens.
        pads_to_limit: under pooling none, every row is padded to the longest that there can
            be, not to the longest of its request.
        verbose: log more.
        log_format: text or json.

    """

    host: str
    port: int
    port_out: int
    broker: str
    native_port: int
    supervisor: str
    show_tokens: bool
    pads_to_limit: bool
    verbose: bool
    log_format: str = "text"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LegacyConfig:
        """Return the config that `asdict` and JSON took apart."""
        return cls(**values)


RoleConfig: TypeAlias = BrokerConfig | WorkerConfig | LegacyConfig


def broker_config(config: ServerConfig, addresses: Addresses, num_worker: int) -> BrokerConfig:
    """Return what of the operator's options the broker is told."""
    return BrokerConfig(
        host=config.host,
        port=config.port,
        backend=addresses.backend,
        frontend=addresses.frontend,
        door=_door(config.server_key, config.client_keys, config.admin_keys),
        backend_port=config.backend_port,
        backend_door=_door(config.server_key, config.worker_keys),
        supervisor=addresses.supervisor,
        num_worker=num_worker,
        limits=SchedulerLimits(
            max_queue_rows=config.max_queue_rows,
            max_queue_bytes=config.max_queue_bytes,
            priority_batch_size=config.priority_batch_size,
            batch_timeout_s=config.batch_timeout,
        ),
        max_request_bytes=config.max_request_bytes,
        max_unread_bytes=config.max_unread_bytes,
        default_view=config.default_view,
        settings={**public_settings(config), "num_worker": num_worker},
        verbose=config.verbose,
        log_format=config.log_format,
    )


def _door(
    server_key: str | None, allowed: str | None, administrators: str | None = None
) -> DoorConfig | None:
    if server_key is None or allowed is None:
        return None
    return DoorConfig(server_key=server_key, allowed=allowed, administrators=administrators)


def worker_config(
    config: ServerConfig, addresses: Addresses, number: int, placement: Placement
) -> WorkerConfig:
    """Return what of the operator's options a worker is told."""
    return WorkerConfig(
        worker_id=number,
        backend=addresses.backend,
        replica=ReplicaConfig(
            model_dir=config.model_dir,
            dtype="float16" if config.fp16 else config.dtype,
            device=placement.device,
            num_threads=placement.num_threads,
            max_batch_tokens=config.max_batch_tokens,
            max_seq_len=config.max_seq_len,
            mask_cls_sep=config.mask_cls_sep,
            lower_case=False if config.cased_tokenization else None,
            tuned_model_dir=config.tuned_model_dir,
            ckpt_name=config.ckpt_name,
            config_name=config.config_name,
            num_labels=config.num_labels,
            no_special_token=config.no_special_token,
            no_position_embeddings=config.no_position_embeddings,
            as_sentence_transformers=config.pooling_strategy == "auto",
            compile=config.compile,
            gpu_memory_fraction=config.gpu_memory_fraction,
            no_cuda_graphs=config.no_cuda_graphs,
        ),
        cores=placement.cores,
        default_view=config.default_view,
        max_batch_size=config.max_batch_size,
        verbose=config.verbose,
        log_format=config.log_format,
    )


def legacy_config(
    config: ServerConfig, addresses: Addresses, port: int, native: str
) -> LegacyConfig:
    """Return what of the operator's options the gateway for old clients is told.

    Args:
        config: the operator's options.
        addresses: of this server.
        port: its -legacy_port.
        native: the address that the broker listens on for clients.

    """
    return LegacyConfig(
        host=config.host,
        port=port,
        port_out=legacy_port_out(config),
        broker=addresses.frontend,
        native_port=port_of(native),
        supervisor=addresses.supervisor,
        show_tokens=config.show_tokens_to_client,
        pads_to_limit=config.fixed_embed_length or config.max_seq_len is not None,
        verbose=config.verbose,
        log_format=config.log_format,
    )


def to_json(config: RoleConfig) -> str:
    """Return a role's config as one line of JSON."""
    return json.dumps(asdict(config))


def from_json(role: type[Role], text: str) -> Role:
    """Return a role's config from what `to_json` wrote."""
    return role.from_dict(json.loads(text))


def _view(values: dict[str, Any]) -> View:
    return View.parse(values)


def port_of(address: str) -> int:
    """Return the port in an address such as tcp://127.0.0.1:5555."""
    return int(address.rpartition(":")[2])
