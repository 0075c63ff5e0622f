"""Every setting of the server, written once.

The command line, the environment and the configuration file are read by what stands here.
`ServerConfig` is what an operator says; each role gets a smaller config of its own,
which travels to its process as JSON.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, TypeVar

from bert_serving.client.view import DEFAULT_VIEW, LAYER_REDUCTIONS, View

from .model.loading import ReplicaConfig
from .scheduling.events import SchedulerLimits

Role = TypeVar("Role", "BrokerConfig", "WorkerConfig")
Num = TypeVar("Num", int, float)

DTYPES = ("auto", "float32", "bfloat16", "float16")


def option(
    default: Any,
    group: str,
    help: str,  # noqa: A002  # argparse's own word for it
    *,
    parse: Callable[[Any], Any] | None = None,
    metavar: str | None = None,
    choices: tuple[str, ...] | None = None,
    many: bool = False,
) -> Any:
    """Return a dataclass field with what the command line must know of it."""
    metadata = {
        "group": group,
        "help": help,
        "parse": parse or _text,
        "metavar": metavar,
        "choices": choices,
        "many": many,
    }
    return field(default=default, metadata=metadata)


def _in(allowed: str, convert: Callable[[Any], Num], check: Callable[[Num], bool]) -> Any:
    """Return a parser of numbers whose only error says what is allowed."""

    def parse(value: Any) -> Num:
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            number = convert(value)
            # a file's own true, and 1.5 for a whole number, convert too
            is_meant = type(value) is not bool and (type(value) is str or number == value)
            if is_meant and check(number):
                return number
        raise ValueError(f"expected {allowed}")

    return parse


def _number(least: int) -> Callable[[Any], int]:
    allowed = f"a whole number, at least {least}"
    return _in(allowed, int, lambda number: number >= least)  # type: ignore[no-any-return]


_layer = _in("a whole number", int, lambda _: True)
_seconds = _in("seconds above 0", float, lambda number: number > 0)
_port = _in("0 (any free one) to 65535", int, lambda number: 0 <= number < 65536)
_tokens = _in("a whole number, at least 4, or NONE", int, lambda number: number >= 4)


def _number_or_none(value: Any) -> int | None:
    return None if str(value).upper() == "NONE" else _tokens(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a text")
    return value


def _pooling(value: Any) -> str:
    return str(View.parse({"pooling": value}).pooling)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What `bert-serving-start` can be told; each field is an option of the same name."""

    model_dir: str | None = option(
        None,
        "model",
        "Hugging Face directory or hub name; without it, the embedded all-MiniLM-L6-v2; "
        "fake:DIM serves made-up vectors, for tests",
        metavar="DIR",
    )
    dtype: str = option(
        "auto", "model", "what to compute in (auto: float32 on a CPU, 16 bit on a GPU)",
        choices=DTYPES,
    )  # fmt: skip
    fp16: bool = option(False, "model", "the same as -dtype float16")
    max_seq_len: int | None = option(
        None,
        "model",
        "most tokens a row may have, special ones included; longer rows are cut and reported; "
        "NONE is the model's own limit",
        parse=_number_or_none,
        metavar="N",
    )
    cased_tokenization: bool = option(
        False, "model", "do not lower-case; the default is as the model's tokenizer files say"
    )

    pooling_layer: tuple[int, ...] = option(
        DEFAULT_VIEW.layers,
        "default view (a request may ask for another)",
        "hidden layers, numbered as transformers' hidden_states: -1 is the last",
        parse=_layer,
        metavar="L",
        many=True,
    )
    layer_reduce: str = option(
        DEFAULT_VIEW.layer_reduce,
        "default view (a request may ask for another)",
        "how several layers become one",
        choices=LAYER_REDUCTIONS,
    )
    pooling_strategy: str = option(
        DEFAULT_VIEW.pooling,
        "default view (a request may ask for another)",
        "mean, max, mean_max, first, last, none (a vector a token), or bert-as-service's names: "
        "REDUCE_MEAN, REDUCE_MAX, REDUCE_MEAN_MAX, FIRST_TOKEN, CLS_TOKEN, LAST_TOKEN, SEP_TOKEN, "
        "NONE",
        parse=_pooling,
        metavar="POOLING",
    )
    normalize: bool = option(
        False, "default view (a request may ask for another)", "scale vectors to length 1"
    )
    mask_cls_sep: bool = option(
        False,
        "default view (a request may ask for another)",
        "leave [CLS] and [SEP] out of pooling (zero vectors under none)",
    )

    num_worker: int | None = option(
        None,
        "devices",
        "worker processes; default: one a visible GPU, or one for all CPU cores",
        parse=_number(1),
        metavar="N",
    )
    cpu: bool = option(False, "devices", "compute on the CPU even where there is a GPU")
    device_map: tuple[int, ...] = option(
        (),
        "devices",
        "the GPUs to use, by number; several workers may share one",
        parse=_number(0),
        metavar="GPU",
        many=True,
    )
    num_threads: int | None = option(
        None,
        "devices",
        "CPU threads a worker computes with; default: its share of the cores",
        parse=_number(1),
        metavar="N",
    )
    max_batch_tokens: int | None = option(
        None,
        "devices",
        "tokens a worker computes at a time; default: measured at start",
        parse=_number(16),
        metavar="N",
    )
    max_batch_size: int | None = option(
        None,
        "devices",
        "rows a worker takes at a time, at most; default: only -max_batch_tokens limits it",
        parse=_number(1),
        metavar="N",
    )

    host: str = option(
        "127.0.0.1", "network", "address to listen on: by default only this machine", metavar="HOST"
    )
    port: int = option(
        5555, "network", "port of the native protocol; 0 for any free one", parse=_port,
        metavar="PORT",
    )  # fmt: skip
    ready_file: str | None = option(
        None, "network", "write addresses there, as JSON, when everything answers", metavar="PATH"
    )

    priority_batch_size: int = option(
        16, "requests", "requests of at most so many rows go first", parse=_number(0), metavar="N"
    )
    max_queue_rows: int = option(
        1 << 20, "requests", "rows that may wait; more are refused", parse=_number(1), metavar="N"
    )
    max_queue_bytes: int = option(
        256 << 20, "requests", "bytes that may wait; more are refused", parse=_number(1024),
        metavar="N",
    )  # fmt: skip
    max_request_bytes: int = option(
        16 << 20, "requests", "bytes of one request, at most", parse=_number(1024), metavar="N"
    )
    batch_timeout: float = option(
        120.0,
        "requests",
        "a worker that computes one batch for longer is ended and replaced",
        parse=_seconds,
        metavar="SECONDS",
    )
    drain_timeout: float = option(
        30.0,
        "requests",
        "how long a stopping server works off what it has accepted",
        parse=_seconds,
        metavar="SECONDS",
    )

    verbose: bool = option(False, "logging", "log more")

    @property
    def default_view(self) -> View:
        """What an open field of a request's view means."""
        return View(
            layers=self.pooling_layer,
            layer_reduce=self.layer_reduce,
            pooling=self.pooling_strategy,
            normalize=self.normalize,
            dtype=DEFAULT_VIEW.dtype,
        )


def option_fields() -> list[Any]:
    """Return the fields of `ServerConfig`, each with its metadata and default."""
    return [entry for entry in fields(ServerConfig) if entry.default is not MISSING]


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
