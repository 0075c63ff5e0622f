"""The order in which waiting requests go, without any worker or deadline."""

from __future__ import annotations

from collections import Counter
from math import inf

from bert_serving.server.scheduling.queues import FairQueue, Request, RequestQueue

_EVERYTHING = 10**9


def request(client: str, request_id: int = 0, *, rows: int = 1, cost: float = 10.0) -> Request:
    return Request(
        client=client.encode(),
        request_id=request_id,
        rows=rows,
        nbytes=100,
        cost=cost,
        arrived_at=0.0,
        deadline=inf,
        payload=f"{client}{request_id}",
    )


def filled(*requests: Request) -> RequestQueue:
    queue = RequestQueue(priority_batch_size=16)
    for each in requests:
        queue.push(each)
    return queue


def names(batch: list[Request]) -> list[str]:
    return [each.payload for each in batch]


def take_one(queue: RequestQueue) -> Request:
    (taken,) = queue.take(1, 1)
    return taken


def test_requests_of_one_client_go_first_in_first_out() -> None:
    queue = filled(*(request("a", i, cost=10.0 + i % 3) for i in range(6)))
    assert names(queue.take(_EVERYTHING, _EVERYTHING)) == ["a0", "a1", "a2", "a3", "a4", "a5"]


def test_clients_take_turns_however_many_requests_one_of_them_has() -> None:
    queue = filled(*(request("a", i) for i in range(4)), request("b", 0), request("b", 1))
    assert names(queue.take(_EVERYTHING, _EVERYTHING)) == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_clients_share_by_cost_and_not_by_number_of_requests() -> None:
    queue = filled(*(request("a", i, cost=30.0) for i in range(100)))
    for i in range(100):
        queue.push(request("b", i, cost=10.0))
    served = Counter(take_one(queue).client for _ in range(80))
    assert served == {b"a": 20, b"b": 60}


def test_a_new_client_starts_now_with_no_credit_for_the_past() -> None:
    queue = filled(*(request("a", i) for i in range(100)))
    for _ in range(50):
        take_one(queue)
    for i in range(50):
        queue.push(request("b", i))
    served = Counter(take_one(queue).client for _ in range(20))
    assert served == {b"a": 10, b"b": 10}


def test_sending_one_request_at_a_time_gains_no_share() -> None:
    queue = filled(*(request("a", i, cost=10.0) for i in range(100)))
    queue.push(request("b", 0, cost=50.0))
    cost: Counter[bytes] = Counter()
    for i in range(1, 60):
        taken = take_one(queue)
        cost[taken.client] += int(taken.cost)
        if taken.client == b"b":
            queue.push(request("b", i, cost=50.0))
    assert abs(cost[b"a"] - cost[b"b"]) <= 60


def test_forgetting_an_idle_client_moves_the_clock_on_for_the_next() -> None:
    queue = filled(request("a", 0, cost=10.0), request("b", 0, cost=20.0), request("b", 1))
    take_one(queue)
    take_one(queue)
    assert queue._small.head() is not None  # a's place, at 10, is passed and b's is at 20
    for i in range(2):
        queue.push(request("c", i, cost=10.0))
    assert names(queue.take(_EVERYTHING, _EVERYTHING)) == ["c0", "b1", "c1"]


def test_what_a_client_was_charged_before_the_queue_ran_empty_is_forgotten() -> None:
    queue = filled(request("a", 0, cost=1_000.0))
    take_one(queue)
    assert queue.take(_EVERYTHING, _EVERYTHING) == []
    queue.push(request("a", 1))
    queue.push(request("b", 0))
    assert names(queue.take(_EVERYTHING, _EVERYTHING)) == ["a1", "b0"]


def test_a_small_request_goes_before_large_ones_that_came_earlier() -> None:
    queue = filled(*(request("a", i, rows=64, cost=600.0) for i in range(3)))
    take_one(queue)
    queue.push(request("b", 0, rows=16))
    assert names(queue.take(_EVERYTHING, _EVERYTHING)) == ["b0", "a1", "a2"]


def flooded() -> RequestQueue:
    """A flood of client a's small requests, of 10 tokens, and b's large ones, of 100."""
    queue = filled(*(request("a", i, rows=1, cost=10.0) for i in range(2_000)))
    for i in range(200):
        queue.push(request("b", i, rows=17, cost=100.0))
    return queue


def check_that_a_fifth_is_large(queue: RequestQueue) -> None:
    cost: Counter[bytes] = Counter()
    while sum(cost.values()) < 5_000:
        taken = take_one(queue)
        cost[taken.client] += int(taken.cost)
    assert abs(cost[b"a"] / 4 - cost[b"b"]) <= 10 / 4 + 100


def test_a_flood_of_small_requests_leaves_a_fifth_to_large_ones() -> None:
    check_that_a_fifth_is_large(flooded())


def test_places_of_one_class_cost_it_nothing_where_both_may_go() -> None:
    queue = flooded()
    queue.take_class(9_000, _EVERYTHING, is_small=True)
    queue.take_class(9_000, _EVERYTHING, is_small=False)
    check_that_a_fifth_is_large(queue)


