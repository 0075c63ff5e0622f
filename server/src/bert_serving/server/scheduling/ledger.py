"""What has been accepted and not yet answered: the bounds of it, and its deadlines.

This is where "exactly one answer" is kept: a request is opened once and closed once, and
whoever answers it closes it first. It says which requests can't be accepted, and why; it
knows nothing of queues or workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush
from math import inf

from bert_serving.server.scheduling.events import Client, RequestArrived, SchedulerLimits
from bert_serving.server.scheduling.queues import Request

_SPARE_DEADLINES = 1024


class Account:
    """What one client has open."""

    __slots__ = ("nbytes", "requests", "rows")

    def __init__(self) -> None:
        self.requests: dict[int, Request] = {}
        self.rows = 0
        self.nbytes = 0


class Ledger:
    """Every open request, by client and by deadline.

    Attributes:
        requests: how many are open.
        rows: rows of them.
        nbytes: bytes that are kept of them.
        cost: estimated tokens of them.

    """

    __slots__ = ("_accounts", "_deadlines", "_limits", "_pushes", "cost", "nbytes", "requests",
                 "rows")  # fmt: skip

    def __init__(self, limits: SchedulerLimits) -> None:
        self.requests = 0
        self.rows = 0
        self.nbytes = 0
        self.cost = 0.0
        self._limits = limits
        self._accounts: dict[Client, Account] = {}
        self._deadlines: list[tuple[float, int, Request]] = []  # a heap; closed ones linger
        self._pushes = 0

    def find(self, client: Client, request_id: int) -> Request | None:
        """Return the open request of this name."""
        account = self._accounts.get(client)
        return None if account is None else account.requests.get(request_id)

    def has_open(self, client: Client) -> bool:
        """Whether a client has anything open."""
        return client in self._accounts

    def requests_of(self, client: Client) -> Sequence[Request]:
        """Return all that a client has open, oldest first."""
        account = self._accounts.get(client)
        return [] if account is None else list(account.requests.values())

    def all_requests(self) -> Sequence[Request]:
        """Return all that is open."""
        return [r for account in self._accounts.values() for r in account.requests.values()]

    def refusal(self, new: RequestArrived) -> tuple[str, str] | None:
        """Say why a request can't be accepted: a wire code and a message; None if it can.

        One client holds at most as much as is left free for all others: half of each limit
        alone, a third each beside another one that wants all it can get, and there is always
        room for one more (the dynamic threshold of Choudhury and Hahne, 1998, for the shared
        memory of a switch). A first request may be larger, or it could never be accepted.
        """
        rows, nbytes = self._limits.max_queue_rows, self._limits.max_queue_bytes
        new_bytes = new.nbytes + new.other_bytes
        if new.rows > rows or new_bytes > nbytes:
            return "too_large", (
                f"the request has {new.rows} rows in {new_bytes} bytes, and the server takes"
                f" {rows} rows in {nbytes} bytes; cut it into smaller ones"
            )
        if self.rows + new.rows > rows or self.nbytes + new_bytes > nbytes:
            return "overloaded", (
                f"{self.rows} rows in {self.nbytes} bytes are waiting, and at most {rows} rows"
                f" in {nbytes} bytes may; try again later"
            )
        held = self._accounts.get(new.client)
        if held and (
            held.rows + new.rows > rows - self.rows - new.rows
            or held.nbytes + new_bytes > nbytes - self.nbytes - new_bytes
        ):
            return "overloaded", (
                f"{held.rows} rows in {held.nbytes} bytes of this client are waiting, and no client"
                " may have more than is left for all others; wait for answers"
            )
        return None

    def open(self, request: Request) -> None:
        """Enter a request, which has no open namesake."""
        account = self._accounts.get(request.client)
        if account is None:
            account = self._accounts[request.client] = Account()
        account.requests[request.request_id] = request
        account.rows += request.rows
        account.nbytes += request.nbytes + request.other_bytes
        self.requests += 1
        self.rows += request.rows
        self.nbytes += request.nbytes + request.other_bytes
        self.cost += request.cost
        if request.deadline < inf:
            self._pushes += 1
            heappush(self._deadlines, (request.deadline, self._pushes, request))
            self._drop_closed_deadlines()

    def close(self, request: Request) -> None:
        """Strike out an open request, and let its payload go."""
        account = self._accounts[request.client]
        del account.requests[request.request_id]
        if account.requests:
            account.rows -= request.rows
            account.nbytes -= request.nbytes + request.other_bytes
        else:
            del self._accounts[request.client]
        self.requests -= 1
        self.rows -= request.rows
        self.nbytes -= request.nbytes + request.other_bytes
        self.cost = self.cost - request.cost if self.requests else 0.0
        request.is_open = False
        request.payload = None

    def next_deadline(self) -> float | None:
        """Return when the next open request expires."""
        deadlines = self._deadlines
        while deadlines and not deadlines[0][2].is_open:
            heappop(deadlines)
        return deadlines[0][0] if deadlines else None

    def expired(self, now: float) -> Iterator[Request]:
        """Go through the open requests whose deadline has come."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            request = heappop(deadlines)[2]
            if request.is_open:
                yield request

    def _drop_closed_deadlines(self) -> None:
        """Keep answered requests with distant deadlines from piling up."""
        if len(self._deadlines) > 2 * self.requests + _SPARE_DEADLINES:
            self._deadlines = [entry for entry in self._deadlines if entry[2].is_open]
            heapify(self._deadlines)
