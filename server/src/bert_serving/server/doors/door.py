"""The doors of a process: who may come in by a listening socket, and who has.

ZeroMQ asks (ZAP) on a socket that its user polls beside the others: one thread does it all,
so a key is looked up where the messages it lets in are read. A handshake waits for a turn
of that thread, which is short.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from bert_serving.client.keys import read_secret
from bert_serving.client.sockets import received_messages
from bert_serving.server.roles import DoorConfig

from . import zap
from .connections import address_of, hang_up, peer_of
from .handshakes import Handshakes, monitored
from .keyring import Keyring
from .refusals import Refusals

log = logging.getLogger("bert_serving.doors")

REFRESH_S = 1.0  # how soon a key that was added or removed is noticed
HANDSHAKE_MS = 10_000  # a peer that says nothing for so long is disconnected
MAX_QUESTIONS_A_TURN = 64
ADMINISTRATORS = "administrators"


@dataclass(frozen=True)
class _Guest:
    """A connection that has come in and sent something."""

    route: bytes
    key: str
    name: str
    peer: Any


class Doors:
    """All doors of a process, which ZeroMQ asks about at one place."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self._context = context
        self._doors: dict[str, Door] = {}
        self._questions: zmq.Socket[Any] | None = None

    def guard(self, socket: zmq.Socket[Any], domain: str, config: DoorConfig) -> Door:
        """Let only peers with allowed keys come in by what a socket binds from now on.

        Raises:
            KeyFileError: the secret key cannot be used.

        """
        if self._questions is None:
            self._questions = self._context.socket(zmq.REP)
            self._questions.bind(zap.ADDRESS)
        own = read_secret(config.server_key)
        socket.curve_server = True
        socket.curve_secretkey = own.secret
        socket.zap_domain = domain.encode()
        socket.handshake_ivl = HANDSHAKE_MS
        monitor = monitored(self._context, socket, domain)
        self._doors[domain] = door = Door(domain, config, monitor)
        return door

    def receivers(self) -> dict[Any, Callable[[], None]]:
        """Return what is to be called when one of the sockets has something."""
        if self._questions is None:
            return {}
        return {
            self._questions: self._answer,
            **{door.monitor: door.watch for door in self._doors.values()},
        }

    def close(self) -> None:
        """Close the sockets, after those that were guarded."""
        for door in self._doors.values():
            door.monitor.close()
        if self._questions is not None:
            self._questions.close(linger=0)

    def _answer(self) -> None:
        """Answer ZeroMQ's questions, one after the other, as a REP socket has it."""
        assert self._questions is not None
        for _ in range(MAX_QUESTIONS_A_TURN):
            try:
                frames = self._questions.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            request = zap.ZapRequest.parse(frames)
            door = self._doors.get(request.domain)
            if door is not None:
                door.watch()  # all that was before: another may have had this one's descriptor
            is_allowed = door is not None and door.admits(request)
            self._questions.send_multipart(request.answer(is_allowed=is_allowed))


