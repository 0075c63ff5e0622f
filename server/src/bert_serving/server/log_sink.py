"""Where log lines go: a descriptor that may be full, closed, or read by nobody.

A thread writes them. Whoever logs only leaves a line in a bounded queue, so a full pipe, a
stopped terminal or a disk that hangs holds up no role. Writes that do not block would need
no thread, but that is a property of the open file, which all roles share with whoever
started them, and a disk knows no such thing.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable

MAX_WAITING_BYTES = 1 << 20
RETRY_S = 5.0  # how soon it is said that lines are missing if nothing else is


class LogSink:
    """Writes lines in order, and counts those that cannot be written.

    Args:
        descriptor: where to.
        lost_line: from how many lines are lost, and why, to the line that says so.
        retry_s: how often that line is tried while there is nothing else to write.

    """

    def __init__(
        self, descriptor: int, lost_line: Callable[[int, str], str], retry_s: float = RETRY_S
    ) -> None:
        self._descriptor = descriptor
        self._lost_line = lost_line
        self._retry_s = retry_s
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._lost = 0
        self._why = ""
        self._is_torn = False
        self._is_closed = False
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def put(self, line: str) -> None:
        """Take in a line; this never waits for it to be written."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            if self._waiting_bytes + len(data) > MAX_WAITING_BYTES or self._is_closed:
                self._lost, self._why = self._lost + 1, "nobody reads them"
                return
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Return whether all that was put in has been written or given up, in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Write what there is, for so long at most, and end the thread, unless a write hangs."""
        self.flush(timeout_s)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _write_all(self) -> None:
        while (line := self._next_line()) is not None:
            self._write_after_loss(line)
            with self._changed:
                if line:
                    self._waiting.popleft()
                    self._waiting_bytes -= len(line)
                self._changed.notify_all()

    def _next_line(self) -> bytes | None:
        """Wait for a line; empty if it is only time to say what was lost, None at the end."""
        with self._changed:
            while not self._waiting and not self._is_closed:
                if not self._changed.wait(self._retry_s if self._lost else None) and self._lost:
                    return b""
            return self._waiting[0] if self._waiting else None

    def _write_after_loss(self, line: bytes) -> None:
        """Write a line, before it one about those that are lost: if that goes, both do."""
        with self._changed:
            lost, why = self._lost, self._why
        try:
            if lost:
                self._write(self._lost_line(lost, why).encode() + b"\n")
                with self._changed:
                    self._lost -= lost
            self._write(line)
        except OSError as error:
            with self._changed:
                self._lost += bool(line)
                self._why = error.strerror or "unknown"

    def _write(self, line: bytes) -> None:
        """Write all of a line; after half of one, this one begins anew."""
        left = memoryview(b"\n" + line if self._is_torn and line else line)
        while left:
            try:
                written = os.write(self._descriptor, left)
            except BlockingIOError:  # whoever shares the open file has made it so
                self._await_room()
                continue
            self._is_torn = left[written - 1] != ord("\n")
            left = left[written:]

    def _await_room(self) -> None:
        with contextlib.suppress(OSError):
            room = select.poll()
            room.register(self._descriptor, select.POLLOUT)
            room.poll()
