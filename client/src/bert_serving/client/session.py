"""The client's side of the conversation, without any I/O: messages in, messages out.

A session numbers requests, keeps a bounded window of them in flight, matches answers,
repeats what an overloaded server asks to repeat, and ends what waits too long. A shell
with a socket (blocking in `client`, asyncio in `aio`) moves the frames and tells the
time: it sends what `next_message` returns, hands what it receives to `receive`, calls
`advance` now and then, and may sleep until `next_wakeup`.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from .assembly import Embeddings
from .broadcasts import Broadcasts
from .calls import Call, EncodeCall, MembershipCall, StatusCall
from .chunking import Chunk
from .errors import MalformedMessage, ProtocolError, RequestTimeout, ServerError
from .frames import Buffer
from .group_messages import BroadcastPart, Membership
from .messages import (
    MAX_TTL_MS,
    Cancel,
    ErrorAnswer,
    Hello,
    Limits,
    Result,
    Status,
    StatusRequest,
    Welcome,
)
from .protocol import parse_answer
from .window import Window

HELLO_INTERVAL_S = 0.5
MEMBERSHIP_INTERVAL_S = 5.0  # how soon a member is one again after the server was restarted
FIRST_RETRY_S = 0.05
MAX_DOUBLINGS = 3  # longer waits are for the server to ask for: it knows its queue


@dataclass
class _OpenRequest:
    call: EncodeCall
    chunk: Chunk
    attempts: int = 0
    deadline: float = math.inf  # the call's, when the request was sent


class Session:
    """One client's conversation with one server, over one connection.

    Args:
        client: how the client names itself in its hello.
        address: the server's address, for error messages.

    """

    def __init__(self, client: str, address: str) -> None:
        self._client = client
        self._address = address
        self._ids = count(1)
        self._outbox: deque[list[Any]] = deque()
        self._next_hello = -math.inf
        self._hellos: list[Call] = []
        self._cutting: deque[EncodeCall] = deque()  # calls with rows left to send
        self._open: dict[int, _OpenRequest] = {}
        self._asked: dict[int, StatusCall | MembershipCall] = {}
        self._next_membership = math.inf
        self._retries: list[tuple[float, int]] = []
        self._watched: set[Call] = set()
        self._first_deadline = math.inf  # or earlier: deadlines move on, this is looked at late
        self._window = Window()
        self.welcome: Welcome | None = None
        self.refusal: Exception | None = None
        self.groups: Sequence[str] = ()
        self.broadcasts = Broadcasts()

    @property
    def is_welcome(self) -> bool:
        """Whether the server has answered a hello, and has a worker to compute with."""
        return self.welcome is not None and self.welcome.state != "starting"

    @property
    def _wants_welcome(self) -> bool:
        return bool(self._hellos or (self._cutting and not self.is_welcome))

    @property
    def open_ids(self) -> list[int]:
        """The requests that the server may have and has not answered."""
        return list(self._open)

    @property
    def limits(self) -> Limits:
        """How to cut requests, as the server's welcome says."""
        return self.welcome.limits if self.welcome is not None else Limits()

    def hello(self, call: Call, now: float) -> None:
        """Say hello, again if need be, until the call is ended by the answer: a new `welcome`."""
        self._watch(call, now)
        if not self._hellos:
            self._next_hello = now
        self._hellos.append(call)

    def submit(self, call: EncodeCall, now: float) -> None:
        """Start a call."""
        self._watch(call, now)
        if call.options.group is not None:
            call.number = next(self._ids)
        if call.is_all_cut:
            call.finish()
        else:
            self._cutting.append(call)

    def request_status(self, call: StatusCall, now: float) -> None:
        """Ask for the server's status."""
        self._watch(call, now)
        request_id = next(self._ids)
        self._asked[request_id] = call
        self._outbox.append(StatusRequest(request_id).to_frames())

    def set_groups(self, call: MembershipCall, groups: Sequence[str], now: float) -> None:
        """Be in these groups; said again now and then, as a server that is new doesn't know."""
        self._watch(call, now)
        request_id = next(self._ids)
        self._asked[request_id] = call
        call.before, self.groups = self.groups, groups
        self._outbox.append(self._membership_frames(request_id, now))

    def abandon(self, call: Call) -> None:
        """Forget a call whose caller has gone, and tell the server not to compute it."""
        self._watched.discard(call)
        if isinstance(call, EncodeCall) and call in self._cutting:
            self._cutting.remove(call)
        ids = [number for number, request in self._open.items() if request.call is call]
        for number in ids:
            self._window.remove(self._open.pop(number).chunk)
        if ids:
            self._outbox.append(Cancel(ids).to_frames())
        for number in [number for number, waiting in self._asked.items() if waiting is call]:
            del self._asked[number]
        if call in self._hellos:
            self._hellos.remove(call)

    def close(self, error: Exception) -> None:
        """End every call with an error: the connection is no more."""
        self.refusal = error
        calls = list(self._watched)
        self._hellos.clear()
        self._cutting.clear()
        self._asked.clear()
        self._open.clear()
        self._window = Window()
        for call in calls:
            call.finish(error)

    def next_message(self, now: float) -> list[Any] | None:
        """Return the frames of the next message to send, or None if there is none now."""
        if self._outbox:
            return self._outbox.popleft()
        if self._wants_welcome and now >= self._next_hello:
            self._next_hello = now + HELLO_INTERVAL_S
            return Hello(self._client).to_frames()
        if self.groups and now >= self._next_membership:
            return self._membership_frames(next(self._ids), now)
        if self._cutting and not self.is_welcome:
            return None
        request = self._due_retry(now) or self._next_request(now)
        if request is None and self._outbox:  # cutting it failed: what was sent is cancelled
            return self._outbox.popleft()
        return request

    def receive(self, frames: Sequence[Buffer], now: float) -> None:
        """Take in one message from the server; whatever it is, this does not raise."""
        try:
            answer = parse_answer(frames)
        except ProtocolError as error:
            self.close(type(error)(f"{self._address} answered what cannot be read: {error}"))
            return
        if isinstance(answer, Result):
            self._receive_result(answer, now)
        elif isinstance(answer, ErrorAnswer):
            self._receive_error(answer, now)
        elif isinstance(answer, Welcome):
            self._receive_welcome(answer)
        elif isinstance(answer, BroadcastPart):
            self.broadcasts.add(answer)
        elif answer.id in self._asked:
            self._receive_asked(answer)

    def advance(self, now: float) -> None:
        """End every call that has waited too long for its next answer."""
        if now < self._first_deadline:
            return
        for call in [call for call in self._watched if call.deadline <= now]:
            self.abandon(call)
            call.finish(RequestTimeout(self._timeout_message(call)))
        self._first_deadline = min((call.deadline for call in self._watched), default=math.inf)

    def next_wakeup(self) -> float | None:
        """Return the instant at which there is something to do even if nothing arrives."""
        instants = [entry[0] for entry in self._retries[:1]]
        if self._watched and self._first_deadline != math.inf:
            instants.append(self._first_deadline)
        if self._wants_welcome:
            instants.append(self._next_hello)
        if self.groups:
            instants.append(self._next_membership)
        return min(instants, default=None)

    def empty_view(self, call: EncodeCall, name: str) -> Embeddings:
        """Return the value of a view for a call without rows: no rows of the right width."""
        if self.welcome is None:
            return np.empty((0, 0), np.float32)
        view = call.options.views[name].filled_from(self.welcome.default_view)
        if view.pooling == "none":
            return []
        model = self.welcome.model
        width = view.width(int(model.get("hidden_size", 0)), model.get("head_sizes", {}))
        return np.empty((0, width), view.dtype)

    def _next_request(self, now: float) -> list[Any] | None:
        while self._cutting and self._window.has_room:
            call = self._cutting[0]
            try:
                chunk = call.cut(self.limits)
            except Exception as error:  # noqa: BLE001  # of the caller's row, or its iterator's own
                self.abandon(call)
                call.finish(error)
                continue
            self._cutting.rotate(-1)
            if call.is_all_cut:
                self._cutting.remove(call)
                call.finish_if_complete()
            if chunk is not None:
                request_id = next(self._ids)
                self._open[request_id] = _OpenRequest(call, chunk)
                self._window.add(chunk)
                if call.open_requests > 1:  # its time runs from the last answer, this one's: now
                    call.deadline = max(call.deadline, now + call.timeout_s)
                return self._encode_frames(request_id, now)
        return None

    def _due_retry(self, now: float) -> list[Any] | None:
        while self._retries and self._retries[0][0] <= now:
            _, request_id = heapq.heappop(self._retries)
            if request_id in self._open:
                return self._encode_frames(request_id, now)
        return None

    def _encode_frames(self, request_id: int, now: float) -> list[Any]:
        request = self._open[request_id]
        call = request.call
        request.deadline = call.deadline
        ttl_ms = int(min(max((call.deadline - now) * 1000, 1), MAX_TTL_MS))
        return call.message(request_id, request.chunk, ttl_ms).to_frames()

    def _membership_frames(self, request_id: int, now: float) -> list[Any]:
        self._next_membership = now + MEMBERSHIP_INTERVAL_S
        return Membership(request_id, self.groups).to_frames()

    def _receive_asked(self, answer: Status | Membership) -> None:
        call = self._asked.pop(answer.id)
        if isinstance(call, StatusCall) and isinstance(answer, Status):
            call.take(answer)
        elif isinstance(call, MembershipCall) and isinstance(answer, Membership):
            call.finish()
        else:
            call.finish(MalformedMessage(f"{self._address} answered what was not asked"))

    def _receive_welcome(self, welcome: Welcome) -> None:
        if welcome.limits != self.limits or self.welcome is None:
            self._window.open(welcome.limits)
        self.welcome = welcome
        hellos, self._hellos = self._hellos, []
        for call in hellos:
            call.finish()

    def _receive_result(self, result: Result, now: float) -> None:
        request = self._open.pop(result.id, None)
        if request is None:  # cancelled, or timed out, before the answer came
            return
        self._window.remove(request.chunk)
        self._window.grow()
        call = request.call
        call.deadline = now + call.timeout_s
        if self._retries:  # an answer has left room on the server for what it refused
            heapq.heapreplace(self._retries, (now, self._retries[0][1]))
        try:
            call.take(request.chunk, result)
        except ProtocolError as error:
            self.abandon(call)
            call.finish(error)

    def _receive_error(self, answer: ErrorAnswer, now: float) -> None:
        error = answer.exception()
        if answer.id is None:
            self.close(error)
            return
        if answer.id in self._asked:
            asked = self._asked.pop(answer.id)
            if isinstance(asked, MembershipCall):
                self.groups = asked.before
            asked.finish(error)
            return
        request = self._open.get(answer.id)
        if request is None:
            return
        if error.code == "overloaded" and self._retry(answer.id, request, error, now):
            return
        if error.code == "deadline_exceeded" and request.call.deadline > request.deadline:
            heapq.heappush(self._retries, (now, answer.id))  # other answers came: there is time
            return
        self._window.remove(self._open.pop(answer.id).chunk)
        self.abandon(request.call)
        request.call.finish(error)

    def _retry(
        self, request_id: int, request: _OpenRequest, error: ServerError, now: float
    ) -> bool:
        """Send a refused request again when the server says, if the caller still waits then."""
        wait_s = FIRST_RETRY_S * 2 ** min(request.attempts, MAX_DOUBLINGS)
        if error.retry_after_ms is not None:
            wait_s = max(wait_s, error.retry_after_ms / 1000)
        if now + wait_s >= request.call.deadline:
            return False
        request.attempts += 1
        self._window.shrink()
        heapq.heappush(self._retries, (now + wait_s, request_id))
        return True

    def _watch(self, call: Call, now: float) -> None:
        call.deadline = now + call.timeout_s
        call.watched_in = self._watched
        self._watched.add(call)
        self._first_deadline = min(self._first_deadline, call.deadline)

    def _timeout_message(self, call: Call) -> str:
        waited = f"no answer from {self._address} within {call.timeout_s * 1000:.0f} ms (timeout)"
        if self.welcome is None:
            return f"{waited}: nothing that speaks this protocol has answered there yet"
        if self.welcome.state == "starting":
            return f"{waited}: the server is there, but none of its workers is ready yet"
        return f"{waited}: its log and BertClient.server_status say what its workers are doing"
