"""The client's half of the conversation: a session in a test's hands, with time as an argument."""

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
from bert_serving.client.frames import encode_message
from bert_serving.client.group_messages import BroadcastPart, Membership
from bert_serving.client.messages import GroupPart
from bert_serving.client.protocol import ErrorAnswer, Limits, Result, Status, ViewArray, Welcome
from bert_serving.client.rows import unpack_rows
from bert_serving.client.session import MEMBERSHIP_INTERVAL_S, Session
from bert_serving.client.view import DEFAULT_VIEW, View

TIMEOUT_S = 10.0
DIM = 2


def welcome(state: str = "ready", **limits: int) -> list[Any]:
    bounds = Limits(**{"max_rows": 2, "window": 3, **limits})
    return Welcome("server", state, bounds, DEFAULT_VIEW, {"hidden_size": DIM}).to_frames()


def a_session(**limits: int) -> Session:
    """A session that has been welcomed."""
    session = Session("a test", "tcp://server:5555")
    session.receive(welcome(**limits), 0.0)
    return session


def a_call(rows: Iterable[Any], timeout_s: float = TIMEOUT_S, **options: Any) -> EncodeCall:
    views = options.pop("views", {"embedding": View()})
    return EncodeCall(RowSource(rows), EncodeOptions(views, **options), timeout_s)


def sent(session: Session, now: float = 0.0) -> list[dict[str, Any]]:
    """The headers of all that the session has to send, with their rows."""
    messages = []
    while frames := session.next_message(now):
        message = msgpack.unpackb(frames[1])
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


def test_a_session_says_hello_again_until_it_is_answered() -> None:
    session, call = Session("a test", "tcp://server:5555"), Call(TIMEOUT_S)
    session.hello(call, 0.0)
    assert [message["type"] for message in sent(session)] == ["hello"]
    assert sent(session, 0.1) == []
    assert session.next_wakeup() == 0.5
    assert [message["client"] for message in sent(session, 0.5)] == ["a test"]
    session.receive(welcome(), 0.6)
    assert call.is_done and call.error is None
    assert sent(session, 5.0) == []


def test_nothing_is_sent_to_a_server_that_still_starts() -> None:
    session, call = Session("a test", "tcp://server:5555"), a_call(["a"])
    session.receive(welcome("starting"), 0.0)
    session.submit(call, 0.0)
    assert [message["type"] for message in sent(session)] == ["hello"]
    session.receive(welcome("starting"), 0.1)
    assert [message["type"] for message in sent(session, 0.5)] == ["hello"]
    session.receive(welcome("ready"), 0.6)
    assert [message["type"] for message in sent(session, 0.6)] == ["encode"]


def test_an_unanswered_hello_ends_in_its_time() -> None:
    session, call = Session("a test", "tcp://server:5555"), Call(1.0)
    session.hello(call, 0.0)
    session.advance(0.99)
    assert not call.is_done
    session.advance(1.0)
    with pytest.raises(RequestTimeout, match=r"tcp://server:5555 within 1000 ms.*nothing"):
        call.raise_error()


def test_a_time_out_while_the_server_starts_says_so() -> None:
    session, call = Session("a test", "tcp://server:5555"), a_call(["a"])
    session.receive(welcome("starting"), 0.0)
    session.submit(call, 0.0)
    session.advance(TIMEOUT_S)
    with pytest.raises(RequestTimeout, match="none of its workers is ready yet"):
        call.raise_error()


# cutting, sending and putting together


def test_a_call_is_cut_and_kept_within_the_window() -> None:
    session, call = a_session(max_rows=2, window=2), a_call(["a", "bb", "ccc", "dddd", "eeeee"])
    session.submit(call, 0.0)
    first, second = sent(session)
    assert (first["texts"], second["texts"]) == (["a", "bb"], ["ccc", "dddd"])
    session.receive(answer(second), 0.1)
    (third,) = sent(session, 0.1)
    assert third["texts"] == ["eeeee"]
    session.receive(answer(third), 0.2)
    assert not call.is_done
    session.receive(answer(first), 0.3)
    assert vectors(call)[:, 0].tolist() == [1, 2, 3, 4, 5]


