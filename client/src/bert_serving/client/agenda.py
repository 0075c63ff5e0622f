"""The calls under way at whatever server: what is to be sent, what to be tried again, and when.

No I/O, and nothing of servers but their names in a request. A call ends exactly once: with its
rows, with an error that no other try can mend, or at its deadline.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from .calls import Call, EncodeCall
from .chunking import Chunk
from .errors import ServerError
from .messages import Limits

FIRST_RETRY_S = 0.05
MAX_DOUBLINGS = 3  # longer waits are for the server to ask for: it knows its queue


@dataclass(eq=False, slots=True)
class Request:
    """Some rows of a call, to be sent or with servers.

    Attributes:
        call: whose rows these are.
        chunk: the rows.
        copies: the id that it has at each server (by number) that may answer it.
        attempts: how often it was refused.
        refused_by: the servers that have refused it since it was last put off.
        deadline: when its answer comes too late, as far as was known when it was sent.
        is_due: it is to be sent, to one more server if others have it.
        is_put_off: it is to be sent later.

    """

    call: EncodeCall
    chunk: Chunk
    copies: dict[int, int] = field(default_factory=dict)
    attempts: int = 0
    refused_by: set[int] = field(default_factory=set)
    deadline: float = math.inf
    is_due: bool = False
    is_put_off: bool = False


class Agenda:
    """What is to be done for the calls.

    Args:
        jitter: a number from 0 to 1, another one each time: clients that were refused at
            once should not come back at once.

    Attributes:
        cutting: calls with rows that have not been sent at all; the next one first.
        due: requests to be sent again, the first first.
        waiting_rows: of requests to be sent again: they keep their room in the windows.
        waiting_bytes: the same, in bytes.

    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._calls: set[Call] = set()
        self._just_cut: EncodeCall | None = None
        self._answered_at = -math.inf
        self._first_deadline = math.inf  # or earlier: deadlines move on, this is looked at late
        self.cutting: deque[EncodeCall] = deque()
        self.due: deque[Request] = deque()
        self._put_off: list[tuple[float, int, Request]] = []
        self._hedges: OrderedDict[Request, float] = OrderedDict()  # and when; the first first
        self._order = count()
        self.waiting_rows = self.waiting_bytes = 0

    @property
    def wants_servers(self) -> bool:
        """Whether there is something to send, now or later."""
        return bool(self.cutting or self.due or self._put_off)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send, neither now nor later, be it to another server."""
        return not (self.cutting or self.due or self._put_off or self._hedges)

    @property
    def calls(self) -> list[Call]:
        """The calls that are not done."""
        return list(self._calls)

    def watch(self, call: Call, now: float) -> None:
        """Count a call's time from now."""
        call.deadline = now + call.timeout_s
        call.watched_in = self._calls
        self._calls.add(call)
        self._first_deadline = min(self._first_deadline, call.deadline)

    def add(self, call: EncodeCall) -> None:
        """Take in a call that is watched, with rows to be cut."""
        self.cutting.append(call)

    def abandon(self, call: Call) -> None:
        """Forget a call; its requests are to be forgotten by whoever has them."""
        self._calls.discard(call)
        if isinstance(call, EncodeCall):
            if call in self.cutting:
                self.cutting.remove(call)
            if call is self._just_cut:
                self._just_cut = None
            for request in [request for request in self._hedges if request.call is call]:
                del self._hedges[request]
            if self.due or self._put_off:
                self._drop(call)

    def clear(self) -> None:
        """Forget all calls."""
        self._calls.clear()
        self._just_cut = None
        self.cutting.clear()
        self.due.clear()
        self._put_off.clear()
        self._hedges.clear()
        self.waiting_rows = self.waiting_bytes = 0

    def cut(self, limits: Limits, now: float) -> Request | None:
        """Cut the next request, of the call whose turn it is; None if that has no rows left.

        Raises:
            Exception: of the caller's row, or its iterator's own.

        """
        call = self.cutting[0]
        chunk = call.cut(limits)
        self.cutting.rotate(-1)
        if call.is_all_cut:
            self.cutting.remove(call)
            call.finish_if_complete()
        if not call.is_done:
            self._just_cut = call
            self._count_from(now, call)
        return Request(call, chunk) if chunk is not None else None

    def resume(self, now: float) -> None:
        """Count from now the time of a call that was just cut: its iterator may have taken long."""
        call, self._just_cut = self._just_cut, None
        if call is not None:
            self._count_from(now, call)

    def sent(self, request: Request) -> None:
        """Take a request that was due off: it has been sent, or need not be."""
        request.is_due = False
        self.due.remove(request)
        self._count(request, -1)

    def send_again(self, request: Request) -> None:
        """Let a request be sent as soon as there is a server for it."""
        if not request.is_due and not request.is_put_off:
            request.is_due = True
            self.due.append(request)
            self._count(request, 1)

    def put_off(self, request: Request, error: ServerError, now: float) -> bool:
        """Let a refused request be sent later; false if its caller will not wait until then."""
        backoff_s = FIRST_RETRY_S * 2 ** min(request.attempts, MAX_DOUBLINGS)
        wait_s = backoff_s * (1 - 0.5 * self._jitter())
        if error.retry_after_ms is not None:
            asked_s = error.retry_after_ms / 1000
            wait_s = max(wait_s, asked_s * (1 + 0.1 * self._jitter()))
        if now + wait_s >= request.call.deadline:
            return False
        if request.is_due:
            self.sent(request)
        request.attempts += 1
        request.is_put_off = True
        self._count(request, 1)
        heapq.heappush(self._put_off, (now + wait_s, next(self._order), request))
        return True

    def hedge(self, request: Request, at: float) -> None:
        """Let a request be sent to another server too, if it is not answered by then."""
        self._hedges[request] = at

    def answered(self, request: Request, now: float) -> None:
        """Note that a request was answered: its call's time is counted anew."""
        self._answered_at = now
        request.call.deadline, request.call.refusal = now + request.call.timeout_s, None
        self._hedges.pop(request, None)
        if request.is_due:
            self.sent(request)
        if self._put_off:  # an answer has left room on the server for what it refused
            _, order, waiting = self._put_off[0]
            heapq.heapreplace(self._put_off, (now, order, waiting))

    @property
    def has_later(self) -> bool:
        """Whether there are requests that become due with time."""
        return bool(self._put_off or self._hedges)

    def pass_time(self, now: float) -> None:
        """Let be due what has become it."""
        while self._put_off and self._put_off[0][0] <= now:
            request = heapq.heappop(self._put_off)[2]
            request.is_put_off = False
            self._count(request, -1)
            self.send_again(request)
        while self._hedges and self._next_hedge() <= now:
            request, _ = self._hedges.popitem(last=False)
            if request.copies:
                self.send_again(request)

    def ended(self, now: float) -> list[Call]:
        """Return the calls whose time is over.

        One that has nothing with a server waits for its turn, for which any answer is a step on.
        """
        if now < self._first_deadline:
            return []
        for call in self._calls:
            if isinstance(call, EncodeCall) and not call.open_requests:
                self._count_from(self._answered_at, call)
        ended = [call for call in self._calls if call.deadline <= now]
        alive = (call.deadline for call in self._calls if call.deadline > now)
        self._first_deadline = min(alive, default=math.inf)
        return ended

    def next_wakeup(self) -> float:
        """Return the instant at which there is something to do."""
        wakeup = self._first_deadline if self._calls else math.inf
        if self._put_off:
            wakeup = min(wakeup, self._put_off[0][0])
        if self._hedges:
            wakeup = min(wakeup, self._next_hedge())
        return wakeup

    def _next_hedge(self) -> float:
        return next(iter(self._hedges.values()))

    def _count_from(self, now: float, call: Call) -> None:
        call.deadline = max(call.deadline, now + call.timeout_s)

    def _drop(self, call: EncodeCall) -> None:
        """Let go of a call's requests that wait."""
        waiting = [*self.due, *(entry[2] for entry in self._put_off)]
        for request in waiting:
            if request.call is call:
                request.is_due = request.is_put_off = False
                self._count(request, -1)
        self.due = deque(request for request in self.due if request.is_due)
        self._put_off = [entry for entry in self._put_off if entry[2].is_put_off]
        heapq.heapify(self._put_off)

    def _count(self, request: Request, sign: int) -> None:
        self.waiting_rows += sign * request.chunk.rows
        self.waiting_bytes += sign * len(request.chunk.buffer)
