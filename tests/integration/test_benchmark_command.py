"""`bert-serving-benchmark` on real servers of the fake model: what it finds, and leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from legacy_client import legacy_ports
from server_process import (
    COMMANDS,
    MARK,
    SECOND,
    Starter,
    command_line,
    eventually,
    marked_processes,
)

from bert_serving.server import exit_codes
from bert_serving.server.benchmark import plots
from bert_serving.server.benchmark.measurement import Call, Measurement, failure, measure
from bert_serving.server.benchmark.report import ExperimentResult
from bert_serving.server.benchmark.run import Interrupted
from bert_serving.server.benchmark.server_process import ServerFailed
from bert_serving.server.benchmark.targets import parse_target
from bert_serving.server.benchmark.wiring import check_answering

REPEATS, BATCH = 4, 8
EXPERIMENTS = {
    "client_batch_size": [1, 16],
    "num_client": [1, 5],
    "pooling_layer": [-1, -2],
    "num_worker": [1, 2],
    "max_batch_size": [4, 32],
    "max_seq_len": [16, 32],
}
TINY = (
    *("-num_repeat", str(REPEATS)),
    *("-client_batch_size", str(BATCH)),
    *(f"-test_{name}" for name in (*EXPERIMENTS, "mixed", "overhead")),
)
"""Small, and without experiments: a test adds its own."""

PNG = b"\x89PNG\r\n"


class BenchmarkProcess:
    """The command with options, until it ends."""

    def __init__(self, folder: Path, *options: str, program: tuple[str, ...] = ()) -> None:
        self.mark = uuid.uuid4().hex[:8]
        self.output = folder / self.mark
        self.log_file = folder / f"{self.mark}.log"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(program or (COMMANDS / "bert-serving-benchmark",)),
                    *options,
                    *("-output", self.output),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, MARK: self.mark},
            )

    @property
    def said(self) -> str:
        """What it has written."""
        return self.log_file.read_text("utf-8")

    @property
    def results(self) -> dict[str, Any]:
        """What results.json has."""
        values: dict[str, Any] = json.loads((self.output / "results.json").read_text())
        return values

    def wait(self) -> int:
        """Wait for its end; returns the exit status."""
        return self.process.wait(60 * SECOND)

    def left(self) -> list[str]:
        """Return the command lines of those of its processes that live."""
        return [command_line(pid) for pid in marked_processes(self.mark)]

    def processes(self, role: str) -> list[int]:
        """Return its live processes with this in their command line."""
        return [pid for pid in marked_processes(self.mark) if role in command_line(pid)]

    def kill_all(self) -> None:
        """Kill whatever is left of it."""
        for pid in marked_processes(self.mark):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def whole_run(run_folder: Path) -> Iterator[BenchmarkProcess]:
    """All experiments of the same kind, with small values."""
    values = [
        word for name, given in EXPERIMENTS.items() for word in (f"-test_{name}", *map(str, given))
    ]
    options = ("-model_dir", "fake:64", *TINY, *values, "-port", "5555", "-client_keys", "keys")
    benchmark = BenchmarkProcess(run_folder, *options)
    try:
        benchmark.wait()
        yield benchmark
    finally:
        benchmark.kill_all()


@pytest.fixture
def start(run_folder: Path) -> Iterator[Any]:
    """Start benchmarks that are killed after the test."""
    started: list[BenchmarkProcess] = []

    def start_one(*options: str, **settings: Any) -> BenchmarkProcess:
        started.append(BenchmarkProcess(run_folder, *options, **settings))
        return started[-1]

    yield start_one
    for benchmark in started:
        benchmark.kill_all()


def rows_expected(name: str, value: int) -> int:
    rows = REPEATS * (value if name == "client_batch_size" else BATCH)
    return rows * (value if name == "num_client" else 1)


# a whole run


def test_all_experiments_run_and_nothing_is_left(whole_run: BenchmarkProcess) -> None:
    assert whole_run.process.returncode == exit_codes.OK, whole_run.said
    assert not whole_run.left()
    names = [experiment["name"] for experiment in whole_run.results["experiments"]]
    assert names == list(EXPERIMENTS)
    assert whole_run.results["ended"] == ""


def test_every_value_answers_all_rows_of_all_clients(whole_run: BenchmarkProcess) -> None:
    for experiment in whole_run.results["experiments"]:
        name = experiment["name"]
        assert [m["value"] for m in experiment["measurements"]] == EXPERIMENTS[name]
        for measurement in experiment["measurements"]:
            assert measurement["errors"] == {}
            assert measurement["rows"] == rows_expected(name, measurement["value"])
            calls = measurement["calls"]
            assert measurement["rows"] == sum(call["rows"] for call in calls)
            clients = measurement["value"] if name == "num_client" else 1
            assert len(calls) == clients * REPEATS
            assert all(call["end_s"] > call["start_s"] for call in calls)
            assert measurement["rows_per_s"]["middle"] > 0
            latency = measurement["latency_ms"]
            assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
            assert measurement["client_cores"] > 0 and measurement["server_cores"] >= 0


def test_sentences_are_as_long_as_the_experiment_says(whole_run: BenchmarkProcess) -> None:
    experiment = whole_run.results["experiments"][-1]
    for measurement in experiment["measurements"]:
        # as many words, and two special tokens: each row is cut, to exactly the maximum
        assert measurement["truncated"] == measurement["rows"]
        tokens = sum(call["tokens"] for call in measurement["calls"])
        assert tokens == measurement["rows"] * measurement["value"]


def test_clients_are_served_by_one_server_and_its_options_by_one_each(
    whole_run: BenchmarkProcess,
) -> None:
    log = (whole_run.output / "server.log").read_text("utf-8")
    started = [line for line in log.splitlines() if line.startswith("# bert-serving-start")]
    assert started == [
        f"# bert-serving-start -model_dir fake:64 -port 0{options}"
        for options in (
            *("", " -num_worker 1", " -num_worker 2", " -max_batch_size 4", " -max_batch_size 32"),
            *(" -max_seq_len 16", " -max_seq_len 32"),
        )
    ]


def test_tables_are_shown_and_written_alike(whole_run: BenchmarkProcess) -> None:
    report = (whole_run.output / "results.md").read_text("utf-8")
    for experiment in whole_run.results["experiments"]:
        assert f"\n{experiment['name']}: " in whole_run.said
        assert f"\n## {experiment['name']}\n" in report
        for measurement in experiment["measurements"]:
            cells = [f"{measurement['value']}", f"{measurement['rows']:,}"]
            rows = [line.strip("| ").split(" | ") for line in report.splitlines()]
            assert any(row[0] == cells[0] and cells[1] in row for row in rows)
    assert "not used: -port, -client_keys: servers take" in whole_run.said
    assert "1 worker" in report and "cores" in report


def test_each_experiment_has_a_picture(whole_run: BenchmarkProcess) -> None:
    for name in EXPERIMENTS:
        assert (whole_run.output / f"{name}.png").read_bytes().startswith(PNG)


# clients of one sentence a call


def test_clients_wait_beside_a_bulk_client_and_alone(start: Any) -> None:
    options = ("-model_dir", "fake:64", *TINY, "-test_mixed", "2", "-seconds", "1")
    benchmark = start(*options)
    assert benchmark.wait() == exit_codes.OK, benchmark.said
    (experiment,) = benchmark.results["experiments"]
    measurements = {m["label"]: m for m in experiment["measurements"]}
    assert list(measurements) == [
        *("closed, alone", "closed, beside bulk", "open, alone", "open, beside bulk")
    ]
    for label, measurement in measurements.items():
        assert measurement["rows"] > 0
        assert measurement["extra"]["bulk_rows_per_s"] > 0
        assert ("p99_over_alone" in measurement["extra"]) == label.endswith("bulk")
    # as many as it was told to make, give or take chance, whatever the answers take
    asked = measurements["closed, alone"]["calls_per_s"] / 2
    assert 0.5 * asked < measurements["open, alone"]["calls_per_s"] < 1.5 * asked
    assert (benchmark.output / "mixed.png").read_bytes().startswith(PNG)
    assert not benchmark.left()


def test_a_sentence_through_the_server_is_compared_with_the_model_alone(start: Any) -> None:
    # a row takes 20 ms in either: what the server adds is less than the model itself
    slow = ("-model_dir", "fake:64?row_us=20000", *TINY)
    benchmark = start(*slow, "-test_overhead", "4", "-seconds", "1")
    assert benchmark.wait() == exit_codes.OK, benchmark.said
    ((measurement,),) = [e["measurements"] for e in benchmark.results["experiments"]]
    assert 20 <= measurement["extra"]["bare_p50_ms"] < 40
    ratio = measurement["latency_ms"]["p50"] / measurement["extra"]["bare_p50_ms"]
    assert measurement["extra"]["p50_over_bare"] == pytest.approx(ratio)
    assert 1 < ratio < 3
    assert not benchmark.left()


class OpenAiStyle(BaseHTTPRequestHandler):
    """Embeddings as other servers give them: the first answer whole, others in chunks."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "a model"}]}, chunked=False)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (self.path, asked["model"]) == ("/v1/embeddings", "a model")
        data = [{"embedding": [0.0, 1.0]} for _ in asked["input"]]
        self._answer({"data": data, "usage": {"prompt_tokens": 7}}, chunked=True)

    def _answer(self, answer: dict[str, Any], *, chunked: bool) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (body[:5], len(body) - 5, body[5:])
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class OpenAiStyleOnce(OpenAiStyle):
    """Likewise, but out of order after one call; of one server, as the class counts."""

    calls = 0

    def do_POST(self) -> None:
        type(self).calls += 1
        if self.calls > 1:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_POST()


