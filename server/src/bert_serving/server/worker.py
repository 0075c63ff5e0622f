"""The worker role: one replica on one device, one batch after the other.

On a CPU one thread does it all: the model's own threads already use every core, so a second
thread of ours could only take turns with them; with the fake model, handing batches over
was measured to cost about a quarter of the worker's time. The batch that waits for the one
that runs waits in the socket.

An express batch does not wait: between two layers of the one that runs the worker looks
into its socket, and computes there and then what has come by express. It needs a device
that is done with a layer when it says so: on a GPU, work is only queued, and an express
batch would stand behind all of it. No express batch comes behind small requests: these are
computed in one go.

With any other device a second thread has the socket: it reads the next batch and sends the
last one's answers while the device computes.

A worker whose device is lost ends, with a status that says so: another process may find the
device well, and until then the requests are better off with other workers.

When another broker has taken the place of one that died, the worker says again that it is
ready, and drops what it had not begun: whoever asked for it asks the new broker.
"""

from __future__ import annotations

import gc
import logging
import os
import socket as sockets
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any

import zmq

from bert_serving.client.errors import ServerUnreachable
from bert_serving.client.keys import KeyFileError, connection_keys
from bert_serving.client.sockets import received_messages

from . import exit_codes, logs
from .backend import Backend
from .batches import BatchReader, ComputedBatch, PreparedBatch, compute, word
from .model.loading import load_replica
from .model.replica import BetweenLayers, DeviceLost, ModelLoadError, Replica, nothing
from .processes import Parent, run_role
from .roles import WorkerConfig
from .tally import Tally
from .worker_protocol import (
    MAX_BATCH_ROWS,
    Batch,
    message,
    read_message,
    remote_route,
    worker_route,
)

log = logging.getLogger("bert_serving.worker")

MAX_MESSAGES_A_TURN = 4
TURN_MS = 1_000  # longest sleep: how soon an orphan notices
LOOK_S = 0.0005  # between two looks for an express batch; one costs 3 microseconds
BUSY_S = 0.25  # between two signs of life; well below any time-out for a batch
NICENESS = 15
"""On a CPU, the broker gets a core at once although all of them compute. A single sentence beside
bulk took 6.0 ms instead of 8.0, at the 99th percentile 13.5 instead of 17.5; bulk lost 4 %."""

EXPRESS_WEIGHT = 4
"""Of the time, large requests get at least one part beside so many for express batches: as
they do of the tokens, where both classes wait for the same place."""

SHARED_S = 1.0  # after an express batch, others are computed in smaller parts for so long:
SHARED_PARTS = 8  # the next one then waits for a shorter matrix product
LEAST_SHARED_TOKENS = 128  # but single rows, one after the other, would take twice the time


def run(config: WorkerConfig) -> int:
    """Live the worker's life: announce, load, announce again, loop, close."""
    logs.set_up(
        "worker",
        verbose=config.verbose,
        log_format=config.log_format,
        worker=config.worker_id,
    )
    Parent().watch()  # a model that hangs, or loads for long, must not outlive the server
    if config.cores:
        os.sched_setaffinity(0, config.cores)
    if config.replica.device == "cpu":
        os.nice(NICENESS)
    context: zmq.Context[Any] = zmq.Context()
    try:
        backend = _backend(config, context)
    except KeyFileError as error:
        log.error("%s", error)
        return exit_codes.BOOT_FAILED
    try:
        replica = _load(config, backend)
        if replica is None:
            return exit_codes.BOOT_FAILED
        kind = OverlappingWorker if _overlaps(replica, config) else Worker
        worker = kind(replica, config, backend)
        worker.announce()
        return worker.loop()
    except ServerUnreachable as error:
        log.error("%s", error)
        return exit_codes.FAILED
    except DeviceLost as error:  # the broker gives what is in hand to others
        log.error("ending, as the device is lost: %s", error)
        return exit_codes.DEVICE_LOST
    finally:
        backend.close()
        context.term()


def _backend(config: WorkerConfig, context: zmq.Context[Any]) -> Backend:
    remote, pid = config.remote, os.getpid()
    if remote is None:
        return Backend(context, config.backend, worker_route(config.worker_id, pid))
    keys = connection_keys(remote.server_key, remote.worker_cert)
    return Backend(context, config.backend, remote_route(config.worker_id, pid), keys)


