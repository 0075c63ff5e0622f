"""One client in many hands: threads, forks, asyncio tasks, and callers who change their mind."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from interrupts import interrupted, interrupted_at
from server_process import SECOND, ServerProcess, Starter, eventually

from bert_serving.client import AsyncBertClient, BertClient, ConcurrentBertClient, TruncationWarning
from bert_serving.client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    RequestTimeout,
    ServerUnreachable,
    WorkerFailed,
)
from bert_serving.client.pool import MAX_IDLE_CONNECTIONS
from bert_serving.server.model.fake import fake_embedding, fake_tokens

DIM = 384


def expected(rows: Any) -> npt.NDArray[np.float32]:
    return np.stack([fake_embedding(row, DIM) for row in rows])


def still_answers(client: BertClient, name: str = "still there?") -> bool:
    return np.array_equal(client.encode(name), fake_embedding(name, DIM))


def encodes_right(client: BertClient, name: str, calls: int = 20) -> bool:
    """Make calls of several sizes, and say whether every row was right."""
    for number in range(calls):
        rows = [f"{name}, call {number}, row {row}" for row in range(1 + number * 7 % 300)]
        if not np.array_equal(client.encode(rows), expected(rows)):
            return False
    return True


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(coroutine, 30 * SECOND)

    asyncio.run(limited())


async def until_computing(client: AsyncBertClient) -> None:
    while not (await client.server_status())["statistic"]["requests_in_hand"]:
        await asyncio.sleep(0)


def async_client(server: ServerProcess, **options: Any) -> AsyncBertClient:
    return AsyncBertClient(port=server.port, **{"timeout": 20_000 * SECOND, **options})


@pytest.fixture(scope="module")
def slow_server(module_server: Starter) -> ServerProcess:
    """A server that needs a second for 10,000 rows."""
    return module_server("-model_dir", "fake:384?row_us=100")


# threads and forks


def test_threads_share_a_client(client: BertClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda number: encodes_right(client, f"thread {number}"), range(8)))


def test_more_threads_than_idle_connections_share_a_client(client: BertClient) -> None:
    threads = 3 * MAX_IDLE_CONNECTIONS
    together = threading.Barrier(threads, timeout=30 * SECOND)

    def call(number: int) -> bool:
        together.wait()
        return encodes_right(client, f"thread {number}", calls=3)

    with ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(call, range(threads)))
    assert len(client._process.pool._idle) <= MAX_IDLE_CONNECTIONS
    assert still_answers(client)


FORKING = """
import multiprocessing, os, sys, threading
import numpy as np
from bert_serving.client import BertClient
from bert_serving.server.model.fake import fake_embedding

client = BertClient(port=int(sys.argv[1]), timeout=20_000)

def encodes_right(name):
    for number in range(20):
        rows = [f"{name}, call {number}, row {row}" for row in range(1 + number * 7 % 300)]
        vectors = client.encode(rows)
        if not np.array_equal(vectors, np.stack([fake_embedding(row, 384) for row in rows])):
            return False
    return True

def child(name, results):
    results.put((name, encodes_right(name)))

assert encodes_right("before")
context = multiprocessing.get_context("fork")
results = context.SimpleQueue()
children = [context.Process(target=child, args=(f"child {n}", results)) for n in range(2)]
for process in children:
    process.start()
answers = dict(results.get() for _ in children)
for process in children:
    process.join()
assert answers == {"child 0": True, "child 1": True}, answers
assert [process.exitcode for process in children] == [0, 0]
rights = []
threads = [threading.Thread(target=lambda n=n: rights.append(encodes_right(n))) for n in range(8)]
for thread in threads:
    thread.start()
pid = os.fork()  # while threads are in the middle of calls
if pid == 0:
    os._exit(0 if encodes_right("grandchild") else 9)
for thread in threads:
    thread.join()
assert rights == [True] * 8
assert os.waitpid(pid, 0)[1] == 0
assert encodes_right("after")
client.close()
print("all right")
"""


def test_forked_children_and_threads_share_a_client(fake_server: ServerProcess) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING, str(fake_server.port)],
        capture_output=True,
        text=True,
        timeout=60 * SECOND,
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("all right\n", "", 0)


def output_of(script: str, server: ServerProcess) -> str:
    """Return what a program prints that is told a server's port, and warns of nothing."""
    command = [sys.executable, "-c", script, str(server.port)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60 * SECOND)
    assert not ran.stderr
    return ran.stdout


