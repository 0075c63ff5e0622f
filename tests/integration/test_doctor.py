"""`bert-serving-doctor` on this machine, beside servers that are well, ill, and none."""

from __future__ import annotations

import json
import os
import socket as sockets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from server_process import COMMANDS, SECOND, ServerProcess, Starter

from bert_serving.server.config import ServerConfig
from bert_serving.server.doctor.checks import Settings
from bert_serving.server.doctor.examination import make

SILENT_S = 20 * SECOND


def run_doctor(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMMANDS / "bert-serving-doctor"), *options],
        capture_output=True,
        text=True,
        timeout=100 * SECOND,
        env={**os.environ, **environment},
    )


def examined(*options: str, status: int, **environment: str) -> dict[str, dict[str, Any]]:
    """Return the findings by subject; fails if the exit status is another."""
    run = run_doctor("--json", "--quick", *options, **environment)
    assert (run.returncode, run.stderr) == (status, ""), run.stdout + run.stderr
    told = json.loads(run.stdout)
    assert told["ok"] == (status == 0)
    return {finding["subject"]: finding for finding in told["findings"]}


def test_a_machine_that_can_serve_has_no_problem() -> None:
    run = run_doctor("-quick", "-port", "0")
    assert (run.returncode, run.stderr) == (0, ""), run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert any(line.split()[:3] == ["ok", "model", "embedded:"] for line in lines)
    assert "its SHA-256 is right" in run.stdout
    assert lines[-1].endswith("0 problems")


@pytest.mark.slow
def test_the_speed_of_the_embedded_model_is_measured() -> None:
    (finding,) = make("speed", Settings(ServerConfig(cpu=True)))
    assert finding.level in ("ok", "warning")
    assert "of the best matrix product" in finding.seen


def test_a_server_of_this_user_is_asked_and_its_time_is_split(start_server: Starter) -> None:
    server = start_server("-num_worker", "2")
    found = examined("-port", str(server.port), "-model_dir", "fake:384", status=0)
    assert "2 worker(s) ready" in found["server"]["seen"]
    assert all(word in found["latency"]["seen"] for word in ("round trip", "queue", "compute"))
    assert not [subject for subject in found if subject.startswith("port ")]


def test_a_server_elsewhere_is_asked_and_nothing_here_but_what_a_client_needs(
    fake_server: ServerProcess,
) -> None:
    found = examined("-ip", "127.0.0.1", "-port", str(fake_server.port), status=0)
    assert found.keys() == {"packages", "libzmq", "server", "latency"}


def test_a_server_that_asks_for_keys_is_asked_with_them(
    start_server: Starter, tmp_path: Path
) -> None:
    keygen = str(COMMANDS / "bert-serving-keygen")
    for names in (("server",), ("client", "alice")):
        command = [keygen, *names, "-dir", str(tmp_path)]
        subprocess.run(command, check=True, capture_output=True, timeout=60 * SECOND)
    (secret,) = tmp_path.rglob("server.key_secret")
    (client_cert,) = tmp_path.rglob("alice.key_secret")
    clients = next(tmp_path.rglob("alice.key")).parent
    keys = ("-server_key", str(secret), "-client_keys", str(clients))
    server = start_server(*keys)
    options = ("-port", str(server.port), "-model_dir", "fake:384", *keys)
    found = examined(*options, "-client_cert", str(client_cert), status=0)
    assert "1 client key" in found["keys"]["seen"]
    assert "compute" in found["latency"]["seen"]
    config = ServerConfig(port=server.port, server_key=str(secret), client_keys=str(clients))
    (finding,) = make("server", Settings(config, ip="127.0.0.1"))
    assert finding.level == "warning"  # there is no key to ask it with
    assert "asks for keys" in finding.seen


def test_every_folder_of_keys_is_looked_into(tmp_path: Path) -> None:
    keygen = str(COMMANDS / "bert-serving-keygen")
    for names in (("server",), ("client", "alice"), ("worker", "gpu7"), ("admin", "root")):
        command = [keygen, *names, "-dir", str(tmp_path)]
        subprocess.run(command, check=True, capture_output=True, timeout=60 * SECOND)
    config = ServerConfig(
        server_key=str(tmp_path / "server.key_secret"),
        client_keys=str(tmp_path / "clients"),
        worker_keys=str(tmp_path / "workers"),
        admin_keys=str(tmp_path / "admins"),
    )

    def seen() -> str:
        (finding,) = make("keys", Settings(config))
        return finding.seen

    assert "1 client key(s), 1 worker key(s), 1 administrator key(s)" in seen()
    (tmp_path / "admins" / "root.key").write_text("no key")
    assert "root.key" in seen()
    (tmp_path / "admins" / "root.key").unlink()
    assert "no administrator has a key in -admin_keys" in seen()
    (tmp_path / "server.key_secret").chmod(0o644)
    assert "anybody can read" in seen()


