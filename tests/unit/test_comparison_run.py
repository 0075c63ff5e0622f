"""A comparison from its beginning to its end, with servers that only say what real ones do."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bert_serving.client.errors import RequestTimeout
from bert_serving.server import exit_codes
from bert_serving.server.benchmark import comparison_run, contenders
from bert_serving.server.benchmark.comparison import BULK, ComparisonConfig
from bert_serving.server.benchmark.comparison_run import compare
from bert_serving.server.benchmark.machine import MatrixProduct
from bert_serving.server.benchmark.run import Interrupted
from bert_serving.server.benchmark.server_process import ServerFailed

CANNOT = "worker 0 cannot start: this machine has no instructions for it"
KILLED, SILENT = "the server was ended by SIGKILL", "no answer within 120 s"


class Server:
    """What a `ServerProcess` does, without a process; its host is the type it computes in."""

    lacking: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    running: set[str] = set()  # noqa: RUF012  # of all of them

    def __init__(self, options: dict[str, Any], _log: Path, **_: Any) -> None:
        self.host, self.port = options["dtype"], 1

    def start(self) -> None:
        self.running.add(self.host)
        if self.host in self.lacking:
            raise ServerFailed(CANNOT)

    def check_alive(self) -> None:
        if self.host in self.ended:
            raise ServerFailed(KILLED)

    def stop(self, *, at_once: bool) -> None:
        self.running.discard(self.host)


class Client:
    """What a `BertClient` does, without a server: all texts have one vector."""

    is_answered = True

    def __init__(self, ip: str, **_: Any) -> None:
        model = {"name": "m", "num_layers": 2, "hidden_size": 8, "max_length": 64, "dtype": ip}
        self.server_status = {
            "server_version": "2",
            "default_view": {"layers": [-2], "pooling": "mean"},
            "model": model,
            "workers": [{"max_batch_tokens": 512}],
        }

    def tokenize(self, texts: Sequence[str]) -> Any:
        return SimpleNamespace(tokens=[["[CLS]", text, "[SEP]"] for text in texts])

    def encode_detailed(self, texts: Sequence[str], _views: Any) -> Any:
        return SimpleNamespace(n_tokens=np.array([len(text.split()) + 2 for text in texts]))

    def encode(self, texts: Sequence[str], **_: Any) -> Any:
        if not self.is_answered:
            raise RequestTimeout(SILENT)
        return np.ones((len(texts), 8), np.float32)

    def close(self) -> None:
        pass


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ComparisonConfig:
    """A comparison of ours alone, whose servers are none."""
    monkeypatch.setattr(comparison_run, "ServerProcess", Server)
    monkeypatch.setattr(contenders, "BertClient", Client)
    monkeypatch.setattr(comparison_run, "best_matrix_product", product)
    return ComparisonConfig(
        kinds=(BULK,),
        peers=(),
        dtypes=("float32", "bfloat16"),
        dtypes_are_chosen=False,
        lengths=(),
        rounds=2,
        seconds=1e-6,
        model_dir=tmp_path,
        server_options={},
        wait_till_ready_s=1,
        environment={},
        command="bert-serving-benchmark -compare bulk",
        output=tmp_path,
        plots=False,
        document=None,
    )


def product(dtype: str, device: str, *_: Any) -> MatrixProduct:
    assert dtype in Server.running and not Server.running & set(Server.lacking)
    return MatrixProduct(dtype, device, 400.0)


def run(
    config: ComparisonConfig, after_a_round: Callable[[], None] = lambda: None
) -> tuple[int, dict[str, Any], list[str]]:
    """Return its exit status, what it wrote, and what it said."""
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "round 1" in line:
            after_a_round()

    status = compare(config, say, lambda: None)
    assert not Server.running
    return status, written(config), said


def written(config: ComparisonConfig) -> dict[str, Any]:
    comparison: dict[str, Any]
    (comparison,) = json.loads((config.output / "comparison.json").read_text())
    return comparison


def dtypes(comparison: dict[str, Any]) -> set[str]:
    (workload,) = comparison["workloads"]
    return {entry["dtype"] for entry in workload["entries"]}


def test_each_type_has_a_server(config: ComparisonConfig) -> None:
    status, comparison, _ = run(config)
    assert status == exit_codes.OK
    assert dtypes(comparison) == {"float32", "bfloat16"} and comparison["left_out"] == []


def test_a_type_that_nobody_asked_for_is_left_out_where_it_is_not_served(
    config: ComparisonConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "lacking", ("bfloat16",))
    status, comparison, said = run(config)
    assert status == exit_codes.OK
    assert dtypes(comparison) == {"float32"}
    assert comparison["left_out"] == [f"bert-serving, bfloat16 is left out: {CANNOT}"]
    assert comparison["left_out"][0] in said


def test_a_type_that_was_asked_for_must_be_served(
    config: ComparisonConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "lacking", ("bfloat16",))
    with pytest.raises(ServerFailed, match="no instructions"):
        run(replace(config, dtypes_are_chosen=True))


def test_without_the_most_exact_type_there_is_nothing_to_hold_others_against(
    config: ComparisonConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "lacking", ("float32",))
    with pytest.raises(ServerFailed, match="no instructions"):
        run(config)


def test_a_document_that_is_lost_meanwhile_costs_no_results(config: ComparisonConfig) -> None:
    document = config.output / "document.md"
    status, comparison, said = run(replace(config, document=document), document.mkdir)
    assert status == exit_codes.FAILED and comparison["ended"] == ""
    assert "document.md: no section" in said[-1] and "directory" in said[-1]
    document.rmdir()


# ends before the end


@pytest.mark.parametrize(
    ("thing", "change", "cause"),
    [
        (Server, ("ended", ("bfloat16",)), KILLED),
        (Client, ("is_answered", False), f"bert-serving, float32 failed: {SILENT}"),
    ],
)
def test_a_server_that_is_lost_ends_the_comparison_and_what_there_is_is_kept(
    thing: type,
    change: tuple[str, Any],
    cause: str,
    config: ComparisonConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status, comparison, said = run(config, lambda: monkeypatch.setattr(thing, *change))
    assert status == exit_codes.FAILED
    assert comparison["ended"] == cause and cause in said[-1]
    assert comparison["left_out"] == [] and not [line for line in said if "round 2" in line]
    (workload,) = comparison["workloads"]
    assert [len(entry["seconds"]) for entry in workload["entries"]] == [1, 1, 1, 1]
    assert f"**{cause}**" in (config.output / "comparison.md").read_text("utf-8")


def test_a_call_that_fails_as_the_server_ends_tells_of_the_end(
    config: ComparisonConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(Server, "ended", ("float32",))
        raise RequestTimeout(SILENT)

    _, comparison, _ = run(config, lambda: monkeypatch.setattr(Client, "encode", die))
    assert comparison["ended"] == KILLED


def test_what_a_signal_ends_says_so(config: ComparisonConfig) -> None:
    def interrupt() -> None:
        raise Interrupted(signal.SIGINT)

    with pytest.raises(Interrupted):
        run(config, interrupt)
    assert written(config)["ended"] == "ended by SIGINT"
    assert not Server.running
