"""The broker role: one thread between clients and workers that forwards frames.

It reads headers, never a sentence or an array. What to do is the scheduler's to decide;
this shell moves the frames, tells the time, and answers what needs no worker. Answers go
back on the route that the request came by; a route that is gone is a lost client.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import zmq

from bert_serving.client.admin_messages import Admin
from bert_serving.client.errors import ProtocolError
from bert_serving.client.frames import VERSION_FRAME
from bert_serving.client.group_messages import Membership
from bert_serving.client.messages import (
    Cancel,
    EncodeEnvelope,
    ErrorAnswer,
    Hello,
    Status,
)
from bert_serving.client.protocol import parse_request
from bert_serving.client.sockets import received_messages, send_frames

from . import exit_codes, logs, outgoing
from .broker_sockets import FLUSH_MS, BrokerSockets, CannotListen
from .clients import Clients
from .copies import Copies
from .descriptors import Gate
from .groups import Groups
from .incoming import Incoming, described
from .processes import Parent, run_role
from .remote_administration import RemoteAdministration
from .remote_workers import check_route, difference
from .roles import BrokerConfig
from .roster import Roster
from .scheduling import events
from .scheduling.scheduler import Scheduler
from .worker_protocol import (
    Answers,
    broker_route,
    message,
    read_from_worker,
    read_message,
    worker_route,
)

log = logging.getLogger("bert_serving.broker")

MAX_MESSAGES_A_TURN = 64  # what has arrived together can be computed together
READING_S = 0.05  # a turn: some headers take long to look at, and the others wait
MAX_COPIES_A_TURN = 1_000  # some milliseconds
TURN_S = 1.0  # longest sleep: how soon an orphan notices
HELD_TURN_S = 0.005  # while a client is held: how soon it gets more
RECEIVED_BYTES = 8192  # at a time, by ZeroMQ: a smaller frame would keep all of them
REQUEST_BYTES = 1024  # of the broker's own, for each request that waits


def run(config: BrokerConfig) -> int:
    """Live the broker's life: open, announce, loop, drain, close."""
    logs.set_up("broker", verbose=config.verbose, log_format=config.log_format)
    context: zmq.Context[Any] = zmq.Context()
    broker = Broker(config, context)
    try:
        if not broker.open():
            return exit_codes.BOOT_FAILED
        return broker.loop()
    finally:
        broker.close()
        context.term()


