"""In which order waiting requests go: fair by cost, not by who shouts loudest.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), twice: between the two
classes, small requests weighing four times as much as large ones, and inside a class
among its clients. Each flow has a virtual start; the lowest goes next, and moves on by
cost over weight. It was preferred over deficit round robin because it needs no quantum
and its bound holds at any speed of service: while two flows both wait, their shares
differ by no more than one request each.

A place that only one class may have is beside that order: who goes there costs its class
nothing, as the other one does not wait for it. Requests that a lost worker had in hand go
ahead of both classes: they have waited and been charged already. What is here knows nothing
of workers, limits or deadlines.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain
from operator import attrgetter
from typing import Any

from bert_serving.server.scheduling.events import Client

SUSPECT_AFTER = 2
"""A request that was in hand when so many workers died is tried alone."""

MAX_SMALL_BYTES = 64 << 10
"""A request of more is no small one, however few rows it has: sixteen pages of text are fewer."""

_SMALL_WEIGHT = 4.0
_LARGE_WEIGHT = 1.0
_SPARE_FLOWS = 1024


@dataclass(slots=True, eq=False)
class Request:
    """An accepted request, for as long as anything refers to it.

    Attributes:
        nbytes: of its rows.
        other_bytes: that are kept beside them.
        cost: estimated tokens.
        deadline: when it is to be answered with an error, `inf` for never.
        is_small: of the class of small requests.
        is_open: it has neither been answered nor cancelled.
        is_queued: it waits here, in no worker's hand.
        turn: its place among all that were ever taken, -1 while it was not.
        deaths: workers that died with it in hand.

    """

    client: Client
    request_id: int
    rows: int
    nbytes: int
    cost: float
    arrived_at: float
    deadline: float
    payload: Any
    group: Any = None
    other_bytes: int = 0
    is_small: bool = False
    is_open: bool = True
    is_queued: bool = False
    turn: int = -1
    deaths: int = 0


class FairQueue:
    """The requests of one class: fair among clients, first in first out for each.

    A client that has nothing left keeps its place until the clock has passed it, so that
    sending one request at a time gains nothing; forgetting it then loses nothing. One that
    is held keeps its requests, and is not asked for any.

    Attributes:
        size: how many requests wait for their turn, those of held clients left out.
        cost: what these will cost.

    """

    __slots__ = ("_clock", "_flows", "_heap", "_held", "_pushes", "cost", "size", "start", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.start = 0.0  # this class's own place, on the clock of the two classes
        self.size = 0
        self.cost = 0.0
        self._clock = 0.0
        self._flows: dict[Client, OrderedDict[int, Request]] = {}
        self._held: dict[Client, OrderedDict[int, Request]] = {}
        self._heap: list[tuple[float, int, Client, OrderedDict[int, Request]]] = []
        self._pushes = 0  # settles ties: first come, first served

    def push(self, request: Request) -> None:
        """Queue a request behind its client's others; a new client starts at the clock."""
        if (held := self._held.get(request.client)) is not None:
            held[request.request_id] = request
            return
        flow = self._flows.get(request.client)
        if flow is None:
            self._forget_idle_clients()
            flow = self._flows[request.client] = OrderedDict()
            self._pushes += 1
            heappush(self._heap, (self._clock, self._pushes, request.client, flow))
        flow[request.request_id] = request
        self._count(1, request.cost)

    def head(self) -> Request | None:
        """Return the request whose turn it is; it stays."""
        heap = self._heap
        while heap:
            start, _, client, flow = heap[0]
            if flow:
                return next(iter(flow.values()))
            self._clock = start
            heappop(heap)
            del self._flows[client]
        return None

    def pop(self) -> Request:
        """Take what `head` has just shown, and charge its client."""
        start, _, client, flow = self._heap[0]
        request = flow.popitem(last=False)[1]
        self._clock = start
        self._pushes += 1
        heapreplace(self._heap, (start + request.cost, self._pushes, client, flow))
        self._count(-1, -request.cost)
        return request

    def remove(self, request: Request) -> None:
        """Take a request out of turn, uncharged."""
        if (held := self._held.get(request.client)) is not None:
            del held[request.request_id]
            return
        del self._flows[request.client][request.request_id]
        self._count(-1, -request.cost)

    def hold(self, client: Client) -> None:
        """Pass a client over until it is released."""
        if client in self._held:
            return
        flow = self._flows.get(client, OrderedDict())
        self._held[client] = flow.copy()
        self._count(-len(flow), -sum(request.cost for request in flow.values()))
        flow.clear()

    def release(self, client: Client) -> None:
        """Let a client that was held take its turns again."""
        for request in self._held.pop(client, {}).values():
            self.push(request)

    def _count(self, size: int, cost: float) -> None:
        self.size += size
        self.cost = self.cost + cost if self.size else 0.0  # no rounding errors are kept

    def _forget_idle_clients(self) -> None:
        """Bound what passing clients leave behind while the clock can't reach them."""
        if len(self._heap) <= 2 * self.size + _SPARE_FLOWS:
            return
        self._heap = [entry for entry in self._heap if entry[3]]
        heapify(self._heap)
        self._flows = {client: flow for _, _, client, flow in self._heap}


