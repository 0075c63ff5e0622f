"""The supervisor role: starts broker, workers and gateways, watches, replaces, stops them.

It computes nothing and forwards nothing. Signals only set a flag. What ends the server
on its own accord: a boot failure, whose cause is the last line of the log, and the loss
of the broker.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import zmq

from bert_serving.client.errors import ProtocolError
from bert_serving.client.frames import decode_message

from . import control, exit_codes, logs, processes, ready
from .config import ServerConfig, option_fields
from .devices import PlacementError, place_workers
from .layout_calibration import with_num_worker
from .processes import Child
from .roles import (
    LegacyConfig,
    WorkerConfig,
    broker_config,
    legacy_config,
    port_of,
    worker_config,
)
from .worker_protocol import gateway_route, message

log = logging.getLogger("bert_serving.supervisor")

TURN_MS = 100  # how soon the end of a child, or a signal, is noticed
STOP_TIMEOUT_S = 1.0  # for the broker to answer what is open, and then for the gateways
END_TIMEOUT_S = 5.0  # from being told to end to being killed
CAUSE_TIMEOUT_S = 2.0  # how long a child's last message may take


class StartError(Exception):
    """The server cannot start; the message is one line that names the cause."""


CAUSES = (StartError, PlacementError, control.ControlError, ready.ReadyFileError)


def run(config: ServerConfig) -> int:
    """Live the server's life; returns the exit status, and logs what kept it from starting."""
    logs.set_up("server", verbose=config.verbose, log_format=config.log_format)
    try:
        return serve(config)
    except CAUSES as error:
        log.error("%s", error)
        return exit_codes.BOOT_FAILED


