"""What the scheduler does with each event, one small scene at a time."""

from __future__ import annotations

from math import nan
from typing import Any

import pytest
from scheduler_scene import Scene, codes, only, sent

from bert_serving.server.scheduling.costs import MAX_RETRY_S, MIN_RETRY_S, CostModel
from bert_serving.server.scheduling.events import (
    AnswerError,
    ClientLost,
    Deliver,
    Dispatch,
    DrainStarted,
    RequestArrived,
    RequestsArrived,
    RequestsCancelled,
    Stopped,
    WorkerBusy,
    WorkerReady,
)

# From a request to its answer


def test_a_request_goes_to_an_idle_worker_at_once_and_its_answer_to_its_client() -> None:
    scene = Scene()
    scene.start("w")
    assert sent(scene.ask("a7")) == [(b"w", ["a7"])]
    assert not scene.scheduler.is_idle
    assert scene.answer("w") == [Deliver(b"a", 7, "answer to a7")]
    assert scene.scheduler.is_idle


def test_who_else_gets_an_answer_comes_back_with_it_also_after_a_worker_was_lost() -> None:
    scene = Scene()
    scene.start("v")
    scene.play(RequestArrived(b"a", 1, 1, 40, 60.0, "a1", group="readers"))
    scene.lose("v")
    scene.start("w")
    assert scene.answer("w") == [Deliver(b"a", 1, "answer to a1", "readers")]


def test_requests_wait_for_a_worker_and_go_out_together_when_one_comes() -> None:
    scene = Scene()
    assert scene.ask("a0") == scene.ask("b0") == []
    scene.now += 2.5
    (dispatch,) = only(scene.start("w"), Dispatch)
    assert dispatch.payloads == ["a0", "b0"]
    assert dispatch.queued_s == [2.5, 2.5]


def test_a_worker_holds_two_batches_and_the_rest_waits() -> None:
    scene = Scene()
    scene.start("w")
    assert [bool(sent(scene.ask(f"a{i}"))) for i in range(4)] == [True, True, False, False]
    assert sent(scene.answer("w")) == [(b"w", ["a2", "a3"])]


def test_requests_that_arrive_together_go_out_together() -> None:
    scene = Scene(max_queue_rows=10)
    scene.start("v", "w")
    new = [RequestArrived(b"a", i, 3, 40, 60.0, f"a{i}") for i in range(2)]
    actions = scene.play(
        RequestsArrived([new[0], RequestArrived(b"b", 0, 3, 40, 60.0, "b0"), new[1]])
    )
    assert codes(actions) == ["overloaded"]  # a1: a would have more than is left
    assert sent(actions) == [(b"v", ["a0", "b0"])]


@pytest.mark.parametrize(
    ("busy", "nbytes", "expected"),
    [
        ("", 400, [(b"u", ["a0", "a1"]), (b"v", ["a2", "a3"]), (b"w", ["a4", "a5"])]),
        ("u", 400, [(b"v", ["a0", "a1", "a2"]), (b"w", ["a3", "a4", "a5"])]),
        ("uv", 400, [(b"w", ["a0", "a1", "a2", "a3", "a4", "a5"])]),
        ("", 40, [(b"u", ["a0", "a1", "a2", "a3", "a4", "a5"])]),  # too little to be shared
    ],
)
def test_what_arrives_together_is_shared_by_all_idle_workers(
    busy: str, nbytes: int, expected: list[tuple[bytes, list[str]]]
) -> None:
    scene = Scene()
    scene.start("u", "v", "w")
    for number, worker in enumerate(busy):
        assert sent(scene.ask(f"z{number}"))[0][0] == worker.encode()
    new = [RequestArrived(b"a", i, 1, nbytes, 60.0, f"a{i}") for i in range(6)]
    assert sent(scene.play(RequestsArrived(new))) == expected


