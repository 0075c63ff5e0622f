"""What a log line looks like: text for people, JSON for what collects logs.

A line is one line whatever is in it: control characters in what is logged, with which a
peer could forge lines or talk to a terminal, are written as escapes. A traceback follows
its line in text, each of its lines marked as such; in JSON it is a field.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

MAX_MESSAGE_CHARS = 8_192
MAX_TRACEBACK_CHARS = 32_768  # the end of it is kept, where the cause stands
FLOOD_LINES = 100  # of one kind in FLOOD_S; more of them are counted, not written
FLOOD_S = 10.0
MAX_KINDS = 1_000


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00 WARNING worker 0   what happened`."""

    def __init__(self, role: str, worker: int | None) -> None:
        name = role if worker is None else f"{role} {worker}"
        super().__init__(f"%(asctime)s %(levelname)-7s {name:<10} ", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line, without its end."""
        message = _message(record)
        if getattr(record, "is_bare", False):
            return message
        record.asctime = self.formatTime(record, self.datefmt)
        line = self.formatMessage(record) + message
        return "\n    | ".join([line, *map(escaped, _traceback(self, record).splitlines())])


class JsonFormatter(logging.Formatter):
    """A JSON object: `time`, `level`, `role`, `pid`, `worker`, `message`, an event's own fields."""

    def __init__(self, role: str, worker: int | None) -> None:
        super().__init__()
        self._who: dict[str, Any] = {"role": role, "pid": os.getpid()}
        if worker is not None:
            self._who["worker"] = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line, without its end."""
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            **self._who,
            "message": _message(record),
        }
        own = {"event": getattr(record, "fields", {}), "traceback": _traceback(self, record)}
        line.update({name: value for name, value in own.items() if value})
        return json.dumps(line, default=repr)


FORMATS: dict[str, Callable[[str, int | None], logging.Formatter]] = {
    "text": TextFormatter,
    "json": JsonFormatter,
}


class FloodFilter(logging.Filter):
    """Lets so many lines of one kind through in a time; the next one after says how many more.

    A kind is a logger and a message before its values are put in, so a peer that sends
    nonsense as fast as it can neither fills a disk nor hides what others say.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}  # since when, how many

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is to be written, and tell it what was held back before it."""
        now, kind = self._now(), (record.name, str(record.msg))
        since, count = self._kinds.get(kind, (now, 0))
        if now - since >= FLOOD_S:
            record.held_back = max(count - FLOOD_LINES, 0)
            since, count = now, 0
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            self._kinds.clear()
        self._kinds[kind] = (since, count + 1)
        return count < FLOOD_LINES


def escaped(text: str) -> str:
    """Return a text with nothing in it that ends a line or moves a cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if len(message) > MAX_MESSAGE_CHARS:
        message = f"{message[:MAX_MESSAGE_CHARS]}… ({len(message)} characters)"
    held_back = getattr(record, "held_back", 0)
    return escaped(message) + (f" ({held_back} more like it before)" if held_back else "")


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    return formatter.formatException(record.exc_info)[-MAX_TRACEBACK_CHARS:]