class Door:
    """One listening socket's: the keys, and the connections that have come in.

    Args:
        domain: its name.
        config: where the keys are.
        monitor: where the socket's monitor reports to.

    """

    def __init__(self, domain: str, config: DoorConfig, monitor: zmq.Socket[Any]) -> None:
        self.monitor = monitor
        self._domain = domain
        self._keyrings = {domain: Keyring(Path(config.allowed))}
        if config.administrators is not None:
            self._keyrings[ADMINISTRATORS] = Keyring(Path(config.administrators))
        self._names: dict[str, str] = {}  # of all keys that may come in
        self._handshakes = Handshakes(address_of)
        self._refusals = Refusals()
        self._guests: dict[int, _Guest] = {}  # by file descriptor: as many as there are
        self._left: list[bytes] = []
        self._next_refresh = 0.0
        self._refresh()

    def admits(self, request: zap.ZapRequest) -> bool:
        """Whether a peer may come in; one that may not gets a line in the log."""
        name = self._names.get(request.key or "")
        if name is None:
            folders = " or ".join(str(keyring.folder) for keyring in self._keyrings.values())
            why = f"its key {request.key} is not in {folders}"
            self._refuse(request.address, "unknown key", why)
        else:
            log.debug("%s of %s has come in from %s", name, self._domain, request.address)
        return name is not None

    def lets_in(self, frame: zmq.Frame) -> bool:
        """Whether a message may be read, by its first frame, which is its route.

        The key was right when its connection came in; it may have been taken away since.
        """
        key = _key_of(frame)
        if key is None:  # came by a local socket, which only this user can open
            return True
        descriptor, route = int(frame.get(zmq.SRCFD)), frame.bytes
        guest = self._guests.get(descriptor)
        if guest is None or guest.route != route or guest.key != key:
            name = self._names.get(key, "a key that was removed")
            guest = self._guests[descriptor] = _Guest(route, key, name, peer_of(descriptor))
        if key in self._names:
            return True
        self._shut_out(descriptor, guest)
        return False

    def is_administrator(self, frame: zmq.Frame) -> bool:
        """Whether a message may change the server, by its first frame.

        The key is the connection's own, not that of its route, which a client chooses.
        """
        keyring = self._keyrings.get(ADMINISTRATORS)
        return keyring is not None and _key_of(frame) in keyring.names

    def name_of(self, frame: zmq.Frame) -> str:
        """Return for the log whose key a message has come with, by its first frame."""
        return self._names.get(_key_of(frame) or "", "a process of this user")

    def watch(self) -> None:
        """Take in all that the monitor reports.

        What were left of it would be of earlier connections, whose descriptors others have by now.
        """
        for frames in received_messages(self.monitor, sys.maxsize):
            event = parse_monitor_message([frame.bytes for frame in frames])
            failed = self._handshakes.on(event["event"], event["value"])
            if failed is not None:
                address, why = failed
                self._refuse(address, why, why)
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                self._on_disconnected(event["value"])

    def is_guest(self, route: bytes) -> bool:
        """Whether a route is that of a connection that has come in by this door."""
        return any(guest.route == route for guest in self._guests.values())

    def turn_out(self, route: bytes) -> None:
        """End the connection of a route; it may come again."""
        for descriptor, guest in list(self._guests.items()):
            if guest.route == route:
                hang_up(descriptor, guest.peer)
                self._guests.pop(descriptor)

    def gone(self) -> list[bytes]:
        """End the connections whose keys were removed; return the routes of all that have ended."""
        if time.monotonic() >= self._next_refresh and self._refresh():
            for descriptor, guest in list(self._guests.items()):
                if guest.key not in self._names:
                    self._shut_out(descriptor, guest)
                    self._left.append(guest.route)
        left, self._left = self._left, []
        return left

    def _on_disconnected(self, descriptor: int) -> None:
        guest = self._guests.pop(descriptor, None)
        if guest is not None and not self.is_guest(guest.route):  # it may have come back already
            self._left.append(guest.route)

    def _refresh(self) -> bool:
        self._next_refresh = time.monotonic() + REFRESH_S
        problems = {whose: keyring.refresh() for whose, keyring in self._keyrings.items()}
        changed = {whose: found for whose, found in problems.items() if found is not None}
        for whose, found in changed.items():
            _log_keys(whose, self._keyrings[whose], found)
        if changed:
            self._names = {}
            for keyring in self._keyrings.values():
                self._names.update(keyring.names)
        return bool(changed)

    def _shut_out(self, descriptor: int, guest: _Guest) -> None:
        hang_up(descriptor, guest.peer)
        self._guests.pop(descriptor, None)
        address = guest.peer[0] if guest.peer else "somewhere"
        log.warning(
            "%s is not allowed any more: its connection from %s is ended", guest.name, address
        )

    def _refuse(self, address: str, kind: str, why: str) -> None:
        line = self._refusals.line(address, kind, why, time.monotonic())
        if line is not None:
            log.warning("%s", line)


def _log_keys(whose: str, keyring: Keyring, problems: list[str]) -> None:
    for problem in problems:
        log.warning("%s", problem)
    number = len(keyring.names)
    level = logging.INFO if number else logging.WARNING
    log.log(level, "%d keys in %s let %s in", number, keyring.folder, whose)


def _key_of(frame: zmq.Frame) -> str | None:
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return None