def test_idle_workers_get_work_before_any_gets_a_second_batch() -> None:
    scene = Scene()
    scene.start("v", "w")
    workers = [worker for i in range(4) for worker, _ in sent(scene.ask(f"a{i}"))]
    assert workers == [b"v", b"w", b"v", b"w"]


def test_the_worker_that_was_idle_for_longest_is_used() -> None:
    scene = Scene()
    scene.start("v", "w")
    scene.ask("a0")
    scene.answer("v")
    assert sent(scene.ask("a1")) == [(b"w", ["a1"])]


def test_a_batch_keeps_to_the_tokens_its_worker_can_take() -> None:
    scene = Scene()
    for i in range(5):
        scene.ask(f"a{i}", nbytes=40)  # 12 tokens, by estimate
    assert sent(scene.start("w", tokens=25)) == [(b"w", ["a0", "a1"]), (b"w", ["a2", "a3"])]


def test_answers_are_told_apart_by_batch_even_out_of_order() -> None:
    scene = Scene()
    scene.start("w")
    scene.ask("a0")
    scene.ask("a1")
    scene.sent[b"w"].reverse()
    assert scene.answer("w") == [Deliver(b"a", 1, "answer to a1")]
    assert scene.answer("w") == [Deliver(b"a", 0, "answer to a0")]


# Refusals


def test_a_request_beyond_the_row_limit_is_refused_and_told_when_to_come_back() -> None:
    scene = Scene(max_queue_rows=10)
    scene.ask("a0", rows=5)
    scene.ask("b0", rows=5)
    (refusal,) = only(scene.ask("c0"), AnswerError)
    assert refusal.code == "overloaded"
    assert refusal.retry_after_s == MAX_RETRY_S  # no worker at all
    scene.start("w")
    (refusal,) = only(scene.ask("c0"), AnswerError)
    assert refusal.retry_after_s is not None
    assert MIN_RETRY_S <= refusal.retry_after_s < MAX_RETRY_S


def test_a_request_beyond_the_byte_limit_is_refused() -> None:
    scene = Scene(max_queue_bytes=100)
    scene.ask("a0", nbytes=50)
    scene.ask("b0", nbytes=50)
    assert codes(scene.ask("c0", nbytes=1)) == ["overloaded"]


def test_what_is_kept_beside_the_rows_counts_against_the_byte_limit_and_costs_nothing() -> None:
    scene = Scene(max_queue_bytes=100)
    first, other, large = (
        RequestArrived(client, 0, 1, 10, 60.0, None, other_bytes=other_bytes)
        for client, other_bytes in ((b"a", 40), (b"b", 41), (b"c", 91))
    )
    assert codes(scene.play(first)) == []
    assert codes(scene.play(other)) == ["overloaded"]
    assert codes(scene.play(large)) == ["too_large"]
    assert scene.scheduler.queued_bytes == 50
    without = Scene()
    without.ask("a0", nbytes=10)
    assert scene.scheduler._ledger.cost == without.scheduler._ledger.cost
    scene.play(RequestsCancelled(b"a", [0]))
    assert scene.scheduler.queued_bytes == 0
    assert codes(scene.play(other)) == []


def test_what_workers_have_in_hand_counts_against_the_limits() -> None:
    scene = Scene(max_queue_rows=10)
    scene.start("w")
    scene.ask("a0", rows=10)
    assert codes(scene.ask("b0")) == ["overloaded"]
    scene.answer("w")
    assert codes(scene.ask("b0")) == []


@pytest.mark.parametrize("size", [{"rows": 11}, {"nbytes": 101}])
def test_a_request_that_never_fits_is_too_large_however_full_the_queue(size: Any) -> None:
    scene = Scene(max_queue_rows=10, max_queue_bytes=100)
    assert codes(scene.ask("a0", **size)) == ["too_large"]
    scene.ask("b0")
    assert codes(scene.ask("a0", **size)) == ["too_large"]