class Broker:
    """The broker's sockets, and the scheduler between them."""

    def __init__(self, config: BrokerConfig, context: zmq.Context[Any]) -> None:
        self._config = config
        self._scheduler = Scheduler(config.limits, first_batch=secrets.randbits(48))
        self._roster = Roster(config)
        self._groups = Groups()
        self._copies = Copies(self._groups)
        self._sockets = BrokerSockets(config, context)
        self._frontend, self._backend = self._sockets.frontend, self._sockets.backend
        self._incoming = Incoming(self._frontend)
        self._supervisor = context.socket(zmq.DEALER)
        self._parent = Parent()
        self._remote = RemoteAdministration(self._sockets, self._tell_supervisor, self._answer)
        self._events: deque[events.Event] = deque()
        self._arrivals: list[events.RequestArrived] = []
        self._clients = Clients(config.max_unread_bytes, self._scheduler.has_open)
        self._was_ready = False
        self._is_stopping = False

    def open(self) -> bool:
        """Bind and connect; tells the supervisor where, or why not."""
        self._supervisor.linger = FLUSH_MS
        self._supervisor.routing_id = broker_route(os.getpid())
        self._supervisor.connect(self._config.supervisor)
        try:
            self._sockets.listen()
        except CannotListen as error:
            self._tell_supervisor("boot_failed", cause=str(error))
            return False
        self._tell_supervisor("bound", **self._sockets.addresses)
        return True

    def loop(self) -> int:
        """Serve until drained or told to stop."""
        poller = zmq.Poller()
        receivers: dict[Any, Callable[[], None]] = {
            **self._sockets.receivers(),  # first, while the address of a refused peer can be had
            self._backend: self._receive_workers,
            self._frontend: self._receive_clients,
            self._supervisor: partial(self._receive, self._supervisor, self._on_supervisor),
        }
        for socket in receivers:
            poller.register(socket, zmq.POLLIN)
        Gate(self._sockets.ports).watch()
        while not self._is_finished:
            if not self._parent.is_alive:
                log.error("the supervisor is gone: stopping")
                return exit_codes.ORPHANED
            for socket, _ in poller.poll(self._sleep_ms()):
                receivers[socket]()
            self._pass_time()
        return exit_codes.OK

    def close(self) -> None:
        """Tell the workers to end, send what waits to be sent, close."""
        for route in list(self._roster):
            self._send(self._backend, [route, *message("stop")])
        self._tell_supervisor("drained")
        self._remote.close()
        self._sockets.close()
        self._supervisor.close()

    @property
    def _is_finished(self) -> bool:
        is_done = self._scheduler.is_draining and self._scheduler.is_idle and not self._copies
        return self._is_stopping or is_done

    def _sleep_ms(self) -> int:
        if self._copies:
            return 0
        wakeup = self._scheduler.next_wakeup()
        longest = HELD_TURN_S if self._clients.are_held else TURN_S
        if wakeup is None:
            return int(longest * 1000)
        return int(min(max(wakeup - time.monotonic(), 0.0), longest) * 1000) + 1

    def _pass_time(self) -> None:
        wakeup = self._scheduler.next_wakeup()
        if wakeup is not None and wakeup <= time.monotonic():
            self._handle(events.TimePassed())
        if self._copies:
            self._send_copies()
        if self._clients.are_held:
            self._look_at_the_held()
        self._lose_all(self._sockets.door.gone() if self._sockets.door is not None else ())
        backend_door = self._sockets.backend_door
        for route in backend_door.gone() if backend_door is not None else ():
            if route in self._roster:
                log.warning("%s is gone: others compute what it had", route.decode())
            self._lose_worker(route)

    def _receive(self, socket: zmq.Socket[Any], on_message: Callable[[list[Any]], None]) -> None:
        for frames in received_messages(socket, MAX_MESSAGES_A_TURN):
            on_message(frames)

    def _receive_workers(self) -> None:
        if not self._copies:  # or these would become more and more
            self._receive(self._backend, self._on_worker)

    def _receive_clients(self) -> None:
        end = time.monotonic() + READING_S
        for frames in self._incoming.messages(MAX_MESSAGES_A_TURN):
            self._on_client(frames)
            if self._clients.heard_at > end:
                break
        self._take_arrivals()

    # clients

    def _on_client(self, frames: list[Any]) -> None:
        if self._sockets.door is not None and not self._sockets.door.lets_in(frames[0]):
            return
        gone = self._clients.heard(frames[0])
        if gone is None:
            return
        self._lose_all(gone)
        route = frames[0].bytes
        try:
            request = parse_request([frame.buffer for frame in frames[1:]])
        except ProtocolError as error:
            log.warning("a client sent what cannot be read: %s", described(error, frames))
            request_id = getattr(error, "request_id", None)
            answer = ErrorAnswer(request_id, "invalid_request", str(error))
            self._answer(route, answer.to_frames())
            return
        if isinstance(request, EncodeEnvelope):
            _, _, header, rows = frames
            self._arrivals.append(
                events.RequestArrived(
                    client=route,
                    request_id=request.id,
                    rows=request.rows,
                    nbytes=request.nbytes,
                    ttl_s=request.ttl_ms / 1000,
                    payload=[header.bytes, rows if len(rows) > RECEIVED_BYTES else rows.bytes],
                    group=request.group,
                    other_bytes=len(header) + REQUEST_BYTES,
                )
            )
        elif isinstance(request, Cancel):
            self._take_arrivals()
            self._handle(events.RequestsCancelled(route, request.ids))
        elif isinstance(request, Hello):
            self._on_hello(route, request)
        elif isinstance(request, Membership):
            self._on_membership(route, request)
        elif isinstance(request, Admin):
            self._remote.on_admin(frames[0], request)
        else:
            self._answer(route, Status(request.id, self._status()).to_frames())

    def _status(self) -> dict[str, Any]:
        return self._roster.status(self._scheduler, self._clients, self._groups)

    def _take_arrivals(self) -> None:
        if self._arrivals:
            arrivals, self._arrivals = self._arrivals, []
            self._handle(events.RequestsArrived(arrivals))

    def _on_hello(self, route: bytes, hello: Hello) -> None:
        log.debug("hello from %s", hello.client)
        welcome = self._roster.welcome(
            is_draining=self._scheduler.is_draining, connection=self._clients.name_of(route)
        )
        self._answer(route, welcome.to_frames())

    def _on_membership(self, route: bytes, membership: Membership) -> None:
        refusal = self._groups.set(route, membership.groups)
        if refusal is not None:
            self._lose_all(self._clients.ended())
            refusal = self._groups.set(route, membership.groups)
        if refusal is None:
            self._clients.set_listening(route, is_listening=bool(membership.groups))
            self._answer(route, membership.to_frames())
        else:
            self._answer(route, ErrorAnswer(membership.id, "overloaded", refusal).to_frames())

    def _answer(self, route: bytes, frames: Sequence[Any]) -> None:
        """Send a client its answer; one that is gone, or reads no answers, is lost."""
        if not self._send(self._frontend, [route, *self._clients.account(route, frames)]):
            self._give_up(route)
        elif self._clients.is_to_be_held(route):
            self._events.append(events.ClientHeld(route))

    def _look_at_the_held(self) -> None:
        for route in self._clients.released():
            self._handle(events.ClientReleased(route))
        hopeless = self._clients.hopeless()
        for route in hopeless:
            self._clients.hang_up(route)
        self._lose_all(hopeless)

    def _send_copies(self) -> None:
        for member, frames in self._copies.take(MAX_COPIES_A_TURN):
            if self._clients.is_held(member):
                self._give_up(member)
            else:
                self._answer(member, frames)
        self._handle(events.TimePassed())  # and who was lost by that

    def _give_up(self, route: bytes) -> None:
        """End the connection of a client that is gone, or does not read."""
        self._clients.hang_up(route)
        self._lose(route)
        self._events.append(events.ClientLost(route))

    def _lose_all(self, routes: Collection[bytes]) -> None:
        for route in routes:
            self._lose(route)
            self._handle(events.ClientLost(route))

    def _lose(self, route: bytes) -> None:
        """Forget a client that is gone, or is to be."""
        self._clients.forget(route)
        self._groups.remove(route)
        self._remote.forget(route)

    def _send(self, router: zmq.Socket[Any], frames: Sequence[Any]) -> bool:
        try:
            send_frames(router, frames)
        except zmq.ZMQError as error:  # no such route any more, or its queue is full
            log.debug("a message could not be sent: %s", error.strerror)
            return False
        return True

    # workers

    def _on_worker(self, frames: list[Any]) -> None:
        door = self._sockets.backend_door
        if door is not None and not door.lets_in(frames[0]):
            return
        route = frames[0].bytes
        try:
            kind, header, _ = read_from_worker([frame.buffer for frame in frames[1:]])
            if kind == "answers":
                self._on_answers(route, Answers.parse(header, frames[3:]))
            elif kind == "busy":
                self._handle(events.WorkerBusy(route))
            elif kind in ("starting", "ready"):
                check_route(door, route, header)
                if kind == "starting":
                    self._roster.add(route, header)
                else:
                    self._on_ready(route, header)
            elif kind == "boot_failed" and self._is_remote(route):
                log.error("%s cannot start: %s", route.decode(), header["cause"])
            elif kind == "boot_failed":
                self._tell_supervisor("boot_failed", cause=header["cause"])
        except ProtocolError as error:
            log.error("a worker sent what cannot be read: %s", error)
            if route in self._roster:
                self._end_worker(route)
            self._handle(events.WorkerLost(route))

    def _is_remote(self, route: bytes) -> bool:
        return self._sockets.backend_door is not None and self._sockets.backend_door.is_guest(route)

    def _end_worker(self, route: bytes) -> None:
        """Have a worker ended that does not do as it should; another machine's is sent away."""
        if not self._is_remote(route):
            self._tell_supervisor("worker_stuck", route=route.decode())
            return
        assert self._sockets.backend_door is not None
        self._sockets.backend_door.turn_out(route)
        self._roster.remove(route)
        self._events.append(events.WorkerLost(route))

    def _lose_worker(self, route: bytes) -> None:
        self._roster.remove(route)
        self._handle(events.WorkerLost(route))

    def _on_answers(self, route: bytes, answers: Answers) -> None:
        self._handle(events.BatchAnswered(route, answers.batch_id, answers.answers, answers.tokens))

    def _on_ready(self, route: bytes, header: dict[str, Any]) -> None:
        if self._is_remote(route):
            self._handle(events.WorkerLost(route))  # what it had before it connected again
            view = self._config.default_view
            why = difference(self._roster.model, header["model"], view, header.get("default_view"))
            if why is not None:
                log.error("%s is not taken: %s", route.decode(), why)
                self._send(self._backend, [route, *message("refused", cause=why)])
                self._roster.remove(route)
                return
        misfit = self._roster.misfit(header["model"])
        if misfit is not None:
            self._tell_supervisor("worker_refused", pid=header["pid"], cause=misfit)
            return
        record = self._roster.mark_ready(route, header)
        if not self._is_remote(route):
            self._tell_supervisor("worker_ready", worker=record.id, pid=record.pid)
        self._handle(
            events.WorkerReady(
                worker=route,
                max_batch_tokens=header["max_batch_tokens"],
                max_batch_rows=header["max_batch_rows"],
                max_row_tokens=header["model"]["max_length"],
                takes_express=header["takes_express"],
            )
        )
        if self._roster.is_retired(route):
            self._handle(events.WorkerRetired(route))
        if not self._was_ready and self._roster.num_ready >= self._config.num_worker:
            self._was_ready = True
            self._tell_supervisor("ready", model=dict(header["model"]))

    # the supervisor

    def _on_supervisor(self, frames: list[Any]) -> None:
        kind, header, _ = read_message([frame.buffer for frame in frames])
        if kind == "worker_lost":
            route = worker_route(header["worker"], header["pid"])
            self._lose_worker(route)
        elif kind == "retire":
            route = worker_route(header["worker"], header["pid"])
            self._roster.retire(route)
            self._handle(events.WorkerRetired(route))
        elif kind == "settings":
            self._roster.set(header["num_worker"], header["settings"])
        elif kind == "ping":
            self._tell_supervisor("pong")
        elif kind == "report":
            self._tell_supervisor("report", report=self._status())
        elif kind == "admin_answer":
            self._remote.on_answer(header)
        elif kind == "drain":
            self._handle(events.DrainStarted())
        elif kind == "stop":
            self._handle(events.Stopped())
            self._is_stopping = True

    def _tell_supervisor(self, kind: str, **fields: Any) -> None:
        self._supervisor.send_multipart(message(kind, **fields))

    # the scheduler's decisions

    def _handle(self, event: events.Event) -> None:
        """Tell the scheduler what happened and do what it says, until nothing is left."""
        self._events.append(event)
        while self._events:
            for action in self._scheduler.handle(self._events.popleft(), time.monotonic()):
                self._act(action)

    def _act(self, action: events.Action) -> None:
        if isinstance(action, events.Deliver):
            self._answer(action.client, [VERSION_FRAME, *action.answer])
            if action.group is not None:
                self._copies.add(action, self._clients.name_of(action.client))
        elif isinstance(action, events.Dispatch):
            self._dispatch(action)
        elif isinstance(action, events.AnswerError):
            self._answer(action.client, outgoing.error(action).to_frames())
        elif isinstance(action, events.WorkerDone):
            self._send(self._backend, [action.worker, *message("stop")])
        else:
            log.error("worker %s holds a batch past its limit", action.worker.decode())
            self._end_worker(action.worker)

    def _dispatch(self, action: events.Dispatch) -> None:
        batch = outgoing.batch(action, time.monotonic())
        if not self._send(self._backend, [action.worker, *batch.to_frames()]):
            self._events.append(events.WorkerLost(action.worker))


if __name__ == "__main__":
    sys.exit(run_role(run, BrokerConfig))