def test_a_child_that_closes_leaves_its_parents_client_open(fake_server: ServerProcess) -> None:
    script = (
        "import os, sys; from bert_serving.client import BertClient\n"
        "client = BertClient(port=int(sys.argv[1]), timeout=10_000); client.encode('a')\n"
        "if (pid := os.fork()) == 0:\n"
        "    client.close(); sys.exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "client.encode('a'); client.close(); print('all right')"
    )
    assert output_of(script, fake_server) == "all right\n"


def test_a_client_that_was_closed_is_closed_in_a_child(fake_server: ServerProcess) -> None:
    script = (
        "import os, sys; from bert_serving.client import BertClient\n"
        "client = BertClient(port=int(sys.argv[1]), timeout=10_000); client.close()\n"
        "if (pid := os.fork()) == 0:\n"
        "    try: client.encode('a')\n"
        "    except ValueError as error: print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)"
    )
    assert output_of(script, fake_server) == "this BertClient is closed\n"


def test_threads_that_are_the_first_in_a_child_lose_no_answer(fake_server: ServerProcess) -> None:
    script = (
        "import os, sys, threading; from bert_serving.client import BertClient\n"
        "client = BertClient(port=int(sys.argv[1]), timeout=10_000)\n"
        "def ask():\n"
        "    start.wait(); client.encode('a', blocking=False)\n"
        "for _ in range(10):\n"
        "    if (pid := os.fork()) == 0:\n"
        "        sys.setswitchinterval(1e-6)  # or it would seldom go wrong\n"
        "        start = threading.Barrier(8)\n"
        "        threads = [threading.Thread(target=ask) for _ in range(8)]\n"
        "        for thread in threads: thread.start()\n"
        "        for thread in threads: thread.join()\n"
        "        print(len(client.fetch_all()), flush=True); os._exit(0)\n"
        "    os.waitpid(pid, 0)"
    )
    assert output_of(script, fake_server) == "8\n" * 10


def test_a_concurrent_client_never_runs_out(fake_server: ServerProcess) -> None:
    client = ConcurrentBertClient(max_concurrency=2, port=fake_server.port)
    with client, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda n: encodes_right(client, f"{n}", calls=5), range(8)))


# small requests beside large ones


@pytest.fixture
def bulk_server(start_server: Starter) -> Iterator[ServerProcess]:
    """A server that has batches of a second each to compute, for many seconds."""
    server = start_server(
        *("-model_dir", f"fake:384?row_us={4_000 * SECOND:.0f}"), *("-max_batch_size", "256")
    )
    with server.client(timeout=60_000 * SECOND) as client, ThreadPoolExecutor(1) as pool:
        rows = [f"row {number}" for number in range(4 * 256)]
        bulk = pool.submit(client.encode, rows)
        eventually(lambda: server.status()["statistic"]["requests_in_hand"] > 1)
        yield server
        assert np.array_equal(bulk.result(), expected(rows))


def test_a_small_request_does_not_wait_for_the_batch_that_runs(bulk_server: ServerProcess) -> None:
    with bulk_server.client() as client:
        started = time.monotonic()
        for number in range(3):
            assert still_answers(client, f"small {number}")
        assert time.monotonic() - started < 0.9 * SECOND
        assert bulk_server.status()["statistic"]["requests_in_hand"] > 1


def test_a_small_request_that_kills_workers_fails_alone(bulk_server: ServerProcess) -> None:
    with bulk_server.client(timeout=60_000 * SECOND) as client:
        with pytest.raises(WorkerFailed):
            client.encode("fake:crash")
        assert still_answers(client)


# the end of a client


def test_closing_lets_a_call_in_another_thread_end(slow_server: ServerProcess) -> None:
    client = slow_server.client()
    rows = [f"row {number}" for number in range(5_000)]
    begun = threading.Event()

    def texts() -> Iterator[str]:
        for row in rows:
            yield row
            begun.set()

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.encode, texts())
        begun.wait(5 * SECOND)
        client.close()
        assert not call.done()
        assert np.array_equal(call.result(), expected(rows))
    with pytest.raises(ValueError, match="closed"):
        client.encode("too late")
    client.close()


def test_a_closed_client_and_an_unused_one_leave_no_sockets(fake_server: ServerProcess) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with fake_server.client() as client:
        client.encode("a")
    before = open_files()
    for _ in range(5):
        with fake_server.client() as client, ThreadPoolExecutor(4) as pool:
            list(pool.map(client.encode, "abcdefgh"))
        fake_server.client(ignore_all_checks=True).close()
    eventually(lambda: open_files() <= before)


