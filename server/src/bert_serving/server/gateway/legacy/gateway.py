"""The legacy gateway's role: one thread between clients of bert-as-service and the broker.

It is an ordinary client of the broker, and knows nothing of workers. What
it takes in is bounded: while too much is open, the next request is left in its socket,
which in the end keeps the client from sending it.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import zmq

from bert_serving.client.calls import Call, EncodeCall, EncodeOptions, StatusCall
from bert_serving.client.chunking import RowSource
from bert_serving.client.connection import open_socket, receive_all
from bert_serving.client.endpoint import Endpoint
from bert_serving.client.errors import ServerError, Unavailable
from bert_serving.client.fleet import Fleet
from bert_serving.client.options import EMBEDDING, finished_encoding
from bert_serving.client.sockets import received_messages, send_frames
from bert_serving.client.view import View
from bert_serving.server import exit_codes, logs
from bert_serving.server.descriptors import Gate
from bert_serving.server.processes import Parent, run_role
from bert_serving.server.roles import LegacyConfig, port_of
from bert_serving.server.worker_protocol import gateway_route, message, read_message

from . import requests
from .answers import (
    AnswerForm,
    LegacyAnswer,
    check_size,
    encoding_answer,
    error_answer,
    settings_answer,
    settings_error_answer,
)
from .mailbox import Mailbox
from .requests import LegacyRequest, Unanswerable, parse_request, parse_rows
from .settings import legacy_settings
from .sockets import FLUSH_MS, CannotListen, inbound_socket, listen, outbound_socket
from .statistic import Statistic

log = logging.getLogger("bert_serving.legacy")

MAX_OPEN_REQUESTS = 10_000
MAX_OPEN_BYTES = 256 << 20  # of open requests and their answers; one more may go beyond
MAX_HELD_ANSWERS = 10_000
MAX_HELD_BYTES = 128 << 20
HOLD_S = 30.0  # an answer, for a client that has not subscribed yet or has no room
LAST_HOLD_S = 1.0  # the same, when the gateway is to end
MAX_MESSAGES_A_TURN = 64
CALL_TIMEOUT_S = 600.0  # an old client waits for ever: this is three batches that hang, and more
GREETING_S = 0.5
TURN_S = 1.0  # longest sleep: how soon an orphan notices


def run(config: LegacyConfig) -> int:
    """Live the gateway's life: open, loop, drain, close."""
    logs.set_up("legacy", verbose=config.verbose, log_format=config.log_format)
    context: zmq.Context[Any] = zmq.Context()
    gateway = LegacyGateway(config, context)
    try:
        if not gateway.open():
            return exit_codes.BOOT_FAILED
        return gateway.loop()
    finally:
        gateway.close()
        context.term()


