"""Another machine, as far as the network can tell: a namespace with a cable to this one."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket as sockets
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

EVERY_PROTOCOL = 0x0003  # ETH_P_ALL


def ip(*words: str) -> None:
    """Run `ip`; fails with what it said."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def _missing() -> str | None:
    """Return why no namespace can be made here; None if one can."""
    if shutil.which("ip") is None:
        return "there is no ip command (iproute2)"
    name = f"bst{secrets.token_hex(3)}"
    try:
        ip("netns", "add", name)
        try:
            ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p")
            ip("link", "del", name)
        finally:
            ip("netns", "del", name)
    except AssertionError as error:
        return f"no network namespace can be made: {error}"
    return None


@dataclass(frozen=True)
class Neighbour:
    """The other machine.

    Attributes:
        name: its namespace, and this machine's end of the cable.
        here: this machine's address on the cable.
        address: its own.

    """

    name: str
    here: str
    address: str

    def start(self, *command: str, **settings: Any) -> subprocess.Popen[str]:
        """Start a command there."""
        whole = ["ip", "netns", "exec", self.name, *command]
        return subprocess.Popen(
            whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings
        )

    def cut(self) -> None:
        """Pull the cable: what is sent is lost, and nobody is told."""
        ip("netns", "exec", self.name, "ip", "link", "set", self._there, "down")

    def restore(self) -> None:
        """Put the cable back."""
        ip("netns", "exec", self.name, "ip", "link", "set", self._there, "up")

    @property
    def _there(self) -> str:
        return f"{self.name}p"

    @contextmanager
    def sniffed(self) -> Iterator[bytearray]:
        """Yield all bytes that pass the cable from now on, as somebody between would see them."""
        heard, is_over = bytearray(), threading.Event()
        with sockets.socket(
            sockets.AF_PACKET, sockets.SOCK_RAW, sockets.htons(EVERY_PROTOCOL)
        ) as tap:
            tap.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 8 << 20)
            tap.bind((self.name, 0))
            tap.settimeout(0.1)

            def listen() -> None:
                while not is_over.is_set():
                    with contextlib.suppress(TimeoutError):
                        heard.extend(tap.recv(1 << 17))

            thread = threading.Thread(target=listen)
            thread.start()
            try:
                yield heard
            finally:
                is_over.set()
                thread.join()


@contextmanager
def neighbour() -> Iterator[Neighbour]:
    """Yield another machine; its processes must have ended when it goes.

    Skips the test where none can be made.
    """
    if (why := _missing()) is not None:
        pytest.skip(why)
    name = f"bst{secrets.token_hex(3)}"
    network = f"10.{200 + os.getpid() % 50}.{secrets.randbelow(250)}"
    other = Neighbour(name, f"{network}.1", f"{network}.2")
    inside = ("netns", "exec", name, "ip")
    ip("netns", "add", name)
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p", "netns", name)
        ip("addr", "add", f"{other.here}/30", "dev", name)
        ip("link", "set", name, "up")
        ip(*inside, "addr", "add", f"{other.address}/30", "dev", f"{name}p")
        ip(*inside, "link", "set", f"{name}p", "up")
        ip(*inside, "link", "set", "lo", "up")
        yield other
    finally:
        ip("netns", "del", name)  # and the cable with it
