"""Every setting of the server, written once.

The command line, the environment and the configuration file are read by what stands here.
`ServerConfig` is what an operator says; `roles` has what of it each process is told.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from bert_serving.client.admin_messages import MAX_WORKERS
from bert_serving.client.view import DEFAULT_VIEW, LAYER_REDUCTIONS, View

Num = TypeVar("Num", int, float)

_ACCEPTED = "accepted for bert-as-service's sake, without effect"
_NO_HTTP = "this version does not speak HTTP yet"
_VIEW = "default view (a request may ask for another)"

DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")


def option(
    default: Any,
    group: str,
    help: str,  # noqa: A002  # argparse's own word for it
    *,
    parse: Callable[[Any], Any] | None = None,
    metavar: str | None = None,
    choices: tuple[str, ...] | None = None,
    many: bool = False,
    private: bool = False,
    aliases: tuple[str, ...] = (),
    ignored: str | None = None,
) -> Any:
    """Return a dataclass field with what the command line must know of it.

    `private` keeps it out of what clients are told; `aliases` are other names on the command
    line; `ignored` says why an option of
    bert-as-service does nothing here, which is what the log says when it is given.
    """
    metadata = {
        "group": group,
        "help": help,
        "parse": parse or _text,
        "metavar": metavar,
        "choices": choices,
        "many": many,
        "private": private,
        "aliases": aliases,
        "ignored": ignored,
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


def _number(least: int, most: float = math.inf) -> Callable[[Any], int]:
    allowed = f"a whole number, at least {least}"
    if most < math.inf:
        allowed += f" and at most {most}"
    return _in(allowed, int, lambda number: least <= number <= most)  # type: ignore[no-any-return]


_layer = _in("a whole number", int, lambda _: True)
_seconds = _in("seconds above 0", float, lambda number: number > 0)
_port = _in("0 (any free one) to 65535", int, lambda number: 0 <= number < 65536)
_fraction = _in("a number above 0, at most 1", float, lambda number: 0 < number <= 1)
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
        "Hugging Face directory or hub name, or the directory of a Google checkpoint (converted "
        "once; needs the extra tf); without it, the embedded all-MiniLM-L6-v2; "
        "fake:DIM serves made-up vectors, for tests",
        metavar="DIR",
    )
    tuned_model_dir: str | None = option(
        None, "model", "directory of fine-tuned weights, for the model of -model_dir", metavar="DIR"
    )
    ckpt_name: str = option(
        "bert_model.ckpt", "model", "name of a Google checkpoint's files", metavar="NAME"
    )
    config_name: str = option(
        "bert_config.json", "model", "name of a Google checkpoint's configuration", metavar="NAME"
    )
    num_labels: int | None = option(
        None,
        "model",
        "labels of a classification head; default: as many as the checkpoint has",
        parse=_number(1),
        metavar="N",
    )
    dtype: str = option(
        "auto",
        "model",
        "what to compute in (auto: float32 on a CPU, 16 bit on a GPU; int8: CPU only, the fastest)",
        choices=DTYPES,
    )
    fp16: bool = option(False, "model", "the same as -dtype float16")
    compile: bool = option(
        False,
        "model",
        "compile what is not hand-written, with torch.compile: slower to start, needs a C compiler",
        aliases=("xla",),
    )
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
    no_special_token: bool = option(
        False, "model", "rows that come as tokens go in as they are, without [CLS] and [SEP]"
    )
    no_position_embeddings: bool = option(
        False, "model", "add no position embeddings, for models trained without them"
    )

    pooling_layer: tuple[int, ...] = option(
        DEFAULT_VIEW.layers,
        _VIEW,
        "hidden layers, numbered as transformers' hidden_states: -1 is the last",
        parse=_layer,
        metavar="L",
        many=True,
    )
    layer_reduce: str = option(
        DEFAULT_VIEW.layer_reduce,
        _VIEW,
        "how several layers become one",
        choices=LAYER_REDUCTIONS,
    )
    pooling_strategy: str = option(
        DEFAULT_VIEW.pooling,
        _VIEW,
        "mean, max, mean_max, first, last, none (a vector a token); of the model's own heads: "
        "pooler, classification, regression, auto (as sentence-transformers has it); "
        "or bert-as-service's names: REDUCE_MEAN, REDUCE_MAX, REDUCE_MEAN_MAX, FIRST_TOKEN, "
        "CLS_TOKEN, LAST_TOKEN, SEP_TOKEN, CLS_POOLED, NONE",
        parse=_pooling,
        metavar="POOLING",
    )
    normalize: bool = option(False, _VIEW, "scale vectors to length 1")
    mask_cls_sep: bool = option(
        False,
        _VIEW,
        "leave [CLS] and [SEP] out of pooling (zero vectors under none)",
    )

    show_tokens_to_client: bool = option(
        False, _VIEW, "tell clients of bert-as-service each row's tokens; ours may always ask"
    )
    fixed_embed_length: bool = option(
        False,
        _VIEW,
        "under NONE, pad what clients of bert-as-service get to the model's own limit; "
        "ours get no padding",
    )

    num_worker: int | None = option(
        None,
        "devices",
        "worker processes; default: one a visible GPU; on a CPU, measured at the first start",
        parse=_number(1, MAX_WORKERS),
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
    gpu_memory_fraction: float | None = option(
        None,
        "devices",
        "share of a GPU's memory that a worker may take; default: what it needs",
        parse=_fraction,
        metavar="SHARE",
    )
    no_cuda_graphs: bool = option(
        False,
        "devices",
        "on a GPU, launch each operation of small batches: if CUDA graphs fail or take much memory",
    )

    host: str = option(
        "127.0.0.1",
        "network",
        "address to listen on: by default only this machine; any other needs -server_key",
        metavar="HOST",
    )
    port: int = option(
        5555,
        "network",
        "port of the native protocol; 0 for any free one",
        parse=_port,
        metavar="PORT",
        aliases=("port_in", "port_data"),
    )
    backend_port: int | None = option(
        None,
        "network",
        "port that workers on other machines (bert-serving-worker) connect to, always with keys; "
        "0 for any free one; off unless given",
        parse=_port,
        metavar="PORT",
    )
    legacy_port: int | None = option(
        None,
        "network",
        "port that clients of bert-as-service 1.10 send to; 0 for any free one; off unless given",
        parse=_port,
        metavar="PORT",
    )
    legacy_port_out: int | None = option(
        None,
        "network",
        "port that they get results from; default: the one after -legacy_port",
        parse=_port,
        metavar="PORT",
    )
    http_port: int | None = option(
        None, "network", "not served by this version yet", parse=_port, metavar="PORT"
    )
    ready_file: str | None = option(
        None,
        "network",
        "write addresses there, as JSON, from when all answers to the end",
        metavar="PATH",
    )

    server_key: str | None = option(
        None,
        "keys",
        "file with the server's secret key (bert-serving-keygen): the native port is encrypted "
        "and lets in only the keys of -client_keys",
        metavar="FILE",
        private=True,
    )
    client_keys: str | None = option(
        None,
        "keys",
        "folder with the public keys (NAME.key) that may come in; read again when it changes",
        metavar="DIR",
        private=True,
    )
    worker_keys: str | None = option(
        None,
        "keys",
        "folder with the public keys of the workers that may come in by -backend_port",
        metavar="DIR",
        private=True,
    )
    admin_keys: str | None = option(
        None,
        "keys",
        "folder with the public keys of administrators: they may come in as well, and ask what "
        "bert-serving-admin can",
        metavar="DIR",
        private=True,
    )
    allow_insecure: bool = option(
        False,
        "keys",
        "let everybody who can reach -host in by ports that are not encrypted",
    )

    priority_batch_size: int = option(
        16,
        "requests",
        "requests of at most so many rows, and 64 KiB, go first",
        parse=_number(0),
        metavar="N",
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
    max_unread_bytes: int = option(
        1 << 30,
        "requests",
        "bytes of answers that clients may leave unread; then who has most is disconnected",
        parse=_number(1024),
        metavar="N",
    )
    batch_timeout: float = option(
        120.0,
        "requests",
        "a worker that computes for longer without a sign of it is ended and replaced",
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
    log_format: str = option(
        "text",
        "logging",
        "lines on standard error: text for people, or json for what collects them",
        choices=("text", "json"),
    )

    http_max_connect: int | None = option(
        None, _ACCEPTED, "", parse=_number(1), metavar="N", ignored=_NO_HTTP
    )
    cors: str | None = option(None, _ACCEPTED, "", metavar="ORIGIN", ignored=_NO_HTTP)
    graph_tmp_dir: str | None = option(
        None, _ACCEPTED, "", metavar="DIR", ignored="no graph is written to disk any more"
    )
    prefetch_size: int | None = option(
        None,
        _ACCEPTED,
        "",
        parse=_number(0),
        metavar="N",
        ignored="a worker always has one batch waiting beside the one it computes",
    )

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


def public_settings(config: ServerConfig) -> dict[str, Any]:
    """Return the operator's options that clients may see, and whether they speak encrypted.

    Where the keys are is nothing that a client can use, and something that a thief could.
    """
    settings = {
        entry.name: getattr(config, entry.name)
        for entry in option_fields()
        if not entry.metadata["private"]
    }
    return {**settings, "encrypted": config.client_keys is not None}


def option_fields() -> list[Any]:
    """Return the fields of `ServerConfig`, each with its metadata and default."""
    return [entry for entry in fields(ServerConfig) if entry.default is not MISSING]
