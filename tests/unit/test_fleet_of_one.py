"""The client's half of the conversation with one server, with time as an argument."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import msgpack
import numpy as np
import pytest

from bert_serving.client.assembly import Encoding
from bert_serving.client.calls import (
    Call,
    EncodeCall,
    EncodeOptions,
    MembershipCall,
    StatusCall,
)
from bert_serving.client.chunking import RowSource
from bert_serving.client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MalformedMessage,
    Overloaded,
    RequestTimeout,
    ServerError,
    ServerUnreachable,
    TooLarge,
    Unavailable,
    VersionMismatch,
)
from bert_serving.client.fleet import Fleet
from bert_serving.client.frames import encode_message
from bert_serving.client.group_messages import BroadcastPart, Membership
from bert_serving.client.messages import GroupPart
from bert_serving.client.presence import LOST_S, PROBE_S, RECHECK_S
from bert_serving.client.protocol import ErrorAnswer, Limits, Result, Status, ViewArray, Welcome
from bert_serving.client.rows import unpack_rows
from bert_serving.client.session import MEMBERSHIP_INTERVAL_S
from bert_serving.client.view import DEFAULT_VIEW, View

TIMEOUT_S = 10.0
DIM = 2


def welcome(state: str = "ready", **limits: int) -> list[Any]:
    bounds = Limits(**{"max_rows": 2, "window": 3, **limits})
    return Welcome("server", state, bounds, DEFAULT_VIEW, {"hidden_size": DIM}).to_frames()


def a_fleet() -> Fleet:
    return Fleet("a test", ["tcp://server:5555"])


def welcomed(**limits: int) -> Fleet:
    """A fleet of a server that has said welcome."""
    fleet = a_fleet()
    fleet.receive(0, welcome(**limits), 0.0)
    return fleet


def a_call(rows: Iterable[Any], timeout_s: float = TIMEOUT_S, **options: Any) -> EncodeCall:
    views = options.pop("views", {"embedding": View()})
    return EncodeCall(RowSource(rows), EncodeOptions(views, **options), timeout_s)


def sent(fleet: Fleet, now: float = 0.0, *, with_hellos: bool = False) -> list[dict[str, Any]]:
    """The headers of all that the fleet has to send, with their rows; probes aside."""
    messages = []
    while found := fleet.next_message(now):
        frames = found[1]
        message = msgpack.unpackb(frames[1])
        if message["type"] == "hello" and not with_hellos:
            continue
        if message["type"] == "encode":
            message["texts"] = unpack_rows(frames[2], message["rows"], is_tokenized=False)
        messages.append(message)
    return messages


def value_of(text: str) -> list[float]:
    return [float(len(text)), 1.0]


def answer(message: dict[str, Any]) -> list[Any]:
    values = np.array([value_of(text) for text in message["texts"]], np.float32)
    views = {name: ViewArray(values) for name in message["views"]}
    return Result(message["id"], views, n_tokens=[3] * message["rows"]).to_frames()


def error(
    message: dict[str, Any] | None, code: str, retry_after_ms: int | None = None
) -> list[Any]:
    return ErrorAnswer(message and message["id"], code, "because", retry_after_ms).to_frames()


def encoding(call: EncodeCall) -> Encoding:
    return call.encoding(lambda _: np.empty((0, DIM), np.float32))


def vectors(call: EncodeCall) -> Any:
    return encoding(call).views["embedding"]


# the welcome


def test_a_fleet_says_hello_again_until_it_is_answered() -> None:
    fleet, call = a_fleet(), Call(TIMEOUT_S)
    fleet.hello(call, 0.0)
    assert [message["type"] for message in sent(fleet, with_hellos=True)] == ["hello"]
    assert sent(fleet, 0.1, with_hellos=True) == []
    assert fleet.next_wakeup() == 0.5
    assert [message["client"] for message in sent(fleet, 0.5, with_hellos=True)] == ["a test"]
    fleet.receive(0, welcome(), 0.6)
    assert call.is_done and call.error is None
    assert sent(fleet, 5.0, with_hellos=True) == []


def test_nothing_is_sent_to_a_server_that_still_starts() -> None:
    fleet, call = a_fleet(), a_call(["a"])
    fleet.receive(0, welcome("starting"), 0.0)
    fleet.submit(call, 0.0)
    assert [message["type"] for message in sent(fleet, with_hellos=True)] == ["hello"]
    fleet.receive(0, welcome("starting"), 0.1)
    assert [message["type"] for message in sent(fleet, 0.5, with_hellos=True)] == ["hello"]
    fleet.receive(0, welcome("ready"), 0.6)
    assert [message["type"] for message in sent(fleet, 0.6, with_hellos=True)] == ["encode"]


def test_an_unanswered_hello_ends_in_its_time() -> None:
    fleet, call = a_fleet(), Call(1.0)
    fleet.hello(call, 0.0)
    fleet.advance(0.99)
    assert not call.is_done
    fleet.advance(1.0)
    with pytest.raises(RequestTimeout, match=r"tcp://server:5555 within 1000 ms.*nothing"):
        call.raise_error()


def test_a_time_out_while_the_server_starts_says_so() -> None:
    fleet, call = a_fleet(), a_call(["a"])
    fleet.receive(0, welcome("starting"), 0.0)
    fleet.submit(call, 0.0)
    fleet.advance(TIMEOUT_S)
    with pytest.raises(RequestTimeout, match="none of its workers is ready yet"):
        call.raise_error()


# cutting, sending and putting together


def test_a_call_is_cut_and_kept_within_the_window() -> None:
    fleet, call = welcomed(max_rows=2, window=2), a_call(["a", "bb", "ccc", "dddd", "eeeee"])
    fleet.submit(call, 0.0)
    first, second = sent(fleet)
    assert (first["texts"], second["texts"]) == (["a", "bb"], ["ccc", "dddd"])
    fleet.receive(0, answer(second), 0.1)
    (third,) = sent(fleet, 0.1)
    assert third["texts"] == ["eeeee"]
    fleet.receive(0, answer(third), 0.2)
    assert not call.is_done
    fleet.receive(0, answer(first), 0.3)
    assert vectors(call)[:, 0].tolist() == [1, 2, 3, 4, 5]


def test_calls_take_turns() -> None:
    fleet = welcomed(max_rows=1, window=4)
    for letter in "xy":
        fleet.submit(a_call([letter] * 10), 0.0)
    assert [message["texts"] for message in sent(fleet)] == [["x"], ["y"], ["x"], ["y"]]


def test_rows_beyond_max_bytes_go_in_requests_of_their_own() -> None:
    fleet = welcomed(max_rows=10, max_bytes=50, window=10)
    fleet.submit(a_call(["a" * 20, "b" * 20, "c" * 70, "d", "e"]), 0.0)
    texts = [text for message in sent(fleet) for text in message["texts"]]
    assert [text[0] for text in texts] == ["a", "b", "c", "d", "e"]


def test_a_row_beyond_what_the_server_takes_ends_the_call() -> None:
    fleet, call = welcomed(max_bytes=50, max_request_bytes=60), a_call(["a", "b", "c" * 70])
    fleet.submit(call, 0.0)
    messages = sent(fleet)
    assert messages[-1] == {"type": "cancel", "ids": [messages[0]["id"]]}
    with pytest.raises(TooLarge, match=r"row 2 has 73 bytes, .* at most 60 "):
        call.raise_error()


def test_a_call_without_rows_is_done_at_once() -> None:
    fleet, call = welcomed(), a_call([])
    fleet.submit(call, 0.0)
    assert call.is_done
    assert encoding(call).n_tokens.shape == (0,)


def test_a_call_without_rows_waits_for_a_server_that_starts_to_say_what_its_model_is() -> None:
    fleet, call = a_fleet(), a_call([])
    starting = Welcome("server", "starting", Limits(), DEFAULT_VIEW, {})
    fleet.receive(0, starting.to_frames(), 0.0)
    fleet.submit(call, 0.0)
    assert [message["type"] for message in sent(fleet, with_hellos=True)] == ["hello"]
    assert not call.is_done
    fleet.receive(0, welcome(), 0.1)
    assert sent(fleet, 0.1) == []
    assert call.is_done
    empty = call.encoding(lambda name: fleet.empty_view(call, name)).views["embedding"]
    assert isinstance(empty, np.ndarray) and empty.shape == (0, DIM)


def test_an_iterator_is_drawn_from_as_requests_go_out() -> None:
    drawn = []

    def rows() -> Iterable[str]:
        for number in range(100):
            drawn.append(number)
            yield str(number)

    fleet = welcomed(max_rows=2, window=2)
    fleet.submit(a_call(rows()), 0.0)
    sent(fleet)
    assert len(drawn) == 4


def test_an_iterators_own_error_ends_the_call_and_cancels_what_was_sent() -> None:
    def rows() -> Iterable[str]:
        yield from ["a", "b", "c"]
        raise KeyError("lost")

    fleet, call, other = welcomed(max_rows=1, window=9), a_call(rows()), a_call(["d"])
    fleet.submit(call, 0.0)
    fleet.submit(other, 0.0)
    messages = sent(fleet)
    with pytest.raises(KeyError, match="lost"):
        call.raise_error()
    theirs = [message["id"] for message in messages[:-1] if message["texts"] != ["d"]]
    assert messages[-1] == {"type": "cancel", "ids": theirs}
    assert not other.is_done


def test_several_views_are_put_together() -> None:
    fleet, call = welcomed(), a_call(["a", "b"], views={"x": View(), "y": View(dims=1)})
    fleet.submit(call, 0.0)
    fleet.receive(0, answer(*sent(fleet)), 0.1)
    assert list(encoding(call).views) == ["x", "y"]


def test_the_callers_view_decides_the_shape_of_no_rows() -> None:
    fleet = welcomed()
    call = a_call([], views={"both": View(pooling="mean_max"), "tokens": View(pooling="none")})
    both = fleet.empty_view(call, "both")
    assert isinstance(both, np.ndarray) and both.shape == (0, 2 * DIM)
    assert fleet.empty_view(call, "tokens") == []


# time


def test_a_call_without_an_answer_ends_in_its_time_and_is_cancelled() -> None:
    fleet, call = welcomed(), a_call(["a"])
    fleet.submit(call, 0.0)
    (message,) = sent(fleet)
    assert message["ttl_ms"] == 10_000
    fleet.advance(TIMEOUT_S - 0.01)
    assert not call.is_done
    fleet.advance(TIMEOUT_S)
    assert sent(fleet, TIMEOUT_S) == [{"type": "cancel", "ids": [message["id"]]}]
    with pytest.raises(RequestTimeout, match="10000 ms"):
        call.raise_error()
    fleet.receive(0, answer(message), TIMEOUT_S)  # too late: ignored


def test_each_answer_starts_the_time_anew() -> None:
    fleet, call = welcomed(max_rows=1, window=1), a_call(["a", "b"])
    fleet.submit(call, 0.0)
    (first,) = sent(fleet)
    fleet.receive(0, answer(first), 9.0)
    (second,) = sent(fleet, 9.0)
    fleet.advance(18.9)
    assert not call.is_done
    assert second["ttl_ms"] == 10_000
    fleet.advance(19.0)
    assert isinstance(call.error, RequestTimeout)


def test_a_call_may_wait_for_its_turn_as_long_as_others_are_answered() -> None:
    fleet, calls = welcomed(max_rows=1, window=1), [a_call(["a"]) for _ in range(5)]
    for call in calls:
        fleet.submit(call, 0.0)
    now = 0.0
    for _ in calls:
        (message,) = sent(fleet, now)
        assert message["ttl_ms"] == 10_000
        now += 6.0
        fleet.advance(now - 0.01)
        fleet.receive(0, answer(message), now)
        fleet.advance(now)
    assert [call.error for call in calls if call.is_done] == [None] * 5


def test_calls_that_wait_for_their_turn_end_in_their_time_after_the_last_answer() -> None:
    fleet, calls = welcomed(max_rows=1, window=1), [a_call(["a"]) for _ in range(5)]
    for call in calls:
        fleet.submit(call, 0.0)
    (message,) = sent(fleet)
    fleet.receive(0, answer(message), 6.0)
    assert len(sent(fleet, 6.0)) == 1
    for now in (TIMEOUT_S, 6.0 + TIMEOUT_S - 0.01):
        fleet.advance(now)
        assert [call.is_done for call in calls] == [True] + [False] * 4
    fleet.advance(6.0 + TIMEOUT_S)
    assert all(isinstance(call.error, RequestTimeout) for call in calls[1:])


class SlowRows:
    """An iterator of rows that takes longer for each than a server may for an answer."""

    def __init__(self, count: int) -> None:
        self.now = 0.0
        self._left = count

    def __iter__(self) -> SlowRows:
        return self

    def __next__(self) -> str:
        self.now += 2 * TIMEOUT_S
        self._left -= 1
        if self._left < 0:
            raise StopIteration
        return "a"

    def sent(self, fleet: Fleet) -> list[dict[str, Any]]:
        """Turn as a shell does, whose clock goes on while rows are drawn."""
        messages = []
        while found := fleet.next_message(self.now):
            messages.append(msgpack.unpackb(found[1][1]))
        fleet.advance(self.now)
        return [message for message in messages if message["type"] == "encode"]


def test_the_time_that_an_iterator_takes_is_not_the_servers() -> None:
    rows, fleet = SlowRows(3), welcomed(max_rows=1, window=1)
    call = a_call(rows)
    fleet.submit(call, 0.0)
    for _ in range(3):
        (message,) = rows.sent(fleet)
        assert message["ttl_ms"] == 10_000
        fleet.receive(0, answer({**message, "texts": ["a"]}), rows.now + 9.0)
        rows.now += 9.0
    assert rows.sent(fleet) == []
    assert vectors(call).shape == (3, DIM)


def test_a_server_that_does_not_answer_a_slow_iterators_rows_ends_the_call_in_its_time() -> None:
    rows, fleet = SlowRows(99), welcomed(max_rows=1, window=3)
    call = a_call(rows)
    fleet.submit(call, 0.0)
    assert rows.sent(fleet)
    fleet.advance(rows.now + TIMEOUT_S - 0.01)
    assert not call.is_done
    fleet.advance(rows.now + TIMEOUT_S)
    assert isinstance(call.error, RequestTimeout)


def test_no_timeout_never_ends() -> None:
    fleet, call = welcomed(), a_call(["a"], float("inf"))
    fleet.submit(call, 0.0)
    (message,) = sent(fleet)
    assert message["ttl_ms"] == 7 * 24 * 3600 * 1000
    fleet.advance(1e9)
    assert not call.is_done


# errors


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("invalid_request", InvalidRequest),
        ("deadline_exceeded", DeadlineExceeded),
        ("something new", ServerError),
    ],
)
def test_an_error_ends_its_call_alone(code: str, kind: type[Exception]) -> None:
    fleet, call, other = welcomed(max_rows=1, window=9), a_call(["a", "b"]), a_call(["c"])
    fleet.submit(call, 0.0)
    fleet.submit(other, 0.0)
    messages = {message["texts"][0]: message for message in sent(fleet)}
    fleet.receive(0, error(messages["a"], code), 0.1)
    with pytest.raises(kind, match="because"):
        call.raise_error()
    assert sent(fleet, 0.1) == [{"type": "cancel", "ids": [messages["b"]["id"]]}]
    fleet.receive(0, answer(messages["c"]), 0.2)
    assert other.is_done and other.error is None


def test_an_error_that_names_no_request_ends_every_call() -> None:
    fleet, calls = welcomed(), [a_call(["a"]), StatusCall(TIMEOUT_S)]
    fleet.submit(calls[0], 0.0)  # type: ignore[arg-type]
    fleet.request_status(calls[1], 0.0)  # type: ignore[arg-type]
    sent(fleet)
    fleet.receive(0, error(None, "invalid_request"), 0.1)
    for call in calls:
        with pytest.raises(InvalidRequest):
            call.raise_error()
    assert isinstance(fleet.refusal, InvalidRequest)


@pytest.mark.parametrize(
    ("frames", "kind"),
    [
        ([b"nonsense"], MalformedMessage),
        ([b"HTTP", b"/1.1"], MalformedMessage),
        ([b"BERT\x07", b"\x80"], VersionMismatch),
        (encode_message({"type": "surprise"}), MalformedMessage),
        ([], MalformedMessage),
    ],
    ids=["nonsense", "http", "version", "type", "nothing"],
)
def test_a_peer_that_speaks_otherwise_ends_every_call(
    frames: list[bytes], kind: type[Exception]
) -> None:
    fleet, call = a_fleet(), Call(TIMEOUT_S)
    fleet.hello(call, 0.0)
    fleet.receive(0, frames, 0.1)
    with pytest.raises(kind, match="tcp://server:5555"):
        call.raise_error()


def test_an_answer_that_is_not_for_what_was_asked_ends_the_call() -> None:
    fleet, call = welcomed(), a_call(["a", "b"])
    fleet.submit(call, 0.0)
    (message,) = sent(fleet)
    fleet.receive(0, answer({**message, "rows": 1, "texts": ["a"]}), 0.1)
    with pytest.raises(MalformedMessage, match="answered 1 rows"):
        call.raise_error()


@pytest.mark.parametrize("frames", [Status(99, {}).to_frames(), error({"id": 99}, "overloaded")])
def test_answers_to_nobody_are_ignored(frames: list[Any]) -> None:
    fleet, call = welcomed(), a_call(["a"])
    fleet.submit(call, 0.0)
    (message,) = sent(fleet)
    fleet.receive(0, frames, 0.1)
    fleet.receive(0, answer(message), 0.2)
    fleet.receive(0, answer(message), 0.3)
    assert vectors(call).shape == (1, DIM)


def test_a_closed_fleet_ends_its_calls() -> None:
    fleet, call = welcomed(), a_call(["a"])
    fleet.submit(call, 0.0)
    fleet.close(ServerUnreachable("closed"))
    with pytest.raises(ServerUnreachable):
        call.raise_error()
    assert sent(fleet) == []


def test_a_closed_fleet_tells_the_server_what_need_not_be_computed() -> None:
    fleet = welcomed(max_rows=1, window=2)
    fleet.submit(a_call(["a", "b", "c"]), 0.0)
    ids = [message["id"] for message in sent(fleet)]
    fleet.close(ServerUnreachable("closed"))
    assert sent(fleet) == [{"type": "cancel", "ids": ids}]


def test_an_abandoned_call_is_cancelled_and_not_sent_on() -> None:
    fleet, call = welcomed(max_rows=1, window=2), a_call(["a", "b", "c"])
    fleet.submit(call, 0.0)
    messages = sent(fleet)
    fleet.abandon(call)
    ids = [message["id"] for message in messages]
    assert sent(fleet, 1.0) == [{"type": "cancel", "ids": ids}]
    fleet.receive(0, answer(messages[0]), 1.0)
    assert sent(fleet, 2.0) == []


# overload


def test_an_overloaded_server_is_asked_again_when_it_says() -> None:
    fleet, call = welcomed(), a_call(["a"])
    fleet.submit(call, 0.0)
    (message,) = sent(fleet)
    fleet.receive(0, error(message, "overloaded", 700), 1.0)
    assert sent(fleet, 1.69) == []
    assert fleet.next_wakeup() == pytest.approx(1.7)
    (again,) = sent(fleet, 1.7)
    assert (again["texts"], again["ttl_ms"]) == (["a"], 8_300)
    fleet.receive(0, answer(again), 2.0)
    assert call.is_done and call.error is None


def test_a_refused_request_goes_out_as_soon_as_another_is_answered() -> None:
    fleet, call = welcomed(max_rows=1, window=2), a_call(["a", "b"])
    fleet.submit(call, 0.0)
    first, second = sent(fleet)
    fleet.receive(0, error(second, "overloaded", 5_000), 0.1)
    fleet.receive(0, answer(first), 0.2)
    assert [message["texts"] for message in sent(fleet, 0.2)] == [["b"]]


def test_waits_grow_but_not_beyond_half_a_second_of_the_clients_own() -> None:
    fleet, call = welcomed(), a_call(["a"])
    fleet.submit(call, 0.0)
    now, waits = 0.0, []
    (message,) = sent(fleet)
    for _ in range(6):
        fleet.receive(0, error(message, "overloaded"), now)
        refused_at = now
        while not (messages := sent(fleet, now)):
            now = fleet.next_wakeup() or now
        (message,) = messages
        waits.append(round(now - refused_at, 6))
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.4, 0.4]


def test_a_call_that_cannot_be_asked_again_in_time_ends_overloaded() -> None:
    fleet, call = welcomed(), a_call(["a"])
    fleet.submit(call, 0.0)
    (message,) = sent(fleet)
    fleet.receive(0, error(message, "overloaded", 10_000), 0.1)
    with pytest.raises(Overloaded):
        call.raise_error()


def test_refusals_are_no_answers_however_many_requests_are_open() -> None:
    fleet, call = welcomed(max_rows=1, window=3), a_call(["a", "b", "c"])
    fleet.submit(call, 0.0)
    now = 0.0
    while not call.is_done and now < 5 * TIMEOUT_S:
        for message in sent(fleet, now):
            fleet.receive(0, error(message, "overloaded", 900), now)
        now += 1.0
        fleet.advance(now)
    assert now <= TIMEOUT_S
    assert isinstance(call.error, (Overloaded, RequestTimeout))


def test_the_window_shrinks_when_the_server_is_overloaded_and_grows_again() -> None:
    fleet, call = welcomed(max_rows=1, window=4), a_call([str(i) for i in range(50)])
    fleet.submit(call, 0.0)
    messages = sent(fleet)
    assert len(messages) == 4
    for message in messages[:3]:
        fleet.receive(0, error(message, "overloaded"), 0.0)
    fleet.receive(0, answer(messages[3]), 0.1)
    again = sent(fleet, 1.0)
    assert len(again) == 2  # of those refused, and nothing new
    for message in again:
        fleet.receive(0, answer(message), 1.1)
    assert len(sent(fleet, 1.2)) == 4


def test_a_request_may_wait_for_each_answer_before_its_own() -> None:
    fleet, call = welcomed(max_rows=1, window=3), a_call(["a", "b", "c"])
    fleet.submit(call, 0.0)
    assert [message["ttl_ms"] for message in sent(fleet)] == [10_000, 20_000, 30_000]


def test_a_request_whose_time_was_up_goes_out_again_if_its_call_has_got_answers() -> None:
    fleet, call = welcomed(max_rows=1, window=2), a_call(["a", "b", "c"])
    fleet.submit(call, 0.0)
    first, second = sent(fleet)
    fleet.receive(0, answer(first), 9.0)
    (third,) = sent(fleet, 9.0)
    fleet.receive(0, answer(third), 18.0)  # cut after the second one, answered before it
    fleet.receive(0, error(second, "deadline_exceeded"), 20.0)
    (again,) = sent(fleet, 20.0)
    assert (again["texts"], again["ttl_ms"]) == (["b"], 8_000)
    fleet.receive(0, error(again, "deadline_exceeded"), 27.9)
    with pytest.raises(DeadlineExceeded):
        call.raise_error()


def test_a_finished_call_and_its_arrays_are_let_go_at_once() -> None:
    fleet, call = welcomed(), a_call(["a"])
    fleet.submit(call, 0.0)
    fleet.receive(0, answer(sent(fleet)[0]), 0.1)
    assert call.is_done
    watcher = weakref.ref(call)
    del call
    assert watcher() is None


# groups


def a_group_call(rows: Iterable[Any], group: str = "readers") -> EncodeCall:
    views = {"embedding": View()}
    options = EncodeOptions(views, group=group, sender="me")
    return EncodeCall(RowSource(rows), options, TIMEOUT_S)


def member_of(fleet: Fleet, groups: list[str], now: float = 0.0) -> MembershipCall:
    call = MembershipCall(TIMEOUT_S)
    fleet.set_groups(call, groups, now)
    return call


def test_a_member_is_one_when_the_server_has_said_so() -> None:
    fleet = welcomed()
    call = member_of(fleet, ["readers"])
    (message,) = sent(fleet)
    assert message == {"type": "membership", "id": message["id"], "groups": ["readers"]}
    assert not call.is_done
    fleet.receive(0, Membership(message["id"], ["readers"]).to_frames(), 0.1)
    assert call.is_done and call.error is None


def test_a_member_says_again_what_it_is_in_as_long_as_it_is_in_any() -> None:
    fleet = welcomed()
    member_of(fleet, ["readers"])
    (first,) = sent(fleet)
    fleet.receive(0, Membership(first["id"], ["readers"]).to_frames(), 0.1)
    assert sent(fleet, MEMBERSHIP_INTERVAL_S - 0.01) == []
    assert fleet.next_wakeup() == MEMBERSHIP_INTERVAL_S
    (again,) = sent(fleet, MEMBERSHIP_INTERVAL_S)
    assert again["groups"] == ["readers"] and again["id"] != first["id"]
    fleet.receive(0, Membership(again["id"], ["readers"]).to_frames(), 6.0)
    member_of(fleet, [], 6.0)
    assert [message["groups"] for message in sent(fleet, 6.0)] == [[]]
    assert sent(fleet, 100.0) == []


def test_a_refused_member_is_in_what_it_was_in() -> None:
    fleet = welcomed()
    member_of(fleet, ["one"])
    call = member_of(fleet, ["one", "two"])
    _, message = sent(fleet)
    fleet.receive(0, error(message, "overloaded"), 0.1)
    with pytest.raises(Overloaded):
        call.raise_error()
    assert fleet.only.groups == ["one"]


def test_a_membership_that_is_not_answered_ends_in_its_time() -> None:
    fleet = welcomed()
    call = member_of(fleet, ["readers"])
    sent(fleet)
    fleet.advance(TIMEOUT_S)
    with pytest.raises(RequestTimeout):
        call.raise_error()


def test_an_answer_of_another_kind_is_no_answer() -> None:
    fleet = welcomed()
    call = member_of(fleet, ["readers"])
    (message,) = sent(fleet)
    fleet.receive(0, Status(message["id"], {}).to_frames(), 0.1)
    with pytest.raises(MalformedMessage, match="not asked"):
        call.raise_error()


def test_the_requests_of_a_call_say_which_part_of_it_they_are() -> None:
    fleet, call = welcomed(max_rows=2, window=3), a_group_call(["a", "b", "c"])
    fleet.submit(call, 0.0)
    parts = [message["group"] for message in sent(fleet)]
    assert [(part["start"], part["total"]) for part in parts] == [(0, 3), (2, 3)]
    assert {(part["name"], part["sender"]) for part in parts} == {("readers", "me")}
    other = a_group_call(["d"])
    fleet.submit(other, 0.0)
    (message,) = sent(fleet)
    assert message["group"]["call"] not in {part["call"] for part in parts}
    assert len({part["call"] for part in parts}) == 1


def test_what_others_send_is_put_together_and_waits_to_be_read() -> None:
    fleet = welcomed()
    for start, text in ((1, "bb"), (0, "a")):
        view = ViewArray(np.array([value_of(text)], np.float32))
        result = Result(9, {"embedding": view}, n_tokens=[3])
        part = BroadcastPart(GroupPart("readers", "you", 4, start, 2), "there", result)
        fleet.receive(0, part.to_frames(), 0.0)
    broadcast = fleet.only.broadcasts.take()
    assert (broadcast.group, broadcast.sender) == ("readers", "you")
    assert broadcast.embedding.tolist() == [value_of("a"), value_of("bb")]


# a server that is gone, and comes back


def welcome_on(connection: str, state: str = "ready", **limits: int) -> list[Any]:
    bounds = Limits(**{"max_rows": 2, "window": 3, **limits})
    model = {"hidden_size": DIM}
    return Welcome("server", state, bounds, DEFAULT_VIEW, model, connection).to_frames()


def connected(**limits: int) -> Fleet:
    fleet = a_fleet()
    fleet.receive(0, welcome_on("first", **limits), 0.0)
    return fleet


def test_a_silent_server_is_asked_whether_it_is_there() -> None:
    fleet = connected()
    fleet.submit(a_call(["a"]), 0.0)
    sent(fleet)
    assert fleet.next_wakeup() == PROBE_S
    (hello,) = sent(fleet, PROBE_S, with_hellos=True)
    assert hello["type"] == "hello"
    fleet.receive(0, welcome_on("first"), PROBE_S)
    assert sent(fleet, PROBE_S, with_hellos=True) == []  # it is there, and has everything still


def test_a_server_that_owes_nothing_is_not_asked() -> None:
    fleet, call = connected(), a_call(["a"])
    fleet.submit(call, 0.0)
    fleet.receive(0, answer(*sent(fleet)), 0.1)
    assert sent(fleet, 100.0, with_hellos=True) == []
    assert fleet.next_wakeup() is None
    fleet.submit(a_call(["b"]), 100.0)
    assert [message["type"] for message in sent(fleet, 100.0, with_hellos=True)] == ["encode"]


def test_what_was_open_on_a_lost_connection_is_sent_again_under_new_ids() -> None:
    fleet, call = connected(), a_call(["a", "b", "c"])
    fleet.submit(call, 0.0)
    first, second = sent(fleet)
    fleet.receive(0, answer(first), 0.1)
    fleet.receive(0, welcome_on("second"), 1.0)
    cancel, again = sent(fleet, 1.0)
    assert cancel == {"type": "cancel", "ids": [second["id"]]}  # ZeroMQ may have sent it again
    assert again["texts"] == ["c"] and again["id"] not in (first["id"], second["id"])
    assert again["ttl_ms"] == 9_100
    fleet.receive(0, answer(second), 1.1)  # late: not wanted any more
    assert not call.is_done
    fleet.receive(0, answer(again), 1.2)
    fleet.receive(0, answer(again), 1.3)
    assert vectors(call).tolist() == [value_of(text) for text in "abc"]


def hellos_of_a_busy_client(fleet: Fleet, until: float) -> list[float]:
    """Send a call after another, each answered soon; returns when hellos went out."""
    found, now = [], 0.0
    while now < until:
        fleet.submit(a_call(["quick"]), now)
        for message in sent(fleet, now, with_hellos=True):
            if message["type"] == "hello":
                found.append(now)
            elif message["type"] == "encode" and message["texts"] == ["quick"]:
                fleet.receive(0, answer(message), now + 0.05)
        now = round(now + 0.1, 1)
        fleet.advance(now)
    return found


def test_what_was_lost_is_noticed_while_the_server_answers_what_came_later() -> None:
    fleet, call = connected(max_rows=1, window=9), a_call(["lost"])
    fleet.submit(call, 0.0)
    assert [message["texts"] for message in sent(fleet)] == [["lost"]]
    (asked_at,) = hellos_of_a_busy_client(fleet, RECHECK_S + 0.1)
    assert asked_at == RECHECK_S
    fleet.receive(0, welcome_on("second"), 2.1)
    _, again = sent(fleet, RECHECK_S + 0.1)
    fleet.receive(0, answer(again), 2.2)
    assert vectors(call).tolist() == [value_of("lost")]


def test_what_is_slow_is_not_sent_again_while_the_server_answers_what_came_later() -> None:
    fleet, call = connected(max_rows=1, window=9), a_call(["slow"])
    fleet.submit(call, 0.0)
    (message,) = sent(fleet)
    hellos_of_a_busy_client(fleet, RECHECK_S + 0.1)
    fleet.receive(0, welcome_on("first"), 2.1)
    assert sent(fleet, RECHECK_S + 0.1) == []
    fleet.receive(0, answer(message), 2.2)
    assert vectors(call).tolist() == [value_of("slow")]


def test_asking_for_more_does_not_put_off_what_was_asked_before() -> None:
    fleet = connected()
    fleet.submit(a_call(["lost"]), 0.0)
    hellos = 0
    for tenth in range(25):
        now = tenth / 10
        fleet.request_status(StatusCall(TIMEOUT_S), now)
        for message in sent(fleet, now, with_hellos=True):
            hellos += message["type"] == "hello"
            if message["type"] == "status":
                fleet.receive(0, Status(message["id"], {}).to_frames(), now)
    assert hellos == 1


def test_a_busy_client_says_hello_now_and_then_only_while_something_is_open() -> None:
    assert hellos_of_a_busy_client(connected(), 10.0) == []
    fleet = connected(max_rows=1, window=9)
    fleet.submit(a_call(["slow"]), 0.0)
    assert len(hellos_of_a_busy_client(fleet, 9.0)) == 4


def test_a_lost_server_gets_nothing_new_until_it_is_back() -> None:
    fleet, call = connected(max_rows=1, window=1), a_call(["a", "b"])
    fleet.submit(call, 0.0)
    (first,) = sent(fleet)
    for now in (PROBE_S, PROBE_S + LOST_S):
        sent(fleet, now)
    fleet.submit(a_call(["c"]), 3.0)
    assert {message["type"] for message in sent(fleet, 3.0, with_hellos=True)} <= {"hello"}
    fleet.receive(0, answer(first), 3.5)  # it was only slow
    assert [message["texts"] for message in sent(fleet, 3.5)] == [["b"]]


def test_the_time_out_of_a_lost_server_says_so() -> None:
    fleet, call = connected(), a_call(["a"])
    fleet.submit(call, 0.0)
    for now in range(int(TIMEOUT_S) + 1):
        sent(fleet, float(now))
        fleet.advance(float(now))
    with pytest.raises(RequestTimeout, match="the network is cut, or the server has ended"):
        call.raise_error()


def test_a_stopping_server_is_waited_for_until_another_is_in_its_place() -> None:
    fleet, call = connected(), a_call(["a"])
    fleet.submit(call, 0.0)
    (first,) = sent(fleet)
    fleet.receive(0, error(first, "unavailable"), 0.1)
    (hello,) = sent(fleet, 0.1, with_hellos=True)
    assert hello["type"] == "hello"
    fleet.receive(0, welcome_on("first", "draining"), 0.2)
    assert sent(fleet, 0.3) == []
    fleet.receive(0, welcome_on("second", "starting"), 1.0)
    assert sent(fleet, 1.1) == []
    fleet.receive(0, welcome_on("second"), 2.0)
    (again,) = sent(fleet, 2.0)
    fleet.receive(0, answer(again), 2.1)
    assert vectors(call).tolist() == [value_of("a")]


def test_a_stopping_server_without_another_ends_the_call_at_its_deadline() -> None:
    fleet, call = connected(), a_call(["a"])
    fleet.submit(call, 0.0)
    fleet.receive(0, error(*sent(fleet), "unavailable"), 0.1)
    fleet.advance(TIMEOUT_S - 0.1)
    assert not call.is_done
    fleet.advance(TIMEOUT_S)
    with pytest.raises(Unavailable, match="because"):
        call.raise_error()


def test_status_and_groups_are_asked_again_on_a_new_connection() -> None:
    fleet, call = connected(), StatusCall(TIMEOUT_S)
    fleet.request_status(call, 0.0)
    member_of(fleet, ["readers"])
    sent(fleet)
    fleet.receive(0, welcome_on("second"), 1.0)
    again = sent(fleet, 1.0)
    assert sorted(message["type"] for message in again) == ["membership", "status"]
    (status,) = [message for message in again if message["type"] == "status"]
    fleet.receive(0, Status(status["id"], {"state": "ready"}).to_frames(), 1.1)
    assert call.status == {"state": "ready"}


def test_a_request_that_a_new_server_does_not_take_ends_its_call() -> None:
    fleet, call = connected(max_bytes=100), a_call(["a" * 50])
    fleet.submit(call, 0.0)
    sent(fleet)
    fleet.receive(0, welcome_on("second", max_request_bytes=20, max_bytes=20), 1.0)
    sent(fleet, 1.0)
    with pytest.raises(TooLarge, match="takes only 20 now"):
        call.raise_error()
