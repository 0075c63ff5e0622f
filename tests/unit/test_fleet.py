"""Several servers of one client: who gets what, and what becomes of it."""

from __future__ import annotations

import weakref
from typing import Any

import msgpack
import numpy as np
import pytest

from bert_serving.client.calls import Call, EncodeCall, EncodeOptions, StatusCall
from bert_serving.client.chunking import RowSource
from bert_serving.client.errors import ModelMismatch
from bert_serving.client.fleet import GREETING_GRACE_S, Fleet
from bert_serving.client.presence import LOST_S, PROBE_S
from bert_serving.client.protocol import ErrorAnswer, Limits, Result, ViewArray, Welcome
from bert_serving.client.view import DEFAULT_VIEW, View

TIMEOUT_S = 10.0


def welcome(model: str = "bert", **limits: int) -> list[Any]:
    bounds = Limits(**{"max_rows": 1, "window": 4, **limits})
    return Welcome("s", "ready", bounds, DEFAULT_VIEW, {"name": model}, "one").to_frames()


def a_fleet(**options: Any) -> Fleet:
    fleet = Fleet("a test", ["tcp://a:1", "tcp://b:1"], **options)
    for number in range(2):
        fleet.receive(number, welcome(), 0.0)
    return fleet


def a_call(fleet: Fleet, rows: int, now: float = 0.0) -> EncodeCall:
    source = RowSource([f"row {number}" for number in range(rows)])
    call = EncodeCall(source, EncodeOptions({"embedding": View()}), TIMEOUT_S)
    fleet.submit(call, now)
    return call


def all_sent(fleet: Fleet, now: float = 0.0) -> list[tuple[int, dict[str, Any]]]:
    """Return what is sent, with the number of its server."""
    found = []
    while message := fleet.next_message(now):
        found.append((message[0], msgpack.unpackb(message[1][1])))
    return found


def sent(fleet: Fleet, now: float = 0.0) -> list[tuple[int, dict[str, Any]]]:
    """Return what is sent, with the number of its server; hellos aside."""
    return [entry for entry in all_sent(fleet, now) if entry[1]["type"] != "hello"]


def answer(fleet: Fleet, number: int, message: dict[str, Any], now: float) -> None:
    views = {"embedding": ViewArray(np.ones((message["rows"], 1), np.float32))}
    result = Result(message["id"], views, n_tokens=[3] * message["rows"])
    fleet.receive(number, result.to_frames(), now)


def refuse(fleet: Fleet, number: int, message: dict[str, Any], code: str, now: float) -> None:
    fleet.receive(number, ErrorAnswer(message["id"], code, "no").to_frames(), now)


def test_requests_go_to_the_server_with_the_least_outstanding_work() -> None:
    fleet = a_fleet()
    a_call(fleet, 2)
    (_, _), (second, message) = sent(fleet)
    answer(fleet, second, message, 0.1)
    a_call(fleet, 1, 0.1)
    ((number, _),) = sent(fleet, 0.1)
    assert number == second


def test_equals_take_turns() -> None:
    fleet, numbers = a_fleet(), []
    for _ in range(4):
        a_call(fleet, 1)
        ((number, message),) = sent(fleet)
        answer(fleet, number, message, 0.0)
        numbers.append(number)
    assert numbers == [0, 1, 0, 1]


@pytest.mark.parametrize("code", ["overloaded", "unavailable"])
def test_what_one_refuses_goes_to_the_other_at_once(code: str) -> None:
    fleet = a_fleet()
    call = a_call(fleet, 1)
    ((first, message),) = sent(fleet)
    refuse(fleet, first, message, code, 0.1)
    ((second, again),) = sent(fleet, 0.1)
    assert second != first
    answer(fleet, second, again, 0.2)
    assert call.is_done and call.error is None


def test_what_all_refuse_is_put_off() -> None:
    fleet = a_fleet()
    a_call(fleet, 1)
    for _ in range(2):
        ((number, message),) = sent(fleet)
        refuse(fleet, number, message, "overloaded", 0.0)
    assert sent(fleet) == []
    assert len(sent(fleet, 0.05)) == 1


def test_the_first_answer_to_a_hedged_request_counts_and_the_other_is_cancelled() -> None:
    fleet = a_fleet(hedge_after_s=0.2)
    call = a_call(fleet, 1)
    ((first, one),) = sent(fleet)
    assert sent(fleet, 0.19) == []
    ((second, other),) = sent(fleet, 0.2)
    assert {first, second} == {0, 1}
    answer(fleet, second, other, 0.3)
    assert call.is_done
    assert sent(fleet, 0.3) == [(first, {"type": "cancel", "ids": [one["id"]]})]
    answer(fleet, first, one, 0.4)  # it had crossed the cancel


