"""What a client has open in one process; a child of a fork gets its own.

The sockets, threads and locks of the parent mean nothing to the child, so it never touches
them: it starts anew, with nothing pending.
"""

from __future__ import annotations

import os
import threading
import weakref

from .background import Background
from .pending import BatchStream, PendingCalls
from .pool import ConnectionPool


class ClientProcess:
    """The connections and pending calls of a client.

    Args:
        pool: the client's connections in this process.

    Attributes:
        pending: the calls that `fetch()` is for.
        streams: the `encode_async()` calls that are under way.
        num_requests: calls so far, which are numbered from 1.

    """

    def __init__(self, pool: ConnectionPool) -> None:
        self.pid = os.getpid()
        self.pool = pool
        self.pending = PendingCalls()
        self.streams: weakref.WeakSet[BatchStream] = weakref.WeakSet()
        self.num_requests = 0
        self._counting = threading.RLock()
        self._starting = threading.RLock()  # a signal's handler may come in, and close this
        self._background: Background | None = None

    def next_request_id(self) -> int:
        """Return the number of a new call."""
        with self._counting:
            self.num_requests += 1
            return self.num_requests

    def background(self) -> Background:
        """Return the thread that moves what nobody waits for; it is started if there is none."""
        with self._starting:
            if self._background is None or self._background.is_over:
                background = Background(self.pool.take(), self.pool.release)
                weakref.finalize(self, background.stop)  # a client need not be closed
                background.start()
                self._background = background
            background = self._background
        if self.pool.is_closed:
            background.stop()
            raise ValueError("this BertClient is closed")
        return background

    def member(self) -> Background | None:
        """Return that thread if it is in a group."""
        background = self._background
        if background is None or background.is_over or not background.fleet.only.groups:
            return None
        return background

    def close(self) -> None:
        """Close everything; a call that is waited for may end, the others get an error."""
        self.pool.close()
        for stream in list(self.streams):
            stream.close()
        background = self._background  # one that is being started sees that the pool is closed
        if background is not None:
            background.stop()
