"""Workers that are killed, stopped, hang, crash and fall behind, under callers who wait."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from server_process import SECOND, ServerProcess, Starter, eventually

from bert_serving.client import AsyncBertClient, BertClient
from bert_serving.client.errors import (
    DeadlineExceeded,
    Overloaded,
    RequestTimeout,
    ServerUnreachable,
    WorkerFailed,
)
from bert_serving.server.model.fake import fake_embedding

DIM = 384
MANY = [f"text number {number}" for number in range(20_000)]
MARGIN_S = 2 * SECOND
"""What a call may take beyond its time-out."""


def expected(rows: Any) -> npt.NDArray[np.float32]:
    return np.stack([fake_embedding(row, DIM) for row in rows])


def still_answers(server: ServerProcess) -> bool:
    with server.client() as client:
        return np.array_equal(client.encode(MANY[:100]), expected(MANY[:100]))


def kill_workers(server: ServerProcess) -> None:
    for pid in server.processes("server.worker"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def counted(server: ServerProcess, name: str) -> Any:
    return server.status()["statistic"][name]


# workers that are lost


def test_a_worker_killed_in_the_middle_of_a_call_costs_nothing(start_server: Starter) -> None:
    server = start_server("-model_dir", "fake:384?row_us=50", "-num_worker", "2")
    workers = server.worker_pids()
    with server.client() as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.encode, MANY)
        eventually(lambda: counted(server, "num_delivered") > 10)
        os.kill(workers[0], signal.SIGKILL)
        assert not call.done()
        assert np.array_equal(call.result(), expected(MANY))
    replaced = eventually(lambda: len(now := server.worker_pids()) == 2 and now)
    assert replaced[0] != workers[0]
    assert replaced[1] == workers[1]
    assert "worker 0 was ended by SIGKILL" in server.log
    assert still_answers(server)


def test_the_only_worker_killed_in_the_middle_of_a_call_is_replaced(start_server: Starter) -> None:
    server = start_server("-model_dir", "fake:384?row_us=50")
    (worker,) = server.worker_pids().values()
    with server.client() as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.encode, MANY)
        eventually(lambda: counted(server, "num_delivered") > 10)
        os.kill(worker, signal.SIGKILL)
        assert np.array_equal(call.result(), expected(MANY))
    assert server.worker_pids()[0] != worker
    assert still_answers(server)


def test_while_all_workers_die_again_and_again_every_call_ends_as_it_should(
    start_server: Starter,
) -> None:
    server = start_server("-model_dir", "fake:384?row_us=20", "-num_worker", "2")
    stop = threading.Event()
    outcomes: list[str] = []

    def call_on(number: int) -> None:
        timeout_s = 4 * SECOND
        rows = MANY[number * 100 : number * 100 + 1500]
        with server.client(timeout=timeout_s * 1000) as client:
            while not stop.is_set():
                started = time.monotonic()
                try:
                    vectors = client.encode(rows)
                    assert np.array_equal(vectors, expected(rows))
                    outcomes.append("answered")
                except (RequestTimeout, DeadlineExceeded, WorkerFailed) as error:
                    outcomes.append(type(error).__name__)
                # its time starts anew with each answer, so only the end of it is bounded
                assert time.monotonic() - started < 6 * timeout_s + MARGIN_S

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call_on, number) for number in range(4)]
        deadline = time.monotonic() + 4 * SECOND
        while time.monotonic() < deadline:
            kill_workers(server)
            stop.wait(0.3 * SECOND)
        stop.set()
        for call in calls:
            call.result()
    assert outcomes
    eventually(lambda: len(server.worker_pids()) == 2, 15 * SECOND)
    assert still_answers(server)


# workers that hang


def test_a_stopped_worker_is_replaced_and_its_work_done_by_another(start_server: Starter) -> None:
    server = start_server("-batch_timeout", "1", "-num_worker", "2")
    workers = server.worker_pids()
    os.kill(workers[1], signal.SIGSTOP)
    with server.client() as client:
        assert np.array_equal(client.encode(MANY), expected(MANY))
    assert "worker 1 is stuck" in server.log
    replaced = eventually(lambda: len(now := server.worker_pids()) == 2 and now)
    assert replaced[1] != workers[1]
    assert still_answers(server)


def test_a_row_that_hangs_fails_alone_and_others_go_on(start_server: Starter) -> None:
    server = start_server("-batch_timeout", "0.5", "-num_worker", "2")
    with server.client() as hanging, server.client() as other, ThreadPoolExecutor(1) as pool:
        call = pool.submit(hanging.encode, "fake:hang")
        eventually(lambda: counted(server, "requests_in_hand") == 1)
        served = 0
        while not call.done():
            assert np.array_equal(other.encode("a text"), fake_embedding("a text", DIM))
            served += 1
        with pytest.raises(WorkerFailed, match="3 workers died"):
            call.result()
        assert served > 3  # but for those that waited behind it in the same worker
    assert still_answers(server)


def test_a_request_that_takes_longer_than_a_batch_may_be_silent_is_answered(
    start_server: Starter,
) -> None:
    slow = f"fake:{DIM}?row_us={20_000 * SECOND}"
    server = start_server("-batch_timeout", str(SECOND), "-model_dir", slow)
    workers = server.worker_pids()
    rows = MANY[:150]  # 3 seconds, in one request
    with server.client() as client:
        assert np.array_equal(client.encode(rows), expected(rows))
    assert server.worker_pids() == workers


# rows that crash or break the model


def test_a_row_that_kills_its_workers_fails_alone(start_server: Starter) -> None:
    server = start_server("-num_worker", "2")
    rows = MANY[:2000]
    with ThreadPoolExecutor(5) as pool:

        def encode(texts: Any) -> Any:
            with server.client() as client:
                return client.encode(texts)

        good = [pool.submit(encode, rows) for _ in range(2)]
        bad = pool.submit(encode, "fake:crash")
        good += [pool.submit(encode, rows) for _ in range(2)]
        for call in good:
            assert np.array_equal(call.result(), expected(rows))
        with pytest.raises(WorkerFailed, match="3 workers died with this request in hand"):
            bad.result()
    eventually(lambda: len(server.worker_pids()) == 2)
    assert still_answers(server)


def test_a_row_that_kills_the_only_worker_fails_alone(start_server: Starter) -> None:
    server = start_server()
    with server.client() as client:
        with pytest.raises(WorkerFailed):
            client.encode(["good", "fake:crash"])
        assert np.array_equal(client.encode("good"), fake_embedding("good", DIM))
    assert still_answers(server)


def test_a_row_on_which_the_model_fails_ends_its_request_and_no_worker(
    start_server: Starter,
) -> None:
    server = start_server()
    workers = server.worker_pids()
    with server.client() as bad, server.client() as good, ThreadPoolExecutor(8) as pool:
        failing = [pool.submit(bad.encode, ["fake:raise", "a"]) for _ in range(4)]
        others = [pool.submit(good.encode, MANY[:500]) for _ in range(4)]
        for call in failing:
            with pytest.raises(WorkerFailed, match="RuntimeError: fake:raise: told to fail"):
                call.result()
        for call in others:
            assert np.array_equal(call.result(), expected(MANY[:500]))
    assert server.worker_pids() == workers
    assert still_answers(server)


def test_a_worker_whose_device_is_lost_is_replaced_and_its_work_done(start_server: Starter) -> None:
    server = start_server("-model_dir", "fake:384?row_us=50", "-num_worker", "2")
    workers = server.worker_pids()
    with server.client() as client, server.client() as bad, ThreadPoolExecutor(2) as pool:
        call = pool.submit(client.encode, MANY)
        eventually(lambda: counted(server, "num_delivered") > 10)
        losing = pool.submit(bad.encode, "fake:lose_device")  # as a kernel's failed assertion does
        with pytest.raises(WorkerFailed, match="3 workers died"):
            losing.result()
        assert np.array_equal(call.result(), expected(MANY))
    eventually(lambda: len(now := server.worker_pids()) == 2 and now != workers)
    assert "ending, as the device is lost" in server.log
    assert "exited with status 5 (its device is lost)" in server.log
    assert still_answers(server)


# time that runs out


def test_a_deadline_shorter_than_the_work_ends_the_call_in_time(start_server: Starter) -> None:
    server = start_server()
    with server.client(timeout=500) as client:
        started = time.monotonic()
        with pytest.raises((RequestTimeout, DeadlineExceeded)):
            client.encode("fake:sleep 2")
        assert 0.4 < time.monotonic() - started < 0.5 + MARGIN_S / 2
    assert still_answers(server)


def test_what_waits_beyond_its_deadline_is_not_computed(start_server: Starter) -> None:
    server = start_server("-max_batch_size", "1")
    with server.client() as patient, server.client(timeout=300) as client:
        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(patient.encode, "fake:sleep 1") for _ in range(3)]
            eventually(lambda: counted(server, "num_data_request") == 3)
            with pytest.raises((RequestTimeout, DeadlineExceeded)) as caught:
                client.encode("fake:sleep 5")
            assert isinstance(caught.value, TimeoutError)
            started = time.monotonic()
            for call in calls:
                call.result()
        assert np.array_equal(patient.encode("a text"), fake_embedding("a text", DIM))
        assert time.monotonic() - started < 4 * SECOND


def test_a_call_that_gets_answers_outlives_its_timeout(start_server: Starter) -> None:
    server = start_server("-model_dir", f"fake:384?row_us={200 * SECOND}", "-max_batch_size", "256")
    timeout_s = 2 * SECOND
    with server.client(timeout=timeout_s * 1000) as client:
        started = time.monotonic()
        assert np.array_equal(client.encode(MANY), expected(MANY))
        assert time.monotonic() - started > 1.5 * timeout_s
    assert not counted(server, "num_failed")  # nothing was computed twice


# a full queue


def test_a_full_queue_makes_clients_wait_and_loses_nothing(start_server: Starter) -> None:
    server = start_server("-model_dir", "fake:384?row_us=20", "-max_queue_rows", "300")
    rows = MANY[:4_000]

    def encode(start: int) -> bool:
        with server.client() as client:
            return np.array_equal(client.encode(rows[start:]), expected(rows[start:]))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(encode, range(4)))
    assert counted(server, "num_refused")["overloaded"] > 0
    assert still_answers(server)


def test_a_queue_that_stays_full_is_a_typed_error_in_time(start_server: Starter) -> None:
    server = start_server("-max_queue_rows", "2", "-num_worker", "1")
    with server.client() as patient, server.client(timeout=600) as client:
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(patient.encode, "fake:sleep 2") for _ in range(2)]
            eventually(lambda: counted(server, "num_data_request") == 2)
            started = time.monotonic()
            with pytest.raises((Overloaded, RequestTimeout)):
                client.encode("no room")
            assert time.monotonic() - started < 0.6 + MARGIN_S / 2
            for call in calls:
                call.result()
        assert np.array_equal(client.encode("room"), fake_embedding("room", DIM))


def test_a_client_that_floods_leaves_room_for_the_others(start_server: Starter) -> None:
    server = start_server("-model_dir", "fake:384?row_us=50", "-max_queue_rows", "1000")
    with server.client() as flooding, server.client() as other, ThreadPoolExecutor(1) as pool:
        flood = pool.submit(flooding.encode, MANY)
        eventually(lambda: counted(server, "num_delivered") > 3)
        slowest = 0.0
        while not flood.done():
            started = time.monotonic()
            assert np.array_equal(other.encode("a text"), fake_embedding("a text", DIM))
            slowest = max(slowest, time.monotonic() - started)
        assert slowest < 1 * SECOND
        assert np.array_equal(flood.result(), expected(MANY))


def test_a_client_that_vanishes_is_not_computed_for(start_server: Starter) -> None:
    server = start_server("-max_batch_size", "1")
    script = (
        "import sys; from bert_serving.client import BertClient\n"
        "BertClient(port=int(sys.argv[1])).encode(['fake:sleep 0.5'] * 50)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(server.port)]) as process:
        eventually(lambda: counted(server, "num_data_request") > 2)
        process.kill()
    started = time.monotonic()
    assert still_answers(server)
    assert time.monotonic() - started < 12 * SECOND  # all of it would take 25


async def closed_during_a_call(port: int, rows: list[str], started: Callable[[], bool]) -> None:
    client = AsyncBertClient(port=port)
    call = asyncio.create_task(client.encode(rows))
    await asyncio.to_thread(eventually, started)
    await client.close()
    with pytest.raises(ServerUnreachable):
        await call


async def cancelled_in_its_client(port: int, rows: list[str], started: Callable[[], bool]) -> None:
    async def encode() -> None:
        async with AsyncBertClient(port=port) as client:
            await client.encode(rows)

    call = asyncio.create_task(encode())
    await asyncio.to_thread(eventually, started)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def not_waited_for(port: int, rows: list[str], started: Callable[[], bool]) -> None:
    with BertClient(port=port) as client:
        client.encode(rows, blocking=False)
        eventually(started)


@pytest.mark.parametrize("left", [closed_during_a_call, cancelled_in_its_client, not_waited_for])
def test_what_a_client_has_open_when_it_is_closed_is_not_computed(
    start_server: Starter, left: Callable[..., Coroutine[Any, Any, None]]
) -> None:
    server = start_server("-max_batch_size", "1")
    rows = [f"fake:sleep {3 * SECOND}"] * 20

    def is_started() -> bool:
        return counted(server, "queued_requests") > 1

    asyncio.run(left(server.port, rows, is_started))
    eventually(lambda: counted(server, "queued_requests") == 0, 1 * SECOND)
    assert counted(server, "num_cancelled") > 1


def test_interrupted_callers_leave_nothing_behind(start_server: Starter) -> None:
    server = start_server()

    def clients() -> list[BertClient]:
        return [server.client(timeout=100) for _ in range(20)]

    for client in clients():
        with client, pytest.raises((RequestTimeout, DeadlineExceeded)):
            client.encode("fake:sleep 0.3")
    eventually(lambda: counted(server, "requests_in_hand") == 0)
    assert counted(server, "queued_requests") == 0
    assert still_answers(server)
