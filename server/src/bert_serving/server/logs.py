"""One log line an event on standard error, as text or JSON; never a sentence's content.

Standard `logging`, and what a server needs around it: lines in one piece (`log_lines`), which
never keep a role from its work (`log_sink`). structlog and python-json-logger were looked at:
they word lines, which is the small part of it, and would be two more things to install.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from types import TracebackType
from typing import Any

from .log_lines import FORMATS, FloodFilter
from .log_sink import LogSink

FORMAT_NAMES = tuple(FORMATS)
LAST_LINES_S = 1.0  # what a role that ends waits for its last lines to be written

log = logging.getLogger("bert_serving")


def set_up(
    role: str, *, verbose: bool, log_format: str = "text", worker: int | None = None
) -> None:
    """Have a process log to standard error; every line names its role.

    Libraries' warnings, and tracebacks of what nobody catches, become lines like ours.
    """
    _open_standard_streams()
    root = logging.getLogger()
    for old in root.handlers:
        old.close()
    root.handlers[:] = [SinkHandler(FORMATS[log_format](role, worker))]
    root.setLevel(logging.WARNING)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable


def fields(**values: Any) -> dict[str, Any]:
    """Return what a line in JSON has beside its message: `log.info("…", extra=fields(pid=7))`.

    A name of their own keeps them from meeting the attributes of a `LogRecord`.
    """
    return {"fields": values}


def write_ready(line: str, **values: Any) -> None:
    """Write the line that others wait for: as it stands in text, as an event in JSON."""
    log.info("%s", line, extra={**fields(**values), "is_bare": True})


def flush(timeout_s: float = LAST_LINES_S) -> None:
    """Wait until what was logged is written, for so long at most: nobody may be reading it."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, SinkHandler):
            handler.sink.flush(timeout_s)


class SinkHandler(logging.Handler):
    """Formats records and leaves them to a sink."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.addFilter(FloodFilter())
        self.sink = LogSink(sys.__stderr__.fileno() if sys.__stderr__ else 2, self._lost)

    def emit(self, record: logging.LogRecord) -> None:
        """Take in a record; this never waits."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  # whatever it is, the caller has other work
            line = self._line(logging.ERROR, f"a line that cannot be formatted: {record.msg!r}")
        self.sink.put(line)

    def close(self) -> None:
        """Write what waits, if that is possible soon, and end; `logging` does so at exit."""
        self.sink.close(LAST_LINES_S)
        super().close()

    def _lost(self, count: int, why: str) -> str:
        return self._line(logging.WARNING, f"{count} log lines could not be written: {why}")

    def _line(self, level: int, text: str) -> str:
        return self.format(logging.LogRecord(log.name, level, "", 0, text, None, None))


def _open_standard_streams() -> None:
    """Open whatever is closed of the three: a socket in their place would get the log."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    log.critical("ended by an error of its own", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None:
        what = failed.exc_type, failed.exc_value, failed.exc_traceback
        log.critical("a thread was ended by an error of its own", exc_info=what)


def _log_unraisable(failed: Any) -> None:
    what = failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback
    log.error("an error where none can be raised", exc_info=what)
