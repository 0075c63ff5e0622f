"""The two sockets that the broker listens on, and the doors before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq

from bert_serving.client.keys import KeyFileError

from .doors.door import Door, Doors
from .roles import BrokerConfig, port_of
from .roster import most_unanswered

MIN_UNREAD_ANSWERS = 2_000  # of one client: so many it may leave, or twice what windows allow
FLUSH_MS = 2_000
HEARTBEAT_MS = 2_000, 6_000  # to other machines: between two, and until one is missed
KEEPALIVE_S = 60, 15  # to clients that are silent: until TCP asks, and between two times
KEEPALIVES = 4  # that are not answered end the connection


class CannotListen(Exception):
    """A port or a key cannot be had; the message says which and why."""


class BrokerSockets:
    """Clients come by the frontend, workers by the backend: our own by files, others by TCP.

    Attributes:
        frontend, backend: the sockets.
        door: of the clients' port; None if who can reach it is let in.
        backend_door: of the port for workers on other machines; None if there is none.

    """

    def __init__(self, config: BrokerConfig, context: zmq.Context[Any]) -> None:
        self.frontend: zmq.Socket[Any] = context.socket(zmq.ROUTER)
        self.backend: zmq.Socket[Any] = context.socket(zmq.ROUTER)
        self.door: Door | None = None
        self.backend_door: Door | None = None
        self._config = config
        self._doors = Doors(context)

    def listen(self) -> None:
        """Bind: first for our own processes, then, behind the doors, for all.

        Raises:
            CannotListen: a port is taken, or a key cannot be used.

        """
        for router in (self.frontend, self.backend):
            router.router_mandatory = True
            router.linger = FLUSH_MS
            router.ipv6 = ":" in self._config.host
        self.frontend.sndhwm = max(2 * most_unanswered(self._config), MIN_UNREAD_ANSWERS)
        self.frontend.maxmsgsize = self._config.max_request_bytes
        self.frontend.tcp_keepalive = 1  # or those of machines that are gone would stay for ever
        self.frontend.tcp_keepalive_idle, self.frontend.tcp_keepalive_intvl = KEEPALIVE_S
        self.frontend.tcp_keepalive_cnt = KEEPALIVES
        self.backend.sndhwm = self.backend.rcvhwm = 0  # the scheduler bounds both
        try:
            self.backend.bind(self._config.backend)
            self.frontend.bind(self._config.frontend)
            if self._config.door is not None:
                self.door = self._doors.guard(self.frontend, "clients", self._config.door)
            if self._config.backend_door is not None:
                self.backend_door = self._doors.guard(
                    self.backend, "workers", self._config.backend_door
                )
        except KeyFileError as error:
            raise CannotListen(f"-server_key: {error}") from None
        self._bind(self.frontend, self._config.port)
        if self.backend_door is not None:
            self.backend.router_handover = True  # a worker may be back before its end is seen
            self.backend.heartbeat_ivl, self.backend.heartbeat_timeout = HEARTBEAT_MS
            self._bind(self.backend, self._config.backend_port or 0)

    @property
    def addresses(self) -> dict[str, str | None]:
        """Where clients, and workers of other machines, can connect."""
        backend = None
        if self.backend_door is not None:
            backend = self.backend.get_string(zmq.LAST_ENDPOINT)
        return {"address": self.frontend.get_string(zmq.LAST_ENDPOINT), "backend": backend}

    @property
    def ports(self) -> list[int]:
        """The TCP ports that others connect to."""
        return [port_of(address) for address in self.addresses.values() if address is not None]

    def receivers(self) -> dict[Any, Callable[[], None]]:
        """Return what is to be called when one of the doors' sockets has something."""
        return self._doors.receivers()

    def close(self) -> None:
        """Close the sockets; what waits to be sent is sent."""
        self.frontend.close()
        self.backend.close()
        self._doors.close()

    def _bind(self, router: zmq.Socket[Any], port: int) -> None:
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        try:
            router.bind(f"tcp://{host}:{port or '*'}")
        except zmq.ZMQError as error:
            raise CannotListen(
                f"cannot listen on {self._config.host}, port {port or '*'}: {error.strerror}"
            ) from None
