"""The connections of one process, lent to one call at a time.

Each call borrows a connection of its own, so that threads never wait for one another
unless they are more than the pool may have; one that is given back is used again.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zmq

from .connection import Connection
from .endpoint import Endpoint
from .errors import RequestTimeout

MAX_IDLE_CONNECTIONS = 16


class ConnectionPool:
    """Connections to one server.

    Args:
        endpoint: where the server is.
        name: how the client introduces itself.
        connect_timeout_s: longest wait for the server's first word.
        max_connections: calls at a time; more wait for one to end. None for no limit.

    """

    def __init__(
        self,
        endpoint: Endpoint,
        name: str,
        connect_timeout_s: float,
        max_connections: int | None = None,
    ) -> None:
        self.pid = os.getpid()
        self.is_closed = False
        self._endpoint = endpoint
        self._name = name
        self._connect_timeout_s = connect_timeout_s
        self._context: zmq.Context[Any] = zmq.Context()
        self._lock = threading.Lock()
        self._max_connections = max_connections
        self._places = threading.Semaphore(max_connections) if max_connections else None
        self._idle: list[Connection] = []
        self._borrowed = 0

    @contextmanager
    def connection(self, timeout_s: float = math.inf) -> Iterator[Connection]:
        """Lend a connection that the server has welcomed.

        Raises:
            RequestTimeout: none was given back within `timeout_s`.

        """
        with self._place(timeout_s):
            connection = self._borrow()
            try:
                self._handshake(connection)
                yield connection
            finally:
                self._give_back(connection)

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
        self._close(connection)

    def close(self) -> None:
        """Close what is idle; a connection in use is closed when its call ends."""
        with self._lock:
            self.is_closed = True
            idle, self._idle = self._idle, []
            is_unused = self._borrowed == 0
        for connection in idle:
            connection.close()
        if is_unused:
            self._context.term()

    @contextmanager
    def _place(self, timeout_s: float) -> Iterator[None]:
        if self._places is None:
            yield
            return
        if not self._places.acquire(timeout=min(timeout_s, threading.TIMEOUT_MAX)):
            raise RequestTimeout(
                f"all {self._max_connections} connections (max_concurrency) were in use for "
                f"{timeout_s * 1000:.0f} ms (timeout): raise one of the two"
            )
        try:
            yield
        finally:
            self._places.release()

    def _handshake(self, connection: Connection) -> None:
        if connection.session.welcome is None:
            connection.handshake(self._connect_timeout_s)

    def _borrow(self) -> Connection:
        with self._lock:
            if self.is_closed:
                raise ValueError("this BertClient is closed")
            connection = self._idle.pop() if self._idle else None
            self._borrowed += 1
        return connection or Connection(self._context, self._endpoint, self._name)

    def _give_back(self, connection: Connection) -> None:
        session = connection.session
        with self._lock:
            usable = session.welcome is not None and session.refusal is None
            if usable and not self.is_closed and len(self._idle) < MAX_IDLE_CONNECTIONS:
                self._borrowed -= 1
                self._idle.append(connection)
                return
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        connection.close()
        with self._lock:
            self._borrowed -= 1
            is_last = self.is_closed and self._borrowed == 0
        if is_last:
            self._context.term()
