"""Calls that are not waited for: submitted now, taken later in the order of arrival."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from .background import Background
from .calls import EncodeCall
from .fleet import Fleet

MAX_ROWS_AHEAD = 8_192  # that are drawn from a generator and not taken yet
_END = object()


class Response(NamedTuple):
    """What `fetch()` yields.

    Attributes:
        id: number of the request among the client's, from 1.
        embedding: what a blocking `encode()` would have returned.
        tokens: the token strings of each row; empty unless asked for.

    """

    id: int
    embedding: Any
    tokens: Any


class DoneCall(NamedTuple):
    """A call that has its answer, or the error that it ended with."""

    id: int
    call: EncodeCall
    fleet: Fleet
    rows: int


class _Submitted(NamedTuple):
    call: EncodeCall
    background: Background
    rows: int


class PendingCalls:
    """Calls on their way, and those that are done and not taken; for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # taken under a background's lock, never around it
        self._changed = threading.Condition(self._lock)
        self._submitted: dict[int, _Submitted] = {}
        self._done: deque[DoneCall | Exception] = deque()  # or why one could not be submitted
        self._rows = 0
        self._is_fed = False
        self._is_abandoned = False
        self._feed_error: BaseException | None = None

    @property
    def ids(self) -> set[int]:
        """The numbers of all calls that are not taken."""
        with self._lock:
            done = {done.id for done in self._done if isinstance(done, DoneCall)}
            return done.union(self._submitted)

    def submit(self, request_id: int, call: EncodeCall, background: Background) -> None:
        """Start a call."""
        call.on_done = partial(self._note_done, request_id)
        rows = call.total or 1
        try:
            with self._lock:
                self._submitted[request_id] = _Submitted(call, background, rows)
                self._rows += rows
            background.submit(call, lambda fleet, now: fleet.submit(call, now))
        except BaseException:  # an interrupt: nobody must wait for what may not be under way
            with self._lock:
                if self._submitted.pop(request_id, None) is not None:
                    self._rows -= rows
            background.abandon(call)
            raise

    def take(self) -> DoneCall | None:
        """Wait for a call to be done and return it; None if there is none to wait for.

        Raises why a batch of `feed` could not be submitted and, when all that came before is
        taken, whatever its source has raised.
        """
        with self._lock:
            self._changed.wait_for(
                lambda: self._done or self._is_abandoned or not (self._submitted or self._is_fed)
            )
            if not self._done:
                error, self._feed_error = self._feed_error, None
                if error is not None:
                    raise error
                return None
            self._changed.notify_all()
            done = self._done.popleft()
            if isinstance(done, Exception):
                self._rows -= 1
                raise done
            self._rows -= done.rows
            return done

    def take_all(self) -> list[DoneCall]:
        """Wait for all calls to be done and return them.

        If one has ended with an error, it is returned alone, and the others stay.
        """
        with self._lock:
            self._changed.wait_for(lambda: not self._submitted)
            done = [done for done in self._done if isinstance(done, DoneCall)]
            taken = [done for done in done if done.call.error is not None][:1] or done
            for one in taken:
                self._done.remove(one)
                self._rows -= one.rows
            self._changed.notify_all()
            return taken

    def feed(self, batches: Iterable[Any], submit: Callable[[Any], None]) -> None:
        """Submit batches in a thread of their own, not far ahead of who takes the answers."""
        self._is_fed = True
        run = partial(self._feed, batches, submit)
        threading.Thread(target=run, name="bert-serving-feed", daemon=True).start()

    def stop_feeding(self) -> None:
        """Take no more from what feeds them."""
        with self._lock:
            self._is_abandoned = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Forget all calls, and take no more from what feeds them."""
        self.stop_feeding()
        with self._lock:
            submitted = list(self._submitted.values())
            self._submitted.clear()
            self._done.clear()
            self._changed.notify_all()
        for call, background, _ in submitted:
            background.abandon(call)

    def _feed(self, batches: Iterable[Any], submit: Callable[[Any], None]) -> None:
        try:
            source = iter(batches)
            while self._has_room() and (batch := next(source, _END)) is not _END:
                try:
                    submit(batch)
                except Exception as error:  # noqa: BLE001  # it is the taker's, in its place
                    self._note_error(error)
        except BaseException as error:  # noqa: BLE001  # it is the taker's, whatever it is
            self._feed_error = error
        finally:
            with self._lock:
                self._is_fed = False
                self._changed.notify_all()

    def _has_room(self) -> bool:
        """Wait until more may be submitted; false if nobody wants it any more."""
        with self._lock:
            self._changed.wait_for(lambda: self._is_abandoned or self._rows < MAX_ROWS_AHEAD)
            return not self._is_abandoned

    def _note_error(self, error: Exception) -> None:
        with self._lock:
            self._rows += 1  # so that these don't run ahead either
            self._done.append(error)
            self._changed.notify_all()

    def _note_done(self, request_id: int) -> None:
        with self._lock:
            submitted = self._submitted.pop(request_id, None)
            if submitted is not None:
                call, background, rows = submitted
                self._done.append(DoneCall(request_id, call, background.fleet, rows))
                self._changed.notify_all()


class BatchStream:
    """Iterates over the answers to batches; an error of one is raised in its place.

    The iteration may go on after an error. One that is left before its end should be closed.

    Args:
        pending: the calls, which are fed.
        response: makes of a call that is done what is yielded, or raises its error.
        wait: called before the first one is taken.

    """

    def __init__(
        self,
        pending: PendingCalls,
        response: Callable[[DoneCall], Response],
        wait: Callable[[], None],
    ) -> None:
        self._pending = pending
        self._response = response
        self._wait: Callable[[], None] | None = wait

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Response:
        if self._wait is not None:
            wait, self._wait = self._wait, None
            wait()
        done = self._pending.take()
        if done is None:
            raise StopIteration
        return self._response(done)

    def close(self) -> None:
        """Give up the rest."""
        self._pending.abandon()

    def __del__(self) -> None:
        self._pending.stop_feeding()  # the calls may end: here no lock of a fleet can be had
