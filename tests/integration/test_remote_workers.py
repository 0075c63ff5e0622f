"""Workers on another machine: a network namespace with a cable to this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from key_files import KeyFiles, new_keys
from namespaces import Neighbour, neighbour
from server_process import SECOND, ServerProcess, Starter, eventually

from bert_serving.server import exit_codes
from bert_serving.server.certificates import pair_files, write_pair

SLOW = ("-model_dir", "fake:384?row_us=400")
TEXTS = [f"text {n}" for n in range(4_000)]
Remote = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def other() -> Iterator[Neighbour]:
    with neighbour() as other:
        yield other


@pytest.fixture
def keys(tmp_path: Path) -> KeyFiles:
    keys = new_keys(tmp_path)
    write_pair("worker", pair_files("worker", tmp_path, tmp_path / "workers"))
    return keys


@pytest.fixture
def server(start_server: Starter, other: Neighbour, keys: KeyFiles) -> ServerProcess:
    """A server whose clients are on its own machine, and whose workers need not be."""
    server = start_server(*SLOW, *options(other, keys))
    server.backend = server.wait_ready()["backend"]  # type: ignore[attr-defined]
    return server


def options(other: Neighbour, keys: KeyFiles) -> list[str]:
    workers = keys.folder / "workers"
    secret = keys.folder / "server.key_secret"
    return [
        *("-host", other.here, "-allow_insecure", "-backend_port", "0"),
        *("-server_key", str(secret), "-worker_keys", str(workers)),
    ]


@pytest.fixture
def start_worker(
    other: Neighbour, server: ServerProcess, keys: KeyFiles
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started = []

    def start(*more: str, cert: str = "worker", model: tuple[str, ...] = SLOW) -> Any:
        process = other.start(
            *(sys.executable, "-m", "bert_serving.server.cli.worker"),
            *("-server", server.backend, "-server_key", keys.server_key),  # type: ignore[attr-defined]
            *("-worker_cert", str(keys.folder / f"{cert}.key_secret")),
            *model,
            *more,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def remote_workers(other: Neighbour, server: ServerProcess) -> list[dict[str, Any]]:
    """Return the workers that came from elsewhere and are ready."""
    with server.client(ip=other.here) as client:
        workers = client.server_status["workers"]
    return [worker for worker in workers if worker["id"] >= 1_000 and worker["state"] == "ready"]


def encode(other: Neighbour, server: ServerProcess) -> Any:
    with server.client(ip=other.here, timeout=60_000 * SECOND) as client:
        return client.encode(TEXTS)


def test_a_worker_elsewhere_computes_and_nothing_of_it_can_be_overheard(
    other: Neighbour, server: ServerProcess, start_worker: Remote
) -> None:
    expected = encode(other, server)
    start_worker()
    eventually(lambda: remote_workers(other, server))
    with other.sniffed() as heard:
        np.testing.assert_array_equal(encode(other, server), expected)
    assert len(heard) > 100_000, "the other machine has computed nothing"
    assert b"text 1" not in heard
    assert not any(row.tobytes() in heard for row in expected[::100])


def test_a_worker_that_dies_elsewhere_loses_nothing_and_comes_back(
    other: Neighbour, server: ServerProcess, start_worker: Remote
) -> None:
    expected = encode(other, server)
    start_worker()
    (worker,) = eventually(lambda: remote_workers(other, server))
    with server.client(ip=other.here, timeout=60_000 * SECOND) as client:
        client.encode(TEXTS, blocking=False)
        os.kill(worker["pid"], signal.SIGKILL)  # namespaces of the network share processes
        np.testing.assert_array_equal(client.fetch_all()[0], expected)
    (second,) = eventually(lambda: remote_workers(other, server))
    assert second["pid"] != worker["pid"]


def test_a_cut_cable_loses_nothing_and_the_worker_comes_back(
    other: Neighbour, server: ServerProcess, start_worker: Remote
) -> None:
    expected = encode(other, server)
    start_worker()
    eventually(lambda: remote_workers(other, server))
    with server.client(ip=other.here, timeout=60_000 * SECOND) as client:
        client.encode(TEXTS, blocking=False)
        other.cut()
        try:
            np.testing.assert_array_equal(client.fetch_all()[0], expected)
            eventually(lambda: not remote_workers(other, server), 20 * SECOND)
        finally:
            other.restore()
    eventually(lambda: remote_workers(other, server), 30 * SECOND)
    np.testing.assert_array_equal(encode(other, server), expected)


def test_a_broker_that_returns_is_found_again(
    other: Neighbour, server: ServerProcess, start_worker: Remote
) -> None:
    start_worker()
    eventually(lambda: remote_workers(other, server))
    (broker,) = server.processes("server.broker")
    os.kill(broker, signal.SIGKILL)
    eventually(lambda: server.processes("server.broker") not in ([], [broker]))
    eventually(lambda: remote_workers(other, server), 20 * SECOND)


def test_a_worker_without_an_allowed_key_is_refused(
    other: Neighbour, server: ServerProcess, start_worker: Remote, keys: KeyFiles
) -> None:
    keys.add("stranger", is_allowed=False)
    worker = start_worker(cert="stranger")
    eventually(lambda: f"refused {other.address}: its key" in server.log, 20 * SECOND)
    end = threading.Timer(20 * SECOND, os.killpg, (worker.pid, signal.SIGKILL))
    end.start()
    assert any("refuses this client's key" in line for line in worker.stdout or ())
    end.cancel()
    assert remote_workers(other, server) == []
    assert encode(other, server).shape == (len(TEXTS), 384)


def test_a_worker_with_another_model_is_refused_with_the_reason(
    other: Neighbour, server: ServerProcess, start_worker: Remote
) -> None:
    worker = start_worker(model=("-model_dir", "fake:16"))
    said, _ = worker.communicate(timeout=20 * SECOND)
    assert worker.returncode == exit_codes.BOOT_FAILED
    assert "hidden_size 16" in said
    assert encode(other, server).shape == (len(TEXTS), 384)


def test_a_worker_whose_key_is_removed_goes(
    other: Neighbour, server: ServerProcess, start_worker: Remote, keys: KeyFiles
) -> None:
    start_worker()
    eventually(lambda: remote_workers(other, server))
    (keys.folder / "workers" / "worker.key").unlink()
    eventually(lambda: not remote_workers(other, server))
    assert encode(other, server).shape == (len(TEXTS), 384)
