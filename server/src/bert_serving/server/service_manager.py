"""Telling systemd how the server is: sd_notify(3), and its watchdog.

A service manager that started the server says in the environment where it listens; without
one nothing is said. Nothing here waits: what the manager has no room for is dropped.
"""

from __future__ import annotations

import contextlib
import os
import socket as sockets
import time
from collections.abc import Mapping


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
        if self._beat_s and now >= self._next_beat:
            self._next_beat = now + self._beat_s
            self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if not self._address.startswith(("/", "@")):
            return
        address = self._address
        if address.startswith("@"):  # a name without a file
            address = f"\0{address[1:]}"
        with (
            contextlib.suppress(OSError),  # a manager that does not listen is its own affair
            sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM | sockets.SOCK_CLOEXEC) as socket,
        ):
            socket.setblocking(False)
            socket.sendto("\n".join(lines).encode(), address)