def serve(config: ServerConfig) -> int:
    """Live the server's life: start, announce, watch, drain, end.

    Raises:
        StartError, PlacementError, ControlError, ReadyFileError: it cannot start; the
            message is one line that names the cause.

    """
    _warn_of_ignored(config)
    ready.remove_stale(config.ready_file)
    config = with_num_worker(config)
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
        self._workers: list[Child[WorkerConfig]] = []
        self._gateway: Child[LegacyConfig] | None = None
        self._native = ""
        self._legacy: list[str] = []
        self._cause: str | None = None
        self._terminators: list[bytes] = []
        self._drain_deadline: float | None = None
        self._workers_are_ready = False
        self._is_ready = False
        self._broker_drains = False
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
        """Start the broker, then the others; they get ready in their own time.

        Raises:
            StartError: the port is taken.
            PlacementError: the devices asked for are not there.

        """
        if self._config.legacy_port_out is not None and self._config.legacy_port is None:
            raise StartError(
                f"-legacy_port_out {self._config.legacy_port_out} is one of the two ports of "
                "bert-as-service: give -legacy_port as well, or neither"
            )
        placements = place_workers(self._config)
        self._bind(self._addresses.supervisor)
        self._bound_files.append(control.socket_file(self._addresses.backend))
        self._broker = processes.start(
            "broker", broker_config(self._config, self._addresses, len(placements))
        )
        while not self._native and not self.stop_signals:
            self._turn()
            self._check_broker()
        if self._config.legacy_port is not None:
            self._start_gateway(self._config.legacy_port)
        for number, placement in enumerate(placements):
            told = worker_config(self._config, self._addresses, number, placement)
            self._workers.append(Child(f"worker {number}", "worker", told))
            self._workers[-1].start()

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
            self._check_children()

    # starting

    def _start_gateway(self, port: int) -> None:
        told = legacy_config(self._config, self._addresses, port, self._native)
        self._gateway = Child("the legacy gateway", "gateway.legacy.gateway", told)
        self._gateway.start()

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
        elif self._gateway is not None and self._is_from(self._gateway, route):
            self._on_gateway(self._gateway, header)
        elif self._broker_route and route != self._broker_route:
            log.warning("the control socket got a message that only the broker may send")
        elif kind == "bound":
            self._broker_route, self._native = route, header["address"]
            self._bind(control.port_address(port_of(self._native)))
        elif kind == "boot_failed":
            self._cause = self._cause or header["cause"]
        elif kind == "worker_ready":
            self._on_worker_ready(header["worker"], header["pid"])
        elif kind == "ready":
            self._workers_are_ready = True
            self._announce_if_ready()
        elif kind == "worker_stuck":
            self._end_stuck(header["route"])

    def _on_worker_ready(self, worker_id: int, pid: int) -> None:
        worker = self._workers[worker_id]
        if worker.process is not None and worker.process.pid == pid:
            worker.mark_ready(time.monotonic())

    def _is_from(self, gateway: Child[LegacyConfig], route: bytes) -> bool:
        return gateway.process is not None and route == gateway_route(gateway.process.pid)

    def _on_gateway(self, gateway: Child[LegacyConfig], header: dict[str, Any]) -> None:
        if header.get("type") == "boot_failed":
            self._cause = self._cause or header["cause"]
        elif header.get("type") == "bound":
            gateway.mark_ready(time.monotonic())
            self._legacy = header["addresses"]
            port, port_out = map(port_of, self._legacy)
            gateway.config = replace(gateway.config, port=port, port_out=port_out)  # for its next
            self._announce_if_ready()

    def _announce_if_ready(self) -> None:
        """Say that the server answers, once: when its workers and its gateway do."""
        gateway_is_ready = self._gateway is None or self._gateway.is_ready
        if self._is_ready or not (self._workers_are_ready and gateway_is_ready):
            return
        self._is_ready = True
        addresses: dict[str, Any] = {"native": self._native}
        if self._gateway is not None:
            addresses["legacy"] = self._legacy
        ready.announce({**addresses, "pid": os.getpid()}, self._config.ready_file)

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

    def _check_children(self) -> None:
        now = time.monotonic()
        children: list[Child[Any]] = [*self._workers]
        if self._gateway is not None:
            children.append(self._gateway)
        for child in children:
            if child.process is not None and child.process.poll() is not None:
                self._on_exit(child, child.process, now)
            elif child.is_due(now):
                child.start()

    def _on_exit(self, child: Child[Any], process: subprocess.Popen[bytes], now: float) -> None:
        ended = exit_codes.describe(process.returncode)
        if child is not self._gateway:
            self._tell_broker("worker_lost", worker=child.config.worker_id, pid=process.pid)
        child.process, is_draining = None, self._drain_deadline is not None
        if is_draining and (process.returncode == exit_codes.OK or child is self._gateway):
            return
        if not self._is_ready and not is_draining:
            self._await_cause()
            raise StartError(f"{child.name} cannot start: {self._cause or ended}")
        delay_s = child.restart_later(now, random.random())  # noqa: S311  # jitter, not a secret
        why = ended if self._cause is None else f"{ended} ({self._cause})"
        self._cause = None
        log.error("%s %s: starting another in %.1f s", child.name, why, delay_s)

    def _end_stuck(self, route: str) -> None:
        pid = int(route.rpartition("-")[2])
        for worker in self._workers:
            if worker.process is not None and worker.process.pid == pid:
                log.error("%s is stuck: ending it", worker.name)
                worker.process.kill()

    def _await_cause(self) -> None:
        deadline = time.monotonic() + CAUSE_TIMEOUT_S
        while self._cause is None and time.monotonic() < deadline:
            self._turn()

    # ending

    def _drain(self) -> None:
        log.info("stopping: working off what was accepted")
        self._drain_deadline = time.monotonic() + self._config.drain_timeout
        if not self._is_ready:
            self._drain_deadline = 0.0  # nothing can have been computed: end at once
        if self._gateway is not None:
            self._gateway.restart_at = None
            self._tell_gateway("drain")

    def _has_drained(self) -> bool:
        """Return whether all has been worked off, or time is up: the gateway's calls first.

        They go on as requests of a client's that the draining broker would refuse.
        """
        assert self._broker is not None and self._drain_deadline is not None
        if self._broker.poll() is not None:
            return True
        if time.monotonic() >= self._drain_deadline:
            if self._is_ready:
                log.warning("not everything could be worked off in time: ending all the same")
            return True
        if not self._broker_drains and not self._gateway_answers:
            self._broker_drains = True
            self._tell_broker("drain")
        return False

    @property
    def _gateway_answers(self) -> bool:
        return self._gateway is not None and self._gateway.is_alive and self._gateway.is_ready

    def _tell_gateway(self, kind: str) -> None:
        if self._gateway is not None and self._gateway.process is not None:
            route = gateway_route(self._gateway.process.pid)
            self._control.send_multipart([route, *message(kind)])

    def _stop_gateway(self) -> None:
        """Have the gateway answer what is open: with what the broker said last, or an error."""
        if not self._gateway_answers:
            return
        assert self._gateway is not None and self._gateway.process is not None
        self._tell_gateway("stop")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._gateway.process.wait(STOP_TIMEOUT_S)

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
        children += [self._gateway.process] if self._gateway is not None else []
        alive = [child for child in children if child is not None and child.poll() is None]
        has_drained = self._broker is not None and self._broker.poll() == exit_codes.OK
        self._stop_broker()
        self._stop_gateway()
        deadline = time.monotonic() + (END_TIMEOUT_S if has_drained else 0.0)
        for child in alive:
            try:
                child.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:  # nothing of it is lost: it has no state
                child.kill()
        for child in alive:
            child.wait()