@pytest.mark.parametrize("end", ["answered", "refused", "abandoned"])
def test_nothing_is_kept_of_a_call_that_could_have_been_hedged(end: str) -> None:
    fleet = a_fleet(hedge_after_s=1e6)
    call = a_call(fleet, 1)
    ((number, message),) = sent(fleet)
    if end == "answered":
        answer(fleet, number, message, 0.1)
    elif end == "refused":
        refuse(fleet, number, message, "invalid_request", 0.1)
    else:
        fleet.abandon(call)
    fleet.advance(TIMEOUT_S)
    sent(fleet, TIMEOUT_S)
    watcher = weakref.ref(call)
    del call
    assert watcher() is None
    assert fleet.next_wakeup() is None


def test_what_a_lost_server_has_is_computed_by_the_other_too() -> None:
    fleet = a_fleet()
    call = a_call(fleet, 2)
    sent_first = dict(sent(fleet))
    answer(fleet, 1, sent_first[1], 0.1)
    assert sent(fleet, 0.1 + PROBE_S) == []
    ((number, again),) = sent(fleet, 0.1 + PROBE_S + LOST_S)
    assert number == 1
    answer(fleet, 0, sent_first[0], 3.0)  # it was only slow, and is first
    assert call.is_done
    assert sent(fleet, 3.0) == [(1, {"type": "cancel", "ids": [again["id"]]})]


def test_what_a_server_had_that_lets_nobody_in_any_more_goes_to_the_other() -> None:
    fleet = a_fleet()
    a_call(fleet, 1)
    ((first, _),) = sent(fleet)
    fleet.shut_out(first)
    assert [number for number, _ in sent(fleet)] == [1 - first]
    assert not fleet.is_shut_out
    fleet.shut_out(1 - first)
    assert fleet.is_shut_out


def test_requests_are_cut_to_the_smallest_limits() -> None:
    fleet = a_fleet()
    fleet.receive(0, welcome(max_rows=8, max_bytes=1_000), 0.0)
    fleet.receive(1, welcome(max_rows=3), 0.0)
    a_call(fleet, 6)
    assert [message["rows"] for _, message in sent(fleet)] == [3, 3]


def test_a_call_is_cut_for_the_workers_of_all_servers() -> None:
    fleet = a_fleet()
    fleet.receive(0, welcome(max_rows=64, workers=2, min_rows=8), 0.0)
    fleet.receive(1, welcome(max_rows=64, min_rows=16), 0.0)
    a_call(fleet, 60)
    assert [message["rows"] for _, message in sent(fleet)] == [20, 20, 20]


def test_servers_of_different_models_end_every_call() -> None:
    fleet = a_fleet()
    call = a_call(fleet, 1)
    fleet.receive(1, welcome("another"), 0.1)
    with pytest.raises(ModelMismatch, match="'another' and 'bert'"):
        call.raise_error()
    assert isinstance(fleet.refusal, ModelMismatch)


def test_nothing_more_is_asked_of_servers_of_different_models() -> None:
    fleet = a_fleet()
    fleet.receive(1, welcome("another"), 0.1)
    status, hello = StatusCall(TIMEOUT_S), Call(TIMEOUT_S)
    fleet.request_status(status, 0.2)
    fleet.hello(hello, 0.2)
    for call in (a_call(fleet, 1, 0.2), status, hello):
        with pytest.raises(ModelMismatch):
            call.raise_error()
    assert all_sent(fleet, 0.2) == []


def after_a_silence(fleet: Fleet) -> EncodeCall:
    """Start a call that both servers get a part of, long after their last word."""
    call = a_call(fleet, 2, 100.0)
    messages = all_sent(fleet, 100.0)
    for number in range(2):
        types = [message["type"] for server, message in messages if server == number]
        assert types == ["hello", "encode"]
    return call


def test_a_server_that_was_silent_and_has_another_model_now_ends_the_call() -> None:
    fleet = a_fleet()
    call = after_a_silence(fleet)
    fleet.receive(1, welcome("another"), 100.1)
    assert not call.is_done  # the other one may have it as well
    fleet.receive(0, welcome(), 100.2)
    with pytest.raises(ModelMismatch):
        call.raise_error()


def test_servers_that_were_silent_may_all_have_another_model() -> None:
    fleet = a_fleet()
    after_a_silence(fleet)
    for number in range(2):
        fleet.receive(number, welcome("another"), 100.1)
    assert fleet.refusal is None


def test_servers_that_are_used_all_the_time_are_not_asked_again() -> None:
    fleet = a_fleet()
    for tenth in range(100):
        now = tenth / 10
        a_call(fleet, 1, now)
        ((number, message),) = all_sent(fleet, now)
        answer(fleet, number, message, now)


def test_a_greeting_waits_a_moment_for_the_other_servers_and_not_for_ever() -> None:
    fleet, call = Fleet("a test", ["tcp://a:1", "tcp://b:1"]), Call(TIMEOUT_S)
    fleet.hello(call, 0.0)
    fleet.next_message(0.0)
    fleet.receive(1, welcome(), 0.1)
    fleet.advance(0.1)
    assert not call.is_done
    fleet.advance(0.1 + GREETING_GRACE_S)
    assert call.is_done and call.error is None