@pytest.fixture
def http_port() -> Iterator[int]:
    """The port of a server that speaks as OpenAI does."""
    yield from http_server(OpenAiStyle)


@pytest.fixture
def failing_port() -> Iterator[int]:
    """The port of one that fails after one call."""
    OpenAiStyleOnce.calls = 0
    yield from http_server(OpenAiStyleOnce)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where nothing is taken in."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield silent.getsockname()[1]


def http_server(style: type[OpenAiStyle]) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), style) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_the_same_load_is_put_on_other_servers_in_their_protocols(
    start: Any, start_server: Starter, http_port: int, failing_port: int
) -> None:
    other = start_server("-legacy_port", "0")
    port, port_out = legacy_ports(other)
    benchmark = start(
        *("-model_dir", "fake:64", *TINY, "-test_num_client", "1", "5", "-online_peer"),
        *(f"native=127.0.0.1:{other.port}", f"old=127.0.0.1:{port}:{port_out}"),
        *(f"http=http://127.0.0.1:{http_port}/v1", f"failing=http://127.0.0.1:{failing_port}/v1"),
    )
    assert benchmark.wait() == exit_codes.FAILED
    (experiment,) = benchmark.results["experiments"]
    measurements = {(m["value"], m["label"]): m for m in experiment["measurements"]}
    labels = ("bert-serving", "native", "old", "http", "failing")
    assert list(measurements) == [(value, label) for value in (1, 5) for label in labels]
    for (value, label), measurement in measurements.items():
        if label == "failing":
            assert measurement["errors"] == {"HTTP503": value * REPEATS}
        else:
            assert measurement["errors"] == {}, label
            assert measurement["rows"] == value * REPEATS * BATCH
    assert measurements[1, "http"]["calls"][0]["tokens"] == 7
    assert "| 5 | http |" in (benchmark.output / "results.md").read_text("utf-8")
    assert not benchmark.left()