def _identity(config: WorkerConfig) -> dict[str, Any]:
    return {
        "worker": config.worker_id,
        "pid": os.getpid(),
        "host": sockets.gethostname(),
        "device": config.replica.device,
    }


def _load(config: WorkerConfig, backend: Backend) -> Replica | None:
    backend.send(message("starting", **_identity(config)))
    try:
        replica = load_replica(config.replica)
    except ModelLoadError as error:
        backend.send(message("boot_failed", cause=str(error)))
        return None
    except Exception as error:
        log.exception("the model could not be loaded")
        backend.send(message("boot_failed", cause=f"{type(error).__name__}: {error}"))
        return None
    try:
        replica.check_view(config.default_view)
    except ValueError as error:
        backend.send(message("boot_failed", cause=f"the default view: {error}"))
        return None
    gc.collect()
    gc.freeze()  # the model lives as long as the process: never look at it again
    log.info(
        "%s on %s, %s: %d tokens at a time",
        replica.info.name,
        replica.info.device,
        replica.info.dtype,
        replica.max_batch_tokens,
    )
    advice = replica.advice(config.default_view)
    if advice is not None and config.worker_id == 0:  # once in the log, not once a worker
        log.info("%s", advice)
    return replica


def _overlaps(replica: Replica, config: WorkerConfig) -> bool:
    """Whether the device computes while this process does something else."""
    if config.overlap is not None:
        return config.overlap
    return not replica.info.device.startswith("cpu")


