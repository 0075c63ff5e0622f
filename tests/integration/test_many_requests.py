"""Thousands of small requests at once: one batch takes them all, however many frames it has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import zmq
from server_process import SECOND, ServerProcess, Starter, eventually

from bert_serving.client.messages import Encode, Result
from bert_serving.client.protocol import parse_answer
from bert_serving.client.rows import pack_rows
from bert_serving.client.view import View
from bert_serving.server.model.fake import fake_embedding

DIM = 8
REQUESTS_A_CLIENT = 1_000  # as many as the broker queues for one that does not read
VIEWS = ("mean", "max")


@contextmanager
def connections(server: ServerProcess, number: int) -> Iterator[list[zmq.Socket[Any]]]:
    with zmq.Context() as context, ExitStack() as stack:
        sockets = [stack.enter_context(context.socket(zmq.DEALER)) for _ in range(number)]
        for socket in sockets:
            socket.linger = 0
            socket.sndhwm = 0
            socket.connect(f"tcp://127.0.0.1:{server.port}")
        yield sockets


def send(socket: zmq.Socket[Any], number: int, text: str) -> None:
    views = {pooling: View(pooling=pooling) for pooling in VIEWS}
    socket.send_multipart(Encode(number, 1, 60_000, views, pack_rows([text])).to_frames())


def received(socket: zmq.Socket[Any]) -> dict[int, Result]:
    """Return the results that a connection gets, by request."""
    results: dict[int, Result] = {}
    while len(results) < REQUESTS_A_CLIENT:
        assert socket.poll(int(20_000 * SECOND)), f"only {len(results)} answers"
        answer = parse_answer(socket.recv_multipart())
        assert isinstance(answer, Result), answer
        results[answer.id] = answer
    return results


def statistic(server: ServerProcess, name: str) -> int:
    return int(server.status()["statistic"][name])


@pytest.mark.parametrize("clients", [3, 8])
def test_a_batch_of_thousands_of_requests_is_answered_by_the_worker_that_got_it(
    start_server: Starter, clients: int
) -> None:
    server = start_server("-model_dir", f"fake:{DIM}", "-max_batch_tokens", "1000000")
    workers = server.worker_pids()
    with connections(server, clients + 1) as (busy, *others):
        for number in range(2):  # both batches that a worker holds: the others queue behind them
            send(busy, number, f"fake:sleep {2 * SECOND}")
            eventually(lambda: statistic(server, "requests_in_hand") == number + 1)  # noqa: B023
        for number in range(REQUESTS_A_CLIENT):
            for client, socket in enumerate(others):
                send(socket, number, f"text {number} of {client}")
        wanted = clients * REQUESTS_A_CLIENT
        eventually(lambda: statistic(server, "queued_requests") == wanted, 2 * SECOND)
        for client, socket in enumerate(others):
            for number, result in received(socket).items():
                vector = fake_embedding(f"text {number} of {client}", DIM)
                assert np.array_equal(result.views["mean"].values[0], vector)
    assert server.worker_pids() == workers
    assert "cannot be read" not in server.log
    with server.client() as client_:
        assert np.array_equal(client_.encode("alive?"), fake_embedding("alive?", DIM))
