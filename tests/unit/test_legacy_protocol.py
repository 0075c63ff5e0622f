"""The words of bert-as-service's protocol, and the answers that wait for a subscription."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_serving.client.assembly import Encoding
from bert_serving.client.protocol import Limits, Welcome
from bert_serving.client.view import DEFAULT_VIEW, View
from bert_serving.server.gateway.legacy.answers import (
    MAX_ANSWER_BYTES,
    AnswerForm,
    LegacyAnswer,
    check_size,
    encoding_answer,
    error_answer,
    settings_error_answer,
)
from bert_serving.server.gateway.legacy.mailbox import RETRY_S, SHARED_HOLD_S, Mailbox
from bert_serving.server.gateway.legacy.requests import (
    MAX_BODY_BYTES,
    MAX_LISTS,
    LegacyRequest,
    Unanswerable,
    parse_request,
    parse_rows,
)
from bert_serving.server.gateway.legacy.settings import legacy_settings
from bert_serving.server.gateway.legacy.statistic import ACTIVE_S, MAX_CLIENTS, Statistic

REQUEST = LegacyRequest(b"somebody", b"7", b'["a"]')
POOLED = AnswerForm(width=3, is_pooled=True, max_tokens=10, pads_to_limit=False, show_tokens=False)


def token_level(**changes: Any) -> AnswerForm:
    return AnswerForm(**{**vars(POOLED), "is_pooled": False, **changes})


def rows_of(value: Any) -> Any:
    return parse_rows(json.dumps(value).encode())


def outcome(body: bytes) -> tuple[Any, str]:
    """Return the rows of a body, or None and why there are none."""
    try:
        return parse_rows(body)[0], ""
    except ValueError as error:
        return None, str(error)


# requests


def test_a_request_that_would_take_memory_out_of_proportion_is_refused_first() -> None:
    lists = b"[" + b"[]," * MAX_LISTS + b"[]]"
    objects = b"[" + b"{}," * 1_000_000 + b"{}]"
    for body in (lists, objects):
        tracemalloc.start()
        rows, problem = outcome(body)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert rows is None and problem
        assert peak < 4 * len(body)


def test_four_frames_are_a_request() -> None:
    request = parse_request([b"somebody", b'["a"]', b"7", b"not even a number"])
    assert request == REQUEST
    assert request.client == "somebody"


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_any_frames_are_a_request_or_cannot_be_answered(frames: list[bytes]) -> None:
    with contextlib.suppress(Unanswerable):
        request = parse_request(frames)
        assert [request.identity, request.body, request.request_id] == frames[:3]
        assert int(request.request_id) >= 0


@pytest.mark.parametrize("number", [b"", b"-1", b"1.5", b"one", "\uff11".encode(), b"1" * 21])
def test_a_request_id_is_digits(number: bytes) -> None:
    with pytest.raises(Unanswerable, match="expected 1 to 20 digits"):
        parse_request([b"somebody", b'["a"]', number, b"1"])


def test_texts_are_stripped_and_split_at_the_last_separator() -> None:
    texts = [" a ", "a ||| b", "a ||| b ||| c", "a|||b", "a |||", "a\nb ||| c", ""]
    rows, is_tokenized = rows_of(texts)
    assert not is_tokenized
    wanted = ["a", ("a", "b"), ("a ||| b", "c"), "a|||b", "a |||", "a\nb ||| c", ""]
    assert [row.strip() if isinstance(row, str) else row for row in rows] == wanted


def test_tokens_are_split_at_the_first_separator() -> None:
    rows, is_tokenized = rows_of([["a", "b"], ["a", "|||", "b", "|||", "c"], ["a", "|||"], []])
    assert is_tokenized
    assert rows == [["a", "b"], (["a"], ["b", "|||", "c"]), ["a"], []]


@given(st.binary(max_size=200) | st.text(max_size=50).map(lambda text: json.dumps(text).encode()))
def test_any_body_is_rows_or_a_value_error(body: bytes) -> None:
    rows, problem = outcome(body)
    assert rows or "expected" in problem


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
        max_leaves=10,
    )
)
def test_any_json_is_rows_or_a_value_error(value: Any) -> None:
    rows, problem = outcome(json.dumps(value).encode())
    assert "expected" in problem if rows is None else len(rows) == len(value)


def test_an_error_does_not_repeat_what_was_sent() -> None:
    for value in (["a", {"secret": 1}], [["a"], "secret"], [["secret", 1]], {"secret": 1}):
        with pytest.raises(ValueError, match="expected") as caught:
            rows_of(value)
        assert "secret" not in str(caught.value)


def test_a_body_that_is_too_large_is_not_even_read() -> None:
    with pytest.raises(ValueError, match="send fewer rows at a time"):
        parse_rows(bytes(MAX_BODY_BYTES + 1))


# answers


def header(answer: LegacyAnswer) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(answer.frames[1])
    return described


def as_an_old_client_reads(answer: LegacyAnswer) -> Any:
    described = header(answer)
    array = np.frombuffer(memoryview(answer.frames[2]), dtype=str(described["dtype"]))
    return array.reshape(described["shape"])


def encoding(values: Any, tokens: Any = None) -> Encoding:
    counts, cut = np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    return Encoding({"embedding": values}, counts, cut, tokens)


def test_pooled_vectors_go_out_as_they_are() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    answer = encoding_answer(REQUEST, POOLED, encoding(values))
    assert np.array_equal(as_an_old_client_reads(answer), values)
    assert (answer.frames[0], answer.frames[3]) == (b"somebody", b"7")
    assert header(answer)["tokens"] == ""
    assert answer.nbytes == sum(map(len, answer.frames[1:]))


def test_tokens_go_out_where_the_server_shows_them() -> None:
    form = AnswerForm(**{**vars(POOLED), "show_tokens": True})
    answer = encoding_answer(REQUEST, form, encoding(np.zeros((1, 3), np.float32), [["a", "b"]]))
    assert header(answer)["tokens"] == [["a", "b"]]


@pytest.mark.parametrize(("pads_to_limit", "length"), [(False, 4), (True, 10)])
def test_token_vectors_are_padded_with_zeros(pads_to_limit: bool, length: int) -> None:
    rows = [np.ones((n, 3), np.float32) for n in (2, 4, 1)]
    form = token_level(pads_to_limit=pads_to_limit)
    values = as_an_old_client_reads(encoding_answer(REQUEST, form, encoding(rows)))
    assert values.shape == (3, length, 3)
    assert values.sum(axis=(1, 2)).tolist() == [6, 12, 3]
    assert not values[0, 2:].any()


@given(st.text(max_size=1500))
def test_numpy_quotes_any_message_when_it_refuses_the_array(message: str) -> None:
    answer = error_answer(REQUEST, message)
    with pytest.raises(TypeError, match=r"bert-serving: .*not understood"):
        as_an_old_client_reads(answer)


def test_a_message_can_be_read_in_what_numpy_says() -> None:
    answer = error_answer(REQUEST, "row 3, of 7, is (no) text:\n[expected] a str of <f4")
    wanted = r"row 3; of 7; is \(no\) text: \[expected\] a str of <f4"
    with pytest.raises(TypeError, match=wanted):
        as_an_old_client_reads(answer)


def test_a_status_that_cannot_be_had_says_why_where_the_client_compares_versions() -> None:
    answer = settings_error_answer(REQUEST, "the server is stopping")
    settings = json.loads(answer.frames[1])
    assert settings["server_version"] == "the server is stopping"
    assert (settings["max_seq_len"], settings["show_tokens_to_client"]) == (None, False)
    assert answer.frames[2] == b"7"


@pytest.mark.parametrize(
    ("form", "rows", "floats"),
    [
        (POOLED, ["a", "bc"], 2 * 3),
        (token_level(), ["a", "bc"], 2 * 5 * 3),
        (token_level(), [("abc", "de"), "f"], 2 * 8 * 3),
        (token_level(), [["abc", "de"], ["f"]], 2 * 5 * 3),
        (token_level(), ["a" * 100], 10 * 3),
        (token_level(pads_to_limit=True), ["a", "bc"], 2 * 10 * 3),
    ],
)
def test_the_size_of_an_answer_is_known_before_it_is_computed(
    form: AnswerForm, rows: Any, floats: int
) -> None:
    assert form.nbytes(rows) == floats * 4


def test_an_answer_that_is_too_large_is_refused_with_how_many_rows_are_not() -> None:
    check_size(100, MAX_ANSWER_BYTES)
    with pytest.raises(ValueError, match="send up to 50 rows like these at a time"):
        check_size(100, 2 * MAX_ANSWER_BYTES)


def test_the_form_of_answers_follows_from_the_welcome() -> None:
    model = {"hidden_size": 4, "max_length": 16, "head_sizes": {"pooler": 5}}
    for pooling, width in (("mean", 4), ("mean_max", 8), ("pooler", 5), ("none", 4)):
        view = View(pooling=pooling).filled_from(DEFAULT_VIEW)
        form = AnswerForm.of(
            Welcome("server", "ready", Limits(), view, model), pads_to_limit=True, show_tokens=True
        )
        assert (form.width, form.max_tokens) == (width, 16)
        assert form.is_pooled is (pooling != "none")


# the mailbox


def a_mailbox(**limits: Any) -> Mailbox:
    return Mailbox(**{"hold_s": 10.0, "max_answers": 100, "max_bytes": 10_000, **limits})


def an_answer(identity: bytes, content: bytes = b"content") -> LegacyAnswer:
    return LegacyAnswer(identity, [content])


def sent(mailbox: Mailbox, now: float = 0.0) -> list[LegacyAnswer]:
    """All that the mailbox has to send now, as everybody has room."""
    answers = []
    while answer := mailbox.next_answer(now):
        mailbox.sent(answer)
        answers.append(answer)
    return answers


def test_an_answer_goes_out_at_once_to_who_has_subscribed() -> None:
    mailbox, answer = a_mailbox(), an_answer(b"me")
    mailbox.on_subscription(b"\x01me")
    mailbox.put(answer, 0.0)
    assert sent(mailbox) == [answer]
    assert len(mailbox) == 0
    assert mailbox.next_wakeup() is None


def test_an_answer_waits_for_its_subscription_and_for_no_other() -> None:
    mailbox = a_mailbox()
    answers = [an_answer(b"me"), an_answer(b"me")]
    for answer in answers:
        mailbox.put(answer, 0.0)
    mailbox.on_subscription(b"\x01you")
    mailbox.on_subscription(b"\x01mean")
    mailbox.on_subscription(b"\x05me")
    assert not sent(mailbox)
    mailbox.on_subscription(b"\x01me")
    assert sent(mailbox) == answers


def test_a_subscription_is_a_prefix_as_zeromq_has_it() -> None:
    mailbox, answer = a_mailbox(), an_answer(b"10")
    mailbox.put(answer, 0.0)
    mailbox.on_subscription(b"\x011")
    assert sent(mailbox) == [answer]


def test_after_the_last_subscriber_has_gone_answers_wait_again() -> None:
    mailbox, answer = a_mailbox(), an_answer(b"me")
    mailbox.on_subscription(b"\x01me")
    mailbox.on_subscription(b"\x00me")
    mailbox.put(answer, 0.0)
    assert not sent(mailbox)
    assert not mailbox.is_subscribed(b"me")


def test_an_answer_without_room_is_tried_again_and_holds_up_only_its_own() -> None:
    mailbox = a_mailbox()
    mailbox.on_subscription(b"\x01full")
    mailbox.on_subscription(b"\x01free")
    full, later, free = an_answer(b"full"), an_answer(b"full"), an_answer(b"free")
    mailbox.put(full, 0.0)
    assert mailbox.next_answer(0.0) is full
    mailbox.no_room(full, 0.0)
    mailbox.put(later, 0.0)
    mailbox.put(free, 0.0)
    assert sent(mailbox) == [free]
    assert mailbox.next_wakeup() == RETRY_S
    assert sent(mailbox, RETRY_S) == [full, later]


def test_what_is_held_for_too_long_is_given_up() -> None:
    mailbox = a_mailbox()
    old, young = an_answer(b"me"), an_answer(b"you")
    mailbox.put(old, 0.0)
    mailbox.put(young, 5.0)
    assert not mailbox.expired(9.9)
    assert mailbox.next_wakeup() == 10.0
    assert mailbox.expired(10.0) == [old]
    mailbox.on_subscription(b"\x01")
    assert sent(mailbox) == [young]


def test_of_several_subscribers_one_without_room_holds_up_the_others_for_a_moment() -> None:
    mailbox = a_mailbox()
    mailbox.on_subscription(b"\x01shared")
    mailbox.on_subscription(b"\x01sha")
    first, second = an_answer(b"shared"), an_answer(b"shared")
    mailbox.put(first, 0.0)
    mailbox.put(second, 0.0)
    assert mailbox.next_answer(0.0) is first
    mailbox.no_room(first, 0.0)
    mailbox.no_room(first, RETRY_S)
    assert not mailbox.expired(SHARED_HOLD_S - 0.01)
    assert mailbox.expired(SHARED_HOLD_S) == [first]
    assert mailbox.next_answer(SHARED_HOLD_S) is second
    mailbox.no_room(second, SHARED_HOLD_S)
    assert not mailbox.expired(2 * SHARED_HOLD_S - 0.01)  # it, too, is waited for
    assert sent(mailbox, 2 * SHARED_HOLD_S) == [second]


def test_the_only_subscriber_is_waited_for_as_long_as_answers_are_held() -> None:
    mailbox, answer = a_mailbox(), an_answer(b"me")
    for message in (b"\x01me", b"\x01me", b"\x00me"):  # the other one has gone
        mailbox.on_subscription(message)
    mailbox.put(answer, 0.0)
    mailbox.no_room(answer, 0.0)
    assert not mailbox.expired(9.9)
    assert mailbox.expired(10.0) == [answer]


def test_who_leaves_what_nobody_has_is_not_counted() -> None:
    mailbox, answer = a_mailbox(), an_answer(b"me")
    mailbox.on_subscription(b"\x00me")
    mailbox.on_subscription(b"\x01me")
    mailbox.put(answer, 0.0)
    assert sent(mailbox) == [answer]


@pytest.mark.parametrize("limit", [{"max_answers": 3}, {"max_bytes": 3 * 7}])
def test_beyond_a_limit_the_oldest_are_given_up(limit: dict[str, int]) -> None:
    mailbox = a_mailbox(**limit)
    answers = [an_answer(b"%d" % (number % 2)) for number in range(5)]
    for answer in answers:
        mailbox.put(answer, 0.0)
    assert mailbox.expired(0.0) == answers[:2]
    assert len(mailbox) == 3


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["put", "subscribe", "unsubscribe", "send", "no room", "expire"]),
        st.sampled_from([b"a", b"ab", b"b"]),
    ),
    max_size=60,
)


@given(EVENTS)
def test_every_answer_is_sent_held_or_given_up_exactly_once(events: list[Any]) -> None:
    mailbox = a_mailbox(hold_s=5.0, max_answers=4)
    put: list[LegacyAnswer] = []
    gone: list[LegacyAnswer] = []
    for now, (kind, identity) in enumerate(events):
        if kind == "put":
            put.append(an_answer(identity))
            mailbox.put(put[-1], now)
        elif kind == "subscribe":
            mailbox.on_subscription(b"\x01" + identity)
        elif kind == "unsubscribe":
            mailbox.on_subscription(b"\x00" + identity)
        elif kind == "expire":
            gone += mailbox.expired(now)
            assert len(mailbox) <= 4
        elif answer := mailbox.next_answer(now):
            assert mailbox.is_subscribed(answer.identity)
            if kind == "send":
                mailbox.sent(answer)
                gone.append(answer)
            else:
                mailbox.no_room(answer, now)
        assert len(gone) + len(mailbox) == len(put)
    assert len(set(gone)) == len(gone)
    for identity in (b"a", b"ab", b"b"):
        order = [put.index(answer) for answer in gone if answer.identity == identity]
        assert order == sorted(order)


# status


STATUS = {
    "pooling_strategy": "mean",
    "server_version": "2.0.0",
    "port": 0,
    "cased_tokenization": False,
    "compile": False,
    "workers": [{"device": "cpu"}, {"device": "cuda:0"}],
    "statistic": {"num_refused": {}, "num_data_request": 1000},
    "status": 200,
}


def settings(status: dict[str, Any], statistic: dict[str, Any] | None = None) -> dict[str, Any]:
    return legacy_settings(
        status, client="me", ports=(5555, 5556), native_port=1234, statistic=statistic
    )


def test_settings_have_the_old_names_beside_ours() -> None:
    told = settings(STATUS)
    assert told["server_version"] == "1.10.0"
    assert told["native_version"] == "2.0.0"
    assert (told["port"], told["port_out"], told["native_port"]) == (5555, 5556, 1234)
    assert (told["num_process"], told["device_map"]) == (2, ["cpu", "cuda:0"])
    assert (told["pooling_strategy"], told["do_lower_case"], told["status"]) == (2, True, 200)
    assert "statistic" not in told
    assert settings({**STATUS, "pooling_strategy": "auto"})["pooling_strategy"] == "auto"


def test_the_statistic_is_that_of_old_clients_where_both_count() -> None:
    told = settings(STATUS, {"num_data_request": 3})["statistic"]
    assert told == {"num_refused": {}, "num_data_request": 3}


def test_requests_are_counted_by_client_and_size() -> None:
    statistic = Statistic()
    statistic.on_command(b"one")
    statistic.on_rows(b"one", 4, 0.0)
    statistic.on_rows(b"two", 2, 0.5)
    value = statistic.value(1.0)
    assert (value["num_sys_request"], value["num_data_request"]) == (1, 2)
    assert (value["num_total_request"], value["num_total_seq"]) == (3, 6)
    assert (value["num_total_client"], value["num_active_client"]) == (2, 2)
    assert (value["min_size_per_request"], value["max_size_per_request"]) == (2, 4)
    assert value["avg_request_per_client"] == 1.5
    assert value["avg_last_two_interval"] == 0.5
    assert value["max_request_per_second"] == 2.0
    assert statistic.value(ACTIVE_S)["num_active_client"] == 1


def test_only_so_many_clients_are_remembered_but_all_are_counted() -> None:
    statistic = Statistic()
    for number in range(MAX_CLIENTS + 50):
        statistic.on_rows(b"%d" % number, 1, 0.0)
    value = statistic.value(0.0)
    assert value["num_total_client"] == MAX_CLIENTS + 50
    assert value["num_active_client"] == MAX_CLIENTS
