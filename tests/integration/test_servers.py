"""Calls that outlive their server, or one of several: killed, restarted, draining, overloaded."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from server_process import SECOND, ServerProcess, Starter, eventually

from bert_serving.client import AsyncBertClient, BertClient, ConcurrentBertClient
from bert_serving.client.errors import (
    DeadlineExceeded,
    ModelMismatch,
    RequestTimeout,
    ServerUnreachable,
)
from bert_serving.server.model.fake import fake_embedding

DIM = 384
SLOW = ("-model_dir", "fake:384?row_us=200", "-num_worker", "1")
ROWS = [f"row {number}" for number in range(20_000)]  # 4 s on one such server
KINDS = ("blocking", "concurrent", "background", "asyncio")


def expected(rows: Any) -> npt.NDArray[np.float32]:
    return np.stack([fake_embedding(row, DIM) for row in rows])


def places(*servers: ServerProcess) -> list[str]:
    return [f"127.0.0.1:{server.port}" for server in servers]


def encode(kind: str, servers: list[str], rows: Any, **options: Any) -> Any:
    """Encode with a client of some kind."""
    options = {"servers": servers, "timeout": 20_000 * SECOND, **options}
    if kind == "asyncio":

        async def call() -> Any:
            async with AsyncBertClient(**options) as client:
                return await client.encode(rows)

        return asyncio.run(call())
    with (ConcurrentBertClient if kind == "concurrent" else BertClient)(**options) as client:
        if kind != "background":
            return client.encode(rows)
        client.encode(rows, blocking=False)
        return client.fetch_all()[0]


def is_computing(server: ServerProcess) -> bool:
    with server.client() as client:
        return bool(client.server_status["statistic"]["requests_in_hand"])


def still_answers(*servers: ServerProcess) -> bool:
    with BertClient(servers=places(*servers), timeout=20_000 * SECOND) as client:
        return np.array_equal(client.encode("still there?"), fake_embedding("still there?", DIM))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_outlives_the_only_server_that_is_killed_and_started_again(
    start_server: Starter, pool: ThreadPoolExecutor, kind: str
) -> None:
    server = start_server(*SLOW)
    call = pool.submit(encode, kind, places(server), ROWS)
    eventually(lambda: is_computing(server))
    server.kill_all()
    again = start_server(*SLOW, port=server.port)
    assert np.array_equal(call.result(30 * SECOND), expected(ROWS))
    assert still_answers(again)


def test_a_call_outlives_the_broker_alone(start_server: Starter, pool: ThreadPoolExecutor) -> None:
    server = start_server(*SLOW)
    call = pool.submit(encode, "blocking", places(server), ROWS)
    eventually(lambda: is_computing(server))
    (broker,) = server.processes("server.broker")
    os.kill(broker, signal.SIGKILL)
    assert np.array_equal(call.result(30 * SECOND), expected(ROWS))
    assert still_answers(server)


def test_a_server_that_does_not_come_back_ends_the_call_at_its_deadline(
    start_server: Starter, pool: ThreadPoolExecutor
) -> None:
    server = start_server(*SLOW)
    call = pool.submit(encode, "blocking", places(server), ROWS, timeout=3_000 * SECOND)
    eventually(lambda: is_computing(server))
    server.kill_all()
    killed = time.monotonic()
    with pytest.raises(RequestTimeout, match="the server has ended"):
        call.result()
    assert time.monotonic() - killed < 4 * SECOND


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_dies_leaves_its_requests_to_the_other(
    start_server: Starter, pool: ThreadPoolExecutor, kind: str
) -> None:
    first, second = start_server(*SLOW), start_server(*SLOW)
    call = pool.submit(encode, kind, places(first, second), ROWS)
    eventually(lambda: is_computing(first) and is_computing(second))
    first.kill_all()
    assert np.array_equal(call.result(30 * SECOND), expected(ROWS))
    assert still_answers(first, second)


def test_a_server_that_drains_leaves_its_requests_to_the_other(
    start_server: Starter, pool: ThreadPoolExecutor
) -> None:
    first, second = start_server(*SLOW), start_server(*SLOW)
    call = pool.submit(encode, "blocking", places(first, second), ROWS)
    eventually(lambda: is_computing(first) and is_computing(second))
    first.terminate()
    assert np.array_equal(call.result(30 * SECOND), expected(ROWS))
    assert first.wait() == 0


def test_a_server_that_comes_back_is_used_again(start_server: Starter) -> None:
    first, second = start_server(), start_server()
    with BertClient(servers=places(first, second), timeout=20_000 * SECOND) as client:
        client.encode(ROWS)
        first.kill_all()
        assert np.array_equal(client.encode(ROWS), expected(ROWS))
        states = [status["state"] for status in client.server_statuses]
        assert states == ["unreachable", "ready"]
        again = start_server(port=first.port)

        def is_used() -> bool:
            assert np.array_equal(client.encode(ROWS[:2_000]), expected(ROWS[:2_000]))
            return bool(again.status()["statistic"]["num_delivered"])

        eventually(is_used)
        assert [status["state"] for status in client.server_statuses] == ["ready", "ready"]


def test_requests_are_shared_and_a_stopped_server_is_done_without(start_server: Starter) -> None:
    first, second = start_server(), start_server()
    with BertClient(servers=places(first, second), timeout=20_000 * SECOND) as client:
        for number in range(20):
            client.encode(f"text {number}")
        assert [s["statistic"]["num_delivered"] for s in client.server_statuses] == [10, 10]
        stopped = first.processes("server.broker")
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        assert np.array_equal(client.encode(ROWS), expected(ROWS))
        assert time.monotonic() - started < 6 * SECOND
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        assert np.array_equal(client.encode(ROWS), expected(ROWS))


def test_an_overloaded_server_leaves_requests_to_the_other(start_server: Starter) -> None:
    small = start_server("-model_dir", "fake:384?row_us=500", "-max_queue_rows", "64")
    large = start_server()
    with BertClient(servers=places(small, large), timeout=20_000 * SECOND) as client:
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(client.encode, [ROWS[:500]] * 8))
        assert all(np.array_equal(vectors, expected(ROWS[:500])) for vectors in found)


def test_a_hedged_request_is_answered_by_the_faster_server(start_server: Starter) -> None:
    slow, fast = start_server("-model_dir", "fake:384?row_us=1500000"), start_server()
    options: Any = {"servers": places(slow, fast), "timeout": 20_000 * SECOND}
    with BertClient(**options, hedge_after=100) as client:
        started = time.monotonic()
        for number in range(4):
            text = f"text {number}"
            assert np.array_equal(client.encode(text), fake_embedding(text, DIM))
        assert time.monotonic() - started < 1.5 * SECOND
        eventually(lambda: slow.status()["statistic"]["num_cancelled"] > 0)


def test_servers_of_different_models_are_refused(start_server: Starter) -> None:
    one, other = start_server(), start_server("-model_dir", "fake:128")
    with pytest.raises(ModelMismatch, match=r"hidden_size: (384 and 128|128 and 384)"):
        BertClient(servers=places(one, other))
    assert still_answers(one)


OTHERWISE = ("-pooling_strategy", "REDUCE_MAX")


def test_a_server_that_comes_back_as_another_is_refused_before_its_answers_count(
    start_server: Starter,
) -> None:
    first, second = start_server(), start_server()
    with BertClient(servers=places(first, second), timeout=20_000 * SECOND) as client:
        client.encode(ROWS[:100])
        first.kill_all()
        start_server(*OTHERWISE, port=first.port)
        with pytest.raises(ModelMismatch, match="default view"):
            client.encode(ROWS)


def test_an_asyncio_client_refuses_servers_of_different_models_at_every_call(
    start_server: Starter,
) -> None:
    first, second = start_server(), start_server()

    async def calls() -> None:
        async with AsyncBertClient(servers=places(first, second)) as client:
            await client.encode(ROWS[:100])
            first.kill_all()
            other = start_server(*OTHERWISE, port=first.port)
            for _ in range(3):
                with pytest.raises(ModelMismatch, match="default view"):
                    await client.encode(ROWS)
            other.kill_all()
            assert np.array_equal(await client.encode(ROWS[0]), fake_embedding(ROWS[0], DIM))

    asyncio.run(calls())


def test_one_server_is_enough_to_begin_and_none_is_not(start_server: Starter) -> None:
    server = start_server()
    with BertClient(servers=["127.0.0.1:1", *places(server)]) as client:
        assert np.array_equal(client.encode("one"), fake_embedding("one", DIM))
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1: nothing listens there"):
        BertClient(servers=["127.0.0.1:1", "127.0.0.1:2"], connect_timeout=300 * SECOND)


@pytest.mark.parametrize(
    "servers", ["gpu1:5555", [], ["gpu1"], ["gpu1:port"], ["a:5555", "a:5555"], ["a:70000"]]
)
def test_servers_that_cannot_be_meant_are_refused(servers: Any) -> None:
    with pytest.raises(ValueError, match=r"servers|port"):
        BertClient(servers=servers)


def test_groups_are_one_servers() -> None:
    client = BertClient(servers=["127.0.0.1:1", "127.0.0.1:2"], ignore_all_checks=True)
    with client:
        for call in (
            lambda: client.join("news"),
            lambda: client.leave("news"),
            lambda: client.listen(),
            lambda: client.encode("a", group="news"),
            lambda: client.encode("a", group="news", blocking=False),
        ):
            with pytest.raises(ValueError, match="groups are one server's"):
                call()


def test_a_request_in_hand_when_its_time_is_over_is_not_tried_for_ever(
    start_server: Starter,
) -> None:
    first, second = start_server(), start_server()
    options: Any = {"servers": places(first, second), "timeout": 500 * SECOND}
    with BertClient(**options) as client:
        started = time.monotonic()
        with pytest.raises((RequestTimeout, DeadlineExceeded)):
            client.encode("fake:sleep 3")
        assert time.monotonic() - started < 2 * SECOND
    assert still_answers(first, second)
