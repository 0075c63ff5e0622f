"""The supervisor role: starts broker and workers, watches and replaces them, stops them.

It computes nothing and forwards nothing. Signals only set a flag. What ends the server
on its own accord: a boot failure, whose cause is the last line of the log, and the loss
of the broker.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import zmq

from bert_serving.client.errors import ProtocolError
from bert_serving.client.frames import decode_message

from . import control, exit_codes, logs, processes
from .config import ServerConfig, option_fields
from .devices import Placement, PlacementError, place_workers
from .model.loading import ReplicaConfig
from .roles import BrokerConfig, WorkerConfig
from .scheduling.events import SchedulerLimits
from .scheduling.restarts import RestartPolicy
from .worker_protocol import message

log = logging.getLogger("bert_serving.supervisor")

TURN_MS = 100  # how soon the end of a child, or a signal, is noticed
STOP_TIMEOUT_S = 1.0  # for the broker to answer what is open
END_TIMEOUT_S = 5.0  # from being told to end to being killed
CAUSE_TIMEOUT_S = 2.0  # how long a child's last message may take


class StartError(Exception):
    """The server cannot start; the message is one line that names the cause."""


CAUSES = (StartError, PlacementError, control.ControlError)


def run(config: ServerConfig) -> int:
    """Live the server's life; returns the exit status, and logs what kept it from starting."""
    logs.set_up("server", verbose=config.verbose)
    try:
        return serve(config)
    except CAUSES as error:
        log.error("%s", error)
        return exit_codes.BOOT_FAILED


def serve(config: ServerConfig) -> int:
    """Live the server's life: start, announce, watch, drain, end.

    Raises:
        StartError, PlacementError, ControlError: it cannot start; the message is one line
            that names the cause.

    """
    _warn_of_ignored(config)
    with Supervisor(config) as supervisor, _signals(supervisor):
        supervisor.start()
        return supervisor.watch()


def _warn_of_ignored(config: ServerConfig) -> None:
    for entry in option_fields():
        why = entry.metadata["ignored"]
        if why is not None and getattr(config, entry.name) != entry.default:
            log.warning("-%s does nothing: %s", entry.name, why)


@contextmanager
def _signals(supervisor: Supervisor) -> Iterator[None]:
    def note(number: int, _: FrameType | None) -> None:
        supervisor.stop_signals += 1
        supervisor.last_signal = number

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@dataclass
class _Worker:
    """One worker's place: its process changes, its number and placement stay."""

    config: WorkerConfig
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    process: subprocess.Popen[bytes] | None = None
    restart_at: float | None = None
    is_ready: bool = False


