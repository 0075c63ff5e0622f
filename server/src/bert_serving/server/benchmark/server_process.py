"""A server under test: started as a user would start it, and ended for certain.

Its session is its own, so that a Ctrl-C meant for the benchmark does not reach it, and
whatever of it should be left in the end can be killed together. If the benchmark itself is
killed, a guard ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bert_serving.server import exit_codes
from bert_serving.server.interpreter import module_command

from .experiments import command_line
from .guard import Guard

POLL_S = 0.05
STOP_TIMEOUT_S = 60.0

# what a log line says after the time, the level and the role
_LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \w+ +\w+ +")


class ServerFailed(Exception):
    """A server under test did not start, or ended during a run; the message says why."""


class ServerProcess:
    """`bert-serving-start` with options, until it is stopped.

    Args:
        options: what stands on its command line.
        log: where its log is appended.
        wait_s: how long it may take to start.
        check: called often while it starts; what it raises ends that.

    """

    def __init__(
        self,
        options: Mapping[str, Any],
        log: Path,
        *,
        wait_s: float,
        check: Callable[[], None],
    ) -> None:
        self.options = dict(options)
        self.host, self.port = "", 0
        self._log = log
        self._log_start = 0
        self._wait_s = wait_s
        self._check = check
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready.

        Raises:
            ServerFailed: it ended, or was not ready in time.

        """
        with tempfile.TemporaryDirectory(prefix="bert-serving-benchmark-") as folder:
            ready_file = Path(folder, "ready")
            self._start(ready_file)
            self._wait_ready(ready_file, time.monotonic() + self._wait_s)

    @property
    def is_alive(self) -> bool:
        """Whether it has been started, and has not ended."""
        return self._process is not None and self._process.poll() is None

    def check_alive(self) -> None:
        """Raise ServerFailed if it has ended."""
        assert self._process is not None
        status = self._process.poll()
        if status is None:
            return
        said = self._last_words() if status > 0 else ""  # what was killed could not say why
        raise ServerFailed(said or f"the server {exit_codes.describe(status)}")

    def cpu_s(self) -> float | None:
        """Return the processor time that its live processes have taken; None if not known."""
        assert self._process is not None
        times = [_cpu_s(path, self._process.pid) for path in Path("/proc").glob("[0-9]*/stat")]
        return sum(times) if times else None

    def stop(self, *, at_once: bool) -> None:
        """End it and all its processes; a second call does nothing.

        Args:
            at_once: do not let it work off what it has accepted.

        """
        process = self._process
        if process is None:
            return
        self._process = None
        process.send_signal(signal.SIGTERM)
        if at_once:  # the second signal says so; another one, as two of a kind may become one
            process.send_signal(signal.SIGINT)
        try:
            end_session(process, STOP_TIMEOUT_S)
        finally:
            if self._guard is not None:
                self._guard.dismiss()

    def _start(self, ready_file: Path) -> None:
        options = {**self.options, "ready_file": ready_file}
        command = module_command("bert_serving.server.cli.start", *command_line(options))
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"\n# bert-serving-start {' '.join(command_line(self.options))}\n")
            log.flush()
            self._log_start = log.tell()
            self._process = subprocess.Popen(  # noqa: S603  # our own module, the user's options
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._guard = Guard(self._process.pid)

    def _wait_ready(self, ready_file: Path, deadline: float) -> None:
        while not ready_file.exists():
            self._check()
            self.check_alive()
            if time.monotonic() >= deadline:
                raise ServerFailed(
                    f"the server was not ready within {self._wait_s:g} s: see {self._log}; "
                    "-wait_till_ready gives it more time"
                )
            time.sleep(POLL_S)
        address = json.loads(ready_file.read_text())["native"]
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self.host, self.port = host.strip("[]"), int(port)

    def _last_words(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode("utf-8", "replace").strip().splitlines()
        return _LOG_LINE.sub("", lines[-1]) if lines else ""


def end_session(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Wait for the leader of a session that was asked to end, then kill what is left of it."""
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _cpu_s(stat: Path, session: int) -> float:
    """Return what a process has taken, by its line in /proc; 0 if of another session."""
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return 0.0
    if int(fields[3]) != session:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