def test_calls_take_turns() -> None:
    session = a_session(max_rows=1, window=4)
    for letter in "xy":
        session.submit(a_call([letter] * 10), 0.0)
    assert [message["texts"] for message in sent(session)] == [["x"], ["y"], ["x"], ["y"]]


def test_rows_beyond_max_bytes_go_in_requests_of_their_own() -> None:
    session = a_session(max_rows=10, max_bytes=50, window=10)
    session.submit(a_call(["a" * 20, "b" * 20, "c" * 70, "d", "e"]), 0.0)
    texts = [text for message in sent(session) for text in message["texts"]]
    assert [text[0] for text in texts] == ["a", "b", "c", "d", "e"]


def test_a_row_beyond_what_the_server_takes_ends_the_call() -> None:
    session, call = a_session(max_bytes=50, max_request_bytes=60), a_call(["a", "b", "c" * 70])
    session.submit(call, 0.0)
    messages = sent(session)
    assert messages[-1] == {"type": "cancel", "ids": [messages[0]["id"]]}
    with pytest.raises(TooLarge, match=r"row 2 has 73 bytes, .* at most 60 "):
        call.raise_error()


def test_a_call_without_rows_is_done_at_once() -> None:
    session, call = a_session(), a_call([])
    session.submit(call, 0.0)
    assert call.is_done
    assert encoding(call).n_tokens.shape == (0,)


def test_an_iterator_is_drawn_from_as_requests_go_out() -> None:
    drawn = []

    def rows() -> Iterable[str]:
        for number in range(100):
            drawn.append(number)
            yield str(number)

    session = a_session(max_rows=2, window=2)
    session.submit(a_call(rows()), 0.0)
    sent(session)
    assert len(drawn) == 4


def test_an_iterators_own_error_ends_the_call_and_cancels_what_was_sent() -> None:
    def rows() -> Iterable[str]:
        yield from ["a", "b", "c"]
        raise KeyError("lost")

    session, call, other = a_session(max_rows=1, window=9), a_call(rows()), a_call(["d"])
    session.submit(call, 0.0)
    session.submit(other, 0.0)
    messages = sent(session)
    with pytest.raises(KeyError, match="lost"):
        call.raise_error()
    theirs = [message["id"] for message in messages[:-1] if message["texts"] != ["d"]]
    assert messages[-1] == {"type": "cancel", "ids": theirs}
    assert not other.is_done


def test_several_views_are_put_together() -> None:
    session, call = a_session(), a_call(["a", "b"], views={"x": View(), "y": View(dims=1)})
    session.submit(call, 0.0)
    session.receive(answer(*sent(session)), 0.1)
    assert list(encoding(call).views) == ["x", "y"]


def test_the_callers_view_decides_the_shape_of_no_rows() -> None:
    session = a_session()
    call = a_call([], views={"both": View(pooling="mean_max"), "tokens": View(pooling="none")})
    both = session.empty_view(call, "both")
    assert isinstance(both, np.ndarray) and both.shape == (0, 2 * DIM)
    assert session.empty_view(call, "tokens") == []


# time


def test_a_call_without_an_answer_ends_in_its_time_and_is_cancelled() -> None:
    session, call = a_session(), a_call(["a"])
    session.submit(call, 0.0)
    (message,) = sent(session)
    assert message["ttl_ms"] == 10_000
    assert session.next_wakeup() == TIMEOUT_S
    session.advance(TIMEOUT_S)
    assert sent(session, TIMEOUT_S) == [{"type": "cancel", "ids": [message["id"]]}]
    with pytest.raises(RequestTimeout, match="10000 ms"):
        call.raise_error()
    session.receive(answer(message), TIMEOUT_S)  # too late: ignored


