"""One client's servers, one or several, without I/O: which server gets what, and what then.

The fleet puts the calls of the `agenda` and the `session` of each server together. A request
goes to the server with the least outstanding work; if that refuses it, is lost or forgets it,
to another one, or to the same again. `encode` has no effects, so that a request may be with
several servers: the first answer counts, and the others are told not to compute it.

A shell with a socket for each server (blocking in `connection`, asyncio in `aio`) moves the
frames and tells the time: it sends what `next_message` returns, hands what it receives to
`receive`, calls `advance` now and then, and may sleep until `next_wakeup`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .admin_messages import AdminAnswer
from .agenda import Agenda, Request
from .agreement import mismatch, smallest
from .assembly import Embeddings
from .calls import Call, EncodeCall, MembershipCall, StatusCall
from .endings import time_is_over, too_large_now
from .errors import ModelMismatch, ProtocolError, ServerError
from .frames import Buffer
from .group_messages import BroadcastPart
from .messages import ErrorAnswer, Limits, Result, Welcome
from .protocol import parse_answer
from .session import Session

GREETING_GRACE_S = 0.25  # after the first welcome, for those of the other servers

_RETRYABLE = ("overloaded", "unavailable")


class Fleet:
    """The conversations with all servers of a client, and the calls that they serve.

    Args:
        client: how the client names itself in its hello.
        addresses: of the servers, for error messages.
        hedge_after_s: a request that is not answered by then is sent to another server too.
        jitter: a number from 0 to 1, another one each time.

    Attributes:
        sessions: one for each server, in their order.
        refusal: why nothing can be done any more, if that is so.
        waits_for_servers: a server that stops is waited for until another has its place.

    """

    def __init__(
        self,
        client: str,
        addresses: Sequence[str],
        *,
        hedge_after_s: float = math.inf,
        jitter: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.sessions = [Session(n, client, address) for n, address in enumerate(addresses)]
        self.refusal: Exception | None = None
        self.waits_for_servers = True
        self._agenda = Agenda(jitter)
        self._hedge_after_s = hedge_after_s if len(addresses) > 1 else math.inf
        self._limits = Limits()
        self._hellos: list[Call] = []
        self._greeted_at = math.inf
        self._turn = 0  # the server that is the next among equals

    @property
    def welcome(self) -> Welcome | None:
        """The welcome of a server that takes requests; else any, if there was one."""
        for session in self.sessions:
            if session.takes_requests:
                return session.welcome
        return next((s.welcome for s in self.sessions if s.welcome is not None), None)

    @property
    def is_welcome(self) -> bool:
        """Whether a server has answered a hello, and has a worker to compute with."""
        return any(
            session.welcome is not None and session.welcome.state != "starting"
            for session in self.sessions
        )

    @property
    def only(self) -> Session:
        """The session of the only server, whose groups one can be in."""
        return self.sessions[0]

    @property
    def is_shut_out(self) -> bool:
        """Whether no server lets this client in any more."""
        return all(session.is_shut_out for session in self.sessions)

    # calls

    def hello(self, call: Call, now: float) -> None:
        """Say hello to all, until the call is ended by new welcomes: soon after the first."""
        if not self._takes(call, now):
            return
        if not self._hellos:
            self._greeted_at = math.inf
            for session in self.sessions:
                session.await_welcome(now)
        self._hellos.append(call)

    def submit(self, call: EncodeCall, now: float) -> None:
        """Start a call."""
        if not self._takes(call, now):
            return
        if call.options.group is not None:
            call.number = self.only.new_id()
        if call.is_all_cut and self._described() is not None:
            call.finish()
            return
        self._agenda.add(call)
        self._ask_for_servers(now)

    def request_status(self, call: StatusCall, now: float, server: int | None = None) -> None:
        """Ask a server for its status; by default the first that takes requests."""
        if not self._takes(call, now):
            return
        if server is None:
            server = next((s.number for s in self.sessions if s.takes_requests), 0)
        self.sessions[server].request_status(call, now)

    def set_groups(self, call: MembershipCall, groups: Sequence[str], now: float) -> None:
        """Be in these groups of the only server."""
        if self._takes(call, now):
            self.only.set_groups(call, groups, now)

    def abandon(self, call: Call) -> None:
        """Forget a call whose caller has gone, and tell the servers not to compute it."""
        self._agenda.abandon(call)
        for session in self.sessions:
            session.cancel_call(call)
        if call in self._hellos:
            self._hellos.remove(call)
            if not self._hellos:
                self._greet()

    def close(self, error: Exception) -> None:
        """End every call with an error: nothing is left to be sent but what cancels them."""
        self.refusal = error
        calls = self._agenda.calls
        self._hellos.clear()
        self._agenda.clear()
        for session in self.sessions:
            session.clear()
        for call in calls:
            call.finish(error)

    def shut_out(self, number: int) -> None:
        """Do without a server that does not let this client in: its connection is no more."""
        session = self.sessions[number]
        for request in session.shut_out():
            if not request.copies:
                self._agenda.send_again(request)

    # messages

    def next_message(self, now: float) -> tuple[int, list[Any]] | None:
        """Return the frames of the next message and the number of its server, if there is one."""
        self._agenda.resume(now)
        message = self._own_message(now)
        if message is not None or self._agenda.is_empty:
            return message
        return self._next_request(now)

    def receive(self, number: int, frames: Sequence[Buffer], now: float) -> None:
        """Take in one message from a server; whatever it is, this does not raise."""
        session = self.sessions[number]
        try:
            answer = parse_answer(frames)
        except ProtocolError as error:
            self.close(type(error)(f"{session.address} answered what cannot be read: {error}"))
            return
        session.presence.heard(now)
        if isinstance(answer, Result):
            self._receive_result(session, answer, now)
        elif isinstance(answer, ErrorAnswer):
            self._receive_error(session, answer.exception(), now)
        elif isinstance(answer, Welcome):
            self._receive_welcome(session, answer, now)
        elif isinstance(answer, BroadcastPart):
            session.broadcasts.add(answer)
        elif not isinstance(answer, AdminAnswer):  # which only bert-serving-admin asks for
            session.take_asked(answer)

    def advance(self, now: float) -> None:
        """End every call that has waited too long for its next answer, and greetings in time."""
        self._agenda.resume(now)
        for call in self._agenda.ended(now):
            self._end(call, time_is_over(call, self.sessions))
        if self._greeted_at + GREETING_GRACE_S <= now:
            self._greet()

    def next_wakeup(self) -> float | None:
        """Return the instant at which there is something to do even if nothing arrives."""
        wakeup = self._agenda.next_wakeup()
        for session in self.sessions:
            wakeup = min(wakeup, session.next_wakeup())
        if self._greeted_at != math.inf:
            wakeup = min(wakeup, self._greeted_at + GREETING_GRACE_S)
        return None if wakeup == math.inf else wakeup

    def empty_view(self, call: EncodeCall, name: str) -> Embeddings:
        """Return the value of a view for a call without rows: no rows of the right width."""
        welcome = self._described()
        if welcome is None:
            return np.empty((0, 0), np.float32)
        view = call.options.views[name].filled_from(welcome.default_view)
        if view.pooling == "none":
            return []
        model = welcome.model
        width = view.width(int(model.get("hidden_size", 0)), model.get("head_sizes", {}))
        return np.empty((0, width), view.dtype)

    def _described(self) -> Welcome | None:
        """Return a welcome that says what the model is; one that starts does not."""
        welcomes = [self.welcome, *(session.welcome for session in self.sessions)]
        return next((welcome for welcome in welcomes if welcome and welcome.model), None)

    # sending

    def _own_message(self, now: float) -> tuple[int, list[Any]] | None:
        for session in self.sessions:
            was_lost = session.presence.is_lost
            frames = session.next_message(now, is_wanted=self._agenda.wants_servers)
            if session.presence.is_lost and not was_lost:
                self._send_elsewhere(session)
            if frames is not None:
                return session.number, frames
        return None

    def _next_request(self, now: float) -> tuple[int, list[Any]] | None:
        agenda = self._agenda
        if len(self.sessions) > 1 and any(session.doubt(now) for session in self.sessions):
            return self._own_message(now)
        if agenda.has_later:
            agenda.pass_time(now)
        if agenda.due and (message := self._next_repeat(now)) is not None:
            return message
        while agenda.cutting:
            session = self._least_busy(agenda.waiting_rows, agenda.waiting_bytes)
            if session is None:
                return None
            call = agenda.cutting[0]
            try:
                cut = agenda.cut(self._limits, now)
            except Exception as error:  # noqa: BLE001  # of the caller's row, or its iterator's own
                self._end(call, error)
                if (message := self._own_message(now)) is not None:
                    return message  # which cancels what was sent
                continue
            if cut is not None:
                if self._hedge_after_s != math.inf:
                    agenda.hedge(cut, now + self._hedge_after_s)
                return session.number, session.send(cut, now)
        return None

    def _next_repeat(self, now: float) -> tuple[int, list[Any]] | None:
        """Return the first of the requests to be sent again that a server has room for."""
        for request in list(self._agenda.due):
            session = self._server_for(request)
            if session is not None:
                self._agenda.sent(request)
                return session.number, session.send(request, now)
            if request.is_due and self._is_too_large(request):
                self._end(request.call, too_large_now(request, self._limits))
        return None

    def _least_busy(self, rows: int, nbytes: int) -> Session | None:
        """Return the server with the least outstanding work that has room beside what waits."""
        sessions = self.sessions
        if len(sessions) == 1:
            only = sessions[0]
            has_room = only.takes_requests and only.window.has_room_beside(rows, nbytes)
            return only if has_room else None
        free = [s for s in sessions if s.takes_requests and s.window.has_room_beside(rows, nbytes)]
        return self._choose(free)

    def _server_for(self, request: Request) -> Session | None:
        """Return the server to send a request to that has been sent before."""
        return self._choose(
            [
                session
                for session in self.sessions
                if session.takes_requests
                and session.window.has_room
                and session.number not in request.copies
                and session.number not in request.refused_by
                and len(request.chunk.buffer) <= session.limits.max_request_bytes
            ]
        )

    def _choose(self, sessions: Sequence[Session]) -> Session | None:
        if not sessions:
            return None
        servers, turn = len(self.sessions), self._turn
        chosen = min(sessions, key=lambda s: (s.window.nbytes, (s.number - turn) % servers))
        self._turn = (chosen.number + 1) % servers
        return chosen

    def _ask_for_servers(self, now: float) -> None:
        for session in self.sessions:
            if not session.takes_requests:
                session.presence.ask(now)

    def _send_elsewhere(self, lost: Session) -> None:
        """Let other servers compute what a lost one has: it may come back, or never."""
        for request in lost.open_requests:
            if len(request.copies) == 1:
                self._agenda.send_again(request)

    # answers

    def _receive_result(self, session: Session, result: Result, now: float) -> None:
        request = session.take_result(result.id)
        if request is None:  # cancelled, timed out, or answered by another server before
            return
        if request.copies:
            self._cancel_copies(request)
        self._agenda.answered(request, now)
        try:
            request.call.take(request.chunk, result)
        except ProtocolError as error:
            self._end(request.call, error)

    def _receive_error(self, session: Session, error: ServerError, now: float) -> None:
        if error.request_id is None:
            self.close(error)
            return
        request = session.take_refusal(error, now)
        if request is None or request.copies:  # another server has it still
            return
        call = request.call
        if error.code == "deadline_exceeded" and call.deadline > request.deadline:
            self._agenda.send_again(request)  # other answers came: there is time
        elif error.code not in _RETRYABLE or not self._retry(session, request, error, now):
            self._end(call, error)

    def _retry(self, session: Session, request: Request, error: ServerError, now: float) -> bool:
        """Send a refused request to another server, or later; false if there is no time left."""
        request.call.refusal = error
        if error.code == "unavailable":  # it goes out when any server is there that takes it
            if self.waits_for_servers:
                self._agenda.send_again(request)
            return self.waits_for_servers
        request.refused_by.add(session.number)
        if any(s.takes_requests and s.number not in request.refused_by for s in self.sessions):
            self._agenda.send_again(request)
            return True
        request.refused_by.clear()
        return self._agenda.put_off(request, error, now)

    def _receive_welcome(self, session: Session, welcome: Welcome, now: float) -> None:
        for request in session.take_welcome(welcome, now):
            if not request.copies:
                self._agenda.send_again(request)
        if (error := self._mismatch(session)) is not None:
            self.close(error)
            return
        self._limits = smallest([s.limits for s in self.sessions if s.welcome is not None])
        if self._hellos:
            self._greeted_at = min(self._greeted_at, now)
            if not any(s.is_awaited for s in self.sessions):
                self._greet()

    def _greet(self) -> None:
        self._greeted_at = math.inf
        hellos, self._hellos = self._hellos, []
        for session in self.sessions:
            session.is_awaited = False
        for call in hellos:
            call.finish()

    def _cancel_copies(self, request: Request) -> None:
        for number in list(request.copies):
            self.sessions[number].cancel([request])

    # ends

    def _takes(self, call: Call, now: float) -> bool:
        """Count a call's time from now; false, and it is over, if nothing can be done any more."""
        if self.refusal is not None:
            call.finish(self.refusal)
            return False
        self._agenda.watch(call, now)
        return True

    def _end(self, call: Call, error: Exception) -> None:
        self.abandon(call)
        call.finish(error)

    def _is_too_large(self, request: Request) -> bool:
        nbytes = len(request.chunk.buffer)
        return not request.copies and all(
            session.welcome is not None and nbytes > session.limits.max_request_bytes
            for session in self.sessions
        )

    def _mismatch(self, session: Session) -> ModelMismatch | None:
        """Return the error for a server that does not agree with another one."""
        for other in self.sessions:
            if other is session or other.presence.is_lost or other.is_doubted:
                continue
            if session.welcome is not None and other.welcome is not None:
                addresses = (session.address, other.address)
                if error := mismatch(addresses, session.welcome, other.welcome):
                    return error
        return None
