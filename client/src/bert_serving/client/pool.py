"""The connections of one process, lent to one call at a time.

Each call borrows a connection of its own, so that threads never wait for one another
unless they are more than the pool may have; one that is given back is used again.

An interrupt may come between any two steps of a call, also in here. So nothing is counted
that could come to be counted wrongly: what is lost on the way is found by Python itself.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue

from .connection import Connection
from .context import process_context
from .endpoint import Endpoint
from .errors import RequestTimeout

MAX_IDLE_CONNECTIONS = 16


class ConnectionPool:
    """Connections to the servers of a client.

    Args:
        endpoints: where the servers are.
        name: how the client introduces itself.
        connect_timeout_s: longest wait for the server's first word.
        max_connections: calls at a time; more wait for one to end. None for no limit.
        hedge_after_s: see `Fleet`.

    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        name: str,
        connect_timeout_s: float,
        max_connections: int | None = None,
        hedge_after_s: float = math.inf,
    ) -> None:
        self.pid = os.getpid()
        self.is_closed = False
        self._endpoints = endpoints
        self._hedge_after_s = hedge_after_s
        self._name = name
        self._connect_timeout_s = connect_timeout_s
        self._lock = threading.RLock()  # a signal's handler may close this
        self._max_connections = max_connections
        self._places: SimpleQueue[_Place] = SimpleQueue()
        for _ in range(max_connections or 0):
            self._places.put(_Place(weakref.ref(self._places)))
        self._idle: list[Connection] = []

    @contextmanager
    def connection(
        self, timeout_s: float = math.inf, connect_timeout_s: float | None = None
    ) -> Iterator[Connection]:
        """Lend a connection that the server has welcomed, within the client's own time by default.

        Raises:
            RequestTimeout: none was given back within `timeout_s`.

        """
        place = self._place(timeout_s) if self._max_connections is not None else None
        try:
            connection = self._borrow()
            try:
                self._handshake(connection, connect_timeout_s)
                yield connection
            finally:
                self._give_back(connection)
        finally:
            if place is not None:
                place.leave()

    def take(self) -> Connection:
        """Return a connection for long use, welcomed; to be given back by `release`."""
        connection = self._borrow()
        try:
            self._handshake(connection)
        except BaseException:
            self.release(connection)
            raise
        return connection

    def release(self, connection: Connection) -> None:
        """Close a connection that was taken for long use."""
        connection.close()

    def close(self) -> None:
        """Close what is idle; a connection in use is closed when its call ends."""
        with self._lock:
            self.is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _place(self, timeout_s: float) -> _Place:
        try:
            return self._places.get(timeout=min(timeout_s, threading.TIMEOUT_MAX))
        except Empty:
            raise RequestTimeout(
                f"all {self._max_connections} connections (max_concurrency) were in use for "
                f"{timeout_s * 1000:.0f} ms (timeout): raise one of the two"
            ) from None

    def _handshake(self, connection: Connection, timeout_s: float | None = None) -> None:
        if connection.fleet.welcome is None:
            connection.handshake(self._connect_timeout_s if timeout_s is None else timeout_s)

    def _borrow(self) -> Connection:
        with self._lock:
            if self.is_closed:
                raise ValueError("this BertClient is closed")
            connection = self._idle.pop() if self._idle else None
        if connection is not None:
            return connection
        return Connection(process_context(), self._endpoints, self._name, self._hedge_after_s)

    def _give_back(self, connection: Connection) -> None:
        fleet = connection.fleet
        usable = connection.is_idle and fleet.welcome is not None and fleet.refusal is None
        usable = usable and not any(session.is_shut_out for session in fleet.sessions)
        with self._lock:
            if usable and not self.is_closed and len(self._idle) < MAX_IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()


class _Place:
    """Room for one call; free again when it is left, or when nobody holds it any more."""

    def __init__(self, places: weakref.ref[SimpleQueue[_Place]]) -> None:
        self._places = places
        self._is_left = False

    def leave(self) -> None:
        """Let another call in."""
        places = self._places()
        if not self._is_left and places is not None:
            places.put(_Place(self._places))
        self._is_left = True

    __del__ = leave