def test_one_client_fills_at_most_half_of_the_queue() -> None:
    scene = Scene(max_queue_rows=10)
    assert codes(scene.ask("a0", rows=4)) == []
    assert codes(scene.ask("a1", rows=1)) == []
    assert codes(scene.ask("a2", rows=1)) == ["overloaded"]
    assert codes(scene.ask("b0", rows=5)) == []


def test_clients_that_take_what_they_get_leave_room_for_one_more() -> None:
    scene = Scene(max_queue_rows=120)
    for client in "abc" * 120:
        scene.ask(f"{client}{scene.scheduler.queued_requests}")
    assert scene.scheduler.queued_rows == 90  # 30 each, and as much is left
    assert codes(scene.ask("d0", rows=30)) == []


def test_a_clients_half_is_free_again_as_its_answers_come() -> None:
    scene = Scene(max_queue_rows=10)
    scene.start("w", tokens=1)
    for name in ("a0", "a1", "a2"):
        assert codes(scene.ask(name, rows=2)) == ([] if name != "a2" else ["overloaded"])
    for request_id in range(2, 6):
        scene.answer("w")
        assert codes(scene.ask(f"a{request_id}", rows=2)) == []


def test_a_client_with_nothing_open_may_send_more_than_half() -> None:
    scene = Scene(max_queue_rows=10)
    assert codes(scene.ask("a0", rows=9)) == []


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, nan])
def test_a_request_without_time_left_is_refused(ttl_s: float) -> None:
    scene = Scene()
    scene.start("w")
    actions = scene.ask("a0", ttl_s=ttl_s)
    assert codes(actions) == ["deadline_exceeded"]
    assert sent(actions) == []


def test_while_draining_new_requests_are_refused_and_old_ones_finished() -> None:
    scene = Scene()
    scene.start("w")
    scene.ask("a0")
    scene.play(DrainStarted())
    assert codes(scene.ask("a1")) == ["unavailable"]
    assert not scene.scheduler.is_idle
    assert scene.answer("w") == [Deliver(b"a", 0, "answer to a0")]
    assert scene.scheduler.is_idle


def test_a_stop_answers_all_that_is_open_waiting_or_in_hand() -> None:
    scene = Scene(max_batches_per_worker=1)
    scene.start("w")
    for name in ("a0", "a1", "b0"):
        scene.ask(name)
    assert codes(scene.play(Stopped())) == ["unavailable"] * 3
    assert scene.scheduler.is_idle
    assert scene.answer("w") == []
    assert codes(scene.ask("a2")) == ["unavailable"]


def test_an_id_used_twice_fails_both_requests_and_neither_is_delivered() -> None:
    scene = Scene()
    scene.start("w")
    scene.ask("a0")
    assert codes(scene.ask("a0")) == ["invalid_request", "invalid_request"]
    assert scene.answer("w") == []
    assert scene.scheduler.is_idle


def test_an_id_may_be_used_again_after_its_answer_and_by_other_clients() -> None:
    scene = Scene()
    scene.start("w")
    scene.ask("a0")
    assert codes(scene.ask("b0")) == []
    scene.answer("w")
    assert codes(scene.ask("a0")) == []


# Deadlines and cancelling


def test_a_deadline_is_kept_while_waiting() -> None:
    scene = Scene()
    scene.ask("a0", ttl_s=1.5)
    assert scene.scheduler.next_wakeup() == 101.5
    assert scene.wait(1.4) == []
    assert codes(scene.wait(0.1 + 1e-9)) == ["deadline_exceeded"]
    assert sent(scene.start("w")) == []


def test_a_deadline_is_kept_in_a_workers_hand_and_the_late_answer_is_dropped() -> None:
    scene = Scene()
    scene.start("w")
    scene.ask("a0", ttl_s=1.0)
    assert codes(scene.wait(1.0)) == ["deadline_exceeded"]
    assert scene.answer("w") == []


