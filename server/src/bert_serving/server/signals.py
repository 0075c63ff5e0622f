"""What a server is told by signals: to stop, to stop at once, to load its model anew.

Handlers only note it; who watches over the server looks.
"""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

ONE_S = 0.3
"""The same signal again so soon is the same wish: `timeout` and container runtimes send it to a
process and to its group."""


class Signals:
    """Signals, heard while this is entered; those that come after it find a process that ends.

    Attributes:
        stops: how often it was told to stop; the second time, at once.
        is_to_reload: it was told to load its model anew.

    """

    def __init__(self) -> None:
        self.stops = 0
        self.is_to_reload = False
        self._last: tuple[int, float] | None = None
        self._handlers: dict[int, Any] = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGHUP: self._on_reload,
        }

    def __enter__(self) -> Signals:
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as nohup has it
            del self._handlers[signal.SIGHUP]
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)

    def stop(self) -> None:
        """Have it stop, if it has not been told to; a command does not make it stop at once."""
        self.stops = self.stops or 1

    def _on_stop(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._last is None or self._last[0] != number or now > self._last[1] + ONE_S:
            self.stops += 1
        self._last = number, now

    def _on_reload(self, _number: int, _: FrameType | None) -> None:
        self.is_to_reload = True
