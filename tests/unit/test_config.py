"""Options: from the command line, the environment, a file and the defaults, in that order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bert_serving.client.view import View
from bert_serving.server.certificates import pair_files, write_pair
from bert_serving.server.cli import worker
from bert_serving.server.cli.options import get_args_parser, parse_args
from bert_serving.server.config import ServerConfig, option_fields
from bert_serving.server.model.loading import ReplicaConfig
from bert_serving.server.roles import (
    BrokerConfig,
    DoorConfig,
    RemoteConfig,
    WorkerConfig,
    from_json,
    to_json,
)
from bert_serving.server.scheduling.events import SchedulerLimits

VALUES: dict[str, tuple[list[str], Any]] = {
    "model_dir": (["/a/model"], "/a/model"),
    "dtype": (["bfloat16"], "bfloat16"),
    "max_seq_len": (["40"], 40),
    "pooling_layer": (["-1", "-2"], (-1, -2)),
    "layer_reduce": (["mean"], "mean"),
    "pooling_strategy": (["REDUCE_MEAN_MAX"], "mean_max"),
    "num_worker": (["3"], 3),
    "tuned_model_dir": (["/models/tuned"], "/models/tuned"),
    "ckpt_name": (["model.ckpt-100"], "model.ckpt-100"),
    "config_name": (["config.json"], "config.json"),
    "num_labels": (["3"], 3),
    "legacy_port": (["5555"], 5555),
    "legacy_port_out": (["5556"], 5556),
    "gpu_memory_fraction": (["0.5"], 0.5),
    "http_max_connect": (["10"], 10),
    "cors": (["*"], "*"),
    "graph_tmp_dir": (["/tmp"], "/tmp"),
    "prefetch_size": (["10"], 10),
    "device_map": (["0", "1", "4"], (0, 1, 4)),
    "num_threads": (["2"], 2),
    "max_batch_tokens": (["512"], 512),
    "max_batch_size": (["64"], 64),
    "host": (["::1"], "::1"),
    "port": (["0"], 0),
    "server_key": (["/k/server.key_secret"], "/k/server.key_secret"),
    "client_keys": (["/k/clients"], "/k/clients"),
    "admin_keys": (["/k/admins"], "/k/admins"),
    "worker_keys": (["/k/workers"], "/k/workers"),
    "backend_port": (["0"], 0),
    "ready_file": (["/tmp/ready"], "/tmp/ready"),
    "priority_batch_size": (["0"], 0),
    "max_queue_rows": (["100"], 100),
    "max_queue_bytes": (["2048"], 2048),
    "max_request_bytes": (["4096"], 4096),
    "max_unread_bytes": (["8192"], 8192),
    "batch_timeout": (["0.5"], 0.5),
    "drain_timeout": (["2"], 2.0),
    "log_format": (["json"], "json"),
}
FLAGS = [entry.name for entry in option_fields() if entry.default is False]


def parsed(*argv: str, **environment: str) -> ServerConfig:
    return parse_args(argv, environment)


def refused(capsys: pytest.CaptureFixture[str], *argv: str, **environment: str) -> str:
    """Return the message that options are refused with."""
    with pytest.raises(SystemExit) as ended:
        parse_args(argv, environment)
    assert ended.value.code == 2
    return capsys.readouterr().err


def toml(folder: Path, text: str) -> str:
    path = folder / "server.toml"
    path.write_text(text)
    return str(path)


def test_without_options_every_default_holds() -> None:
    assert parsed() == ServerConfig()
    view = View(layers=(-2,), layer_reduce="concat", pooling="mean", normalize=False)
    assert parsed().default_view == View(**{**vars(view), "dtype": "float32"})


def test_every_option_is_tried_here() -> None:
    refused_yet = {"http_port"}
    assert {entry.name for entry in option_fields()} - refused_yet == VALUES.keys() | set(FLAGS)


@pytest.mark.parametrize("name", VALUES)
def test_an_option_can_be_given_in_both_spellings(name: str) -> None:
    words, value = VALUES[name]
    assert getattr(parsed(f"-{name}", *words), name) == value
    assert getattr(parsed(f"--{name.replace('_', '-')}", *words), name) == value


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_can_be_given_in_both_spellings(name: str) -> None:
    assert getattr(parsed(), name) is False
    assert getattr(parsed(f"-{name}"), name) is True
    assert getattr(parsed(f"--{name.replace('_', '-')}"), name) is True


@pytest.mark.parametrize("name", VALUES)
def test_an_option_can_come_from_the_environment(name: str) -> None:
    words, value = VALUES[name]
    for text in {" ".join(words), ",".join(words)}:
        assert getattr(parsed(**{f"BERT_SERVING_{name.upper()}": text}), name) == value


@pytest.mark.parametrize("name", VALUES)
def test_an_option_can_come_from_a_file(name: str, tmp_path: Path) -> None:
    value = VALUES[name][1]
    text = f"{list(value)}" if isinstance(value, tuple) else repr(value)
    for spelling in (name, name.replace("_", "-")):
        path = toml(tmp_path, f"{spelling} = {text}")
        assert getattr(parsed("--config", path), name) == value
        assert getattr(parsed(BERT_SERVING_CONFIG=path), name) == value


@pytest.mark.parametrize(
    ("word", "value"), [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("off", False)]
)
def test_a_flag_in_the_environment_is_a_word(word: str, value: bool) -> None:
    assert parsed(BERT_SERVING_NORMALIZE=word).normalize is value


def test_the_command_line_wins_over_the_environment_over_the_file_over_the_default(
    tmp_path: Path,
) -> None:
    path = toml(tmp_path, "port = 1\nhost = 'file'\nnum_worker = 7\nnormalize = true")
    config = parsed(
        *("-port", "3", "-config", path),
        BERT_SERVING_PORT="2",
        BERT_SERVING_HOST="environment",
        BERT_SERVING_NORMALIZE="false",
    )
    assert (config.port, config.host, config.num_worker) == (3, "environment", 7)
    assert config.normalize is False
    assert config.max_batch_size == ServerConfig().max_batch_size


def test_what_else_is_in_the_environment_is_no_option() -> None:
    assert parsed(PORT="1", BERT_SERVING_COLOUR="red", BERT_SERVINGPORT="2") == ServerConfig()


@pytest.mark.parametrize("name", [*VALUES, *FLAGS, "config"])
def test_an_environment_variable_without_text_is_as_none(name: str, tmp_path: Path) -> None:
    path = toml(tmp_path, "port = 1\nnormalize = true")
    file = {"BERT_SERVING_CONFIG": path} if name != "config" else {}
    assert parsed(**file, **{f"BERT_SERVING_{name.upper()}": ""}) == parsed(**file)


@pytest.mark.parametrize("name", ["port", "backend_port", "legacy_port", "http_port"])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_what_kubernetes_says_of_a_service_is_no_port(name: str, protocol: str) -> None:
    link = f"{protocol}://10.0.0.1:5555"
    environment = {
        f"BERT_SERVING_{name.upper()}": link,
        f"BERT_SERVING_{name.upper()}_5555_TCP": link,
        "BERT_SERVING_SERVICE_HOST": "10.0.0.1",
    }
    assert parsed(**environment) == ServerConfig()


def test_max_seq_len_none_is_the_models_own() -> None:
    assert parsed("-max_seq_len", "NONE").max_seq_len is None
    assert parsed("-max_seq_len", "none").max_seq_len is None


BAD_VALUES = [
    ("dtype", "int4", "float32"),
    ("layer_reduce", "max", "concat"),
    ("pooling_strategy", "median", "mean_max"),
    ("pooling_layer", "last", "whole number"),
    ("max_seq_len", "3", "at least 4, or NONE"),
    ("max_seq_len", "many", "at least 4, or NONE"),
    ("num_worker", "0", "at least 1"),
    ("num_worker", "two", "at least 1"),
    ("num_worker", "1025", "at least 1 and at most 1024"),
    ("device_map", "-1", "at least 0"),
    ("device_map", "gpu", "at least 0"),
    ("num_threads", "0", "at least 1"),
    ("max_batch_tokens", "15", "at least 16"),
    ("max_batch_size", "1.5", "at least 1"),
    ("port", "65536", "0 (any free one) to 65535"),
    ("port", "-1", "0 (any free one) to 65535"),
    ("port", "http", "0 (any free one) to 65535"),
    ("priority_batch_size", "-1", "at least 0"),
    ("max_queue_rows", "0", "at least 1"),
    ("max_queue_bytes", "1000", "at least 1024"),
    ("max_request_bytes", "16M", "at least 1024"),
    ("batch_timeout", "0", "seconds above 0"),
    ("batch_timeout", "soon", "seconds above 0"),
    ("drain_timeout", "nan", "seconds above 0"),
]


@pytest.mark.parametrize(("name", "text", "allowed"), BAD_VALUES)
def test_a_bad_value_is_refused_with_what_is_allowed(
    name: str, text: str, allowed: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    variable = f"BERT_SERVING_{name.upper()}"
    many = name in ("device_map", "pooling_layer")
    path = toml(tmp_path, f"{name} = " + (f"[{text!r}]" if many else repr(text)))
    for message, where in (
        (refused(capsys, f"-{name}", text), f"-{name}"),
        (refused(capsys, **{variable: text}), variable),
        (refused(capsys, "--config", path), f"{path}: {name}"),
    ):
        assert where in message
        assert text in message
        assert allowed in message


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("port = true", "0 (any free one) to 65535"),
        ("port = 5555.5", "0 (any free one) to 65535"),
        ("num_worker = 1.5", "at least 1"),
        ("num_worker = false", "at least 1"),
        ("num_worker = 1e30", "at most 1024"),
        ("pooling_layer = 1.5", "whole number"),
        ("pooling_layer = []", "a list"),
        ("pooling_layer = [true]", "whole number"),
        ("normalize = 2", "true or false"),
        ("model_dir = 5", "text"),
        ("host = ['a']", "text"),
        ("colour = 'red'", "there is no option 'colour'; known: model_dir"),
        ("port = ", "port"),
        ("[server]\nport = 1", "there is no option 'server'"),
    ],
)
def test_a_bad_line_of_a_file_is_refused_with_what_is_allowed(
    line: str, allowed: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = toml(tmp_path, line)
    message = refused(capsys, "--config", path)
    assert path in message
    assert allowed in message


def test_one_value_of_a_list_needs_no_brackets_in_a_file(tmp_path: Path) -> None:
    assert parsed("--config", toml(tmp_path, "pooling_layer = -1")).pooling_layer == (-1,)


def test_a_file_that_is_not_there_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "none.toml")
    assert f"{path}: " in refused(capsys, "--config", path)
    assert f"{path}: " in refused(capsys, BERT_SERVING_CONFIG=path)


def test_a_file_that_is_not_utf_8_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "server.toml"
    path.write_bytes("port = 1  # für uns".encode("latin-1"))
    message = refused(capsys, "--config", str(path))
    assert f"{path}: " in message
    assert "utf-8" in message


@pytest.mark.parametrize("argv", [("-colour", "red"), ("stray",), ("-por", "1"), ("--fp",)])
def test_what_is_no_option_is_refused(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert argv[0] in refused(capsys, *argv)


@pytest.mark.parametrize("name", ["-port_out", "--port-out", "-port_result"])
def test_port_out_is_refused_with_advice(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "-port", "5555", name, "5556")
    assert "there is only one port now, -port" in message
    assert "Leave -port_out out" in message


def test_port_out_beside_a_legacy_port_is_that_ones_other_half() -> None:
    config = parsed("-legacy_port", "5555", "-port", "0", "-port_out", "5556")
    assert (config.legacy_port, config.legacy_port_out) == (5555, 5556)
    config = parsed("-legacy_port", "1", "-legacy_port_out", "2", "-port_out", "3")
    assert config.legacy_port_out == 2


def test_http_is_refused_as_long_as_it_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not speak HTTP yet" in refused(capsys, "-http_port", "8125")


def test_bert_as_services_other_names_are_the_same_options() -> None:
    for name in ("-port_in", "-port_data", "--port-in"):
        assert parsed(name, "7").port == 7
    assert parsed("-xla").compile


def test_fp16_is_the_same_as_dtype_float16(capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed("-fp16").fp16
    assert parsed("-fp16", "-dtype", "float16").fp16
    assert "contradict" in refused(capsys, "-fp16", "-dtype", "bfloat16")


def test_the_help_text_names_every_option_and_its_default() -> None:
    text = get_args_parser().format_help()
    for entry in option_fields():
        assert f"-{entry.name}" in text
        assert f"--{entry.name.replace('_', '-')}" in text
    assert "(default: 5555)" in " ".join(text.split())


def test_a_worker_elsewhere_is_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = worker.get_parser().format_help()
    assert "-device_map" in text
    assert "-num_worker" not in text
    files = pair_files("w", tmp_path, tmp_path)
    write_pair("w", files)
    keys = ("-server_key", str(files.public), "-worker_cert", str(files.secret))
    with pytest.raises(SystemExit) as ended:
        worker.main(["-server", "tcp://h:1", *keys, "-device_map", "0", "1"])
    assert ended.value.code == 2
    assert "-device_map 0 1: this is one worker, with one GPU" in capsys.readouterr().err


def test_the_default_view_is_what_the_options_say() -> None:
    options = "-pooling_layer -1 -3 -layer_reduce sum -pooling_strategy CLS_TOKEN -normalize"
    assert parsed(*options.split()).default_view == View(
        layers=(-1, -3), layer_reduce="sum", pooling="first", normalize=True, dtype="float32"
    )


def test_a_roles_config_comes_back_from_json_as_it_was() -> None:
    broker = BrokerConfig(
        host="h", port=1, backend="ipc://b", frontend="ipc://f", supervisor="ipc://s",
        door=DoorConfig(server_key="/k", allowed="/a"), backend_port=5,
        backend_door=DoorConfig(server_key="/k", allowed="/w"), num_worker=2,
        limits=SchedulerLimits(max_queue_rows=7), max_request_bytes=5, max_unread_bytes=5,
        default_view=ServerConfig().default_view, settings={"port": 1}, verbose=True,
    )  # fmt: skip
    worker = WorkerConfig(
        worker_id=1, backend="ipc://b", replica=ReplicaConfig(model_dir="fake:8", num_threads=2),
        cores=(0, 1), default_view=View(layers=(1, 2), pooling="none"), max_batch_size=3,
        verbose=False, remote=RemoteConfig(server_key="/s", worker_cert="/w"),
    )  # fmt: skip
    assert from_json(BrokerConfig, to_json(broker)) == broker
    assert from_json(WorkerConfig, to_json(worker)) == worker
