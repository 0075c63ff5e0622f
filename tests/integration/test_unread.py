"""Clients that ask and do not read: what waits for them is bounded in bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import pytest
import zmq
from server_process import SECOND, ServerProcess, Starter, eventually, memory_kib

from bert_serving.client.frames import encode_message
from bert_serving.client.protocol import Result, parse_answer
from bert_serving.client.rows import pack_rows
from bert_serving.server.clients import STRETCH_BYTES, Clients
from bert_serving.server.model.fake import fake_embedding

DIM = 4096
ROWS = 200
ANSWER_BYTES = ROWS * DIM * 4  # 3.3 MB
LIMIT = 64 << 20
REQUESTS = 2 * LIMIT // ANSWER_BYTES


@pytest.fixture
def server(start_server: Starter) -> ServerProcess:
    """A server that lets little wait, and gives a worker one request at a time."""
    options = ("-max_unread_bytes", str(LIMIT), "-max_batch_size", str(ROWS))
    return start_server(*options, "-model_dir", f"fake:{DIM}")


@contextmanager
def who_does_not_read(server: ServerProcess) -> Iterator[zmq.Socket[Any]]:
    """Give a client's socket that takes one message from the network, and no more."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.rcvhwm, socket.rcvbuf = 1, 64 << 10
        socket.reconnect_ivl = -1  # who is sent away stays away
        socket.connect(f"tcp://127.0.0.1:{server.port}")
        yield socket


def ask(socket: zmq.Socket[Any], number: int) -> None:
    header = {"type": "encode", "id": number, "rows": ROWS, "ttl_ms": 60_000, "views": {"e": {}}}
    socket.send_multipart(encode_message(header, [pack_rows(["a"] * ROWS)]))


def unread_bytes(server: ServerProcess) -> int:
    return int(server.status()["statistic"]["unread_bytes"])


def in_hand(server: ServerProcess) -> int:
    return int(server.status()["statistic"]["requests_in_hand"])


def test_who_does_not_read_is_given_no_more_until_it_does(server: ServerProcess) -> None:
    (broker,) = server.processes("broker")
    with who_does_not_read(server) as late, server.client() as client:
        client.encode(["a"] * ROWS)
        before = memory_kib(broker)
        for number in range(REQUESTS):
            ask(late, number)
        eventually(lambda: unread_bytes(server) > LIMIT // 3 and not in_hand(server))
        assert unread_bytes(server) < LIMIT
        assert memory_kib(broker) < before + LIMIT // 1024
        for _ in range(20):  # the others are served meanwhile
            assert np.array_equal(client.encode("alive?"), fake_embedding("alive?", DIM))
        assert not in_hand(server)
        for number in range(REQUESTS):
            assert late.poll(int(5_000 * SECOND)), number
            answer = parse_answer(late.recv_multipart())
            assert isinstance(answer, Result)
            assert answer.id == number
        eventually(lambda: unread_bytes(server) == 0)
    assert "its connection is ended" not in server.log


def test_those_who_do_not_read_cannot_take_it_all(server: ServerProcess) -> None:
    with who_does_not_read(server) as first, who_does_not_read(server) as second:
        for number in range(REQUESTS):
            ask(first, number)
        eventually(lambda: unread_bytes(server) > LIMIT // 3 and not in_hand(server))
        for number in range(REQUESTS):
            ask(second, number)
        eventually(lambda: unread_bytes(server) > LIMIT // 2 and not in_hand(server))
        assert unread_bytes(server) < LIMIT
        with server.client() as client:
            rows = ["a"] * (REQUESTS * ROWS)
            assert len(client.encode(rows)) == len(rows)


def test_who_reads_may_get_any_amount(server: ServerProcess) -> None:
    with server.client() as client:
        rows = ["a"] * (2 * REQUESTS * ROWS)
        assert len(client.encode(rows)) == len(rows)
        eventually(lambda: unread_bytes(server) == 0)
    assert "its connection is ended" not in server.log


def test_what_was_held_of_a_client_that_has_gone_is_let_go(server: ServerProcess) -> None:
    with who_does_not_read(server) as late:
        for number in range(REQUESTS):
            ask(late, number)
        eventually(lambda: unread_bytes(server) > LIMIT // 3 and not in_hand(server))
    eventually(lambda: unread_bytes(server) == 0)


# the account


Pipe: TypeAlias = tuple[bytes, zmq.Socket[Any], zmq.Socket[Any]]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Give the route of a client that has said something, a ROUTER and the client's DEALER."""
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as router,
        context.socket(zmq.DEALER) as dealer,
    ):
        router.linger = dealer.linger = router.sndhwm = 0
        dealer.rcvhwm, dealer.rcvbuf = 1, 64 << 10
        router.sndbuf = 64 << 10
        dealer.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
        dealer.send(b"")
        route, _ = router.recv_multipart()
        yield route, router, dealer


def fill(clients: Clients, pipe: Pipe, nbytes: int) -> int:
    """Send answers until a client is to be held; returns how many."""
    route, router, _ = pipe
    for number in range(1_000_000):
        content = number.to_bytes(4, "big") + bytes(nbytes - 4)
        router.send_multipart([route, *clients.account(route, [b"header", content])])
        if clients.is_to_be_held(route):
            return number + 1
    raise AssertionError("it was never held")


@pytest.mark.parametrize("nbytes", [1_000, STRETCH_BYTES // 3, 3 * STRETCH_BYTES])
def test_who_has_read_enough_is_released(pipe: Pipe, nbytes: int) -> None:
    route, _, dealer = pipe
    clients = Clients(20 * STRETCH_BYTES)
    sent = fill(clients, pipe, nbytes)
    assert 8 * STRETCH_BYTES < clients.unread_bytes < 16 * STRETCH_BYTES
    assert clients.are_held
    assert clients.released() == []
    assert not clients.is_to_be_held(route)  # it is already
    for number in range(sent):
        header, content = dealer.recv_multipart()
        assert (header, content[:4], len(content)) == (b"header", number.to_bytes(4, "big"), nbytes)
    eventually(lambda: clients.released() == [route])
    assert not clients.are_held
    eventually(lambda: clients.unread_bytes == 0)


def test_who_has_read_nothing_for_long_is_hopeless(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bert_serving.server.clients.HOPELESS_S", 0.5 * SECOND)
    route, _, dealer = pipe
    clients = Clients(20 * STRETCH_BYTES)
    for _ in range(fill(clients, pipe, STRETCH_BYTES) - 1):
        dealer.recv()
        dealer.recv()
        if clients.released():
            break
        time.sleep(0.3 * SECOND)
        assert not clients.hopeless()
    fill(clients, pipe, STRETCH_BYTES)
    eventually(lambda: clients.hopeless() == [route])
    clients.forget(route)
    assert not clients.are_held
    assert clients.unread_bytes == 0