class RequestQueue:
    """All that waits: those put back first, then the two classes.

    Attributes:
        requests: how many wait, suspects included.
        rows: rows of them.
        nbytes: bytes that are kept of them.

    """

    __slots__ = (
        "_clock", "_front", "_large", "_priority_batch_size", "_small", "_suspects", "_turns",
        "nbytes", "requests", "rows",
    )  # fmt: skip

    def __init__(self, priority_batch_size: int) -> None:
        self.requests = 0
        self.rows = 0
        self.nbytes = 0
        self._priority_batch_size = priority_batch_size
        self._small = FairQueue(_SMALL_WEIGHT)
        self._large = FairQueue(_LARGE_WEIGHT)
        self._clock = 0.0
        # of large and of small ones: heaps; closed ones are skipped
        self._front: tuple[list[tuple[int, Request]], ...] = ([], [])
        self._suspects: deque[Request] = deque()  # likewise
        self._turns = 0

    def push(self, request: Request) -> None:
        """Queue a new request by its class and client."""
        request.is_small = (
            request.rows <= self._priority_batch_size and request.nbytes <= MAX_SMALL_BYTES
        )
        queue = self._class(request.is_small)
        self._awaken(queue)
        queue.push(request)
        self._count(request, 1)

    def hold(self, client: Client) -> None:
        """Pass a client's requests over, except those that workers had already."""
        self._small.hold(client)
        self._large.hold(client)

    def release(self, client: Client) -> None:
        """Undo `hold`; nothing to do if the client is not held."""
        for queue in (self._small, self._large):
            self._awaken(queue)
            queue.release(client)

    def put_back(self, request: Request) -> None:
        """Queue a request that a lost worker had: in front, or aside if it is a suspect."""
        if request.deaths >= SUSPECT_AFTER:
            self._suspects.append(request)
        else:
            heappush(self._front[request.is_small], (request.turn, request))
        self._count(request, 1)

    def remove(self, request: Request) -> None:
        """Take out a request that is no longer wanted."""
        if request.turn < 0:
            self._class(request.is_small).remove(request)
        self._count(request, -1)

    def head(self) -> Request | None:
        """Return the request whose turn it is, if one waits that is no suspect; it stays."""
        if not any(self._front):
            return self._next_class().head()
        small, large = self._first_in_front(True), self._first_in_front(False)
        if small is not None and large is not None:
            return min(small, large, key=attrgetter("turn"))
        return small or large or self._next_class().head()

    def first(self, *, is_small: bool) -> Request | None:
        """Return the first request of a class, be it its turn or not; it stays."""
        queue = self._class(is_small)
        return self._first_in_front(is_small) or (queue.head() if queue.size else None)

    def take(self, max_tokens: float, max_rows: int, *, one_class: bool = False) -> list[Request]:
        """Take the next batch, strictly in order: one of any size, then those that still fit.

        Looking past one that doesn't fit would fill batches a little better, and cost the
        bound on fairness: one batch is cut short where a large request is next. With
        `one_class`, also where the other class is.
        """
        following, head = self.head, self.head()
        if one_class and head is not None:
            following = partial(self._head_of, head.is_small)
        return self._take(following, max_tokens, max_rows, is_charged=True)

    def take_class(self, max_tokens: float, max_rows: int, *, is_small: bool) -> list[Request]:
        """Take the next batch likewise, for a place that only one class may have."""
        following = partial(self.first, is_small=is_small)
        return self._take(following, max_tokens, max_rows, is_charged=False)

    @property
    def cost(self) -> float:
        """What all that may go into a batch with others will cost."""
        front = chain.from_iterable(self._front)
        put_back = sum(request.cost for _, request in front if request.is_open)
        return put_back + self._small.cost + self._large.cost

    @property
    def has_suspects(self) -> bool:
        """Some request waits to be tried alone."""
        suspects = self._suspects
        while suspects and not suspects[0].is_open:
            suspects.popleft()
        return bool(suspects)

    def take_suspect(self) -> Request:
        """Take the first of those that must be tried alone; there is one."""
        request = self._suspects.popleft()
        self._count(request, -1)
        return request

    def _take(
        self,
        following: Callable[[], Request | None],
        max_tokens: float,
        max_rows: int,
        *,
        is_charged: bool,
    ) -> list[Request]:
        batch: list[Request] = []
        while (request := following()) is not None:
            max_tokens -= request.cost
            max_rows -= request.rows
            if batch and (max_tokens < 0 or max_rows < 0):
                break
            self._pop(request, is_charged=is_charged)
            batch.append(request)
        return batch

    def _pop(self, request: Request, *, is_charged: bool) -> None:
        if request.turn >= 0:
            heappop(self._front[request.is_small])
        else:
            queue = self._class(request.is_small)
            queue.pop()
            if is_charged:
                self._clock = queue.start
                queue.start += request.cost / queue.weight
            request.turn = self._turns
            self._turns += 1
        self._count(request, -1)

    def _head_of(self, is_small: bool) -> Request | None:
        head = self.head()
        return head if head is not None and head.is_small is is_small else None

    def _first_in_front(self, is_small: bool) -> Request | None:
        front = self._front[is_small]
        while front and not front[0][1].is_open:
            heappop(front)
        return front[0][1] if front else None

    def _next_class(self) -> FairQueue:
        small, large = self._small, self._large
        if not large.size or (small.size and small.start <= large.start):
            return small
        return large

    def _awaken(self, queue: FairQueue) -> None:
        """Have a class in which nothing waited begin at the clock, with no credit from before."""
        if not queue.size and queue.start < self._clock:
            queue.start = self._clock

    def _class(self, is_small: bool) -> FairQueue:
        return self._small if is_small else self._large

    def _count(self, request: Request, sign: int) -> None:
        request.is_queued = sign > 0
        self.requests += sign
        self.rows += sign * request.rows
        self.nbytes += sign * (request.nbytes + request.other_bytes)
