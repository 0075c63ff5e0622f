"""What a fleet promises, whatever its servers do: each call ends once, right or at its deadline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bert_serving.client.calls import EncodeCall, EncodeOptions
from bert_serving.client.chunking import RowSource
from bert_serving.client.errors import (
    DeadlineExceeded,
    Overloaded,
    RequestTimeout,
    Unavailable,
    WorkerFailed,
)
from bert_serving.client.fleet import Fleet
from bert_serving.client.protocol import ErrorAnswer, Limits, Result, ViewArray, Welcome
from bert_serving.client.rows import unpack_rows
from bert_serving.client.view import DEFAULT_VIEW, View

TIMEOUT_S = 8.0
WELL_S = 5.0  # within which all is well again, once the servers are there
SERVERS = 3
ENDS = (RequestTimeout, Unavailable, Overloaded, DeadlineExceeded, WorkerFailed)
WINDOW, MAX_ROWS = 2, 3


@dataclass
class Server:
    """A server in the test's hands: what has reached it, and what of that it has not answered."""

    lives: int = 1
    state: str = "ready"
    is_up: bool = True
    is_cut: bool = False
    connection: int = 0
    open: dict[int, dict[str, Any]] = field(default_factory=dict)
    in_socket: list[dict[str, Any]] = field(default_factory=list)
    late: list[list[Any]] = field(default_factory=list)

    def welcome(self) -> list[Any]:
        limits = Limits(max_rows=MAX_ROWS, window=WINDOW)
        name = f"{self.lives}/{self.connection}"
        model = {"hidden_size": 1}
        return Welcome("server", self.state, limits, DEFAULT_VIEW, model, name).to_frames()


