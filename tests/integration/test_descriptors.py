"""Servers and clients that have few descriptors, and many who want one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket as sockets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from server_process import SECOND, ServerProcess, Starter, eventually

from bert_serving.client.errors import ServerUnreachable
from bert_serving.server.descriptors import RESERVE, reserve
from bert_serving.server.model.fake import fake_embedding

FEW = 300
TIGHT, FREE_AGAIN = "descriptors are taken: no new connections", "there are descriptors again"


def with_limit(soft: int, hard: int) -> tuple[str, ...]:
    return ("sh", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "sh")


def answers(server: ServerProcess, **options: object) -> bool:
    with server.client(**options) as client:
        return np.array_equal(client.encode(["a text"]), [fake_embedding("a text", 384)])


@contextlib.contextmanager
def crowd(port: int, number: int) -> Iterator[list[sockets.socket]]:
    """Be so many who want to connect, and say nothing; those that cannot keep trying."""
    with contextlib.ExitStack() as stack:
        members = []
        for _ in range(number):
            member = stack.enter_context(sockets.socket())
            member.setblocking(False)
            member.connect_ex(("127.0.0.1", port))
            members.append(member)
        yield members


def seconds_computed(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_a_server_takes_all_the_descriptors_that_it_may_have(start_server: Starter) -> None:
    server = start_server(prefix=with_limit(64, 4096))
    for pid in server.processes("bert_serving.server"):
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        (line,) = [line for line in limits if line.startswith("Max open files")]
        assert line.split()[3:5] == ["4096", "4096"]


def test_a_crowd_beyond_the_descriptors_harms_nobody_who_is_connected(
    start_server: Starter,
) -> None:
    server = start_server("-num_worker", "2", prefix=with_limit(FEW, FEW))
    (broker,) = server.processes("server.broker")
    with server.client() as client:
        client.encode("connected")
        with crowd(server.port, 2 * FEW):
            eventually(lambda: TIGHT in server.log)
            assert np.array_equal(client.encode(["a text"]), [fake_embedding("a text", 384)])
            workers = server_workers(client)
            os.kill(workers[0], signal.SIGKILL)  # another can be started, and reach the broker
            eventually(lambda: len(now := server_workers(client)) == 2 and now != workers)
            before = seconds_computed(broker)
            try:
                server.client(connect_timeout=2_000 * SECOND).close()
                raise AssertionError("a client was let in")
            except ServerUnreachable:
                pass
            assert seconds_computed(broker) - before < 1.0 * SECOND  # it does not spin
            assert np.array_equal(client.encode(["a text"]), [fake_embedding("a text", 384)])
        eventually(lambda: FREE_AGAIN in server.log)
    assert answers(server)
    assert server.log.count(TIGHT) == server.log.count(FREE_AGAIN) == 1
    assert server.processes("server.broker") == [broker]


def server_workers(client: object) -> dict[int, int]:
    """Return the process ids of the workers that are ready, by a client that is connected."""
    workers = client.server_status["workers"]  # type: ignore[attr-defined]
    return {worker["id"]: worker["pid"] for worker in workers if worker["state"] == "ready"}


CLIENTS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
from bert_serving.client import BertClient
from bert_serving.client.errors import ServerUnreachable
port, clients = int(sys.argv[1]), []
try:
    while len(clients) < 60:
        clients.append(BertClient(port=port))
except ServerUnreachable as error:
    assert "ulimit" in str(error)
assert 3 < len(clients) < 60
assert clients[0].encode(["a text"]).shape == (1, 384)
for client in clients[1:]:
    client.close()
assert BertClient(port=port).encode(["a text"]).shape == (1, 384)
"""


def test_a_client_process_without_descriptors_is_told_so_and_recovers(
    fake_server: ServerProcess,
) -> None:
    command = [sys.executable, "-c", CLIENTS, str(fake_server.port)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60 * SECOND)
    assert run.returncode == 0, run.stderr
    assert answers(fake_server)


KEEPALIVE = "02"  # Linux's number of the timer by which TCP asks whether a silent peer is there


def timers(port: int) -> list[str]:
    """Return which timer runs for each connection that has come in by a port of this machine."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    local, established = f":{port:04X}", "01"
    connections = [words for line in lines if (words := line.split())[3] == established]
    return [words[5][:2] for words in connections if words[1].endswith(local)]


def test_silent_clients_are_asked_whether_they_are_there(start_server: Starter) -> None:
    server = start_server()
    with server.client():
        eventually(lambda: set(timers(server.port)) == {KEEPALIVE})


def test_of_a_small_limit_a_part_is_kept_and_of_a_large_one_a_backlog() -> None:
    assert reserve(100) == 50
    assert reserve(1 << 20) == RESERVE
