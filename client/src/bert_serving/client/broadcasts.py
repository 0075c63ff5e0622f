"""What members of a group get: copies of answers, put together to whole calls, unread.

No I/O. All that waits here is bounded in calls and in bytes: what is beyond is dropped, the
oldest first, and counted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .assembly import Assembly, Encoding
from .errors import MalformedMessage
from .group_messages import BroadcastPart
from .messages import GroupPart, Result

MAX_UNREAD_CALLS = 1_000
MAX_OPEN_CALLS = 64  # of which only a part has come; the rest of some may never come
MAX_UNREAD_BYTES = 256 << 20


class Broadcast(NamedTuple):
    """One `encode()` that another client has sent to a group.

    Attributes:
        group: the group's name.
        sender: the identity of who sent it.
        embedding: what the sender got; of a single text too, an array with one row. Empty if
            the sender asked for tokens alone.
        tokens: the token strings of each row; None unless the sender asked for them.

    """

    group: str
    sender: str
    embedding: Any
    tokens: list[list[str]] | None


@dataclass
class _OpenCall:
    parts: dict[int, Result] = field(default_factory=dict)
    rows: int = 0
    nbytes: int = 0


class Broadcasts:
    """The calls that have come from others and are not read."""

    def __init__(self, max_bytes: int = MAX_UNREAD_BYTES) -> None:
        self.dropped = 0
        self._max_bytes = max_bytes
        self._open: dict[Any, _OpenCall] = {}  # the oldest first
        self._unread: deque[tuple[Broadcast, int]] = deque()
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._unread)

    def add(self, part: BroadcastPart) -> None:
        """Take in the copy of one answer."""
        group, result = part.group, part.result
        key = (part.connection, group.name, group.call)
        call = self._open.setdefault(key, _OpenCall())
        if group.start in call.parts:
            return
        nbytes = _nbytes(result)
        call.parts[group.start] = result
        call.rows += len(result.n_tokens)
        call.nbytes += nbytes
        self._nbytes += nbytes
        if call.rows >= group.total:
            del self._open[key]
            self._complete(group, call)
        self._drop_oldest()

    def take(self) -> Broadcast:
        """Return the oldest that is unread."""
        broadcast, nbytes = self._unread.popleft()
        self._nbytes -= nbytes
        return broadcast

    def _complete(self, group: GroupPart, call: _OpenCall) -> None:
        try:
            encoding = _assembled(call, group.total)
        except MalformedMessage:  # parts of what were two calls, of a sender that counts wrongly
            self._nbytes -= call.nbytes
            self.dropped += 1
            return
        embedding = next(iter(encoding.views.values()), [])
        broadcast = Broadcast(group.name, group.sender, embedding, encoding.tokens)
        self._unread.append((broadcast, call.nbytes))

    def _drop_oldest(self) -> None:
        while len(self._open) > MAX_OPEN_CALLS:
            self._drop_open()
        while len(self._unread) > MAX_UNREAD_CALLS or self._nbytes > self._max_bytes:
            if self._unread:
                self.take()
                self.dropped += 1
            else:
                self._drop_open()

    def _drop_open(self) -> None:
        self._nbytes -= self._open.pop(next(iter(self._open))).nbytes
        self.dropped += 1


def _assembled(call: _OpenCall, total: int) -> Encoding:
    if call.rows != total:
        raise MalformedMessage(f"a broadcast of {total} rows has {call.rows}")
    first = next(iter(call.parts.values()))
    assembly = Assembly(list(first.views), total, show_tokens=first.tokens is not None)
    for start, result in sorted(call.parts.items()):
        if start != assembly.rows:
            raise MalformedMessage(f"rows {assembly.rows} to {start} of a broadcast don't meet")
        assembly.add(start, len(result.n_tokens), result)
    return assembly.finish(_no_view)


def _no_view(name: str) -> Any:
    raise MalformedMessage(f"a broadcast without rows of view {name!r}")


def _nbytes(result: Result) -> int:
    nbytes = 8 * len(result.n_tokens)
    nbytes += sum(int(view.values.nbytes) for view in result.views.values())
    if result.tokens is not None:
        nbytes += int(result.tokens.ids.nbytes + result.tokens.segment_ids.nbytes)
        nbytes += sum(map(len, result.tokens.texts))
    return nbytes