# failures


def test_another_server_that_is_not_there_ends_it_before_anything_is_measured(
    start: Any, http_port: int
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens there
        port = unused.getsockname()[1]
        benchmark = start(
            *("-model_dir", "fake:64", *TINY, "-test_num_client", "1", "-online_peer"),
            *(f"http=http://127.0.0.1:{http_port}/v1", f"nobody=http://127.0.0.1:{port}"),
        )
        assert benchmark.wait() == exit_codes.BOOT_FAILED
    last = benchmark.said.strip().splitlines()[-1]
    assert f"-online_peer nobody: no vector from 127.0.0.1:{port}: Connection" in last
    assert not (benchmark.output / "server.log").exists()
    assert not benchmark.left()


@pytest.mark.parametrize("address", ["127.0.0.1:{0}", "127.0.0.1:{0}:{0}", "http://127.0.0.1:{0}"])
def test_a_server_that_says_nothing_is_not_waited_for_long(address: str, silent_port: int) -> None:
    target = parse_target(f"nobody={address.format(silent_port)}")
    with pytest.raises(ServerFailed, match=f"nobody: no vector from .*:{silent_port} within"):
        check_answering([target], lambda: None, within_s=0.3)


def test_a_signal_ends_the_wait_for_a_server_that_says_nothing(silent_port: int) -> None:
    def check() -> None:
        raise Interrupted(signal.SIGINT)

    with pytest.raises(Interrupted):
        check_answering([parse_target(f"nobody=127.0.0.1:{silent_port}")], check)


def test_a_server_that_cannot_start_ends_it_with_the_cause(start: Any) -> None:
    benchmark = start("-model_dir", "fake:64?boot=fail", *TINY, "-test_num_client", "1")
    assert benchmark.wait() == exit_codes.BOOT_FAILED
    last = benchmark.said.strip().splitlines()[-1]
    assert last.startswith("bert-serving-benchmark: worker 0 cannot start")
    assert "told to fail" in last
    assert "Traceback" not in benchmark.said
    assert not benchmark.left()


def test_a_server_that_is_not_ready_in_time_is_ended(start: Any) -> None:
    options = ("-model_dir", "fake:64?boot_s=600", *TINY, "-wait_till_ready", "1")
    benchmark = start(*options, "-test_num_client", "1")
    assert benchmark.wait() == exit_codes.BOOT_FAILED
    assert "not ready within 1 s" in benchmark.said and "-wait_till_ready" in benchmark.said
    assert not benchmark.left()


def test_calls_that_fail_are_told_by_type_and_make_it_fail(start: Any) -> None:
    benchmark = start("-model_dir", "fake:64", *TINY, "-test_pooling_layer", "-1", "-40")
    assert benchmark.wait() == exit_codes.FAILED
    good, bad = benchmark.results["experiments"][0]["measurements"]
    assert good["errors"] == {} and good["rows"] == REPEATS * BATCH
    assert bad["errors"] == {"InvalidRequest": REPEATS} and bad["rows"] == 0
    assert f"{REPEATS} InvalidRequest" in benchmark.said
    assert "layer" in bad["messages"]["InvalidRequest"]


def test_a_server_that_dies_costs_the_value_at_hand_only(start: Any) -> None:
    slow = "fake:64?row_us=1000"
    benchmark = start("-model_dir", slow, *TINY, "-test_client_batch_size", "5000", "1")
    eventually(lambda: benchmark.processes("benchmark.clients"), 30 * SECOND)
    (server,) = benchmark.processes("cli.start")
    os.kill(server, signal.SIGKILL)
    assert benchmark.wait() == exit_codes.FAILED
    lost, good = benchmark.results["experiments"][0]["measurements"]
    assert lost["errors"] == {"ServerFailed": 1} and lost["rows"] == 0
    assert "SIGKILL" in benchmark.said
    assert good["errors"] == {} and good["rows"] == REPEATS
    eventually(lambda: not benchmark.left(), 10 * SECOND)


# interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_and_keeps_what_there_is(
    start: Any, number: signal.Signals
) -> None:
    slow = "fake:64?row_us=1000"
    benchmark = start("-model_dir", slow, *TINY, "-test_client_batch_size", "1", "20000")
    eventually(lambda: (benchmark.output / "results.json").exists(), 30 * SECOND)
    eventually(lambda: benchmark.processes("benchmark.clients"), 30 * SECOND)
    benchmark.process.send_signal(number)
    assert benchmark.wait() == 128 + number
    assert not benchmark.left()
    assert benchmark.results["ended"] == f"ended by {number.name}"
    (measurement,) = benchmark.results["experiments"][0]["measurements"]
    assert measurement["rows"] == REPEATS
    assert "ended by" in (benchmark.output / "results.md").read_text("utf-8")
    assert "Traceback" not in benchmark.said