def test_a_class_is_taken_from_fairly_and_past_the_other_ones_turn() -> None:
    queue = filled(*(request("a", i, rows=17, cost=100.0) for i in range(3)))
    queue.push(request("b", 0, rows=17, cost=100.0))
    queue.push(request("c", 0))
    assert names(queue.take_class(300, _EVERYTHING, is_small=False)) == ["a0", "b0", "a1"]
    assert queue.first(is_small=False) is not queue.head()
    assert names(queue.take(_EVERYTHING, _EVERYTHING)) == ["c0", "a2"]


def test_what_was_put_back_goes_first_in_its_class_too() -> None:
    queue = filled(*(request("a", i, rows=17) for i in range(2)), request("c", 0))
    small, large, _ = queue.take(_EVERYTHING, _EVERYTHING)
    for each in (small, large):
        queue.put_back(each)
    queue.push(request("c", 1))
    assert names(queue.take_class(10, 17, is_small=False)) == ["a0"]
    assert queue.head() is queue.first(is_small=True) is small


def test_a_class_gains_no_credit_while_it_has_nothing_to_send() -> None:
    queue = filled(*(request("a", i, cost=10.0) for i in range(1_000)))
    for _ in range(500):
        take_one(queue)
    for i in range(100):
        queue.push(request("b", i, rows=17, cost=10.0))
    served = Counter(take_one(queue).client for _ in range(50))
    assert served == {b"a": 40, b"b": 10}


def test_a_batch_is_filled_across_clients_up_to_its_tokens() -> None:
    queue = filled(*(request(client, cost=10.0) for client in "abcde"))
    assert names(queue.take(35, _EVERYTHING)) == ["a0", "b0", "c0"]
    assert names(queue.take(20, _EVERYTHING)) == ["d0", "e0"]


def test_a_batch_is_filled_up_to_its_rows() -> None:
    queue = filled(*(request(client, rows=4) for client in "abc"))
    assert names(queue.take(_EVERYTHING, 8)) == ["a0", "b0"]


def test_the_first_request_goes_even_when_larger_than_the_budget() -> None:
    queue = filled(request("a", rows=8, cost=500.0), request("b"))
    assert names(queue.take(100, 4)) == ["a0"]


def test_what_was_put_back_goes_before_both_classes_in_its_first_order() -> None:
    queue = filled(*(request(client, rows=rows) for client, rows in [("a", 1), ("b", 64)]))
    first = queue.take(_EVERYTHING, _EVERYTHING)
    queue.push(request("c"))
    for each in reversed(first):
        queue.put_back(each)
    assert names(queue.take(_EVERYTHING, _EVERYTHING)) == ["a0", "b0", "c0"]


def test_going_twice_is_charged_once() -> None:
    queue = filled(*(request("a", i) for i in range(10)), *(request("b", i) for i in range(10)))
    queue.put_back(take_one(queue))
    served = [take_one(queue).client for _ in range(10)]
    assert Counter(served) == {b"a": 5, b"b": 5}


def test_a_suspect_goes_into_no_batch_with_others() -> None:
    queue = filled(request("a"), request("b"))
    suspect = take_one(queue)
    suspect.deaths = 2
    queue.put_back(suspect)
    assert names(queue.take(_EVERYTHING, _EVERYTHING)) == ["b0"]
    assert queue.has_suspects
    assert queue.take_suspect() is suspect
    assert not queue.has_suspects


def test_what_is_removed_never_goes_wherever_it_waited() -> None:
    waiting, in_front, suspect = request("a"), request("b"), request("c")
    queue = filled(in_front, suspect)
    queue.take(_EVERYTHING, _EVERYTHING)
    suspect.deaths = 2
    queue.put_back(in_front)
    queue.put_back(suspect)
    queue.push(waiting)
    for each in (waiting, in_front, suspect):
        queue.remove(each)
        each.is_open = False
    assert queue.take(_EVERYTHING, _EVERYTHING) == []
    assert not queue.has_suspects
    assert (queue.requests, queue.rows, queue.nbytes) == (0, 0, 0)


def test_what_waits_is_counted_in_requests_rows_and_bytes() -> None:
    queue = filled(request("a", rows=3), request("b", rows=40))
    assert (queue.requests, queue.rows, queue.nbytes) == (2, 43, 200)
    taken = queue.take(_EVERYTHING, 1)
    assert (queue.requests, queue.rows, queue.nbytes) == (1, 40, 100)
    queue.put_back(taken[0])
    assert (queue.requests, queue.rows, queue.nbytes) == (2, 43, 200)


def test_passing_clients_leave_little_behind_while_others_wait() -> None:
    queue = FairQueue(weight=1.0)
    queue.push(request("waiting", 0))
    for i in range(10_000):
        queue.push(request(f"passing {i}", cost=1.0))
        if queue.head() is not None:
            queue.pop()
    assert len(queue._heap) == len(queue._flows) < 2_000
