"""The supervisor role: starts broker, workers and gateways, watches, replaces, stops them.

It computes nothing and forwards nothing. Signals only set a flag. What ends the server
on its own accord is a boot failure, whose cause is the last line of the log; whatever dies
later gets another life, the broker as well.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import zmq

from . import control, descriptors, exit_codes, logs, preflight, ready
from .administration import Administration, Answer
from .broker_link import BrokerLink
from .children import Children, restart_later
from .config import ServerConfig
from .devices import place_workers
from .draining import Drain
from .layout_calibration import with_num_worker
from .preflight import StartError
from .processes import Child
from .roles import WorkerConfig, broker_config, legacy_config, port_of, worker_config
from .scheduling.restarts import RestartPolicy
from .service_manager import ServiceManager
from .signals import Signals
from .workforce import Workforce

log = logging.getLogger("bert_serving.supervisor")

TURN_MS = 100  # how soon the end of a child, or a signal, is noticed
CAUSE_TIMEOUT_S = 2.0  # how long a child's last message may take
BROKER_MAX_DELAY_S = 1.0  # between two lives of the broker: nobody is served meanwhile


def run(config: ServerConfig) -> int:
    """Live the server's life; returns the exit status, and logs what kept it from starting."""
    logs.set_up("server", verbose=config.verbose, log_format=config.log_format)
    try:
        return serve(config)
    except preflight.CAUSES as error:
        log.error("%s", error)
        return exit_codes.BOOT_FAILED
    except KeyboardInterrupt:  # before there was anything to stop
        log.info("interrupted before anything was started")
        return exit_codes.OK


def serve(config: ServerConfig) -> int:
    """Live the server's life: start, announce, watch, drain, end.

    Raises:
        StartError, PlacementError, ControlError, ReadyFileError: it cannot start; the
            message is one line that names the cause.

    """
    descriptors.raise_limit()
    preflight.check(config)
    ready.remove_stale(config.ready_file)
    config = with_num_worker(config)
    with Signals() as signals, Supervisor(config, signals) as supervisor:  # to the very end
        supervisor.start()
        return supervisor.watch()