def test_each_answer_starts_the_time_anew() -> None:
    session, call = a_session(max_rows=1, window=1), a_call(["a", "b"])
    session.submit(call, 0.0)
    (first,) = sent(session)
    session.receive(answer(first), 9.0)
    (second,) = sent(session, 9.0)
    session.advance(18.9)
    assert not call.is_done
    assert second["ttl_ms"] == 10_000
    session.advance(19.0)
    assert isinstance(call.error, RequestTimeout)


def test_no_timeout_never_ends() -> None:
    session, call = a_session(), a_call(["a"], float("inf"))
    session.submit(call, 0.0)
    (message,) = sent(session)
    assert message["ttl_ms"] == 7 * 24 * 3600 * 1000
    assert session.next_wakeup() is None
    session.advance(1e9)
    assert not call.is_done


# errors


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("invalid_request", InvalidRequest),
        ("unavailable", Unavailable),
        ("deadline_exceeded", DeadlineExceeded),
        ("something new", ServerError),
    ],
)
def test_an_error_ends_its_call_alone(code: str, kind: type[Exception]) -> None:
    session, call, other = a_session(max_rows=1, window=9), a_call(["a", "b"]), a_call(["c"])
    session.submit(call, 0.0)
    session.submit(other, 0.0)
    messages = {message["texts"][0]: message for message in sent(session)}
    session.receive(error(messages["a"], code), 0.1)
    with pytest.raises(kind, match="because"):
        call.raise_error()
    assert sent(session, 0.1) == [{"type": "cancel", "ids": [messages["b"]["id"]]}]
    session.receive(answer(messages["c"]), 0.2)
    assert other.is_done and other.error is None


def test_an_error_that_names_no_request_ends_every_call() -> None:
    session, calls = a_session(), [a_call(["a"]), StatusCall(TIMEOUT_S)]
    session.submit(calls[0], 0.0)  # type: ignore[arg-type]
    session.request_status(calls[1], 0.0)  # type: ignore[arg-type]
    sent(session)
    session.receive(error(None, "invalid_request"), 0.1)
    for call in calls:
        with pytest.raises(InvalidRequest):
            call.raise_error()
    assert isinstance(session.refusal, InvalidRequest)


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
    session, call = Session("a test", "tcp://server:5555"), Call(TIMEOUT_S)
    session.hello(call, 0.0)
    session.receive(frames, 0.1)
    with pytest.raises(kind, match="tcp://server:5555"):
        call.raise_error()


def test_an_answer_that_is_not_for_what_was_asked_ends_the_call() -> None:
    session, call = a_session(), a_call(["a", "b"])
    session.submit(call, 0.0)
    (message,) = sent(session)
    session.receive(answer({**message, "rows": 1, "texts": ["a"]}), 0.1)
    with pytest.raises(MalformedMessage, match="answered 1 rows"):
        call.raise_error()


@pytest.mark.parametrize("frames", [Status(99, {}).to_frames(), error({"id": 99}, "overloaded")])
def test_answers_to_nobody_are_ignored(frames: list[Any]) -> None:
    session, call = a_session(), a_call(["a"])
    session.submit(call, 0.0)
    (message,) = sent(session)
    session.receive(frames, 0.1)
    session.receive(answer(message), 0.2)
    session.receive(answer(message), 0.3)
    assert vectors(call).shape == (1, DIM)


def test_a_closed_session_ends_its_calls() -> None:
    session, call = a_session(), a_call(["a"])
    session.submit(call, 0.0)
    session.close(ServerUnreachable("closed"))
    with pytest.raises(ServerUnreachable):
        call.raise_error()


def test_an_abandoned_call_is_cancelled_and_not_sent_on() -> None:
    session, call = a_session(max_rows=1, window=2), a_call(["a", "b", "c"])
    session.submit(call, 0.0)
    messages = sent(session)
    session.abandon(call)
    ids = [message["id"] for message in messages]
    assert sent(session, 1.0) == [{"type": "cancel", "ids": ids}]
    session.receive(answer(messages[0]), 1.0)
    assert sent(session, 2.0) == []


