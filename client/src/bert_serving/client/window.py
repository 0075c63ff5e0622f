"""How much one connection keeps in flight: enough to keep the server busy, and bounded.

Counted in full requests of `max_rows` rows or `max_bytes` bytes, so that single
sentences may be as many as the rows that a bulk call has on its way. It shrinks by half
when the server is overloaded and grows back by one with each answer, as TCP's does
(Chiu and Jain 1989: additive increase, multiplicative decrease).
"""

from __future__ import annotations

from .chunking import Chunk
from .messages import Limits


class Window:
    """What is in flight, and whether more may be."""

    def __init__(self) -> None:
        self._limits = Limits()
        self._size = self._limits.window
        self._rows = 0
        self._nbytes = 0

    @property
    def has_room(self) -> bool:
        """Whether another request may be sent; always if none is in flight."""
        limits, size = self._limits, self._size
        return not self._rows or (
            self._rows < size * limits.max_rows and self._nbytes < size * limits.max_bytes
        )

    def has_room_beside(self, rows: int, nbytes: int) -> bool:
        """Whether another request may be sent when so much more is to be sent first."""
        limits, size = self._limits, self._size
        return not (self._rows or rows) or (
            self._rows + rows < size * limits.max_rows
            and self._nbytes + nbytes < size * limits.max_bytes
        )

    @property
    def nbytes(self) -> int:
        """How much is in flight."""
        return self._nbytes

    def open(self, limits: Limits) -> None:
        """Take the server's limits."""
        self._limits = limits
        self._size = limits.window

    def add(self, chunk: Chunk) -> None:
        """Count a request that is sent."""
        self._rows += chunk.rows
        self._nbytes += len(chunk.buffer)

    def remove(self, chunk: Chunk) -> None:
        """Count off a request that is answered or no longer wanted."""
        self._rows -= chunk.rows
        self._nbytes -= len(chunk.buffer)

    def grow(self) -> None:
        """Let one more request be in flight, up to what the server said."""
        self._size = min(self._size + 1, self._limits.window)

    def shrink(self) -> None:
        """Let only half as much be in flight."""
        self._size = max(self._size // 2, 1)
