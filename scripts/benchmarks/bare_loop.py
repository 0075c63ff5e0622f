"""The floor under the path: messages over the same kinds of socket, with nothing around them."""

from __future__ import annotations

import multiprocessing

import msgpack
import numpy as np
import zmq

from .rounds import rate

DIM = 384


def bare_loop(rows: int, requests: int) -> float:
    """Return messages a second through DEALER, ROUTER, ROUTER and DEALER with nothing around."""
    answers: multiprocessing.Queue[float] = multiprocessing.Queue()
    ports: multiprocessing.Queue[tuple[int, int]] = multiprocessing.Queue()
    broker = multiprocessing.Process(target=_bare_broker, args=(ports,), daemon=True)
    broker.start()
    front, back = ports.get()
    worker = multiprocessing.Process(target=_bare_worker, args=(back, rows), daemon=True)
    worker.start()
    client = multiprocessing.Process(target=_bare_client, args=(front, rows, requests, answers))
    client.start()
    measured = answers.get()
    for process in (client, broker, worker):
        process.kill()
        process.join()
    return measured


def _bare_broker(ports: multiprocessing.Queue[tuple[int, int]]) -> None:
    context = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    front.set_hwm(0)
    back.set_hwm(0)
    ports.put(
        (front.bind_to_random_port("tcp://127.0.0.1"), back.bind_to_random_port("tcp://127.0.0.1"))
    )
    worker = back.recv_multipart()[0]
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    while True:
        for socket, _ in poller.poll():
            for _ in range(64):
                try:
                    frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    break
                if socket is back:
                    front.send_multipart(frames[1:], copy=False)
                else:
                    back.send_multipart([worker, *frames], copy=False)


def _bare_worker(port: int, rows: int) -> None:
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")
    socket.send(b"ready")
    array, header = np.zeros((rows, DIM), np.float32), msgpack.packb({"shape": [rows, DIM]})
    while True:
        route, version, *_ = socket.recv_multipart(copy=False)
        socket.send_multipart([route, version, header, array], copy=array.nbytes < 1 << 16)


def _bare_client(
    port: int, rows: int, requests: int, answers: multiprocessing.Queue[float]
) -> None:
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")
    texts = msgpack.packb(["a sentence of some thirteen tokens or so, like most"] * rows)
    frames = [b"BERT\1", msgpack.packb({"id": 1, "ttl_ms": 5000}), texts]

    def work() -> None:
        sent = done = 0
        while done < requests:
            while sent < requests and sent - done < 64:
                socket.send_multipart(frames)
                sent += 1
            socket.recv_multipart(copy=rows < 16)
            done += 1

    answers.put(rate(requests, work))
