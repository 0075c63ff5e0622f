"""A proxy between a client and its server, whose connections can be cut as a NAT does."""

from __future__ import annotations

import contextlib
import socket as sockets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Relay:
    """Passes bytes on to a port of this machine, by connections that end when they are cut.

    Attributes:
        port: where it listens.

    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = sockets.create_server(("127.0.0.1", 0))
        self._ends: list[sockets.socket] = []
        self._threads: list[threading.Thread] = []
        self.port = int(self._listener.getsockname()[1])
        self._start(self._accept)

    def cut(self) -> None:
        """End all connections; others may be made at once."""
        for end in list(self._ends):
            _shut(end)

    def close(self) -> None:
        """End everything."""
        _shut(self._listener)
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for socket in (*self._ends, self._listener):
            socket.close()

    def _start(self, target: Callable[..., None], *ends: sockets.socket) -> None:
        thread = threading.Thread(target=target, args=ends)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = sockets.create_connection(("127.0.0.1", self._target))
                self._ends += [near, far]
                self._start(_pass_on, near, far)
                self._start(_pass_on, far, near)


@contextmanager
def relay(target: int) -> Iterator[Relay]:
    """Give a relay to a port."""
    relay = Relay(target)
    try:
        yield relay
    finally:
        relay.close()


def _pass_on(source: sockets.socket, sink: sockets.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    _shut(source)
    _shut(sink)


def _shut(socket: sockets.socket) -> None:
    with contextlib.suppress(OSError):
        socket.shutdown(sockets.SHUT_RDWR)
