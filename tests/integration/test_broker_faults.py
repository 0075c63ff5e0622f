"""A broker that is killed, stopped or cannot come back, and what that is to everybody else."""

from __future__ import annotations

import contextlib
import os
import signal
import socket as sockets
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from server_process import SECOND, ServerProcess, Starter, eventually

from bert_serving.client.errors import DeadlineExceeded, RequestTimeout, ServerUnreachable
from bert_serving.server import exit_codes
from bert_serving.server.model.fake import fake_embedding

DIM = 384
TEXTS = [f"text number {number}" for number in range(200)]


def answers(server: ServerProcess, text: str = "a text") -> bool:
    with server.client(connect_timeout=20_000 * SECOND) as client:
        return np.array_equal(client.encode(text), fake_embedding(text, DIM))


def broker_of(server: ServerProcess) -> int:
    (broker,) = server.processes("server.broker")
    return broker


def kill_broker(server: ServerProcess) -> None:
    """Kill it, and wait until another has its place."""
    killed = broker_of(server)
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: [pid for pid in server.processes("server.broker") if pid != killed])


def is_bound(socket: sockets.socket, port: int) -> bool:
    """Bind a socket, if the port is free by now."""
    with contextlib.suppress(OSError):
        socket.bind(("127.0.0.1", port))
        return True
    return False


def test_a_killed_broker_is_replaced_under_load_and_no_worker_is(start_server: Starter) -> None:
    server = start_server("-model_dir", f"fake:{DIM}?row_us=100", "-num_worker", "2")
    workers, ready = server.worker_pids(), server.ready_file.read_bytes()
    stop = threading.Event()
    right = [0]

    def call_on(_: int) -> None:
        expected = np.stack([fake_embedding(text, DIM) for text in TEXTS])
        with server.client(timeout=2_000 * SECOND) as client:
            while not stop.is_set():
                try:
                    assert np.array_equal(client.encode(TEXTS), expected)
                    right[0] += 1
                except (RequestTimeout, DeadlineExceeded, ServerUnreachable):
                    pass

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call_on, number) for number in range(4)]
        for _ in range(3):
            before = right[0]
            eventually(lambda least=before: right[0] > least + 20)
            kill_broker(server)
            started = time.monotonic()
            assert answers(server)
            assert time.monotonic() - started < 10 * SECOND
        stop.set()
        for call in calls:
            call.result()
    eventually(lambda: server.worker_pids() == workers)
    assert server.ready_file.read_bytes() == ready
    assert "the broker was ended by SIGKILL" in server.log
    assert answers(server)


def test_what_a_worker_computed_for_the_old_broker_reaches_nobody(start_server: Starter) -> None:
    server = start_server()
    with server.client(timeout=800 * SECOND) as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.encode, f"fake:sleep {2 * SECOND}")
        eventually(lambda: server.status()["statistic"]["requests_in_hand"] == 1)
        kill_broker(server)
        assert answers(server, "behind it in the worker")
        with pytest.raises((RequestTimeout, DeadlineExceeded)):
            call.result()
    statistic = server.status()["statistic"]
    assert statistic["num_total_request"] == statistic["num_delivered"]


def test_a_worker_lost_while_there_is_no_broker_is_known_to_be(start_server: Starter) -> None:
    server = start_server("-num_worker", "2")
    workers = server.worker_pids()
    os.kill(workers[0], signal.SIGKILL)
    kill_broker(server)
    replaced = eventually(lambda: len(now := server.worker_pids()) == 2 and now)
    assert replaced[0] != workers[0]
    assert replaced[1] == workers[1]
    assert answers(server)


def test_a_broker_killed_while_workers_load_costs_nothing(start_server: Starter) -> None:
    server = start_server("-model_dir", f"fake:{DIM}?boot_s=2", "-num_worker", "2", wait=False)
    server.wait_bound()
    eventually(lambda: len(server.processes("server.worker")) == 2)
    kill_broker(server)
    server.wait_ready()
    assert answers(server)


@pytest.mark.slow
def test_a_stopped_broker_is_replaced(start_server: Starter) -> None:
    server = start_server()
    os.kill(broker_of(server), signal.SIGSTOP)
    eventually(lambda: "the broker does not answer: ending it" in server.log, 20 * SECOND)
    assert answers(server)


def test_a_broker_whose_port_is_taken_comes_back_when_it_is_free(start_server: Starter) -> None:
    server = start_server()
    broker = broker_of(server)
    os.kill(server.pid, signal.SIGSTOP)
    os.kill(broker, signal.SIGKILL)
    with sockets.socket() as taken:
        taken.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        eventually(lambda: is_bound(taken, server.port))
        taken.listen()
        os.kill(server.pid, signal.SIGCONT)
        eventually(lambda: "Address already in use" in server.log)
        assert server.process.poll() is None
    assert answers(server)


def test_a_server_whose_broker_is_gone_ends_when_told(start_server: Starter) -> None:
    server = start_server()
    os.kill(broker_of(server), signal.SIGKILL)
    server.terminate()
    assert server.wait() == exit_codes.OK
    assert not server.processes()
