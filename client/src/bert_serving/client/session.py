"""The client's side of the conversation with one server, over one connection, without I/O.

A session numbers requests, keeps a bounded window of them in flight, says hello while the
server's welcome is awaited or its presence in doubt, and keeps a membership of groups. What
is to be sent at all, and what becomes of an answer, is decided by the `fleet`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import count
from typing import Any

from .agenda import Request
from .broadcasts import Broadcasts
from .calls import Call, MembershipCall, StatusCall
from .errors import MalformedMessage, ServerError
from .group_messages import Membership
from .messages import MAX_TTL_MS, Cancel, Hello, Limits, Status, StatusRequest, Welcome
from .presence import Presence
from .window import Window

MEMBERSHIP_INTERVAL_S = 5.0  # how soon a member is one again after the server was restarted


class Session:
    """One client's conversation with one server.

    Args:
        number: of the server, among the client's.
        client: how the client names itself in its hello.
        address: the server's address, for error messages.

    Attributes:
        welcome: the server's last one, if there was any.
        presence: whether it is there.
        window: what is in flight to it.
        is_awaited: a new welcome is waited for.
        is_doubted: its welcome is old, and another one is on its way.
        is_shut_out: the server does not let this client in.

    """

    def __init__(self, number: int, client: str, address: str) -> None:
        self.number = number
        self.address = address
        self.welcome: Welcome | None = None
        self.presence = Presence()
        self.window = Window()
        self.is_awaited = self.is_doubted = False
        self.is_shut_out = False
        self.groups: Sequence[str] = ()
        self.broadcasts = Broadcasts()
        self._client = client
        self._ids = count(1)
        self._outbox: deque[list[Any]] = deque()
        self._open: dict[int, Request] = {}
        self._asked: dict[int, StatusCall | MembershipCall] = {}
        self._next_membership = math.inf
        self._takes_requests = False

    @property
    def takes_requests(self) -> bool:
        """Whether the server is there, and neither starts nor drains, as far as is known."""
        return self._takes_requests and not self.presence.is_lost and not self.is_shut_out

    @property
    def open_ids(self) -> list[int]:
        """The requests that the server may have and has not answered."""
        return list(self._open)

    @property
    def open_requests(self) -> list[Request]:
        """The same, themselves."""
        return list(self._open.values())

    def new_id(self) -> int:
        """Return a number that nothing else on this connection has."""
        return next(self._ids)

    # what to send

    def next_message(self, now: float, *, is_wanted: bool) -> list[Any] | None:
        """Return the next message that is no new request.

        Args:
            now: the time.
            is_wanted: there is something that this server could be asked for.

        """
        if self.is_shut_out:
            return None
        if self._outbox:
            return self._outbox.popleft()
        if now >= self.presence.next_look:
            is_awaited = self.is_awaited or (is_wanted and not self.takes_requests)
            if self.presence.look(now, owes=self._owes, is_awaited=is_awaited):
                return Hello(self._client).to_frames()
        if self.groups and now >= self._next_membership:
            return self._membership_frames(self.new_id(), now)
        return None

    def next_wakeup(self) -> float:
        """Return the instant at which there is something to say, or to notice."""
        if self.is_shut_out:
            return math.inf
        if self.groups:
            return min(self.presence.next_look, self._next_membership)
        return self.presence.next_look

    def await_welcome(self, now: float) -> None:
        """Say hello until the server answers it."""
        self.is_awaited = True
        self.presence.ask_now(now)

    def doubt(self, now: float) -> bool:
        """Say hello before the first request after a silence; returns whether that is needed.

        The server may have been replaced by one with another model. Its welcome comes before the
        answers to what is sent next, so that nothing need wait for it.
        """
        if self._owes or not self.takes_requests or not self.presence.is_stale(now):
            return False
        self.is_doubted = True
        self.presence.asked(now)
        self._outbox.append(Hello(self._client).to_frames())
        return True

    def send(self, request: Request, now: float) -> list[Any]:
        """Return the message that sends a request, which is in flight then."""
        if not self._owes:
            self.presence.owes(now)
        call, request_id = request.call, next(self._ids)
        self._open[request_id] = request
        request.copies[self.number] = request_id
        self.window.add(request.chunk)
        request.deadline = call.last_deadline
        ttl_ms = int(min(max((request.deadline - now) * 1000, 1), MAX_TTL_MS))
        return call.message(request_id, request.chunk, ttl_ms).to_frames()

    def request_status(self, call: StatusCall, now: float) -> None:
        """Ask for the server's status."""
        request_id = self._ask(call, now)
        self._outbox.append(StatusRequest(request_id).to_frames())

    def set_groups(self, call: MembershipCall, groups: Sequence[str], now: float) -> None:
        """Be in these groups; said again now and then, as a server that is new doesn't know."""
        request_id = self._ask(call, now)
        call.before, self.groups = self.groups, groups
        self._outbox.append(self._membership_frames(request_id, now))

    # what need not be answered any more

    def cancel(self, requests: Sequence[Request]) -> None:
        """Forget requests that are in flight here, and tell the server not to compute them."""
        ids = [number for request in requests if (number := self._pop(request)) is not None]
        if ids:
            self._outbox.append(Cancel(ids).to_frames())

    def cancel_call(self, call: Call) -> None:
        """Forget a call, and tell the server not to compute it."""
        if self._open:
            self.cancel([request for request in self._open.values() if request.call is call])
        for number in [number for number, asked in self._asked.items() if asked is call]:
            del self._asked[number]

    def shut_out(self) -> list[Request]:
        """Expect nothing any more; returns the requests that will not be answered."""
        self.is_shut_out, self.is_awaited = True, False
        lost = self.open_requests
        for request in lost:
            self._pop(request)
        return lost

    def clear(self) -> None:
        """Forget all that is in flight, and tell the server not to compute it."""
        self.cancel(self.open_requests)
        self._asked.clear()
        self.window = Window()

    # what the server has said

    def take_welcome(self, welcome: Welcome, now: float) -> list[Request]:
        """Take in a welcome; returns the requests that the server knows nothing of any more.

        By the name of the connection it is seen whether it is the same as before. If it is
        another one, nobody will answer what was sent before; or some of it may just have been
        sent again by ZeroMQ, so that it is cancelled as well.
        """
        before, self.welcome = self.welcome, welcome
        self.is_awaited = self.is_doubted = False
        self._takes_requests = welcome.state not in ("starting", "draining")
        if not self._takes_requests:
            self.presence.ask(now)
        if before is None or before.limits != welcome.limits:
            self.window.open(welcome.limits)
        if before is None or before.connection == welcome.connection:
            return []
        lost = self.open_requests
        self.cancel(lost)
        self._ask_again(now)
        return lost

    def take_result(self, request_id: int) -> Request | None:
        """Return the request that has got its result; None if it is not wanted any more."""
        request = self._open.pop(request_id, None)
        if request is not None:
            del request.copies[self.number]
            self.window.remove(request.chunk)
            self.window.grow()
        return request

    def take_refusal(self, error: ServerError, now: float) -> Request | None:
        """Return the request that has got an error; None if it is not wanted any more."""
        if error.request_id in self._asked:
            asked = self._asked.pop(error.request_id)
            if isinstance(asked, MembershipCall):
                self.groups = asked.before
            asked.finish(error)
            return None
        request = self._open.get(error.request_id or 0)
        if request is None:
            return None
        self._pop(request)
        if error.code == "overloaded":
            self.window.shrink()
        elif error.code == "unavailable":
            self._takes_requests = False
            self.presence.ask(now)
        return request

    def take_asked(self, answer: Status | Membership) -> None:
        """Take in the answer to what was asked."""
        call = self._asked.pop(answer.id, None)
        if call is None:
            return
        if isinstance(call, StatusCall) and isinstance(answer, Status):
            call.take(answer)
        elif isinstance(call, MembershipCall) and isinstance(answer, Membership):
            call.finish()
        else:
            call.finish(MalformedMessage(f"{self.address} answered what was not asked"))

    @property
    def limits(self) -> Limits:
        """How to cut requests, as the server's welcome says."""
        return self.welcome.limits if self.welcome is not None else Limits()

    @property
    def _owes(self) -> bool:
        return bool(self._open or self._asked)

    def _pop(self, request: Request) -> int | None:
        request_id = request.copies.pop(self.number, None)
        if request_id is not None:
            del self._open[request_id]
            self.window.remove(request.chunk)
        return request_id

    def _ask(self, call: StatusCall | MembershipCall, now: float) -> int:
        if not self._owes:
            self.presence.owes(now)
        request_id = next(self._ids)
        self._asked[request_id] = call
        return request_id

    def _ask_again(self, now: float) -> None:
        """Repeat what was asked on a connection that is no more."""
        if self.groups:
            self._next_membership = now
        for request_id, call in self._asked.items():
            if isinstance(call, MembershipCall):
                self._outbox.append(self._membership_frames(request_id, now))
            else:
                self._outbox.append(StatusRequest(request_id).to_frames())

    def _membership_frames(self, request_id: int, now: float) -> list[Any]:
        self._next_membership = now + MEMBERSHIP_INTERVAL_S
        return Membership(request_id, self.groups).to_frames()