# overload


def test_an_overloaded_server_is_asked_again_when_it_says() -> None:
    session, call = a_session(), a_call(["a"])
    session.submit(call, 0.0)
    (message,) = sent(session)
    session.receive(error(message, "overloaded", 700), 1.0)
    assert sent(session, 1.69) == []
    assert session.next_wakeup() == pytest.approx(1.7)
    (again,) = sent(session, 1.7)
    assert (again["id"], again["texts"], again["ttl_ms"]) == (message["id"], ["a"], 8_300)
    session.receive(answer(again), 2.0)
    assert call.is_done and call.error is None


def test_a_refused_request_goes_out_as_soon_as_another_is_answered() -> None:
    session, call = a_session(max_rows=1, window=2), a_call(["a", "b"])
    session.submit(call, 0.0)
    first, second = sent(session)
    session.receive(error(second, "overloaded", 5_000), 0.1)
    session.receive(answer(first), 0.2)
    assert [message["texts"] for message in sent(session, 0.2)] == [["b"]]


def test_waits_grow_but_not_beyond_half_a_second_of_the_clients_own() -> None:
    session, call = a_session(), a_call(["a"])
    session.submit(call, 0.0)
    now, waits = 0.0, []
    (message,) = sent(session)
    for _ in range(6):
        session.receive(error(message, "overloaded"), now)
        wakeup = session.next_wakeup()
        assert wakeup is not None
        waits.append(round(wakeup - now, 6))
        now = wakeup
        (message,) = sent(session, now)
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.4, 0.4]


def test_a_call_that_cannot_be_asked_again_in_time_ends_overloaded() -> None:
    session, call = a_session(), a_call(["a"])
    session.submit(call, 0.0)
    (message,) = sent(session)
    session.receive(error(message, "overloaded", 10_000), 0.1)
    with pytest.raises(Overloaded):
        call.raise_error()


def test_refusals_are_no_answers_however_many_requests_are_open() -> None:
    session, call = a_session(max_rows=1, window=3), a_call(["a", "b", "c"])
    session.submit(call, 0.0)
    now = 0.0
    while not call.is_done and now < 5 * TIMEOUT_S:
        for message in sent(session, now):
            session.receive(error(message, "overloaded", 900), now)
        now += 1.0
        session.advance(now)
    assert now <= TIMEOUT_S
    assert isinstance(call.error, (Overloaded, RequestTimeout))


def test_the_window_shrinks_when_the_server_is_overloaded_and_grows_again() -> None:
    session, call = a_session(max_rows=1, window=4), a_call([str(i) for i in range(50)])
    session.submit(call, 0.0)
    messages = sent(session)
    assert len(messages) == 4
    for message in messages[:3]:
        session.receive(error(message, "overloaded"), 0.0)
    session.receive(answer(messages[3]), 0.1)
    again = sent(session, 1.0)
    assert len(again) == 3  # those refused, and nothing new
    for message in again:
        session.receive(answer(message), 1.1)
    assert len(sent(session, 1.2)) == 4


def test_a_request_whose_time_was_up_goes_out_again_if_its_call_has_got_answers() -> None:
    session, call = a_session(max_rows=1, window=2), a_call(["a", "b"])
    session.submit(call, 0.0)
    first, second = sent(session)
    session.receive(answer(first), 9.0)
    session.receive(error(second, "deadline_exceeded"), 10.0)
    (again,) = sent(session, 10.0)
    assert (again["id"], again["texts"], again["ttl_ms"]) == (second["id"], ["b"], 9_000)
    session.receive(error(again, "deadline_exceeded"), 18.9)
    with pytest.raises(DeadlineExceeded):
        call.raise_error()