class Supervisor:
    """The processes of one server."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._context: zmq.Context[Any] = zmq.Context()
        self._control = self._context.socket(zmq.ROUTER)
        self._addresses = control.addresses(os.getpid())
        self._bound_files: list[Path] = []
        self._broker: subprocess.Popen[bytes] | None = None
        self._broker_route = b""
        self._workers: list[_Worker] = []
        self._native = ""
        self._cause: str | None = None
        self._terminators: list[bytes] = []
        self._drain_deadline: float | None = None
        self._is_ready = False
        self.stop_signals = 0
        self.last_signal = 0

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_children()
        for route in self._terminators:
            self._control.send_multipart([route, *message("terminated")])
        self._control.close(linger=1000)
        self._context.term()
        for file in self._bound_files:
            file.unlink(missing_ok=True)

    def start(self) -> None:
        """Start the broker, then the workers; they get ready in their own time.

        Raises:
            StartError: the port is taken, or the devices asked for are not there.

        """
        placements = place_workers(self._config)
        if self._config.ready_file is not None:  # not to be taken for this server's
            _remove(Path(self._config.ready_file))
        self._bind(self._addresses.supervisor)
        self._bound_files.append(control.socket_file(self._addresses.backend))
        self._broker = processes.start("broker", self._broker_config(len(placements)))
        while not self._native and not self.stop_signals:
            self._turn()
            self._check_broker()
        for number, placement in enumerate(placements):
            self._workers.append(_Worker(self._worker_config(number, placement)))
            self._start_worker(self._workers[-1])

    def watch(self) -> int:
        """Watch over the children until the server is to end, and has drained.

        Raises:
            StartError: a worker cannot boot, or the broker is gone.

        """
        while True:
            self._turn()
            if self._drain_deadline is None and self.stop_signals:
                self._drain()
            if self.stop_signals > 1:
                log.warning("told to stop a second time: ending at once")
                return exit_codes.FAILED
            if self._drain_deadline is not None and self._has_drained():
                return exit_codes.OK
            if self._drain_deadline is None:
                self._check_broker()
            self._check_workers()

    # starting

    def _broker_config(self, num_worker: int) -> BrokerConfig:
        config = self._config
        return BrokerConfig(
            host=config.host,
            port=config.port,
            backend=self._addresses.backend,
            supervisor=self._addresses.supervisor,
            num_worker=num_worker,
            limits=SchedulerLimits(
                max_queue_rows=config.max_queue_rows,
                max_queue_bytes=config.max_queue_bytes,
                priority_batch_size=config.priority_batch_size,
                batch_timeout_s=config.batch_timeout,
            ),
            max_request_bytes=config.max_request_bytes,
            default_view=config.default_view,
            settings={**asdict(config), "num_worker": num_worker},
            verbose=config.verbose,
        )

    def _worker_config(self, number: int, placement: Placement) -> WorkerConfig:
        config = self._config
        return WorkerConfig(
            worker_id=number,
            backend=self._addresses.backend,
            replica=ReplicaConfig(
                model_dir=config.model_dir,
                dtype="float16" if config.fp16 else config.dtype,
                device=placement.device,
                num_threads=placement.num_threads,
                max_batch_tokens=config.max_batch_tokens,
                max_seq_len=config.max_seq_len,
                mask_cls_sep=config.mask_cls_sep,
                lower_case=False if config.cased_tokenization else None,
                tuned_model_dir=config.tuned_model_dir,
                ckpt_name=config.ckpt_name,
                config_name=config.config_name,
                num_labels=config.num_labels,
                no_special_token=config.no_special_token,
                no_position_embeddings=config.no_position_embeddings,
                compile=config.compile,
                gpu_memory_fraction=config.gpu_memory_fraction,
            ),
            cores=placement.cores,
            default_view=config.default_view,
            max_batch_size=config.max_batch_size,
            verbose=config.verbose,
        )

    def _start_worker(self, worker: _Worker) -> None:
        worker.process = processes.start("worker", worker.config)
        worker.restart_at, worker.is_ready = None, False

    def _bind(self, address: str) -> None:
        self._control.bind(address)
        self._bound_files.append(control.socket_file(address))

    # messages

    def _turn(self, wait_ms: int = TURN_MS) -> None:
        if not self._control.poll(wait_ms):
            return
        frames = self._control.recv_multipart()
        try:
            header, _ = decode_message(frames[1:])
        except ProtocolError as error:
            log.warning("the control socket got what cannot be read: %s", error)
            return
        self._on_message(frames[0], header)

    def _on_message(self, route: bytes, header: dict[str, Any]) -> None:
        kind = header.get("type")
        if kind == "terminate":
            log.info("told to stop through the control socket")
            self._terminators.append(route)
            self._control.send_multipart([route, *message("terminating", pid=os.getpid())])
            self.stop_signals += 1
        elif self._broker_route and route != self._broker_route:
            log.warning("the control socket got a message that only the broker may send")
        elif kind == "bound":
            self._broker_route, self._native = route, header["address"]
            self._bind(control.port_address(int(self._native.rpartition(":")[2])))
        elif kind == "boot_failed":
            self._cause = self._cause or header["cause"]
        elif kind == "worker_ready":
            self._on_worker_ready(header["worker"], header["pid"])
        elif kind == "ready":
            self._announce()
        elif kind == "worker_stuck":
            self._end_stuck(header["route"])

    def _on_worker_ready(self, worker_id: int, pid: int) -> None:
        worker = self._workers[worker_id]
        if worker.process is not None and worker.process.pid == pid:
            worker.is_ready = True
            worker.policy.on_healthy(time.monotonic())

    def _announce(self) -> None:
        self._is_ready = True
        addresses = {"native": self._native, "pid": os.getpid()}
        if self._config.ready_file is not None:
            _write_atomically(Path(self._config.ready_file), json.dumps(addresses) + "\n")
        sys.stderr.write(f"ready native={self._native} pid={os.getpid()}\n")
        sys.stderr.flush()

    def _tell_broker(self, kind: str, **fields: Any) -> None:
        self._control.send_multipart([self._broker_route, *message(kind, **fields)])

    # watching

    def _check_broker(self) -> None:
        assert self._broker is not None
        if self._broker.poll() is None:
            return
        self._await_cause()
        ended = exit_codes.describe(self._broker.returncode)
        raise StartError(self._cause or f"the broker {ended}: the server cannot go on without it")

    def _check_workers(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.process is not None and worker.process.poll() is not None:
                self._on_worker_exit(worker, worker.process, now)
            elif worker.restart_at is not None and now >= worker.restart_at:
                self._start_worker(worker)

    def _on_worker_exit(
        self, worker: _Worker, process: subprocess.Popen[bytes], now: float
    ) -> None:
        number, ended = worker.config.worker_id, exit_codes.describe(process.returncode)
        self._tell_broker("worker_lost", worker=number, pid=process.pid)
        worker.process = None
        if self._drain_deadline is not None and process.returncode == exit_codes.OK:
            return
        if not self._is_ready and self._drain_deadline is None:
            self._await_cause()
            raise StartError(f"worker {number} cannot start: {self._cause or ended}")
        delay_s = worker.policy.on_exit(now, random.random())  # noqa: S311  # jitter, not a secret
        worker.restart_at = now + delay_s
        log.error("worker %d %s: starting another in %.1f s", number, ended, delay_s)

    def _end_stuck(self, route: str) -> None:
        pid = int(route.rpartition("-")[2])
        for worker in self._workers:
            if worker.process is not None and worker.process.pid == pid:
                log.error("worker %d is stuck: ending it", worker.config.worker_id)
                worker.process.kill()

    def _await_cause(self) -> None:
        deadline = time.monotonic() + CAUSE_TIMEOUT_S
        while self._cause is None and time.monotonic() < deadline:
            self._turn()

    # ending

    def _drain(self) -> None:
        log.info("stopping: working off what was accepted")
        self._drain_deadline = time.monotonic() + self._config.drain_timeout
        if self._is_ready:
            self._tell_broker("drain")
        else:
            self._drain_deadline = 0.0  # nothing can have been computed: end at once

    def _has_drained(self) -> bool:
        assert self._broker is not None and self._drain_deadline is not None
        if self._broker.poll() is not None:
            return True
        if time.monotonic() < self._drain_deadline:
            return False
        if self._is_ready:
            log.warning("not everything could be worked off in time: ending all the same")
        return True

    def _stop_broker(self) -> None:
        """Have a broker that still has open requests answer them all: there is no more time."""
        if self._broker is None or self._broker.poll() is not None or not self._broker_route:
            return
        self._tell_broker("stop")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._broker.wait(STOP_TIMEOUT_S)

    def _end_children(self) -> None:
        """End every child: one that a draining broker has told may take its time."""
        children = [worker.process for worker in self._workers] + [self._broker]
        alive = [child for child in children if child is not None and child.poll() is None]
        has_drained = self._broker is not None and self._broker.poll() == exit_codes.OK
        self._stop_broker()
        deadline = time.monotonic() + (END_TIMEOUT_S if has_drained else 0.0)
        for child in alive:
            try:
                child.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:  # nothing of it is lost: it has no state
                child.kill()
        for child in alive:
            child.wait()


def _write_atomically(path: Path, text: str) -> None:
    """Write a file so that whoever reads it sees all of it or none."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        raise StartError(f"-ready_file {path} cannot be written: {error.strerror}") from None


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StartError(f"-ready_file {path} cannot be written: {error.strerror}") from None
