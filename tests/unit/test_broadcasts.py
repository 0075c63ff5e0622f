"""Copies of others' answers: put together to calls, and bounded while they are unread."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest

from bert_serving.client.broadcasts import MAX_OPEN_CALLS, MAX_UNREAD_CALLS, Broadcasts
from bert_serving.client.group_messages import BroadcastPart
from bert_serving.client.messages import GroupPart, Result, RowTokens, ViewArray

DIM = 4


def part(
    start: int, rows: int, total: int, call: int = 1, connection: str = "c", **options: Any
) -> BroadcastPart:
    values = np.arange(start, start + rows, dtype=np.float32)[:, None].repeat(DIM, 1)
    result = Result(0, {"embedding": ViewArray(values)}, n_tokens=[1] * rows, **options)
    return BroadcastPart(GroupPart("readers", "sender", call, start, total), connection, result)


def values(rows: int) -> Any:
    return np.arange(rows, dtype=np.float32)[:, None].repeat(DIM, 1)


@pytest.mark.parametrize("order", list(permutations([(0, 2), (2, 3), (5, 1)])))
def test_a_call_is_whole_when_all_its_rows_have_come_in_any_order(order: Any) -> None:
    broadcasts = Broadcasts()
    for number, (start, rows) in enumerate(order):
        assert len(broadcasts) == 0
        broadcasts.add(part(start, rows, total=6))
        assert len(broadcasts) == (number == 2)
    broadcast = broadcasts.take()
    assert (broadcast.group, broadcast.sender, broadcast.tokens) == ("readers", "sender", None)
    assert np.array_equal(broadcast.embedding, values(6))


def test_calls_of_several_connections_and_numbers_keep_apart() -> None:
    broadcasts = Broadcasts()
    for start in (0, 1):
        for connection, call in (("a", 1), ("a", 2), ("b", 1)):
            broadcasts.add(part(start, 1, total=2, call=call, connection=connection))
    assert len(broadcasts) == 3
    assert all(np.array_equal(broadcasts.take().embedding, values(2)) for _ in range(3))


def test_tokens_come_along() -> None:
    tokens = RowTokens(["a", "b"], np.array([1, 2], np.int32), np.zeros(2, np.uint8))
    broadcasts = Broadcasts()
    broadcasts.add(part(0, 2, total=2, tokens=tokens))
    assert broadcasts.take().tokens == [["a"], ["b"]]


def test_token_vectors_are_a_list() -> None:
    view = ViewArray(np.ones((3, DIM), np.float32), [0, 1, 3])
    message = BroadcastPart(
        GroupPart("readers", "", 1, 0, 2), "c", Result(0, {"x": view}, n_tokens=[1, 2])
    )
    broadcasts = Broadcasts()
    broadcasts.add(message)
    assert [len(row) for row in broadcasts.take().embedding] == [1, 2]


def test_the_oldest_unread_is_dropped_when_there_are_too_many() -> None:
    broadcasts = Broadcasts()
    for rows in range(1, MAX_UNREAD_CALLS + 6):
        broadcasts.add(part(0, rows, total=rows, call=rows))
    assert (len(broadcasts), broadcasts.dropped) == (MAX_UNREAD_CALLS, 5)
    assert len(broadcasts.take().embedding) == 6


def test_the_oldest_unread_is_dropped_when_they_are_too_large() -> None:
    one = part(0, 10, total=10)
    nbytes = 10 * DIM * 4 + 10 * 8
    broadcasts = Broadcasts(max_bytes=3 * nbytes)
    for call in range(5):
        broadcasts.add(part(0, 10, total=10, call=call))
    assert (len(broadcasts), broadcasts.dropped) == (3, 2)
    for _ in range(3):
        broadcasts.take()
    broadcasts.add(one)
    assert (len(broadcasts), broadcasts.dropped, broadcasts._nbytes) == (1, 2, nbytes)


def test_calls_that_never_get_whole_are_dropped() -> None:
    broadcasts = Broadcasts()
    for call in range(MAX_OPEN_CALLS + 3):
        broadcasts.add(part(0, 1, total=2, call=call))
    assert (len(broadcasts), broadcasts.dropped) == (0, 3)
    broadcasts.add(part(1, 1, total=2, call=MAX_OPEN_CALLS))
    assert np.array_equal(broadcasts.take().embedding, values(2))


@pytest.mark.parametrize(
    "parts",
    [
        [(1, 2, 2)],
        [(0, 2, 4), (1, 2, 4)],
        [(0, 3, 2)],
        [(2**62, 1, 1)],
    ],
    ids=["not from 0", "overlapping", "more than said", "far away"],
)
def test_parts_that_do_not_fit_are_dropped_and_cost_nothing(parts: Any) -> None:
    broadcasts = Broadcasts()
    for start, rows, total in parts:
        message = part(0, rows, total)
        message.group.start = start
        broadcasts.add(message)
    assert (len(broadcasts), broadcasts.dropped, broadcasts._nbytes) == (0, 1, 0)


def test_a_part_that_comes_twice_counts_once() -> None:
    broadcasts = Broadcasts()
    broadcasts.add(part(0, 1, total=2))
    broadcasts.add(part(0, 1, total=2))
    assert len(broadcasts) == 0
    broadcasts.add(part(1, 1, total=2))
    assert np.array_equal(broadcasts.take().embedding, values(2))


def test_parts_of_differing_width_are_dropped() -> None:
    broadcasts = Broadcasts()
    broadcasts.add(part(0, 1, total=2))
    odd = part(1, 1, total=2)
    odd.result.views = {"embedding": ViewArray(np.ones((1, DIM + 1), np.float32))}
    broadcasts.add(odd)
    assert (len(broadcasts), broadcasts.dropped) == (0, 1)
