"""A worker process on its own, both kinds of it: batches in, answers out, and its end."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import zmq
from server_process import BOOT_S, END_S, SECOND

from bert_serving.client.frames import VERSION_FRAME, decode_message
from bert_serving.client.messages import Encode
from bert_serving.client.protocol import parse_answer
from bert_serving.client.rows import pack_rows
from bert_serving.client.view import DEFAULT_VIEW, View
from bert_serving.server import exit_codes
from bert_serving.server.model.fake import fake_embedding
from bert_serving.server.model.loading import ReplicaConfig
from bert_serving.server.processes import start
from bert_serving.server.roles import WorkerConfig
from bert_serving.server.tally import shared_descriptor
from bert_serving.server.worker_protocol import Answers, Batch, message

DIM = 8
KINDS = {"in one thread": False, "overlapping": True}


class WorkerProcess:
    """A worker, and this side of its socket."""

    def __init__(
        self, context: zmq.Context[Any], folder: Path, *, overlap: bool, row_ms: float
    ) -> None:
        self._context, self._place = context, folder / "backend"
        self.listen()
        config = WorkerConfig(
            worker_id=0,
            backend=f"ipc://{self._place}",
            replica=ReplicaConfig(model_dir=f"fake:{DIM}?row_us={1000 * row_ms}"),
            cores=(),
            default_view=DEFAULT_VIEW,
            max_batch_size=None,
            verbose=False,
            overlap=overlap,
        )
        descriptor = shared_descriptor()
        self.process: subprocess.Popen[bytes] = start("worker", config, descriptor)
        os.close(descriptor)
        assert self.receive()[0]["type"] == "starting"
        self.ready = self.receive()[0]

    def listen(self) -> None:
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind(f"ipc://{self._place}")

    def listen_anew(self) -> None:
        """Be another broker, and wait until the worker has noticed."""
        self.socket.close()
        self.listen()
        while self.receive()[0]["type"] != "ready":
            pass  # an answer to what ran meanwhile

    def send(self, frames: list[Any]) -> None:
        self.socket.send_multipart([b"worker-0-%d" % self.process.pid, *frames])

    def receive(self) -> tuple[dict[str, Any], Any]:
        assert self.socket.poll(BOOT_S * 1000), "the worker says nothing"
        return decode_message(self.socket.recv_multipart()[1:])

    def send_batch(self, batch_id: int, *rows: str, **kind: bool) -> None:
        requests = [
            Encode(n, 1, 60_000, {"e": View()}, pack_rows([row])).to_frames()[1:]
            for n, row in enumerate(rows)
        ]
        waited = [0.0] * len(rows)
        self.send(Batch(batch_id, requests, waited, time.monotonic(), **kind).to_frames())

    def answers(self) -> tuple[int, list[Any]]:
        header, buffers = self.receive()
        while header["type"] == "busy":
            header, buffers = self.receive()
        answers = Answers.parse(header, buffers)
        return answers.batch_id, [parse_answer([VERSION_FRAME, *a]) for a in answers.answers]

    def end(self) -> int:
        self.send(message("stop"))
        return self.process.wait(END_S)


WorkerStarter: TypeAlias = Callable[..., WorkerProcess]


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[WorkerStarter]:
    context: zmq.Context[Any] = zmq.Context()
    started: list[WorkerProcess] = []

    def starter(overlap: bool, row_ms: float = 0.0) -> WorkerProcess:
        started.append(WorkerProcess(context, tmp_path, overlap=overlap, row_ms=row_ms))
        return started[-1]

    yield starter
    for worker in started:
        worker.process.kill()
        worker.process.wait()
        worker.socket.close()
    context.term()


def is_right(answer: Any, row: str) -> bool:
    return np.array_equal(answer.views["e"].values[0], fake_embedding(row, DIM))


@pytest.mark.parametrize("overlap", KINDS.values(), ids=KINDS)
def test_batches_are_answered_in_order_and_right(
    start_worker: WorkerStarter, overlap: bool
) -> None:
    worker = start_worker(overlap)
    assert worker.ready["takes_express"] is not overlap
    texts = [[f"batch {b}, row {n}" for n in range(1 + b % 7)] for b in range(100)]
    for number, rows in enumerate(texts):
        worker.send_batch(number, *rows)
    for number, rows in enumerate(texts):
        batch_id, answers = worker.answers()
        assert batch_id == number
        assert all(map(is_right, answers, rows))
    assert worker.end() == exit_codes.OK


def test_an_express_batch_is_answered_before_the_one_that_runs(start_worker: WorkerStarter) -> None:
    worker = start_worker(False, row_ms=10 * SECOND)
    texts = {1: [f"row {n}" for n in range(50)], 2: ["waits"], 3: ["express"], 4: ["again"]}
    worker.send_batch(1, *texts[1])
    worker.send_batch(2, *texts[2])
    for number in (3, 4):
        worker.send_batch(number, *texts[number], is_express=True)
        batch_id, (answer,) = worker.answers()
        assert (batch_id, is_right(answer, *texts[number])) == (number, True)
    for number in (1, 2):
        batch_id, answers = worker.answers()
        assert batch_id == number
        assert all(map(is_right, answers, texts[number]))


def test_a_worker_says_that_it_gets_on_with_a_long_batch(start_worker: WorkerStarter) -> None:
    worker = start_worker(False, row_ms=50)
    worker.send_batch(1, *(f"row {n}" for n in range(40)))
    kinds = [worker.receive()[0]["type"] for _ in range(4)]
    assert kinds == ["busy"] * 4
    assert worker.answers()[0] == 1


def test_a_batch_that_nothing_may_interrupt_is_computed_in_one_go(
    start_worker: WorkerStarter,
) -> None:
    worker = start_worker(False, row_ms=5 * SECOND)

    def answered() -> list[int]:
        worker.send_batch(1, *(f"row {n}" for n in range(40)), is_interruptible=False)
        time.sleep(0.02 * SECOND)  # nearly always it has begun by then
        worker.send_batch(2, "express", is_express=True)
        return [worker.answers()[0] for _ in range(2)]

    assert any(answered() == [1, 2] for _ in range(10))


def test_a_flood_by_express_leaves_the_batch_that_runs_its_fifth(
    start_worker: WorkerStarter,
) -> None:
    worker = start_worker(False, row_ms=5 * SECOND)
    rows = [f"row {n}" for n in range(40)]
    started = time.monotonic()
    worker.send_batch(1, *rows)
    express_ms = []
    for batch_id in count(2):
        worker.send_batch(batch_id, *rows[:16], is_express=True)
        answered, answers = worker.answers()
        if answered == 1:
            break
        express_ms.append(answers[0].compute_ms)
    whole_ms = 1000 * (time.monotonic() - started)
    assert sum(express_ms) > whole_ms / 2
    assert sum(express_ms) <= 0.8 * whole_ms + max(express_ms)


def test_a_hang_in_an_express_batch_holds_up_the_one_that_runs(start_worker: WorkerStarter) -> None:
    worker = start_worker(False, row_ms=SECOND)
    worker.send_batch(1, *(f"row {n}" for n in range(50)))
    worker.send_batch(2, "fake:hang", is_express=True)
    assert not worker.socket.poll(500 * SECOND), "the broker could not tell that it hangs"


@pytest.mark.parametrize("overlap", KINDS.values(), ids=KINDS)
def test_a_model_that_fails_leaves_the_worker_able_to_answer(
    start_worker: WorkerStarter, overlap: bool
) -> None:
    worker = start_worker(overlap)
    worker.send_batch(1, "a", "fake:raise")
    worker.send_batch(2, "b")
    (right, failed), (after,) = worker.answers()[1], worker.answers()[1]
    assert (failed.code, is_right(right, "a"), is_right(after, "b")) == (
        "worker_failed",
        True,
        True,
    )
    assert worker.end() == exit_codes.OK


@pytest.mark.parametrize("overlap", KINDS.values(), ids=KINDS)
def test_what_waits_for_the_batch_before_it_is_told_so(
    start_worker: WorkerStarter, overlap: bool
) -> None:
    worker = start_worker(overlap)
    worker.send_batch(1, "fake:sleep 0.3")
    worker.send_batch(2, "b")
    worker.answers()
    (answer,) = worker.answers()[1]
    assert 200 < answer.queue_ms < 300 + 1_000 * SECOND


@pytest.mark.parametrize("overlap", KINDS.values(), ids=KINDS)
def test_what_it_has_not_begun_when_another_broker_comes_is_dropped(
    start_worker: WorkerStarter, overlap: bool
) -> None:
    worker = start_worker(overlap)
    worker.send_batch(1, f"fake:sleep {0.3 * SECOND}")
    worker.send_batch(2, f"fake:sleep {SECOND}")
    worker.send_batch(3, "for the old one")
    assert worker.answers()[0] == 1  # so the others are there by now
    worker.listen_anew()
    worker.send_batch(4, "for the new one")
    while (answered := worker.answers()[0]) == 2:
        pass  # it ran already
    assert answered == 4


def test_a_stop_is_obeyed_after_the_batch_that_runs(start_worker: WorkerStarter) -> None:
    worker = start_worker(True)
    worker.send_batch(1, f"fake:sleep {SECOND}")
    worker.send_batch(2, "fake:hang")
    assert worker.end() == exit_codes.OK


@pytest.mark.parametrize("overlap", KINDS.values(), ids=KINDS)
def test_a_crash_of_the_model_ends_the_process(start_worker: WorkerStarter, overlap: bool) -> None:
    worker = start_worker(overlap)
    worker.send_batch(1, "fake:crash")
    assert worker.process.wait(END_S) == 1


@pytest.mark.parametrize("overlap", KINDS.values(), ids=KINDS)
def test_a_worker_whose_device_is_lost_ends_without_an_answer(
    start_worker: WorkerStarter, overlap: bool
) -> None:
    worker = start_worker(overlap)
    worker.send_batch(1, "a", "fake:lose_device")
    assert worker.process.wait(END_S) == exit_codes.DEVICE_LOST
    assert not worker.socket.poll(0), "others can compute what it could not"
