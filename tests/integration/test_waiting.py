"""Requests that wait at the broker: how much of it they may take, whatever they are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from server_process import SECOND, ServerProcess, Starter, eventually, memory_kib

from bert_serving.client.frames import encode_message
from bert_serving.client.messages import Cancel, ErrorAnswer, Hello, Welcome
from bert_serving.client.protocol import parse_answer
from bert_serving.client.rows import pack_rows

LIMIT = 8 << 20
SLEEP = "fake:sleep 60"


@pytest.fixture
def server(start_server: Starter) -> ServerProcess:
    return start_server("-max_queue_bytes", str(LIMIT), "-drain_timeout", "0.5")


@pytest.fixture
def socket(server: ServerProcess) -> Iterator[zmq.Socket[Any]]:
    """A client's socket; both batches that the worker may have in hand take a minute."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(f"tcp://127.0.0.1:{server.port}")
        ask(socket, 1, SLEEP)
        eventually(lambda: statistic(server, "requests_in_hand") == 1)
        ask(socket, 2, SLEEP)
        eventually(lambda: statistic(server, "requests_in_hand") == 2)
        yield socket


def ask(socket: zmq.Socket[Any], number: int, text: str = "a", **other: Any) -> None:
    header = {"type": "encode", "id": number, "rows": 1, "ttl_ms": 600_000, "views": {"e": {}}}
    socket.send_multipart(encode_message({**header, **other}, [pack_rows([text])]))


def answer(socket: zmq.Socket[Any]) -> Any:
    assert socket.poll(int(5_000 * SECOND))
    return parse_answer(socket.recv_multipart())


def statistic(server: ServerProcess, name: str) -> int:
    return int(server.status()["statistic"][name])


def test_bytes_that_nobody_reads_are_counted_as_well(
    server: ServerProcess, socket: zmq.Socket[Any]
) -> None:
    for number in range(10, 30):
        ask(socket, number, unknown="x" * (LIMIT // 11))
    refused = set()
    while len(refused) < 15:
        refusal = answer(socket)
        assert isinstance(refusal, ErrorAnswer)
        assert refusal.code == "overloaded"
        refused.add(refusal.id)
    assert statistic(server, "queued_requests") == 5
    assert 5 / 11 * LIMIT < statistic(server, "queued_bytes") < LIMIT / 2
    socket.send_multipart(Cancel(list(range(30))).to_frames())
    eventually(lambda: statistic(server, "queued_bytes") == 0)


def test_a_small_request_does_not_keep_all_that_was_received_with_it(
    server: ServerProcess, socket: zmq.Socket[Any]
) -> None:
    (broker,) = server.processes("broker")
    before, requests = memory_kib(broker), 3_000
    for number in range(10, 10 + requests):
        ask(socket, number)
        socket.send_multipart(Hello("x").to_frames())  # so that no two are received at once
        assert isinstance(answer(socket), Welcome)
    assert statistic(server, "queued_requests") == requests
    assert memory_kib(broker) - before < 4 * requests