CLOSED_BY_A_SIGNAL = """
import signal
from bert_serving.client import BertClient
from bert_serving.client.errors import ServerUnreachable

def close(*_):
    client.close()
    print("closed")

client = BertClient(port=1, ignore_all_checks=True, connect_timeout=1_000)
signal.signal(signal.SIGALRM, close)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    client.encode("a", blocking=False)
except ServerUnreachable:
    print("unreachable")
"""


def test_a_signal_may_close_a_client_that_is_starting_its_thread() -> None:
    command = [sys.executable, "-c", CLOSED_BY_A_SIGNAL]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=10 * SECOND)
    assert (ran.stdout, ran.stderr) == ("closed\nunreachable\n", "")


def test_closing_ends_who_waits_for_a_generator_that_is_stuck(client: BertClient) -> None:
    goes_on, waits = threading.Event(), threading.Event()

    def batches() -> Iterator[list[str]]:
        yield ["a"]
        waits.set()
        goes_on.wait(20 * SECOND)

    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(list, client.encode_async(batches(), delay=0))
        waits.wait(5 * SECOND)
        client.close()
        try:
            assert len(taken.result(5 * SECOND)) <= 1
        finally:
            goes_on.set()


# interrupts


def is_idle(client: BertClient) -> bool:
    statistic = client.server_status["statistic"]
    return not (statistic["queued_requests"] or statistic["requests_in_hand"])


def test_an_interrupted_call_ends_at_once_and_is_not_computed(slow_server: ServerProcess) -> None:
    rows = [f"row {number}" for number in range(50_000)]  # 5 s
    with slow_server.client() as client:
        for wait_s in (0.1, 0.3, 0.7):
            started = time.monotonic()
            interrupted(lambda: client.encode(rows), wait_s * SECOND)
            assert time.monotonic() - started < 3 * SECOND
            assert still_answers(client)
        eventually(lambda: is_idle(client), 3 * SECOND)


@pytest.fixture
def interrupted_client(fake_server: ServerProcess) -> Iterator[BertClient]:
    with fake_server.client(timeout=5_000 * SECOND) as client:
        yield client
        eventually(lambda: is_idle(client), 3 * SECOND)


# what is lost on the way is closed by the garbage collector
lost_sockets_are_closed = pytest.mark.filterwarnings(
    "ignore:.*:pytest.PytestUnraisableExceptionWarning", "ignore:.*:ResourceWarning"
)


@lost_sockets_are_closed
def test_an_interrupt_in_any_place_leaves_the_client_usable(interrupted_client: BertClient) -> None:
    client, place = interrupted_client, 0
    while interrupted_at(lambda: client.encode(["a", "b"]), place):
        assert still_answers(client, f"after an interrupt at place {place}")
        place += 2
    assert place > 100


@lost_sockets_are_closed
def test_an_interrupt_in_any_place_leaves_the_background_usable(
    interrupted_client: BertClient,
) -> None:
    client, place = interrupted_client, 0

    def call() -> None:
        client.encode(["a", "b"], blocking=False)
        client.fetch_all()

    while interrupted_at(call, place):
        client.fetch_all()
        client.encode("one", blocking=False)
        assert np.array_equal(client.fetch_all()[0], fake_embedding("one", DIM)), place
        place += 1
    assert place > 50


@lost_sockets_are_closed
def test_signals_at_any_time_leave_the_client_usable(interrupted_client: BertClient) -> None:
    chance, client = random.Random(1), interrupted_client
    rows = [f"row {number}" for number in range(2_000)]
    for number in range(100):
        interrupted(lambda: client.encode(rows), 0.02 * chance.random() ** 3 + 1e-6)
        assert still_answers(client, f"after interrupt {number}")


@lost_sockets_are_closed
def test_interrupted_calls_give_their_place_to_others(fake_server: ServerProcess) -> None:
    place = 0
    with ConcurrentBertClient(max_concurrency=1, port=fake_server.port, timeout=5_000) as client:
        while interrupted_at(lambda: client.encode("a"), place):
            assert still_answers(client, f"after an interrupt at place {place}")
            place += 3
    assert place > 100


# asyncio


def test_two_hundred_calls_at_once_share_one_connection(fake_server: ServerProcess) -> None:
    async def calls() -> None:
        async with async_client(fake_server) as client:
            rows = [[f"call {n}, row {row}" for row in range(n)] for n in range(1, 201)]
            answers = await asyncio.gather(*(client.encode(texts) for texts in rows))
            assert all(map(np.array_equal, answers, map(expected, rows)))
            assert (await client.server_status())["state"] == "ready"

    run(calls())