def test_the_next_wakeup_is_whatever_comes_first() -> None:
    scene = Scene(batch_timeout_s=5.0)
    scene.start("w")
    scene.ask("a0", ttl_s=9.0)
    assert scene.scheduler.next_wakeup() == 105.0
    scene.ask("a1", ttl_s=2.0)
    assert scene.scheduler.next_wakeup() == 102.0
    scene.play(RequestsCancelled(b"a", [1]))
    assert scene.scheduler.next_wakeup() == 105.0


def test_a_request_without_a_deadline_needs_no_wakeup() -> None:
    scene = Scene()
    scene.ask("a0", ttl_s=float("inf"))
    assert scene.scheduler.next_wakeup() is None


def test_a_cancelled_request_is_neither_sent_nor_answered() -> None:
    scene = Scene()
    scene.ask("a0")
    scene.ask("a1")
    assert scene.play(RequestsCancelled(b"a", [0, 99])) == []
    assert sent(scene.start("w")) == [(b"w", ["a1"])]
    scene.play(RequestsCancelled(b"a", [1]))
    assert scene.answer("w") == []
    assert scene.scheduler.is_idle


def test_a_lost_client_takes_its_requests_along_and_no_others() -> None:
    scene = Scene()
    for name in ("a0", "b0", "a1"):
        scene.ask(name)
    assert scene.play(ClientLost(b"a")) == []
    assert sent(scene.start("w")) == [(b"w", ["b0"])]
    assert scene.scheduler.counters.cancelled == 2


def test_the_limits_are_free_again_after_cancelling() -> None:
    scene = Scene(max_queue_rows=10)
    scene.ask("a0", rows=10)
    scene.play(RequestsCancelled(b"a", [0]))
    assert codes(scene.ask("b0", rows=10)) == []


# Numbers


def test_the_status_numbers_follow_what_happens() -> None:
    scene = Scene()
    scene.start("w", tokens=20)
    for i in range(4):
        scene.ask(f"a{i}", rows=2, nbytes=40)
    scheduler = scene.scheduler
    assert (scheduler.queued_requests, scheduler.queued_rows, scheduler.queued_bytes) == (2, 4, 80)
    assert scheduler.requests_in_hand == 2
    worker = scheduler.workers[b"w"]
    assert (worker.batches_in_hand, worker.rows_in_hand) == (2, 4)
    scene.answer("w", tokens=17)
    assert (worker.batches_served, worker.rows_served, worker.tokens_served) == (1, 2, 17)


def test_each_end_of_a_request_is_counted() -> None:
    scene = Scene(max_queue_rows=10)
    scene.ask("a0", ttl_s=1.0)
    scene.ask("a1")
    scene.ask("a2")
    scene.ask("b0", rows=11)
    scene.play(RequestsCancelled(b"a", [1]))
    scene.wait(2.0)
    scene.start("w")
    scene.answer("w")
    counters = scene.scheduler.counters
    assert (counters.accepted, counters.delivered, counters.cancelled) == (3, 1, 1)
    assert (counters.expired, counters.failed["deadline_exceeded"]) == (1, 1)
    assert counters.refused == {"too_large": 1}


def test_answered_requests_with_distant_deadlines_are_not_kept() -> None:
    scene = Scene()
    scene.start("w")
    for i in range(5_000):
        scene.ask(f"a{i}", ttl_s=1e6)
        scene.answer("w")
    assert len(scene.scheduler._ledger._deadlines) < 2_000


def test_the_estimate_follows_the_tokens_that_workers_report() -> None:
    scene = Scene()
    scene.start("w")
    for i in range(100):
        scene.ask(f"a{i}", rows=1, nbytes=100)
        scene.answer("w", tokens=52)
    assert scene.scheduler.tokens_per_byte == pytest.approx(0.5, abs=0.01)


def test_truncated_rows_teach_nothing_about_the_rest() -> None:
    scene = Scene()
    scene.start("w")
    before = scene.scheduler.tokens_per_byte
    for i in range(100):
        scene.ask(f"a{i}", rows=1, nbytes=100_000)
        scene.answer("w", tokens=512)
    assert scene.scheduler.tokens_per_byte == before