class Supervisor:
    """The life of one server."""

    def __init__(self, config: ServerConfig, signals: Signals) -> None:
        self._config = config
        self._signals = signals
        self._context: zmq.Context[Any] = zmq.Context()
        self._addresses = control.addresses(os.getpid())
        self._control = control.ControlSocket(self._context)
        self._broker = BrokerLink(self._control)
        self._children = Children()
        self._workforce = Workforce(self._children, self._broker, config.batch_timeout)
        self._administration = Administration(
            config, self._addresses, self._children, self._broker, self._workforce
        )
        self._drain = Drain(self._children, self._broker, self._control)
        self._manager = ServiceManager()
        self._native = ""
        self._backend: str | None = None
        self._legacy: list[str] = []
        self._cause: str | None = None
        self._terminators: list[Answer] = []
        self._workers_are_ready = False
        self._is_ready = False
        self._on_broker: dict[str, Callable[[dict[str, Any]], None]] = {
            "bound": self._on_bound,
            "pong": lambda _: self._broker.on_pong(),
            "boot_failed": self._on_boot_failed,
            "worker_ready": self._on_worker_ready,
            "ready": self._on_workers_ready,
            "worker_stuck": self._on_worker_stuck,
            "worker_refused": self._on_worker_refused,
            "report": lambda header: self._administration.on_report(header["report"]),
            "admin": self._on_admin,
            "drained": lambda _: None,  # its end says the same
        }

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self._drain.end_children()
        ready.withdraw(self._config.ready_file)
        for answer in self._terminators:
            answer("terminated")
        self._control.close()
        self._context.term()
        for address in (self._addresses.backend, self._addresses.frontend):
            control.socket_file(address).unlink(missing_ok=True)

    def start(self) -> None:
        """Start the broker, then the others; they get ready in their own time.

        Raises:
            StartError: the port is taken, or the system has no more processes to give.

        """
        try:
            self._start_children()
        except OSError as error:
            raise StartError(
                f"a process cannot be started: {error.strerror}: raise this user's limits "
                "(ulimit -a), or give a smaller -num_worker"
            ) from None

    def _start_children(self) -> None:
        placements = place_workers(self._config)
        self._control.bind(self._addresses.supervisor)
        self._start_broker(len(placements))
        while not self._native:
            if self._signals.stops:
                return
            self._turn()
            self._check_children()
        if self._config.legacy_port is not None:
            self._start_gateway(self._config.legacy_port)
        for number, placement in enumerate(placements):
            told = worker_config(self._config, self._addresses, number, placement)
            self._children.workers[number] = Child(f"worker {number}", "worker", told)
            self._children.workers[number].start()

    def watch(self) -> int:
        """Watch over the children until the server is to end, and has drained.

        Raises:
            StartError: a worker cannot boot.

        """
        while True:
            self._turn()
            if self._signals.stops and not self._drain.has_begun:
                self._begin_drain()
            if self._signals.stops > 1:
                log.warning("told to stop a second time: ending at once")
                return exit_codes.FAILED
            if self._has_drained():
                return exit_codes.OK
            if self._signals.is_to_reload:
                self._reload()
            self._check_children()
            self._workforce.advance()
            self._administration.advance()
            self._manager.advance()
            if self._broker.answers:
                self._manager.beat(time.monotonic())

    def _reload(self) -> None:
        """Load the model anew; whoever sent the signal is not told, its service manager is."""
        self._signals.is_to_reload = False

        def answer(kind: str, **_: Any) -> None:
            if kind != "accepted" and self._is_ready:
                self._manager.is_ready()  # whether it was refused, has failed or is done

        self._manager.is_reloading()
        self._obey("reload", {}, answer)

    # starting

    def _start_broker(self, num_worker: int) -> None:
        told = broker_config(self._config, self._addresses, num_worker)
        policy = RestartPolicy(BROKER_MAX_DELAY_S)
        broker = self._children.broker = Child("the broker", "broker", told, policy)
        broker.start()
        assert broker.pid is not None
        self._broker.expect(broker.pid)

    def _start_gateway(self, port: int) -> None:
        told = legacy_config(self._config, self._addresses, port, self._native)
        self._children.gateway = Child("the legacy gateway", "gateway.legacy.gateway", told)
        self._children.gateway.start()

    # messages

    def _turn(self, wait_ms: int = TURN_MS) -> None:
        self._broker.ping(time.monotonic())
        received = self._control.receive(wait_ms)
        if received is None:
            return
        route, kind, header = received
        if kind == "terminate" or self._administration.knows(kind):
            self._obey(kind, header, partial(self._control.tell, route))
        elif self._children.is_gateway(route):
            self._on_gateway(kind, header)
        elif self._broker.is_from(route):
            if kind in self._on_broker:
                self._on_broker[kind](header)
        else:
            log.warning("the control socket got a message that only a child may send")

    def _on_admin(self, header: dict[str, Any]) -> None:
        answer = partial(self._broker.answer, header["asked"])
        self._obey(header["command"], header["fields"], answer)

    def _on_terminate(self, answer: Answer) -> None:
        log.info("told to stop by a command")
        self._terminators.append(answer)
        answer("terminating", pid=os.getpid())
        self._signals.stop()

    def _obey(self, kind: str, header: dict[str, Any], answer: Answer) -> None:
        if kind == "terminate":
            self._on_terminate(answer)
            return
        can_change = self._is_ready and not self._signals.stops
        self._administration.obey(kind, header, answer, can_change=can_change)

    def _on_bound(self, header: dict[str, Any]) -> None:
        """Note where the broker listens; its next lives are to listen there as well."""
        broker = self._children.broker
        assert broker is not None
        broker.mark_ready(time.monotonic())
        self._broker.on_bound()
        self._workforce.tell_who_leaves()
        if self._native:
            log.info("the broker is back at %s", self._native)
            return
        self._native = header["address"]
        self._backend = header["backend"]
        backend_port = None if self._backend is None else port_of(self._backend)
        broker.config = replace(
            broker.config, port=port_of(self._native), backend_port=backend_port
        )
        self._control.bind(control.port_address(port_of(self._native)))

    def _on_boot_failed(self, header: dict[str, Any]) -> None:
        self._cause = self._cause or header["cause"]

    def _on_worker_ready(self, header: dict[str, Any]) -> None:
        worker = self._children.worker_with(header["pid"])
        if worker is not None:
            worker.mark_ready(time.monotonic())
            self._workforce.on_ready(worker)

    def _on_workers_ready(self, header: dict[str, Any]) -> None:
        broker = self._children.broker
        assert broker is not None
        broker.config = replace(broker.config, model=header["model"])
        self._workers_are_ready = True
        self._announce_if_ready()

    def _on_worker_stuck(self, header: dict[str, Any]) -> None:
        worker = self._children.worker_with(int(header["route"].rpartition("-")[2]))
        if worker is not None:
            log.error("%s is stuck: ending it", worker.name)
            worker.end(0.0)

    def _on_worker_refused(self, header: dict[str, Any]) -> None:
        worker = self._children.worker_with(header["pid"])
        if worker is not None:
            self._cause = header["cause"]
            worker.end(0.0)

    def _on_gateway(self, kind: str, header: dict[str, Any]) -> None:
        gateway = self._children.gateway
        assert gateway is not None
        if kind == "boot_failed":
            self._on_boot_failed(header)
        elif kind == "bound":
            gateway.mark_ready(time.monotonic())
            self._legacy = header["addresses"]
            port, port_out = map(port_of, self._legacy)
            gateway.config = replace(gateway.config, port=port, port_out=port_out)  # for its next
            self._announce_if_ready()

    def _announce_if_ready(self) -> None:
        """Say that the server answers, once: when its workers and its gateway do."""
        gateway = self._children.gateway
        gateway_is_ready = gateway is None or gateway.is_ready
        if self._is_ready or not (self._workers_are_ready and gateway_is_ready):
            return
        self._is_ready = True
        addresses: dict[str, Any] = {"native": self._native}
        if self._backend is not None:
            addresses["backend"] = self._backend
        if gateway is not None:
            addresses["legacy"] = self._legacy
        ready.announce({**addresses, "pid": os.getpid()}, self._config.ready_file)
        self._manager.is_ready()

    # watching

    def _check_children(self) -> None:
        now = time.monotonic()
        if self._broker.hangs:
            self._end_hanging_broker()
        for child, pid in self._children.take_ended():
            self._on_exit(child, pid, now)
        for child in self._children.start_due(now):
            if child is self._children.broker and child.pid is not None:
                self._broker.expect(child.pid)

    def _end_hanging_broker(self) -> None:
        log.error("the broker does not answer: ending it")
        self._broker.on_lost()
        if self._children.broker is not None:
            self._children.broker.end(0.0)

    def _on_exit(self, child: Child[Any], pid: int, now: float) -> None:
        """Have what has ended live again, unless it was to end, or could not even start."""
        is_broker, is_gateway = child is self._children.broker, child is self._children.gateway
        if is_broker:
            self._broker.on_lost()
        elif not is_gateway:
            self._broker.tell("worker_lost", worker=child.config.worker_id, pid=pid)
            if self._has_left(child):
                return
        if self._drain.has_begun:
            if not is_broker and not is_gateway and child.exit_status != exit_codes.OK:
                self._start_another(child, now)
        elif self._native if is_broker else self._is_ready:
            self._start_another(child, now)
        else:
            self._await_cause()
            raise StartError(f"{child.name} cannot start: {self._cause or _end_of(child)}")

    def _has_left(self, worker: Child[WorkerConfig]) -> bool:
        """Whether a worker that has ended was one that was to leave, or only to come."""
        is_successor, is_leaving = (
            worker is self._children.successor,
            worker is self._children.leaving,
        )
        if is_leaving:
            log.info("%s has left: it %s", worker.name, _end_of(worker))
        if is_successor and worker.exit_status == exit_codes.BOOT_FAILED:
            self._await_cause()
        if is_successor or is_leaving:
            self._workforce.on_exit(worker, self._take_why(worker))
        return is_successor or is_leaving

    def _start_another(self, child: Child[Any], now: float) -> None:
        if not (meeting := control.socket_file(self._addresses.supervisor)).exists():
            raise StartError(
                f"{child.name} {self._take_why(child)}, and no other can be started: somebody "
                f"has removed {meeting}, where a server's processes meet"
            )
        delay_s = restart_later(child, now)
        known = child.ending.fields() if child.ending is not None else {}
        log.error(
            "%s %s: starting another in %.1f s",
            *(child.name, self._take_why(child), delay_s),
            extra=logs.fields(child=child.name, **known),
        )

    def _take_why(self, child: Child[Any]) -> str:
        """Return how a child ended, and the cause that was told last."""
        cause, self._cause = self._cause, None
        return _end_of(child) if cause is None else f"{_end_of(child)} ({cause})"

    def _await_cause(self) -> None:
        deadline = time.monotonic() + CAUSE_TIMEOUT_S
        while self._cause is None and time.monotonic() < deadline:
            self._turn()

    def _begin_drain(self) -> None:
        self._workforce.abandon("the server is stopping")
        self._manager.is_stopping()
        # what is not ready can have computed nothing: it ends at once
        self._drain.begin(self._config.drain_timeout if self._is_ready else 0.0)

    def _has_drained(self) -> bool:
        if not self._drain.has_begun or not self._drain.is_over():
            return False
        broker = self._children.broker
        if self._is_ready and broker is not None and broker.is_alive:
            log.warning("not everything could be worked off in time: ending all the same")
        return True


def _end_of(child: Child[Any]) -> str:
    return str(child.ending)