class Worker:
    """A replica, the socket that its batches come by, and those not begun yet."""

    def __init__(self, replica: Replica, config: WorkerConfig, backend: Backend) -> None:
        self._replica = replica
        self._config = config
        self._tally = Tally.own()
        self._backend = backend
        self._poller = zmq.Poller()
        self._poller.register(backend.socket, zmq.POLLIN)
        self._poller.register(backend.monitor, zmq.POLLIN)
        self._reader = BatchReader(replica, config.default_view)
        self._batches: deque[Batch] = deque()
        self._express: deque[Batch] = deque()
        self._is_stopping = False
        self._status = exit_codes.OK
        self._next_look = self._next_sign = 0.0
        self._shared_until = 0.0

    def announce(self) -> None:
        """Tell the broker that this worker is ready, and all that a new broker must know of it."""
        self._backend.has_new_broker()  # it is told now
        ready = message(
            "ready",
            **_identity(self._config),
            max_batch_tokens=self._replica.max_batch_tokens,
            max_batch_rows=min(self._config.max_batch_size or MAX_BATCH_ROWS, MAX_BATCH_ROWS),
            takes_express=not _overlaps(self._replica, self._config),
            model=self._replica.info.to_wire(),
            default_view=self._config.default_view.to_wire(),
        )
        self._backend.send(ready)

    def loop(self) -> int:
        """Compute what comes until told to stop, or the supervisor is gone."""
        parent = Parent()
        while parent.is_alive:
            self._wait()
            if self._is_stopping:
                return self._status
            self._work()
        log.error("the supervisor is gone: stopping")
        return exit_codes.ORPHANED

    def _wait(self) -> None:
        if self._batches or self._express or self._poller.poll(TURN_MS):
            self._meet_new_broker()
            self._receive()
        else:
            self._backend.check()

    def _meet_new_broker(self) -> None:
        if self._backend.has_new_broker():
            log.info("there is a new broker: dropping %d batches", self._drop_all())
            self.announce()

    def _drop_all(self) -> int:
        """Forget the batches that are not begun; returns how many there were."""
        num_dropped = len(self._batches) + len(self._express)
        self._batches.clear()
        self._express.clear()
        return num_dropped

    def _receive(self) -> None:
        """Take in what has arrived."""
        for frames in received_messages(self._backend.socket, MAX_MESSAGES_A_TURN):
            kind, header, buffers = read_message([frame.buffer for frame in frames])
            if kind in ("stop", "refused"):
                self._is_stopping = True
                if kind == "refused":
                    log.error("the server does not take this worker: %s", header["cause"])
                    self._status = exit_codes.BOOT_FAILED
                return
            batch = Batch.parse(header, buffers)
            if self._config.remote is not None:  # the broker's clock is not this machine's
                batch = replace(batch, sent_at=time.monotonic())
            (self._express if batch.is_express else self._batches).append(batch)

    def _work(self) -> None:
        now = time.monotonic()
        if self._express and not (self._batches and now < self._next_look):
            self._answer_express()
        elif self._batches:
            batch = self._batches.popleft()
            if batch.is_interruptible:
                self._next_sign = now + BUSY_S
                is_shared = now < self._shared_until
                a_part = max(self._replica.max_batch_tokens // SHARED_PARTS, LEAST_SHARED_TOKENS)
                self._answer(batch, self._look, a_part if is_shared else None)
            else:
                self._answer(batch, nothing)

    def _answer(
        self, batch: Batch, between_layers: BetweenLayers, max_tokens: int | None = None
    ) -> None:
        prepared = self._reader.prepare(batch)
        self._send(prepared, compute(self._replica, prepared, between_layers, max_tokens))

    def _send(self, batch: PreparedBatch, computed: ComputedBatch) -> None:
        self._tally.count()
        self._backend.send(word(self._replica, batch, computed).to_frames())

    def _look(self) -> None:
        """Compute the express batch that has come, if one has; nothing interrupts that one.

        A request may be so large that the broker would take its worker for one that hangs: it is
        told now and then that this one does not.
        """
        now = time.monotonic()
        if now < self._next_look:
            return
        if now >= self._next_sign:
            self._backend.send(message("busy"))
            self._next_sign = now + BUSY_S
        self._receive()
        self._next_look = now + LOOK_S
        if self._express:
            self._answer_express()

    def _answer_express(self) -> None:
        """Compute the express batch; the next one comes when large requests have had a share."""
        started = time.monotonic()
        self._answer(self._express.popleft(), nothing)
        now = time.monotonic()
        self._shared_until = now + SHARED_S
        self._next_look = now + max((now - started) / EXPRESS_WEIGHT, LOOK_S)


class OverlappingWorker(Worker):
    """A worker that reads batches and sends answers in one thread and computes in another.

    It computes in the thread that has loaded the model, because the current device and
    stream of CUDA are a thread's own; the socket goes over to the other one for good. The
    broker bounds what lies between them: a batch that is computed, and one that waits.
    """

    def __init__(self, replica: Replica, config: WorkerConfig, backend: Backend) -> None:
        super().__init__(replica, config, backend)
        self._prepared: SimpleQueue[PreparedBatch | None] = SimpleQueue()
        self._computed: deque[tuple[PreparedBatch, ComputedBatch]] = deque()
        self._news = os.eventfd(0, os.EFD_NONBLOCK)
        self._poller.register(self._news, zmq.POLLIN)

    def loop(self) -> int:
        """Compute what comes until told to stop, or the supervisor is gone."""
        with ThreadPoolExecutor(1, "desk") as desk:
            status = desk.submit(self._attend)
            try:
                while (batch := self._prepared.get()) is not None and not self._is_stopping:
                    self._computed.append((batch, compute(self._replica, batch)))
                    os.eventfd_write(self._news, 1)
            finally:
                self._is_stopping = True
                os.eventfd_write(self._news, 1)
        os.close(self._news)
        return status.result()

    def _attend(self) -> int:
        try:
            return super().loop()
        finally:
            self._prepared.put(None)

    def _wait(self) -> None:
        arrived = self._poller.poll(TURN_MS)
        if not arrived:
            self._backend.check()
        for ready, _ in arrived:
            if ready == self._news:
                os.eventfd_read(self._news)
            else:
                self._meet_new_broker()
                self._receive()

    def _drop_all(self) -> int:
        """Forget the batches that are not begun, and answers that nobody waits for any more."""
        num_dropped = super()._drop_all()
        self._computed.clear()
        with suppress(Empty):  # the other thread may be quicker
            while True:
                self._prepared.get_nowait()
                num_dropped += 1
        return num_dropped

    def _work(self) -> None:
        while self._computed:
            self._send(*self._computed.popleft())
        while self._batches:
            self._prepared.put(self._reader.prepare(self._batches.popleft()))


if __name__ == "__main__":
    sys.exit(run_role(run, WorkerConfig))
