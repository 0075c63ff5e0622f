"""What the log says when a process ends, and that nothing outlives the supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_process import SECOND, ServerProcess, Starter, eventually

from bert_serving.client.errors import ServingError
from bert_serving.server.model.fake import fake_embedding

GONE_S = 5 * SECOND


def answers(server: ServerProcess) -> bool:
    with server.client() as client:
        return np.array_equal(client.encode(["a text"]), [fake_embedding("a text", 384)])


def endings(server: ServerProcess) -> list[dict[str, Any]]:
    """Return what the lines of a JSON log say of processes that have ended."""
    events = [json.loads(line).get("event", {}) for line in server.log.splitlines()]
    return [event for event in events if "child" in event]


def test_the_log_says_how_a_worker_ended_how_long_it_lived_and_what_it_did(
    start_server: Starter,
) -> None:
    server = start_server("-log_format", "json")
    (worker,) = server.worker_pids().values()
    with server.client() as client:
        for _ in range(5):
            client.encode(["a text"])
    os.kill(worker, signal.SIGKILL)
    (ending,) = eventually(lambda: endings(server))
    assert ending["child"] == "worker 0"
    assert (ending["exit_status"], ending["signal"]) == (None, "SIGKILL")
    assert ending["batches"] == 5
    assert 0 < ending["lived_s"] < 60
    assert ending["memory_bytes"] > 10_000_000  # what a worker needs to be ready
    assert ending["by_supervisor"] is False
    assert answers(server)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGSEGV, "worker 0 was ended by SIGSEGV (a crash in compiled code) after"),
        (signal.SIGKILL, "worker 0 was ended by SIGKILL (not for want of memory"),
    ],
)
def test_a_signal_is_told_in_words(
    start_server: Starter, number: signal.Signals, words: str
) -> None:
    server = start_server()
    os.kill(server.worker_pids()[0], number)
    eventually(lambda: words in server.log)
    assert answers(server)


def test_a_worker_that_hangs_was_ended_by_the_supervisor(start_server: Starter) -> None:
    server = start_server("-batch_timeout", "0.5")
    with server.client(timeout=10_000 * SECOND) as client, pytest.raises(ServingError):
        client.encode("fake:freeze")
    assert "worker 0 was ended by SIGKILL (by the supervisor) after" in server.log
    assert answers(server)


def test_an_exit_of_its_own_is_told_with_its_status(start_server: Starter) -> None:
    server = start_server()
    with server.client() as client, pytest.raises(ServingError):
        client.encode("fake:crash")
    assert "worker 0 exited with status 1 after" in server.log
    assert answers(server)


# out of memory


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """Give a cgroup with little memory, where this user may make one."""
    version_2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    top = Path("/sys/fs/cgroup") if version_2 else Path("/sys/fs/cgroup/memory")
    folder = top / f"bert-serving-test-{os.getpid()}"
    try:
        folder.mkdir()
        name = "memory.max" if version_2 else "memory.limit_in_bytes"
        (folder / name).write_text(str(limit_bytes))
    except OSError:
        pytest.skip("a cgroup for memory cannot be made here")
    try:
        yield folder
    finally:
        folder.rmdir()


def test_a_worker_that_the_kernel_ends_for_want_of_memory_is_told_to_be(
    start_server: Starter,
) -> None:
    with memory_group(700 << 20) as group:
        inside = ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
        server = start_server("-model_dir", "fake:65536", prefix=inside)
        with server.client() as client, pytest.raises(ServingError):
            client.encode(["word " * 500] * 7, pooling="none")  # 0.9 GB of vectors
        words = "was ended by SIGKILL (out of memory, as the kernel has counted"
        eventually(lambda: words in server.log)
        with server.client() as client:
            assert client.encode(["a text"]).shape == (1, 65536)
        server.stop()


# the supervisor is killed


@pytest.mark.parametrize(
    "state", ["idle", "hanging", "frozen", "stopped", "loading", "frozen while loading"]
)
def test_nothing_outlives_a_killed_supervisor(start_server: Starter, state: str) -> None:
    boot = {"loading": "boot_s=60", "frozen while loading": "boot=freeze"}.get(state, "row_us=1")
    options = ("-model_dir", f"fake:384?{boot}", "-num_worker", "2", "-legacy_port", "0")
    server = start_server(*options, wait="load" not in state)
    if "load" in state:
        server_has_all = lambda: len(server.processes("bert_serving.server")) >= 4  # noqa: E731
        eventually(server_has_all)
    else:
        with server.client(timeout=1_000) as client, contextlib.suppress(ServingError):
            client.encode({"hanging": "fake:hang", "frozen": "fake:freeze"}.get(state, "a text"))
    if state == "stopped":
        for pid in server.processes():
            if pid != server.pid:
                os.kill(pid, signal.SIGSTOP)
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: not server.processes(), GONE_S)