def test_a_request_costs_its_truncated_rows_and_a_little_for_what_is_cut_off() -> None:
    costs = CostModel()
    costs.max_row_tokens = 64
    assert costs.estimate(2, 1_000) == 128
    assert costs.estimate(2, 2 * 64 * 16) == 128
    assert costs.estimate(2, 2 * 64 * 16 + 1_280) == 138
    assert costs.estimate(2, 1_000_000) == 128 + (1_000_000 - 2 * 64 * 16) / 128
    assert costs.estimate(2, 40) == 14
    assert costs.estimate(1, 0) == 2
    assert costs.estimate(0, 0) == 1


def test_the_time_to_come_back_follows_the_rate_and_the_workers() -> None:
    costs = CostModel()
    for _ in range(200):
        costs.learn_rate(1_000, 0.5)
    assert costs.tokens_per_s == pytest.approx(2_000, rel=0.01)
    assert costs.retry_after_s(4_000, 1) == pytest.approx(2.0, rel=0.01)
    assert costs.retry_after_s(4_000, 2) == pytest.approx(1.0, rel=0.01)
    assert costs.retry_after_s(10**9, 2) == MAX_RETRY_S
    assert costs.retry_after_s(0, 2) == MIN_RETRY_S


def test_a_batch_answered_in_no_time_breaks_no_estimate() -> None:
    costs = CostModel()
    for _ in range(1_000):
        costs.learn_rate(1_000, 0.0)
    assert costs.retry_after_s(10_000, 1) == MIN_RETRY_S


def test_a_slow_worker_makes_refused_clients_wait_longer() -> None:
    waits_s = []
    for batch_s in (0.001, 0.1):
        scene = Scene(max_queue_rows=100)
        scene.start("w")
        for i in range(200):
            scene.ask(f"a{i}")
            scene.now += batch_s
            scene.answer("w", tokens=12)
        scene.ask("a0", rows=100, nbytes=4_000)
        (refusal,) = only(scene.ask("b0"), AnswerError)
        waits_s.append(refusal.retry_after_s)
    assert waits_s == [pytest.approx(0.1, rel=0.1), MAX_RETRY_S]


def test_a_sign_of_life_makes_no_worker_seem_faster() -> None:
    scene = Scene()
    scene.start("w")
    for i in range(100):
        scene.ask(f"a{i}")
        for _ in range(4):
            scene.now += 0.25
            scene.play(WorkerBusy(b"w"))
        scene.answer("w", tokens=1_000)
    assert scene.scheduler._costs.tokens_per_s == pytest.approx(1_000, rel=0.01)


def test_batches_are_filled_by_what_truncated_rows_cost() -> None:
    scene = Scene()
    scene.play(WorkerReady(b"w", 20, 1_000, 10))
    scene.ask("a0")
    scene.ask("a1")
    for i in range(2, 6):
        scene.ask(f"a{i}", nbytes=160)  # 42 tokens, by estimate
    assert sent(scene.answer("w")) == [(b"w", ["a2", "a3"])]


def test_a_very_long_row_takes_the_turns_of_many() -> None:
    scene = Scene()
    scene.start("w", tokens=512)
    scene.ask("z0", rows=100, nbytes=4_000)
    scene.ask("z1", rows=100, nbytes=4_000)
    for i in range(3):
        scene.ask(f"a{i}", rows=20, nbytes=10_000_000)
        scene.ask(f"b{i}", rows=20, nbytes=10_000)
    scene.ask("b3", rows=20, nbytes=10_000)
    order = [sent(scene.answer("w"))[0][1] for _ in range(6)]
    assert order == [["a0"], ["b0"], ["b1"], ["b2"], ["b3"], ["a1"]]


def test_what_a_request_carried_is_let_go_with_its_end() -> None:
    scene = Scene()
    scene.ask("a0")
    (request,) = scene.scheduler._ledger.requests_of(b"a")
    scene.play(RequestsCancelled(b"a", [0]))
    assert request.payload is None