def test_a_finished_call_and_its_arrays_are_let_go_at_once() -> None:
    session, call = a_session(), a_call(["a"])
    session.submit(call, 0.0)
    session.receive(answer(sent(session)[0]), 0.1)
    assert call.is_done
    watcher = weakref.ref(call)
    del call
    assert watcher() is None


# groups


def a_group_call(rows: Iterable[Any], group: str = "readers") -> EncodeCall:
    views = {"embedding": View()}
    options = EncodeOptions(views, group=group, sender="me")
    return EncodeCall(RowSource(rows), options, TIMEOUT_S)


def member_of(session: Session, groups: list[str], now: float = 0.0) -> MembershipCall:
    call = MembershipCall(TIMEOUT_S)
    session.set_groups(call, groups, now)
    return call


def test_a_member_is_one_when_the_server_has_said_so() -> None:
    session = a_session()
    call = member_of(session, ["readers"])
    (message,) = sent(session)
    assert message == {"type": "membership", "id": message["id"], "groups": ["readers"]}
    assert not call.is_done
    session.receive(Membership(message["id"], ["readers"]).to_frames(), 0.1)
    assert call.is_done and call.error is None


def test_a_member_says_again_what_it_is_in_as_long_as_it_is_in_any() -> None:
    session = a_session()
    member_of(session, ["readers"])
    (first,) = sent(session)
    assert session.next_wakeup() == MEMBERSHIP_INTERVAL_S
    (again,) = sent(session, MEMBERSHIP_INTERVAL_S)
    assert again["groups"] == ["readers"] and again["id"] != first["id"]
    session.receive(Membership(again["id"], ["readers"]).to_frames(), 6.0)
    member_of(session, [], 6.0)
    assert [message["groups"] for message in sent(session, 6.0)] == [[]]
    assert sent(session, 100.0) == []


def test_a_refused_member_is_in_what_it_was_in() -> None:
    session = a_session()
    member_of(session, ["one"])
    call = member_of(session, ["one", "two"])
    _, message = sent(session)
    session.receive(error(message, "overloaded"), 0.1)
    with pytest.raises(Overloaded):
        call.raise_error()
    assert session.groups == ["one"]


def test_a_membership_that_is_not_answered_ends_in_its_time() -> None:
    session = a_session()
    call = member_of(session, ["readers"])
    sent(session)
    session.advance(TIMEOUT_S)
    with pytest.raises(RequestTimeout):
        call.raise_error()


def test_an_answer_of_another_kind_is_no_answer() -> None:
    session = a_session()
    call = member_of(session, ["readers"])
    (message,) = sent(session)
    session.receive(Status(message["id"], {}).to_frames(), 0.1)
    with pytest.raises(MalformedMessage, match="not asked"):
        call.raise_error()


def test_the_requests_of_a_call_say_which_part_of_it_they_are() -> None:
    session, call = a_session(max_rows=2, window=3), a_group_call(["a", "b", "c"])
    session.submit(call, 0.0)
    parts = [message["group"] for message in sent(session)]
    assert [(part["start"], part["total"]) for part in parts] == [(0, 3), (2, 3)]
    assert {(part["name"], part["sender"]) for part in parts} == {("readers", "me")}
    other = a_group_call(["d"])
    session.submit(other, 0.0)
    (message,) = sent(session)
    assert message["group"]["call"] not in {part["call"] for part in parts}
    assert len({part["call"] for part in parts}) == 1


def test_what_others_send_is_put_together_and_waits_to_be_read() -> None:
    session = a_session()
    for start, text in ((1, "bb"), (0, "a")):
        view = ViewArray(np.array([value_of(text)], np.float32))
        result = Result(9, {"embedding": view}, n_tokens=[3])
        part = BroadcastPart(GroupPart("readers", "you", 4, start, 2), "there", result)
        session.receive(part.to_frames(), 0.0)
    broadcast = session.broadcasts.take()
    assert (broadcast.group, broadcast.sender) == ("readers", "you")
    assert broadcast.embedding.tolist() == [value_of("a"), value_of("bb")]
