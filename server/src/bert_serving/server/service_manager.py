"""Telling systemd how the server is: sd_notify(3), and its watchdog.

A service manager that started the server says in the environment where it listens; without
one nothing is said. Nothing here waits: what the manager has no room for it is told later, and
of signs of life only the next one.
"""

from __future__ import annotations

import os
import socket as sockets
import time
from collections import deque
from collections.abc import Mapping

MAX_UNSAID = 16


class ServiceManager:
    """Who started the server, if it wants to know how it is.

    Args:
        environment: with NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.

    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog_us = environment.get("WATCHDOG_USEC", "") if is_ours else ""
        self._beat_s = int(watchdog_us) / 2e6 if watchdog_us.isdecimal() else 0.0
        self._next_beat = 0.0
        self._unsaid: deque[str] = deque(maxlen=MAX_UNSAID)  # the oldest first

    def is_ready(self) -> None:
        """Say that the server answers, also after a reload."""
        self._tell("READY=1", "STATUS=serving")

    def is_reloading(self) -> None:
        """Say that the configuration is read again; `is_ready` ends it."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now_us}", "STATUS=replacing workers")

    def is_stopping(self) -> None:
        """Say that the server is about to end."""
        self._tell("STOPPING=1", "STATUS=working off what was accepted")

    def beat(self, now: float) -> None:
        """Give a sign of life to the watchdog, if it is time for one."""
        if self._beat_s and now >= self._next_beat and not self._unsaid:
            self._next_beat = now + self._beat_s
            self._send("WATCHDOG=1")

    def advance(self) -> None:
        """Say what the manager had no room for before."""
        while self._unsaid and self._send(self._unsaid[0]):
            self._unsaid.popleft()

    def _tell(self, *lines: str) -> None:
        self._unsaid.append("\n".join(lines))
        self.advance()

    def _send(self, text: str) -> bool:
        """Return whether the manager has got it, or there is none to get it."""
        if not self._address.startswith(("/", "@")):
            return True
        address = self._address
        if address.startswith("@"):  # a name without a file
            address = f"\0{address[1:]}"
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM | sockets.SOCK_CLOEXEC) as socket:
            socket.setblocking(False)
            try:
                socket.sendto(text.encode(), address)
            except BlockingIOError:
                return False
            except OSError:
                pass  # a manager that does not listen is its own affair
            return True