class LegacyGateway:
    """The gateway's sockets, and the fleet (of one) and the mailbox between them."""

    def __init__(self, config: LegacyConfig, context: zmq.Context[Any]) -> None:
        self._config = config
        self._ports = (config.port, config.port_out)
        self._inbound = inbound_socket(context)
        self._outbound = outbound_socket(context)
        self._broker = open_socket(context, Endpoint(config.broker))
        self._supervisor = context.socket(zmq.DEALER)
        self._fleet = Fleet(f"legacy gateway, pid {os.getpid()}", [config.broker])
        self._mailbox = Mailbox(
            hold_s=HOLD_S, max_answers=MAX_HELD_ANSWERS, max_bytes=MAX_HELD_BYTES
        )
        self._statistic = Statistic()
        self._parent = Parent()
        self._open: dict[Call, int] = {}  # with the bytes that each is reckoned at
        self._open_bytes = 0
        self._answers: list[LegacyAnswer] = []
        self._next_greeting = 0.0
        self._is_draining = False

    def open(self) -> bool:
        """Bind and connect; tells the supervisor where, or why not."""
        self._supervisor.routing_id = gateway_route(os.getpid())
        self._supervisor.linger = FLUSH_MS
        self._supervisor.connect(self._config.supervisor)
        try:
            addresses = [
                listen(self._inbound, self._config.host, self._config.port, "legacy_port"),
                listen(self._outbound, self._config.host, self._config.port_out, "legacy_port_out"),
            ]
        except CannotListen as error:
            self._supervisor.send_multipart(message("boot_failed", cause=str(error)))
            return False
        self._ports = (port_of(addresses[0]), port_of(addresses[1]))
        self._supervisor.send_multipart(message("bound", addresses=addresses))
        return True

    def loop(self) -> int:
        """Serve until drained, told to stop, or without a broker that can be understood."""
        receivers: dict[Any, Callable[[], object]] = {
            self._inbound: self._receive_requests,
            self._outbound: self._receive_subscriptions,
            self._broker: lambda: receive_all(self._broker, partial(self._fleet.receive, 0)),
            self._supervisor: self._receive_orders,
        }
        poller = zmq.Poller()
        for socket in receivers:
            poller.register(socket, zmq.POLLIN)
        Gate(list(self._ports)).watch()
        while not self._is_finished:
            if not self._parent.is_alive:
                log.error("the supervisor is gone: stopping")
                return exit_codes.ORPHANED
            poller.register(self._inbound, zmq.POLLIN if self._has_room else 0)
            for socket, _ in poller.poll(self._sleep_ms()):
                receivers[socket]()
            self._go_on()
        if self._fleet.refusal is not None and not self._is_draining:
            log.error("%s", self._fleet.refusal)
            return exit_codes.FAILED
        return exit_codes.OK

    def close(self) -> None:
        """Send what waits to be sent, close."""
        for socket in (self._inbound, self._outbound, self._broker, self._supervisor):
            socket.close()

    @property
    def _has_room(self) -> bool:
        """Whether another request is read: not before there is a worker, as in bert-as-service."""
        if self._is_draining:
            return True  # to be refused
        return (
            self._fleet.is_welcome
            and len(self._open) < MAX_OPEN_REQUESTS
            and self._open_bytes < MAX_OPEN_BYTES
        )

    @property
    def _is_finished(self) -> bool:
        is_ending = self._is_draining or self._fleet.refusal is not None
        return is_ending and not self._open and not self._mailbox

    def _sleep_ms(self) -> int:
        wakeups = [self._fleet.next_wakeup(), self._mailbox.next_wakeup()]
        if not self._fleet.is_welcome:
            wakeups.append(self._next_greeting)
        now = time.monotonic()
        wakeup = min([at for at in wakeups if at is not None], default=now + TURN_S)
        return int(min(max(wakeup - now, 0.0), TURN_S) * 1000) + 1

    def _go_on(self) -> None:
        """Do what time brings, and send what there is to send."""
        now = time.monotonic()
        if not self._fleet.is_welcome and now >= self._next_greeting:
            self._next_greeting = now + GREETING_S
            self._fleet.hello(Call(GREETING_S), now)
        self._fleet.advance(now)
        if self._fleet.refusal is not None:
            self._mailbox.hold_s = LAST_HOLD_S
        while message := self._fleet.next_message(now):
            send_frames(self._broker, message[1])
        answers, self._answers = self._answers, []
        for answer in answers:
            self._mailbox.put(answer, now)
        self._publish(now)

    # requests

    def _receive_requests(self) -> None:
        for frames in received_messages(self._inbound, MAX_MESSAGES_A_TURN):
            self._on_request([frame.bytes for frame in frames])
            if not self._has_room:
                return

    def _on_request(self, frames: list[bytes]) -> None:
        try:
            request = parse_request(frames)
        except Unanswerable as error:
            log.warning("a message that cannot be answered: %s", error)
            return
        if request.body == requests.TERMINATION:
            log.warning(
                "%r has sent TERMINATION, which is refused: whoever started this server can stop "
                "it with bert-serving-terminate",
                request.client,
            )
        elif request.body in (requests.SHOW_CONFIG, requests.SHOW_STATUS):
            self._statistic.on_command(request.identity)
            self._ask_status(request)
        else:
            self._encode(request)

    def _ask_status(self, request: LegacyRequest) -> None:
        if self._is_draining:
            self._answers.append(settings_error_answer(request, _STOPPING))
            return
        call = StatusCall(CALL_TIMEOUT_S)
        call.on_done = partial(self._on_status, call, request)
        self._hold_open(call, 0)
        self._fleet.request_status(call, time.monotonic())

    def _on_status(self, call: StatusCall, request: LegacyRequest) -> None:
        self._close(call)
        if call.error is not None:
            self._answers.append(settings_error_answer(request, str(call.error)))
            return
        now = time.monotonic()
        with_statistic = request.body == requests.SHOW_STATUS
        settings = legacy_settings(
            call.status,
            client=request.client,
            ports=self._ports,
            native_port=self._config.native_port,
            statistic=self._statistic.value(now) if with_statistic else None,
        )
        self._answers.append(settings_answer(request, settings))

    def _encode(self, request: LegacyRequest) -> None:
        try:
            if self._is_draining:
                raise ValueError(_STOPPING)
            self._submit(request)
        except (ValueError, TypeError) as error:
            self._refuse(request, error)

    def _submit(self, request: LegacyRequest) -> None:
        rows, is_tokenized = parse_rows(request.body)
        form, now = self._form(), time.monotonic()
        nbytes = form.nbytes(rows)
        check_size(len(rows), nbytes)
        self._statistic.on_rows(request.identity, len(rows), now)
        options = EncodeOptions(
            {EMBEDDING: View()}, is_tokenized=is_tokenized, show_tokens=form.show_tokens
        )
        source = RowSource(rows, is_tokenized=is_tokenized)
        call = EncodeCall(source, options, CALL_TIMEOUT_S)
        call.on_done = partial(self._on_encoded, call, request)
        self._hold_open(call, len(request.body) + nbytes)
        self._fleet.submit(call, now)

    def _form(self) -> AnswerForm:
        assert self._fleet.welcome is not None  # nothing is read before
        return AnswerForm.of(
            self._fleet.welcome,
            pads_to_limit=self._config.pads_to_limit,
            show_tokens=self._config.show_tokens,
        )

    def _on_encoded(self, call: EncodeCall, request: LegacyRequest) -> None:
        self._close(call)
        try:
            encoding = finished_encoding(call, self._fleet)
            self._answers.append(encoding_answer(request, self._form(), encoding))
        except Exception as error:  # noqa: BLE001  # whatever it is, the client is told
            self._refuse(request, error)

    def _refuse(self, request: LegacyRequest, error: Exception) -> None:
        # what the server says may quote a text: the client is told, the log is not
        why = error.code if isinstance(error, ServerError) else error
        log.warning("request %s of %r: %s", request.request_id.decode(), request.client, why)
        self._answers.append(error_answer(request, str(error)))

    def _hold_open(self, call: Call, nbytes: int) -> None:
        self._open[call] = nbytes
        self._open_bytes += nbytes

    def _close(self, call: Call) -> None:
        call.on_done = None  # it holds the call: the two would wait for the garbage collector
        self._open_bytes -= self._open.pop(call)

    # answers

    def _receive_subscriptions(self) -> None:
        for frames in received_messages(self._outbound, MAX_MESSAGES_A_TURN):
            self._mailbox.on_subscription(frames[0].bytes)

    def _publish(self, now: float) -> None:
        while answer := self._mailbox.next_answer(now):
            if self._send(answer):
                self._mailbox.sent(answer)
            else:
                self._mailbox.no_room(answer, now)
        for answer in self._mailbox.expired(now):
            self._give_up(answer)

    def _send(self, answer: LegacyAnswer) -> bool:
        try:
            send_frames(self._outbound, answer.frames)
        except zmq.Again:
            return False
        return True

    def _give_up(self, answer: LegacyAnswer) -> None:
        """Send an answer to those who have room for it, if there is anybody at all."""
        client = answer.identity.decode("utf-8", "replace")
        if self._mailbox.is_subscribed(answer.identity):
            log.warning("%r does not read its answers: one is lost to whoever has no room", client)
            self._outbound.xpub_nodrop = 0
            self._send(answer)
            self._outbound.xpub_nodrop = 1
        else:
            log.warning("nobody has subscribed to %r: an answer for it is lost", client)

    # the supervisor

    def _receive_orders(self) -> None:
        for frames in received_messages(self._supervisor, MAX_MESSAGES_A_TURN):
            kind, _, _ = read_message([frame.buffer for frame in frames])
            self._is_draining = True
            self._fleet.waits_for_servers = False
            self._mailbox.hold_s = LAST_HOLD_S
            if kind == "stop":
                self._fleet.close(Unavailable(_STOPPING))


_STOPPING = "the server is stopping: send this again when it is back"


if __name__ == "__main__":
    sys.exit(run_role(run, LegacyConfig))