def test_a_signal_while_a_server_starts_ends_that_too(start: Any) -> None:
    benchmark = start("-model_dir", "fake:64?boot_s=600", *TINY, "-test_num_client", "1")
    eventually(lambda: benchmark.processes("server.worker"), 30 * SECOND)
    benchmark.process.send_signal(signal.SIGINT)
    assert benchmark.wait() == 128 + signal.SIGINT
    assert not benchmark.left()


def test_clients_end_with_a_benchmark_that_is_killed(start: Any) -> None:
    slow = "fake:64?row_us=1000"
    benchmark = start("-model_dir", slow, *TINY, "-test_client_batch_size", "20000")
    eventually(lambda: benchmark.processes("benchmark.clients"), 30 * SECOND)
    benchmark.process.kill()
    eventually(lambda: not benchmark.processes("benchmark.clients"), 10 * SECOND)


def test_a_server_ends_with_a_benchmark_that_is_killed(start: Any) -> None:
    options = ("-model_dir", "fake:64", *TINY, "-test_client_batch_size", "1", "-seconds", "600")
    benchmark = start(*options)
    eventually(lambda: benchmark.processes("benchmark.clients"), 30 * SECOND)
    assert benchmark.processes("cli.start")
    benchmark.process.kill()
    eventually(lambda: not benchmark.left(), 30 * SECOND)


