"""Descriptors of a process: as many as it may have, and what happens near their end.

Every connection takes one. When there is none left, libzmq's listener tries to accept the same
connection again and again, a core at full load, and nothing else of the process can open a
file. So new connections are kept out before: a filter on the listening sockets has the kernel
drop their first packets, which are sent again, a second later and then less often. Those who
are connected notice nothing. Unbinding instead would end their connections too.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import resource
import select
import socket as sockets
import struct
import threading
import time
from pathlib import Path

log = logging.getLogger("bert_serving.descriptors")

OWN = Path("/proc/self/fd")
OPEN_LOOK_S = 0.0005  # between two looks while connections come
CLOSED_LOOK_S = 0.2
RESERVE = 132  # a full backlog of libzmq's listener, and some
RESERVE_SHARE = 2  # of a small limit, at most one in so many
MARGIN = 8
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27  # of Linux, which Python does not name


def raise_limit() -> None:
    """Let this process, and those that it starts, have as many descriptors as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS: the hard one may be no number
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def reserve(limit: int) -> int:
    """Return how many of so many descriptors are kept for other things than connections."""
    return min(RESERVE, limit // RESERVE_SHARE)


class Gate:
    """Keeps new connections out of a process while it has few descriptors left.

    It holds the reserve itself, so that connections which come faster than it looks cannot
    take it, and lets go of it when they are kept out: those accepted until then fit in, and a
    worker still finds room. Without room for a worker, libzmq ends the process.

    Args:
        ports: of the listening sockets.

    """

    def __init__(self, ports: list[int]) -> None:
        self._limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._reserve = reserve(self._limit)
        self._listeners = _listeners(ports)
        self._held: list[int] = []
        self._is_closed = False

    def watch(self) -> None:
        """Look whenever somebody connects, in a thread of its own."""
        if self._listeners:
            self._hold()
            threading.Thread(target=self._watch, name="gate", daemon=True).start()

    def _watch(self) -> None:
        arrivals = select.poll()
        for listener in self._listeners:
            arrivals.register(listener, select.POLLIN)
        while True:
            if not self._is_closed:
                arrivals.poll()
            self._look()
            time.sleep(CLOSED_LOOK_S if self._is_closed else OPEN_LOOK_S)

    def _look(self) -> None:
        """Open or close the gate; while it is open, that takes two system calls."""
        if self._is_closed and _count_free(self._limit) >= self._reserve + 2 * MARGIN:
            self._hold()
            self._let_in(is_open=True)
            log.warning("there are descriptors again: new connections are let in")
        elif not self._is_closed and not _is_free(self._limit - MARGIN):
            self._let_in(is_open=False)
            while self._held:
                os.close(self._held.pop())
            log.warning(
                "almost all of %d descriptors are taken: no new connections until some are free; "
                "allow more with ulimit -n, or LimitNOFILE=",
                self._limit,
            )

    def _hold(self) -> None:
        with contextlib.suppress(OSError):  # as many as there are
            while len(self._held) < self._reserve:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def _let_in(self, *, is_open: bool) -> None:
        for listener in self._listeners:
            _let_in(listener, is_open)
        self._is_closed = not is_open


def _is_free(number: int) -> bool:
    """Whether a descriptor is free; the system gives the lowest first, so most below are not."""
    try:
        free = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, number)
    except OSError as error:  # where it cannot be told, nobody is kept out
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    os.close(free)
    return free == number


def _count_free(limit: int) -> int:
    try:
        return limit - sum(1 for _ in OWN.iterdir())
    except OSError:
        return 0


def _listeners(ports: list[int]) -> list[sockets.socket]:
    """Return the TCP sockets of this process that listen on some ports, as copies."""
    found = []
    for path in list(OWN.iterdir()) if OWN.is_dir() else []:
        with contextlib.suppress(OSError):
            socket = sockets.socket(fileno=os.dup(int(path.name)))
            if _is_listening(socket) and socket.getsockname()[1] in ports:
                found.append(socket)
            else:
                socket.close()
    return found


def _is_listening(socket: sockets.socket) -> bool:
    is_tcp = socket.family in (sockets.AF_INET, sockets.AF_INET6)
    return is_tcp and bool(socket.getsockopt(sockets.SOL_SOCKET, sockets.SO_ACCEPTCONN))


def _let_in(listener: sockets.socket, is_open: bool) -> None:
    """Have the kernel drop the packets of new connections, or not any more."""
    with contextlib.suppress(OSError):
        if is_open:
            listener.setsockopt(sockets.SOL_SOCKET, SO_DETACH_FILTER, 0)
            return
        drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # return 0
        program = struct.pack("HP", 1, ctypes.addressof(drop_all))
        listener.setsockopt(sockets.SOL_SOCKET, SO_ATTACH_FILTER, program)