def test_an_asyncio_client_has_the_same_calls(fake_server: ServerProcess) -> None:
    async def calls() -> None:
        async with async_client(fake_server) as client:
            await client.wait_ready(1_000)
            assert np.array_equal(await client.encode("one"), fake_embedding("one", DIM))
            assert (await client.tokenize("one two")).tokens == fake_tokens("one two")
            encoding = await client.encode_detailed(["one"], {"short": {"dims": 3}})
            assert encoding.views["short"].shape == (1, 3)  # type: ignore[union-attr]
            assert (await client.encode([])).shape == (0, DIM)
            with pytest.warns(TruncationWarning) as caught:
                await client.encode("word " * 600)
            assert caught[0].filename == __file__
            with pytest.raises(TypeError, match="row 1 is int"):
                await client.encode(["a", 1])
            with pytest.raises(InvalidRequest):
                await client.encode("a", layers=99)
            bulk = [f"row {number}" for number in range(20_000)]
            assert np.array_equal(await client.encode(iter(bulk)), expected(bulk))
        async with async_client(fake_server, output_fmt="list") as client:
            assert await client.encode("one") == fake_embedding("one", DIM).tolist()

    run(calls())


def test_a_cancelled_call_is_not_computed_and_the_others_go_on(slow_server: ServerProcess) -> None:
    async def calls() -> None:
        async with async_client(slow_server) as client:
            rows = [f"row {number}" for number in range(30_000)]
            long = [asyncio.create_task(client.encode(rows)) for _ in range(5)]
            short = [asyncio.create_task(client.encode(f"short {n}")) for n in range(20)]
            await until_computing(client)
            for task in long:
                task.cancel()
            started = time.monotonic()
            ended = await asyncio.gather(*long, return_exceptions=True)
            assert all(isinstance(error, asyncio.CancelledError) for error in ended)
            for number, vector in enumerate(await asyncio.gather(*short)):
                assert np.array_equal(vector, fake_embedding(f"short {number}", DIM))
            assert np.array_equal(await client.encode("after"), fake_embedding("after", DIM))
            assert time.monotonic() - started < 2 * SECOND

    run(calls())


def test_asyncio_time_outs_are_typed(slow_server: ServerProcess) -> None:
    async def calls() -> None:
        async with async_client(slow_server, timeout=300) as client:
            with pytest.raises((RequestTimeout, DeadlineExceeded)):
                await client.encode("fake:sleep 1")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.encode("fake:sleep 0.5")
        async with async_client(slow_server) as client:
            assert np.array_equal(await client.encode("b"), fake_embedding("b", DIM))

    run(calls())


def test_closing_an_asyncio_client_ends_its_calls(slow_server: ServerProcess) -> None:
    async def calls() -> None:
        client = async_client(slow_server)
        task = asyncio.create_task(client.encode([f"row {number}" for number in range(30_000)]))
        await until_computing(client)
        await client.close()
        with pytest.raises(ServerUnreachable, match="closed during the call"):
            await task
        with pytest.raises(ValueError, match="closed"):
            await client.encode("too late")
        await client.close()

    run(calls())


def test_many_tasks_can_be_the_first_to_connect(fake_server: ServerProcess) -> None:
    async def calls() -> None:
        client = async_client(fake_server)
        vectors = await asyncio.gather(*(client.encode(f"text {n}") for n in range(50)))
        assert np.array_equal(vectors, expected([f"text {n}" for n in range(50)]))
        await client.close()

    run(calls())


def test_first_calls_to_nobody_all_end_with_the_same_error() -> None:
    async def calls() -> None:
        client = AsyncBertClient(port=1, connect_timeout=300)

        async def call(number: int) -> None:
            await asyncio.sleep(0.01 * number)  # the first gives up while others still wait
            await client.encode("a")

        errors = await asyncio.gather(*map(call, range(5)), return_exceptions=True)
        assert {type(error) for error in errors} == {ServerUnreachable}
        assert all("127.0.0.1:1" in str(e) or "localhost:1" in str(e) for e in errors), errors
        await client.close()

    run(calls())


def test_an_event_loop_is_never_held_for_long(fake_server: ServerProcess) -> None:
    async def calls() -> None:
        async with async_client(fake_server) as client:
            rows = [f"row {number}" for number in range(50_000)]
            bulk = asyncio.create_task(client.encode(rows))
            longest, last = 0.0, time.monotonic()
            while not bulk.done():
                await asyncio.sleep(0.001)
                now = time.monotonic()
                longest, last = max(longest, now - last), now
            assert np.array_equal(await bulk, expected(rows))
            assert longest < 0.5 * SECOND

    run(calls())