def test_a_server_that_still_loads_is_a_problem(start_server: Starter) -> None:
    server = start_server("-model_dir", "fake:384?boot_s=60", wait=False)
    server.wait_bound()
    found = examined("-ip", "127.0.0.1", "-port", str(server.port), status=1)
    assert "starting" in found["server"]["seen"]


def test_a_port_that_is_taken_names_who_has_it() -> None:
    with sockets.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = make("ports", Settings(ServerConfig(port=port)))
    (seen,) = (finding.seen for finding in found if finding.subject == f"port {port}")
    assert f"process {os.getpid()}" in seen


def test_every_port_that_is_named_is_looked_at_and_none_may_be_two() -> None:
    with sockets.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = ServerConfig(port=0, backend_port=port, legacy_port=port - 1)
        levels = {found.subject: found.level for found in make("ports", Settings(config))}
    assert levels[f"backend_port {port}"] == levels[f"legacy_port_out {port}"] == "problem"
    assert levels["ports"] == "problem"
    (last, whole) = make("ports", Settings(ServerConfig(port=0, legacy_port=65535)))
    assert last.subject == "legacy_port 65535"
    assert whole.seen == "-legacy_port_out 65536 is above 65535"


def test_nothing_at_a_port_is_a_problem() -> None:
    with sockets.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    found = examined("-ip", "127.0.0.1", "-port", str(port), status=1)
    assert found["server"]["seen"] == f"nothing listens on 127.0.0.1:{port}"


def test_something_that_accepts_and_says_nothing_is_a_problem_soon() -> None:
    with sockets.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        started = time.monotonic()
        found = examined("-ip", "127.0.0.1", "-port", str(port), status=1)
    assert "says nothing" in found["server"]["seen"]
    assert time.monotonic() - started < SILENT_S


def test_a_broken_model_is_a_problem_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": ')
    (tmp_path / "model.safetensors").write_bytes(b"\x07" * 100)
    for model_dir, seen in (
        (str(tmp_path), str(tmp_path / "config.json")),
        ("/no/such/model", "/no/such/model"),
    ):
        (finding,) = make("model", Settings(ServerConfig(model_dir=model_dir)))
        assert finding.level == "problem"
        assert seen in finding.seen


def test_a_control_folder_that_others_may_enter_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / f"bert-serving-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (finding,) = make("control folder", Settings(ServerConfig()))
    assert finding.level == "problem"
    assert "nobody else may enter" in finding.seen


def test_a_control_folder_with_a_name_too_long_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    (finding,) = make("control folder", Settings(ServerConfig()))
    assert finding.level == "problem"
    assert "too long for the path of a socket" in finding.seen


def test_a_wrong_option_ends_with_a_usage_message() -> None:
    assert run_doctor("-port", "many").returncode == 2


# checks that fail themselves


def test_a_check_that_hangs_is_ended_and_is_a_finding() -> None:
    hanging = (sys.executable, "-c", "import time; time.sleep(600)")
    started = time.monotonic()
    (finding,) = make("disk", Settings(ServerConfig()), limit_s=0.5, command=hanging)
    assert "not ended within 0.5 s" in finding.seen
    assert time.monotonic() - started < 5 * SECOND


@pytest.mark.parametrize(
    ("script", "seen"),
    [
        ("raise KeyError('x')", "exited with status 1: KeyError: 'x'"),
        ("import os; os.abort()", "was ended by SIGABRT"),
    ],
)
def test_a_check_that_crashes_is_a_finding_without_a_traceback(script: str, seen: str) -> None:
    crashing = (sys.executable, "-c", script)
    (finding,) = make("disk", Settings(ServerConfig()), command=crashing)
    assert seen in finding.seen
    assert "Traceback" not in finding.seen


def test_a_check_that_cannot_be_started_is_a_finding() -> None:
    (finding,) = make("disk", Settings(ServerConfig()), command=("/no/such/python",))
    assert "cannot be started" in finding.seen
