"""A real server in processes of its own, as the integration tests see it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

from bert_serving.client import BertClient

T = TypeVar("T")

SECOND = float(os.environ.get("BERT_TEST_SECOND", "1"))
"""The unit of every time-out here: set it higher for a machine that is slow or busy."""

BOOT_S = 60 * SECOND
END_S = 30 * SECOND
MARK = "BERT_TEST_SERVER"
"""In the environment of every process of a server: so the ones it leaves behind are found."""

COMMANDS = Path(sys.executable).parent


def eventually(condition: Callable[[], T], within: float = 10 * SECOND) -> T:
    """Return the first true value of a condition; fails if there is none in time."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {within} s; the last value was {value!r}")
        time.sleep(0.02)
    return value


def marked_processes(mark: str) -> list[int]:
    """Return the live processes that have a mark in their environment."""
    entry = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                if entry in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def command_line(pid: int) -> str:
    """Return a process's command line; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def memory_kib(pid: int) -> int:
    """Return the memory that a process has of its own, beside the files it maps, in KiB.

    A share of these files (Pss) would change whenever another process maps them.
    """
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1])
    raise AssertionError(f"process {pid} does not say what memory it has")


class ServerProcess:
    """`bert-serving-start` with options, until it is stopped.

    Args:
        options: what stands on its command line, beside -port and --ready-file.
        folder: where its log and ready file go.
        environment: on top of the test's own.
        port: its native port; any free one by default.
        ready_file: a file of its own in `folder` by default.
        stderr: where its log goes, if not to a file in `folder`.
        prefix: what stands before its command, and runs it.

    """

    def __init__(
        self,
        options: Sequence[str],
        folder: Path,
        environment: dict[str, str] | None = None,
        port: int = 0,
        ready_file: Path | None = None,
        stderr: int | IO[bytes] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        name = uuid.uuid4().hex[:8]
        self.mark = name
        self.ready_file = ready_file or folder / f"{name}.ready"
        self.log_file = folder / f"{name}.log"
        command = [
            *prefix,
            COMMANDS / "bert-serving-start",
            *options,
            *("-port", str(port)),
            *("--ready-file", self.ready_file),
        ]
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdout=log,
                stderr=log if stderr is None else stderr,
                env={**os.environ, **(environment or {}), MARK: name},
            )

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What the server has said on standard error, and standard output."""
        return self.log_file.read_text("utf-8", "replace")

    @property
    def last_line(self) -> str:
        """The last line of its log."""
        return self.log.strip().rpartition("\n")[2]

    def wait_ready(self, within: float = BOOT_S) -> dict[str, Any]:
        """Wait for the ready file; returns what it says."""

        def is_ready() -> bool:
            assert self.process.poll() is None, f"the server has ended:\n{self.log}"
            return self.ready_file.exists()

        eventually(is_ready, within)
        addresses: dict[str, Any] = json.loads(self.ready_file.read_text())
        self.port = int(addresses["native"].rpartition(":")[2])
        return addresses

    def wait_bound(self) -> None:
        """Wait until the server has its port, ready or not."""
        (self.port,) = eventually(self._listening_ports, BOOT_S)

    def client(self, **options: Any) -> BertClient:
        """Return a client of this server; a test's calls should not wait for a minute."""
        return BertClient(**{"port": self.port, "timeout": 20_000 * SECOND, **options})

    def status(self) -> dict[str, Any]:
        """Return the server's status."""
        with self.client() as client:
            return client.server_status

    def worker_pids(self) -> dict[int, int]:
        """Return the process id of each worker that is ready, by worker id."""
        workers = self.status()["workers"]
        return {worker["id"]: worker["pid"] for worker in workers if worker["state"] == "ready"}

    def processes(self, role: str = "") -> list[int]:
        """Return the server's live processes, all or those of one role."""
        return [pid for pid in marked_processes(self.mark) if role in command_line(pid)]

    def terminate(self) -> None:
        """Ask the server to end: SIGTERM."""
        self.process.terminate()

    def wait(self, within: float = END_S) -> int:
        """Wait until the supervisor has ended; returns its exit status."""
        return self.process.wait(within)

    def stop(self) -> None:
        """End the server; fails if one of its processes outlives it."""
        if self.process.poll() is None:
            self.terminate()
        try:
            self.wait()
            eventually(lambda: not self.processes(), 5 * SECOND)
        finally:
            self.kill_all()

    def kill_all(self) -> None:
        """Kill whatever is left of the server."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def _listening_ports(self) -> list[int]:
        """Return the TCP ports that the server's processes listen on."""
        inodes = set()
        for pid in self.processes():
            with contextlib.suppress(OSError):
                for link in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        inodes.add(str(link.readlink()).removeprefix("socket:[").rstrip("]"))
        ports = []
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:  # 0A: listening
                ports.append(int(words[1].rpartition(":")[2], 16))
        return ports


Starter: TypeAlias = Callable[..., ServerProcess]
"""Starts a server with these options; it is ended after the test."""
