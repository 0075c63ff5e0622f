"""`BertServer`: a server started, and stopped, from Python.

bert-as-service's was a thread of the caller's process. Here it is the daemon itself, in a
process of its own, so that nothing of the caller's threads, signals or memory meets it; it
ends when it is closed, and when the caller's process ends.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from . import exit_codes
from .admin_client import Server
from .cli.options import to_config
from .config import ServerConfig
from .interpreter import module_command
from .termination import check_local, terminate

POLL_S = 0.05
READY_TIMEOUT_S = 600.0  # a large model from a slow disk, calibrated
TERMINATE_TIMEOUT_MS = 60_000


class ServerStartError(Exception):
    """The server has ended, or is not ready in time; the message names the cause."""


class BertServer:
    """A server of this process's.

    Args:
        args: what `get_args_parser().parse_args([...])` returned, or a `ServerConfig`.

    Raises:
        ValueError: the settings contradict each other.

    Attributes:
        config: the server's settings.
        is_ready: an event that is set while the server answers.

    """

    def __init__(self, args: argparse.Namespace | ServerConfig) -> None:
        self.config = args if isinstance(args, ServerConfig) else to_config(args)
        self.is_ready = threading.Event()
        self._addresses: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def port(self) -> int:
        """The native port: the one the server has, once it is ready, or what was asked for."""
        native = self._addresses.get("native")
        return self.config.port if native is None else int(native.rpartition(":")[2])

    @property
    def addresses(self) -> dict[str, Any]:
        """What the ready file says: `native`, `legacy`, `pid`; empty before it is ready."""
        return dict(self._addresses)

    def start(self, timeout: float = READY_TIMEOUT_S) -> None:
        """Start the server and wait until it answers.

        Args:
            timeout: seconds.

        Raises:
            ServerStartError: it cannot start, with the cause, or is not ready in time.

        """
        if self._process is not None:
            raise RuntimeError("this server has been started already: make another BertServer")
        self._folder = tempfile.TemporaryDirectory(prefix="bert-serving-")
        folder = Path(self._folder.name)
        ready_file = Path(self.config.ready_file or folder / "ready.json")
        config = replace(self.config, ready_file=str(ready_file))
        cause_file = folder / "cause.txt"
        try:
            self._process = _start_process(config, cause_file)
            self._addresses = self._await_ready(ready_file, cause_file, timeout)
        except BaseException:
            self.close()
            raise
        self.is_ready.set()

    def close(self) -> None:
        """Stop the server: it works off what it has accepted; a second close does nothing."""
        self.is_ready.clear()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
        self.join()
        if self._folder is not None:
            self._folder.cleanup()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the server has ended, for so many seconds at most."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:  # as a thread's join: `is_alive` tells
            return

    def is_alive(self) -> bool:
        """Whether the server's process is there; one that has ended is not ready either."""
        is_alive = self._process is not None and self._process.poll() is None
        if not is_alive:
            self.is_ready.clear()
        return is_alive

    @staticmethod
    def shutdown(
        args: argparse.Namespace | None = None,
        *,
        ip: str = "localhost",
        port: int = 5555,
        timeout: float = TERMINATE_TIMEOUT_MS,
    ) -> None:
        """Stop a server of this user on this machine, whoever started it.

        Args:
            args: with `ip`, `port` and `timeout`, as bert-as-service has it; or these alone.
            ip: only this machine's own.
            port: its native port.
            timeout: milliseconds to wait for its end.

        Raises:
            TerminationError: there is no such server, or it has not ended in time.

        """
        ip = getattr(args, "ip", ip)
        port, timeout = getattr(args, "port", port), getattr(args, "timeout", timeout)
        check_local(ip)
        terminate(Server(port), timeout / 1000)

    def __enter__(self) -> BertServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _await_ready(self, ready_file: Path, cause_file: Path, timeout: float) -> dict[str, Any]:
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while (addresses := _read(ready_file)).get("pid") != self._process.pid:  # or a former one's
            if self._process.poll() is not None:
                ended = f"the server {exit_codes.describe(self._process.returncode)}"
                cause = cause_file.read_text("utf-8") if cause_file.exists() else ended
                raise ServerStartError(cause)
            if time.monotonic() >= deadline:
                raise ServerStartError(f"the server was not ready within {timeout:g} s")
            time.sleep(POLL_S)
        return addresses


def _read(ready_file: Path) -> dict[str, Any]:
    """Return what a ready file says; nothing if it is not there."""
    try:
        addresses: dict[str, Any] = json.loads(ready_file.read_text())
    except (OSError, ValueError):
        return {}
    return addresses


def _start_process(config: ServerConfig, cause_file: Path) -> subprocess.Popen[bytes]:
    command = module_command(f"{__package__}.owned", str(os.getpid()), str(cause_file))
    process = subprocess.Popen(  # noqa: S603  # our own module
        command,
        stdin=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is the caller's; it ends with its owner all the same
    )
    assert process.stdin is not None
    with process.stdin:
        process.stdin.write(json.dumps(asdict(config)).encode())
    return process