# pictures


def test_without_matplotlib_there_are_tables_and_a_hint(start: Any) -> None:
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from bert_serving.server.cli.benchmark import main\n"
        "sys.exit(main())"
    )
    options = ("-model_dir", "fake:64", *TINY, "-test_num_client", "1")
    benchmark = start(*options, program=(sys.executable, "-c", script))
    assert benchmark.wait() == exit_codes.OK
    assert "pip install 'bert-serving-server[benchmark]'" in benchmark.said
    assert benchmark.results["experiments"][0]["picture"] is None
    assert not list(benchmark.output.glob("*.png"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_picture_can_be_drawn_of_whatever_was_found(name: str, tmp_path: Path) -> None:
    calls = [Call(0, repeat, repeat, repeat + 1.0, 10, 40, 160) for repeat in range(REPEATS)]
    good, bad = measure(EXPERIMENTS[name][0], calls, None), failure(4096, RuntimeError("none"))
    cases: list[list[Measurement]] = [[good], [bad], [bad, good]]
    for number, measurements in enumerate(cases):
        result = ExperimentResult(
            name=name,
            load="a load",
            model={
                "name": "m", "architecture": "bert", "num_layers": 6, "hidden_size": 384,
                "dtype": "float32", "device": "cpu",
            },
            workers=1,
            settings={},
            matrix_product=None,
            measurements=measurements,
        )  # fmt: skip
        path = tmp_path / f"{number}.png"
        plots.draw(result, "a machine", path)
        assert path.read_bytes().startswith(PNG)
