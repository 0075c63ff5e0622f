"""What becomes of clients that nobody closes: garbage, children of a fork, the end of a process."""

from __future__ import annotations

import resource
import subprocess
import sys
from contextlib import ExitStack

import pytest
from server_process import SECOND, ServerProcess, Starter, eventually

from bert_serving.client.context import process_context
from bert_serving.client.endpoint import Endpoint
from bert_serving.client.sockets import new_socket


def output_of(script: str, server: ServerProcess, *arguments: str) -> str:
    """Run a script in a process of its own, which must end well, soon and without a complaint."""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(server.port), *arguments],
        capture_output=True,
        text=True,
        timeout=30 * SECOND,
    )
    assert (ran.stderr, ran.returncode) == ("", 0)
    return ran.stdout


GARBAGE = """
import asyncio, gc, sys, time
from pathlib import Path
from bert_serving.client import AsyncBertClient, BertClient

port, kind = int(sys.argv[1]), sys.argv[2]

def used_client():
    client = BertClient(port=port, timeout=10_000)
    client.encode("a")
    return client

def dropped():
    used_client()

def in_a_cycle():
    client = used_client()
    client.itself = client

def closed_in_a_cycle():
    client = used_client()
    client.itself = client
    client.close()

def in_a_cycle_with_a_thread():
    client = used_client()
    client.itself = client
    client.encode("a", blocking=False)
    client.fetch_all()

def in_a_stored_error():
    client = used_client()
    try:
        client.encode([1])
    except TypeError as error:
        stored = error

async def call():
    await AsyncBertClient(port=port, timeout=10_000).encode("a")

def asynchronous():
    asyncio.run(call())

loop = asyncio.new_event_loop()

def asynchronous_in_a_loop_that_goes_on():
    loop.run_until_complete(call())

def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))

make = globals()[kind]
make()
gc.collect()
before = descriptors()
for _ in range(20):
    make()
    gc.collect()
deadline = time.monotonic() + 5
while descriptors() > before and time.monotonic() < deadline:
    time.sleep(0.01)
print("closed" if descriptors() <= before else f"{before} and {descriptors()} descriptors")
loop.close()
"""


@pytest.mark.parametrize(
    "kind",
    [
        "dropped",
        "in_a_cycle",
        "closed_in_a_cycle",
        "in_a_cycle_with_a_thread",
        "in_a_stored_error",
        "asynchronous",
        "asynchronous_in_a_loop_that_goes_on",
    ],
)
def test_a_client_that_is_garbage_is_closed(fake_server: ServerProcess, kind: str) -> None:
    assert output_of(GARBAGE, fake_server, kind) == "closed\n"


FORKED = """
import gc, os, signal, sys
from bert_serving.client import BertClient

def used_client():
    client = BertClient(port=int(sys.argv[1]), timeout=10_000)
    client.itself = client
    client.encode("a")
    client.encode("a", blocking=False)
    client.fetch_all()
    return client

client = used_client()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    client.encode("a")  # with the context of this process
    client = used_client()
    gc.collect()  # the parent's sockets are no affair of the child
    sys.exit(0)
status = os.waitpid(pid, 0)[1]
client.encode("a")
del client
gc.collect()
print("child:", status)
"""


def test_a_forked_child_has_a_context_of_its_own(fake_server: ServerProcess) -> None:
    assert output_of(FORKED, fake_server) == "child: 0\n"


UNCLOSED = """
import asyncio, sys
from bert_serving.client import AsyncBertClient, BertClient

async def call(client):
    await client.encode("a")

port = int(sys.argv[1])
client = BertClient(port=port)
client.itself = client
client.encode("a")
client.encode("a", blocking=False)
asynchronous = AsyncBertClient(port=port)
asyncio.run(call(asynchronous))
"""


def test_a_process_ends_with_clients_that_are_open(fake_server: ServerProcess) -> None:
    assert output_of(UNCLOSED, fake_server) == ""


LEFT_IN_THE_MIDDLE = """
import sys
from bert_serving.client import BertClient

def rows():
    yield from (f"row {number}" for number in range(200))  # sent, unanswered
    raise KeyboardInterrupt

with BertClient(port=int(sys.argv[1])) as client:
    try:
        client.encode(rows())
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_the_last_word_of_a_process_that_ends_is_heard(start_server: Starter) -> None:
    row_us = 400_000 * SECOND  # the first answer, which finds nobody, comes after 3 s
    server = start_server("-model_dir", f"fake:384?row_us={row_us:.0f}", "-max_batch_size", "8")
    assert output_of(LEFT_IN_THE_MIDDLE, server) == "interrupted\n"
    eventually(lambda: not server.status()["statistic"]["queued_requests"], SECOND)


def test_a_process_may_have_more_sockets_than_zeromq_has_by_default() -> None:
    sockets = 1_100
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 2 * sockets
    if limits[1] != resource.RLIM_INFINITY and limits[1] < enough:
        pytest.skip("this system does not allow so many descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(enough, limits[0]), limits[1]))
    try:
        with ExitStack() as stack:
            endpoint = Endpoint("tcp://127.0.0.1:1")
            for _ in range(sockets):
                stack.enter_context(new_socket(process_context(), endpoint))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