class FleetPromises(RuleBasedStateMachine):
    """Servers die, come back, drain, are cut off, answer late or twice, refuse, forget."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ends: dict[EncodeCall, int] = {}
        self.rows: dict[EncodeCall, list[str]] = {}
        self.servers = [Server() for _ in range(SERVERS)]
        self.fleet = Fleet("a test", ["a", "b", "c"], hedge_after_s=1.0)
        for number, server in enumerate(self.servers):
            self.fleet.receive(number, server.welcome(), self.now)

    # the shell's part

    def turn(self) -> None:
        self.fleet.advance(self.now)
        while (found := self.fleet.next_message(self.now)) is not None:
            number, frames = found
            message = msgpack.unpackb(frames[1])
            if message["type"] == "encode":
                message["texts"] = unpack_rows(frames[2], message["rows"], is_tokenized=False)
            self.servers[number].in_socket.append(message)
        for number, server in enumerate(self.servers):
            if server.is_up and not server.is_cut:
                self.arrive(number, server)

    def arrive(self, number: int, server: Server) -> None:
        messages, server.in_socket = server.in_socket, []
        for message in messages:
            if message["type"] == "hello":
                self.fleet.receive(number, server.welcome(), self.now)
            elif message["type"] == "cancel":
                for request_id in message["ids"]:
                    server.open.pop(request_id, None)
            elif server.state == "draining":
                self.refuse(number, message, "unavailable")
            else:
                assert message["id"] not in server.open, "an id that is open was used again"
                server.open[message["id"]] = message

    def refuse(self, number: int, message: dict[str, Any], code: str) -> None:
        self.fleet.receive(number, ErrorAnswer(message["id"], code, "no").to_frames(), self.now)

    def taken(self, index: int) -> tuple[int, dict[str, Any]] | None:
        """Take a request that some server has open, if there is any."""
        found = [
            (number, request_id)
            for number, server in enumerate(self.servers)
            if server.is_up and not server.is_cut
            for request_id in server.open
        ]
        if not found:
            return None
        number, request_id = found[index % len(found)]
        return number, self.servers[number].open.pop(request_id)

    # what happens

    @rule(count=st.integers(1, 12))
    def submit(self, count: int) -> None:
        rows = ["x" * (1 + (7 * len(self.rows) + number) % 50) for number in range(count)]
        call = EncodeCall(RowSource(rows), EncodeOptions({"embedding": View()}), TIMEOUT_S)
        self.rows[call], self.ends[call] = rows, 0
        call.on_done = self.counter(call)
        self.fleet.submit(call, self.now)
        self.turn()

    def counter(self, call: EncodeCall) -> Callable[[], None]:
        def count() -> None:
            self.ends[call] += 1

        return count

    @rule(index=st.integers(0, 20), twice=st.booleans(), keep=st.booleans())
    def answer(self, index: int, twice: bool, keep: bool) -> None:
        if (found := self.taken(index)) is None:
            return
        number, message = found
        values = np.array([[float(len(text))] for text in message["texts"]], np.float32)
        views = {"embedding": ViewArray(values)}
        result = Result(message["id"], views, n_tokens=[3] * message["rows"]).to_frames()
        if keep:
            self.servers[number].late.append(result)
        for _ in range(1 + twice):
            self.fleet.receive(number, result, self.now)
        self.turn()

    @rule(number=st.integers(0, SERVERS - 1))
    def answer_late_once_more(self, number: int) -> None:
        server = self.servers[number]
        if server.late and server.is_up and not server.is_cut:
            self.fleet.receive(number, server.late.pop(), self.now)
            self.turn()

    @rule(index=st.integers(0, 20), code=st.sampled_from(["overloaded", "unavailable"]))
    def refuse_one(self, index: int, code: str) -> None:
        if (found := self.taken(index)) is not None:
            self.refuse(*found, code)
            self.turn()

    @rule(number=st.integers(0, SERVERS - 1), loses=st.integers(0, 5))
    def die(self, number: int, loses: int) -> None:
        server = self.servers[number]
        server.is_up = False
        server.open.clear()
        server.late.clear()
        del server.in_socket[:loses]  # these were on their way, the rest waits in ZeroMQ

    @rule(number=st.integers(0, SERVERS - 1))
    def come_back(self, number: int) -> None:
        server = self.servers[number]
        if not server.is_up:
            server.is_up, server.state = True, "ready"
            server.lives += 1
        server.is_cut = False
        self.turn()

    @rule(number=st.integers(0, SERVERS - 1))
    def reconnect(self, number: int) -> None:
        server = self.servers[number]
        server.connection += 1
        server.open.clear()
        server.late.clear()
        self.turn()

    @rule(number=st.integers(0, SERVERS - 1), state=st.sampled_from(["draining", "ready"]))
    def change_state(self, number: int, state: str) -> None:
        self.servers[number].state = state

    @rule(number=st.integers(0, SERVERS - 1))
    def cut(self, number: int) -> None:
        self.servers[number].is_cut = True

    @rule(seconds=st.floats(0.01, 3.0))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while (wakeup := self.fleet.next_wakeup()) is not None and wakeup < until:
            self.now = max(self.now + 1e-3, wakeup)
            self.turn()
        self.now = until
        self.turn()

    @precondition(lambda self: any(call.deadline > self.now + WELL_S for call in self.open_calls()))
    @rule()
    def be_well_again(self) -> None:
        """With all servers there and willing, every call that has time left gets its rows."""
        waiting = [call for call in self.open_calls() if call.deadline > self.now + WELL_S]
        for number in range(SERVERS):
            self.come_back(number)
            self.servers[number].state = "ready"
        for _ in range(int(WELL_S / 0.05)):
            self.wait(0.05)
            for _ in range(3):
                self.answer(0, twice=False, keep=False)
        assert all(call.is_done and call.error is None for call in waiting)

    def open_calls(self) -> list[EncodeCall]:
        return [call for call in self.rows if not call.is_done]

    # what holds

    @invariant()
    def a_call_ends_once_with_right_rows_or_a_typed_error(self) -> None:
        for call, rows in self.rows.items():
            assert self.ends[call] == int(call.is_done)
            if not call.is_done:
                assert call.deadline > self.now
            elif call.error is None:
                found = call.encoding(lambda _: np.empty((0, 1))).views["embedding"]
                assert np.asarray(found)[:, 0].tolist() == [float(len(row)) for row in rows]
            else:
                assert isinstance(call.error, ENDS)

    @invariant()
    def no_server_has_more_than_its_window(self) -> None:
        for session in self.fleet.sessions:
            rows = sum(request.chunk.rows for request in session.open_requests)
            assert rows < (WINDOW + 1) * MAX_ROWS

    @invariant()
    def nothing_is_left_of_calls_that_are_done(self) -> None:
        if all(call.is_done for call in self.rows):
            assert not any(session.open_ids for session in self.fleet.sessions)
            assert not self.fleet._agenda.wants_servers
            assert self.fleet._agenda.waiting_rows == 0 == self.fleet._agenda.waiting_bytes


TestFleetPromises = FleetPromises.TestCase
TestFleetPromises.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
