"""Clients that ask and do not read: what waits for them is bounded in bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import zmq
from server_process import SECOND, ServerProcess, Starter, eventually, memory_kib

from bert_serving.client.frames import encode_message
from bert_serving.client.group_messages import Membership
from bert_serving.client.messages import Hello, Result, Welcome
from bert_serving.client.protocol import parse_answer
from bert_serving.client.rows import pack_rows
from bert_serving.server.clients import Clients
from bert_serving.server.model.fake import fake_embedding
from bert_serving.server.unread import STRETCH_BYTES

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


def ask(socket: zmq.Socket[Any], number: int, rows: int = ROWS) -> None:
    header = {"type": "encode", "id": number, "rows": rows, "ttl_ms": 60_000, "views": {"e": {}}}
    socket.send_multipart(encode_message(header, [pack_rows(["a"] * rows)]))


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


def test_a_member_that_does_not_read_gets_no_more_copies(server: ServerProcess) -> None:
    with who_does_not_read(server) as member, server.client() as sender:
        member.send_multipart(Membership(1, ["readers"]).to_frames())
        assert isinstance(parse_answer(member.recv_multipart()), Membership)
        for _ in range(REQUESTS):
            sender.encode(["a"] * ROWS, group="readers")
        eventually(lambda: server.status()["statistic"]["num_members"] == 0)
        assert "its connection is ended" in server.log
        eventually(lambda: unread_bytes(server) == 0)


def test_a_window_of_small_answers_may_be_read_late(start_server: Starter) -> None:
    server = start_server("-model_dir", "fake:1024")
    with who_does_not_read(server) as late:
        late.send_multipart(Hello("late").to_frames())
        welcome = parse_answer(late.recv_multipart())
        assert isinstance(welcome, Welcome)
        numbers = range(welcome.limits.window * welcome.limits.max_rows)
        for number in numbers:
            ask(late, number, rows=1)
        eventually(lambda: server.status()["statistic"]["num_delivered"] == len(numbers))
        for number in numbers:
            assert late.poll(int(5_000 * SECOND)), number
            assert parse_answer(late.recv_multipart()).id == number


def test_what_was_held_of_a_client_that_has_gone_is_let_go(server: ServerProcess) -> None:
    with who_does_not_read(server) as late:
        for number in range(REQUESTS):
            ask(late, number)
        eventually(lambda: unread_bytes(server) > LIMIT // 3 and not in_hand(server))
    eventually(lambda: unread_bytes(server) == 0)


# the account


@dataclass
class Pipe:
    """A ROUTER's connection to a client that has said something.

    Attributes:
        first: the first frame of what it said: its route.

    """

    router: zmq.Socket[Any]
    dealer: zmq.Socket[Any]
    first: zmq.Frame

    @property
    def route(self) -> bytes:
        return self.first.bytes

    def answer(self, clients: Clients, number: int, nbytes: int) -> None:
        frames = [b"header", number.to_bytes(4, "big") + bytes(nbytes - 4)]
        self.router.send_multipart([self.route, *clients.account(self.route, frames)])

    def fill(self, clients: Clients, nbytes: int) -> int:
        """Send answers until the client is to be held; returns how many."""
        for number in range(1_000_000):
            self.answer(clients, number, nbytes)
            if clients.is_to_be_held(self.route):
                return number + 1
        raise AssertionError("it was never held")


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as router,
        context.socket(zmq.DEALER) as dealer,
    ):
        router.linger = dealer.linger = router.sndhwm = 0
        router.sndbuf = 64 << 10
        dealer.rcvhwm, dealer.rcvbuf = 1, 64 << 10
        dealer.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
        dealer.send(b"")
        first = router.recv(copy=False)
        assert isinstance(first, zmq.Frame)
        router.recv()
        yield Pipe(router, dealer, first)


@pytest.fixture
def asking() -> set[bytes]:
    """Who has something open."""
    return set()


@pytest.fixture
def clients(pipe: Pipe, asking: set[bytes]) -> Clients:
    clients = Clients(20 * STRETCH_BYTES, has_open=asking.__contains__)
    clients.heard(pipe.first)
    return clients


@pytest.mark.parametrize("nbytes", [1_000, STRETCH_BYTES // 3, 3 * STRETCH_BYTES])
def test_who_has_read_enough_is_released(pipe: Pipe, clients: Clients, nbytes: int) -> None:
    sent = pipe.fill(clients, nbytes)
    assert 8 * STRETCH_BYTES < clients.unread_bytes < 16 * STRETCH_BYTES
    assert clients.are_held
    assert clients.released() == []
    assert not clients.is_to_be_held(pipe.route)  # it is already
    for number in range(sent):
        header, content = pipe.dealer.recv_multipart()
        assert (header, content[:4], len(content)) == (b"header", number.to_bytes(4, "big"), nbytes)
    eventually(lambda: clients.released() == [pipe.route])
    assert not clients.are_held
    eventually(lambda: clients.unread_bytes == 0)


def test_who_has_read_nothing_for_long_is_hopeless(
    pipe: Pipe, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bert_serving.server.clients.HOPELESS_S", 0.5 * SECOND)
    pipe.fill(clients, STRETCH_BYTES)
    while not clients.released():  # it reads slowly
        pipe.dealer.recv_multipart()
        time.sleep(0.2 * SECOND)
        assert not clients.hopeless()
    pipe.fill(clients, STRETCH_BYTES)
    eventually(lambda: clients.hopeless() == [pipe.route])
    clients.forget(pipe.route)
    assert not clients.are_held
    assert clients.unread_bytes == 0


def test_a_silent_client_that_will_get_an_answer_is_kept(
    pipe: Pipe, clients: Clients, asking: set[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bert_serving.server.clients.ACTIVE_S", 0.0)
    asking.add(pipe.route)
    assert clients.count() == 0
    pipe.fill(clients, STRETCH_BYTES)
    assert clients.unread_bytes > 8 * STRETCH_BYTES


def test_an_idle_client_is_forgotten_unless_it_has_to_read_or_listens(
    pipe: Pipe, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_known() -> bool:
        return len(clients._clients) == 1

    assert clients.count() == 1
    monkeypatch.setattr("bert_serving.server.clients.ACTIVE_S", 0.0)
    clients.set_listening(pipe.route, is_listening=True)
    assert clients.count() == 0
    assert is_known()
    clients.set_listening(pipe.route, is_listening=False)
    for _ in range(pipe.fill(clients, STRETCH_BYTES)):
        assert clients.count() == 0
        assert is_known()
        pipe.dealer.recv_multipart()
    eventually(lambda: clients.count() == 0 and clients.unread_bytes == 0)
    assert is_known()  # it is held, and must be released first
    assert clients.released() == [pipe.route]
    assert clients.count() == 0
    assert not is_known()
