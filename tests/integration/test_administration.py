"""Workers and model changed while the server serves, and `bert-serving-admin`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from server_process import COMMANDS, SECOND, ServerProcess, Starter, eventually

from bert_serving.server import exit_codes
from bert_serving.server.model.fake import fake_embedding

DIM = 384
TEXTS = [f"text number {number}" for number in range(100)]
EXPECTED = np.stack([fake_embedding(text, DIM) for text in TEXTS])


def admin(server: ServerProcess, command: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMANDS / "bert-serving-admin", command, *args, "-port", str(server.port)],
        capture_output=True,
        text=True,
        timeout=60 * SECOND,
    )


def status_of(server: ServerProcess) -> dict[str, Any]:
    ended = admin(server, "status", "--json")
    assert (ended.returncode, ended.stderr) == (exit_codes.OK, "")
    status: dict[str, Any] = json.loads(ended.stdout)
    return status


def assert_done(ended: subprocess.CompletedProcess[str], steps: int) -> None:
    assert (ended.returncode, ended.stderr) == (exit_codes.OK, "")
    assert ended.stdout == f"done: {steps} workers changed\n"


def answers(server: ServerProcess) -> bool:
    with server.client() as client:
        return np.array_equal(client.encode(TEXTS), EXPECTED)


@contextmanager
def load_on(server: ServerProcess) -> Iterator[list[int]]:
    """Clients that call on and on, none of whose calls may fail; yields how many have not."""
    stop, answered = threading.Event(), [0]

    def call_on(_: int) -> None:
        with server.client() as client:
            while not stop.is_set():
                assert np.array_equal(client.encode(TEXTS), EXPECTED)
                answered[0] += 1

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call_on, number) for number in range(4)]
        eventually(lambda: answered[0] > 5)
        try:
            yield answered
            before = answered[0]
            eventually(lambda: answered[0] > before + 5)
        finally:
            stop.set()
        for call in calls:
            call.result()


def test_a_hangup_replaces_all_workers_under_load_and_no_call_fails(start_server: Starter) -> None:
    server = start_server("-model_dir", f"fake:{DIM}?row_us=100", "-num_worker", "2")
    workers = server.worker_pids()
    with load_on(server):
        os.kill(server.pid, signal.SIGHUP)
        eventually(lambda: "the change of workers is done" in server.log, 20 * SECOND)
    replaced = server.worker_pids()
    assert replaced.keys() == workers.keys()
    assert not set(replaced.values()) & set(workers.values())
    assert server.status()["statistic"]["num_failed"] == {}
    assert answers(server)


def test_another_model_of_the_same_shape_is_loaded_under_load(start_server: Starter) -> None:
    server = start_server("-model_dir", f"fake:{DIM}?row_us=100", "-num_worker", "2")
    with load_on(server):
        assert_done(admin(server, "reload", "-model_dir", f"fake:{DIM}?row_us=50"), 2)
    assert server.status()["model_dir"] == f"fake:{DIM}?row_us=50"
    workers = server.worker_pids()
    os.kill(workers[0], signal.SIGKILL)  # the next one loads it, too
    eventually(lambda: len(now := server.worker_pids()) == 2 and now[0] != workers[0])
    assert status_of(server)["model_dir"] == f"fake:{DIM}?row_us=50"
    assert answers(server)


@pytest.mark.parametrize(
    ("model", "cause"),
    [
        ("fake:8", "hidden_size 8 instead of 384"),
        (f"fake:{DIM}?boot=fail", "told to fail"),
        ("/nope/bert", "/nope/bert"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_and_the_old_one_stays(
    start_server: Starter, model: str, cause: str
) -> None:
    server = start_server("-num_worker", "2")
    workers = server.worker_pids()
    with load_on(server):
        ended = admin(server, "reload", "-model_dir", model)
    assert ended.returncode == exit_codes.FAILED
    assert cause in ended.stderr
    assert "Traceback" not in server.log + ended.stderr
    assert server.worker_pids() == workers
    assert server.status()["model_dir"] == f"fake:{DIM}"
    assert_done(admin(server, "reload"), 2)
    assert answers(server)


def test_the_number_of_workers_changes_under_load_and_no_call_fails(start_server: Starter) -> None:
    server = start_server("-model_dir", f"fake:{DIM}?row_us=100", "-cpu")
    with load_on(server):
        for number in (3, 1, 2):
            assert admin(server, "scale", str(number)).returncode == exit_codes.OK
            assert set(server.worker_pids()) == set(range(number))
            assert server.status()["num_worker"] == number
    eventually(lambda: len(server.processes("server.worker")) == 2)
    assert server.status()["statistic"]["num_failed"] == {}
    assert answers(server)


def test_workers_share_the_cores_anew_when_their_number_changes(start_server: Starter) -> None:
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("there is only one core")
    server = start_server("-cpu")
    assert admin(server, "scale", "2").returncode == exit_codes.OK
    shares = [os.sched_getaffinity(pid) for pid in server.worker_pids().values()]
    assert shares[0] | shares[1] == cores
    assert not shares[0] & shares[1]
    assert answers(server)


def test_a_change_outlives_the_broker(start_server: Starter) -> None:
    server = start_server("-model_dir", f"fake:{DIM}?boot_s=1", "-cpu")
    with ThreadPoolExecutor(1) as pool:
        change = pool.submit(admin, server, "scale", "2")
        eventually(lambda: len(server.processes("server.worker")) == 2)
        (broker,) = server.processes("server.broker")
        os.kill(broker, signal.SIGKILL)
        assert change.result().returncode == exit_codes.OK
    assert set(server.worker_pids()) == {0, 1}
    assert status_of(server)["broker"]["num_worker"] == 2
    assert answers(server)


def test_a_worker_that_leaves_finishes_what_it_has(start_server: Starter) -> None:
    server = start_server("-cpu")
    with server.client() as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.encode, f"fake:sleep {2 * SECOND}")
        eventually(lambda: server.status()["statistic"]["requests_in_hand"] == 1)
        (leaver,) = server.worker_pids().values()
        assert_done(admin(server, "reload"), 1)
        assert call.done()
        assert np.array_equal(call.result(), fake_embedding(f"fake:sleep {2 * SECOND}", DIM))
    assert leaver not in server.processes()
    assert answers(server)


def test_a_second_change_is_refused_while_one_is_under_way(start_server: Starter) -> None:
    server = start_server("-model_dir", f"fake:{DIM}?boot_s=1.5")
    with ThreadPoolExecutor(1) as pool:
        change = pool.submit(admin, server, "reload")
        eventually(lambda: status_of(server)["change"])
        ended = admin(server, "scale", "3")
        assert ended.returncode == exit_codes.FAILED
        assert "another change is under way" in ended.stderr
        assert_done(change.result(), 1)
    assert answers(server)


def test_a_server_told_to_stop_gives_up_a_change(start_server: Starter) -> None:
    server = start_server("-model_dir", f"fake:{DIM}?boot_s=2")
    with ThreadPoolExecutor(1) as pool:
        change = pool.submit(admin, server, "reload")
        eventually(lambda: len(server.processes("server.worker")) == 2)
        server.terminate()
        assert "the server is stopping" in change.result().stderr
    assert server.wait() == exit_codes.OK


def test_the_status_has_every_process_and_what_waits(start_server: Starter) -> None:
    server = start_server("-num_worker", "2", "-legacy_port", "0")
    killed = server.worker_pids()[1]
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: server.worker_pids().get(1, killed) != killed)
    status = status_of(server)
    pids = [status["pid"], *(process["pid"] for process in status["processes"])]
    assert sorted(pids) == sorted(server.processes())
    assert all(process["is_ready"] for process in status["processes"])
    assert {process["name"]: process["restarts"] for process in status["processes"]} == {
        "the broker": 0, "worker 0": 0, "worker 1": 1, "the legacy gateway": 0,
    }  # fmt: skip
    assert status["broker"]["statistic"]["queued_rows"] == 0
    text = admin(server, "status").stdout
    assert f"worker 1: ready, process {server.worker_pids()[1]}, started anew 1 times" in text
    assert "ready: 0 requests queued (0 rows, 0 bytes), 0 in workers' hands" in text


def test_a_status_comes_without_the_broker_that_does_not_answer(start_server: Starter) -> None:
    server = start_server()
    (broker,) = server.processes("server.broker")
    os.kill(broker, signal.SIGSTOP)
    assert status_of(server)["broker"] is None
    assert "the broker does not answer" in admin(server, "status").stdout
    os.kill(broker, signal.SIGCONT)
    assert answers(server)


def test_a_change_that_nobody_answers_ends_soon_and_says_what_to_do(start_server: Starter) -> None:
    server = start_server()
    os.kill(server.pid, signal.SIGSTOP)
    ended = admin(server, "scale", "2")
    assert ended.returncode == exit_codes.FAILED
    assert "what became of the command is not known; ask for its status" in ended.stderr
    os.kill(server.pid, signal.SIGCONT)
    assert status_of(server)["change"] is None
    assert answers(server)


def test_a_change_ends_soon_with_the_server_that_makes_it(start_server: Starter) -> None:
    server = start_server()
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(admin, server, "reload", "-model_dir", f"fake:{DIM}?boot_s=60")
        eventually(lambda: status_of(server)["change"])
        os.kill(server.pid, signal.SIGKILL)
        ended = ending.result(10 * SECOND)
    assert ended.returncode == exit_codes.FAILED
    assert f"the server with port {server.port} has ended meanwhile" in ended.stderr


def test_a_server_can_be_ended_by_the_same_command(start_server: Starter) -> None:
    server = start_server()
    ended = admin(server, "terminate")
    assert (ended.returncode, ended.stderr) == (exit_codes.OK, "")
    assert ended.stdout == f"the server with port {server.port} has ended\n"
    assert server.wait(5 * SECOND) == exit_codes.OK


@pytest.mark.parametrize(
    "args", [("scale", "0"), ("scale", "many"), ("scale",), (), ("reload", "-timeout", "0")]
)
def test_wrong_arguments_are_a_usage_error(args: tuple[str, ...]) -> None:
    ended = subprocess.run(
        [COMMANDS / "bert-serving-admin", *args], capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == exit_codes.USAGE
    assert "Traceback" not in ended.stderr


def test_no_server_is_said_so(fake_server: ServerProcess) -> None:
    for command in (["status"], ["reload"], ["scale", "1"]):
        ended = subprocess.run(
            [COMMANDS / "bert-serving-admin", *command, "-port", "1"],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert ended.returncode == exit_codes.FAILED
        assert "no server with port 1" in ended.stderr
