"""A thread with a connection of its own, for what goes on while the caller does other things.

Calls that are not waited for, and what others send to a group, need somebody who moves
their messages in the meantime. Only this thread touches the socket and starts and ends
calls, as an interrupt can't hit it. What the fleet has is read under one lock, which is
never held while anybody waits for the network.
"""

from __future__ import annotations

import os
import socket as sockets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import zmq

from .calls import Call
from .connection import Connection
from .errors import ServerUnreachable
from .fleet import Fleet

STOP_S = 5.0


class Background:
    """The thread, from its start to its end.

    Args:
        connection: whose messages it moves.
        release: gives the connection back when the thread ends.

    Attributes:
        fleet: to be touched only under `locked()`.
        is_over: the thread has ended, or will not do anything more.

    """

    def __init__(self, connection: Connection, release: Callable[[Connection], None]) -> None:
        self.fleet = connection.fleet
        self.is_over = False
        self._pid = os.getpid()
        self._connection = connection
        self._release = release
        self._is_stopping = False
        self._errands: deque[Callable[[], None]] = deque()  # of others, for the thread to do
        self._lock = threading.RLock()  # the condition's own `with` is no step, but several
        self._changed = threading.Condition(self._lock)
        self._bell, self._rope = sockets.socketpair()
        self._thread = threading.Thread(target=self._run, name="bert-serving-client", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        for end in (self._bell, self._rope):
            end.setblocking(False)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and all calls that wait; a child of a fork leaves it to its parent."""
        if self._pid != os.getpid():
            return
        self._is_stopping = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(STOP_S)

    def submit(self, call: Call, start: Callable[[Fleet, float], None]) -> None:
        """Start a call: `start(fleet, now)` hands it to the fleet."""

        def begin() -> None:
            if self.is_over:
                call.finish(self.fleet.refusal)
            else:
                start(self.fleet, time.monotonic())

        self._send(begin)

    def wait_for(self, call: Call, start: Callable[[Fleet, float], None]) -> None:
        """Start a call and wait until it is done."""
        done = threading.Lock()  # an Event has steps between which it must not be interrupted
        done.acquire()
        call.on_done = done.release
        try:
            self.submit(call, start)
            done.acquire()
        except BaseException:  # an interrupt: tell the server, and let the caller see it
            self.abandon(call)
            raise

    def abandon(self, call: Call) -> None:
        """Forget a call whose caller has gone."""
        self._send(lambda: self.fleet.abandon(call))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the thread, which then sends what the fleet has to send."""
        with self._lock:
            yield
        self._wake()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait until a condition of the fleet holds, or the thread or the time has ended."""
        with self._lock:
            self._changed.wait_for(
                lambda: self.is_over or condition(), min(timeout_s, threading.TIMEOUT_MAX)
            )

    def _run(self) -> None:
        poller = zmq.Poller()
        self._connection.register(poller)
        poller.register(self._bell, zmq.POLLIN)
        error: Exception = ServerUnreachable("this BertClient was closed before the answer came")
        try:
            wait_ms: int | None = 0
            while not self._is_stopping and self.fleet.refusal is None:
                poller.poll(wait_ms)
                self._silence_bell()
                wait_ms = self._move()
        except Exception as failure:  # noqa: BLE001  # whoever waits must not wait for ever
            error = failure
        finally:
            self._end(error)

    def _move(self) -> int | None:
        with self._lock:
            self._do_errands()
            self._connection.move()
            self._changed.notify_all()
            return self._connection.wait_ms()

    def _end(self, error: Exception) -> None:
        with self._lock:
            self.is_over = True
            self.fleet.close(self.fleet.refusal or error)
            self._do_errands()
            self._changed.notify_all()
        self._release(self._connection)
        self._bell.close()
        self._rope.close()

    def _send(self, errand: Callable[[], None]) -> None:
        self._errands.append(errand)
        if self.is_over:
            self._do_errands()
        else:
            self._wake()

    def _do_errands(self) -> None:
        with suppress(IndexError):  # there is none left: at the end, several threads look
            while True:
                self._errands.popleft()()

    def _wake(self) -> None:
        with suppress(OSError):  # full: it will wake anyway; closed: it is over
            self._rope.send(b"!")

    def _silence_bell(self) -> None:
        with suppress(BlockingIOError):
            self._bell.recv(4096)
