"""What the scheduler does with each event, one small scene at a time."""

from __future__ import annotations

from math import nan
from typing import Any, TypeVar

import pytest

from bert_serving.server.scheduling.costs import MAX_RETRY_S, MIN_RETRY_S, CostModel
from bert_serving.server.scheduling.events import (
    Action,
    AnswerError,
    BatchAnswered,
    ClientLost,
    Deliver,
    Dispatch,
    DrainStarted,
    RequestArrived,
    RequestsArrived,
    RequestsCancelled,
    SchedulerLimits,
    Stopped,
    TimePassed,
    WorkerLost,
    WorkerReady,
    WorkerStuck,
)
from bert_serving.server.scheduling.scheduler import Scheduler

A = TypeVar("A")


class Scene:
    """A scheduler, and the words to play with it in."""

    def __init__(self, **limits: Any) -> None:
        self.scheduler = Scheduler(SchedulerLimits(**limits))
        self.now = 100.0
        self.sent: dict[bytes, list[Dispatch]] = {}

    def play(self, event: Any) -> list[Action]:
        actions = self.scheduler.handle(event, self.now)
        for dispatch in only(actions, Dispatch):
            self.sent.setdefault(dispatch.worker, []).append(dispatch)
        return actions

    def ask(
        self, name: str, *, rows: int = 1, nbytes: int = 40, ttl_s: float = 60.0
    ) -> list[Action]:
        """`name` is a client's letter and a request id: a0, a1, b0."""
        client, request_id = name[0].encode(), int(name[1:])
        return self.play(RequestArrived(client, request_id, rows, nbytes, ttl_s, name))

    def start(self, *names: str, tokens: int = 10_000, takes_express: bool = False) -> list[Action]:
        actions: list[Action] = []
        for name in names:
            ready = WorkerReady(name.encode(), tokens, 1_000, 512, takes_express)
            actions += self.play(ready)
        return actions

    def lose(self, name: str) -> list[Action]:
        self.sent.pop(name.encode(), None)
        return self.play(WorkerLost(name.encode()))

    def answer(self, name: str, tokens: int = 0) -> list[Action]:
        dispatch = self.sent[name.encode()].pop(0)
        answers = [f"answer to {payload}" for payload in dispatch.payloads]
        counts = [tokens] * len(answers)
        return self.play(BatchAnswered(dispatch.worker, dispatch.batch_id, answers, counts))

    def wait(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.play(TimePassed())


def only(actions: list[Action], kind: type[A]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


def sent(actions: list[Action]) -> list[tuple[bytes, list[str]]]:
    return [(action.worker, list(action.payloads)) for action in only(actions, Dispatch)]


def codes(actions: list[Action]) -> list[str]:
    return [action.code for action in only(actions, AnswerError)]


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
    assert codes(actions) == ["overloaded"]  # a1: half of the rows are one client's most
    assert sent(actions) == [(b"v", ["a0", "b0"])]


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


# Express batches


def bulk_on(*workers: str, tokens: int = 1_000, **limits: Any) -> Scene:
    """A scene in which each worker has two batches of large requests, and more wait."""
    scene = Scene(**limits)
    scene.start(*workers, tokens=tokens, takes_express=True)
    for number in range(3 * len(workers)):
        scene.ask(f"z{number}", rows=100, nbytes=4_000)
    return scene


def express(actions: list[Action]) -> list[tuple[bytes, list[str]]]:
    return sent([action for action in only(actions, Dispatch) if action.is_express])


def test_a_small_request_goes_by_express_to_a_worker_that_computes_large_ones() -> None:
    scene = bulk_on("w")
    assert express(scene.ask("a0")) == [(b"w", ["a0"])]
    scene.sent[b"w"].reverse()
    assert scene.answer("w") == [Deliver(b"a", 0, "answer to a0")]


def test_a_worker_that_takes_no_express_gets_none() -> None:
    scene = Scene()
    scene.start("w")
    for number in range(3):
        scene.ask(f"z{number}", rows=100)
    assert sent(scene.ask("a0")) == []


def test_express_batches_go_one_at_a_time_and_are_filled_meanwhile() -> None:
    scene = bulk_on("w")
    assert express(scene.ask("a0")) == [(b"w", ["a0"])]
    assert scene.ask("a1") == scene.ask("b0") == []
    scene.sent[b"w"].reverse()
    assert express(scene.answer("w")) == [(b"w", ["b0", "a1"])]


def test_an_express_batch_is_a_quarter_of_the_budget_or_one_request() -> None:
    scene = bulk_on("w", tokens=100)
    scene.ask("a0", rows=16, nbytes=1_000)
    for number in range(5):
        scene.ask(f"b{number}", nbytes=40)  # 12 tokens each, by estimate
    assert scene.sent[b"w"][-1].payloads == ["a0"]
    scene.sent[b"w"].reverse()
    assert express(scene.answer("w")) == [(b"w", ["b0", "b1"])]


def test_small_requests_wait_for_the_lane_rather_than_behind_large_ones() -> None:
    scene = bulk_on("w")
    scene.ask("a0")
    scene.ask("a1")
    assert sent(scene.answer("w")) == []  # a batch has room, but it is a1's turn
    assert [len(each.payloads) for each in scene.sent[b"w"]] == [1, 1]


def test_an_idle_worker_is_better_than_the_lane_of_a_busy_one() -> None:
    scene = bulk_on("v")
    scene.play(RequestsCancelled(b"z", [2]))
    scene.start("w", takes_express=True)
    assert sent(scene.ask("a0")) == [(b"w", ["a0"])]
    assert express(scene.ask("a1")) == [(b"v", ["a1"])]


def test_batches_of_a_worker_with_a_lane_are_of_one_class() -> None:
    scene = Scene()
    for name, rows in (("a0", 1), ("z0", 20), ("b0", 1)):
        scene.ask(name, rows=rows)
    assert sent(scene.start("w", takes_express=True)) == [(b"w", ["a0"]), (b"w", ["z0"])]
    scene = Scene()
    for name, rows in (("a0", 1), ("z0", 20), ("b0", 1)):
        scene.ask(name, rows=rows)
    assert sent(scene.start("w")) == [(b"w", ["a0", "z0", "b0"])]


def test_a_flood_by_express_leaves_large_requests_their_fifth() -> None:
    scene = bulk_on("w", tokens=1_000)
    for number in range(1_000):
        scene.ask(f"a{number}", nbytes=40)
    small = large = 0.0
    while scene.sent[b"w"] and small < 10_000:
        newest = max(scene.sent[b"w"], key=lambda each: each.is_express)
        tokens = sum(12 if payload[0] == "a" else 1_000 for payload in newest.payloads)
        if newest.is_express:
            small += tokens
        else:
            large += tokens
            scene.ask(f"z{scene.scheduler.counters.accepted}", rows=100, nbytes=4_000)
        scene.sent[b"w"].remove(newest)
        scene.sent[b"w"].insert(0, newest)
        scene.answer("w")
    assert large >= small / 4 - 2_000


def test_a_single_row_by_express_is_charged_what_it_takes_at_least() -> None:
    scene = bulk_on("w", tokens=1_000)
    number = 0
    while express(scene.ask(f"a{number}", nbytes=0)):  # 2 tokens, by estimate
        scene.sent[b"w"].insert(0, scene.sent[b"w"].pop())
        scene.answer("w")
        number += 1
    assert number == pytest.approx(1_200 * 4 / 48, abs=2 * 4)


def test_what_a_lost_worker_had_by_express_goes_first_again() -> None:
    scene = bulk_on("v")
    scene.ask("a0")
    scene.lose("v")
    started = scene.start("w", tokens=1_000, takes_express=True)
    assert sent(started) == [(b"w", ["z0"]), (b"w", ["z1"]), (b"w", ["a0"])]
    assert express(started) == [(b"w", ["a0"])]


def test_an_express_answer_gives_the_batch_that_runs_its_time_anew() -> None:
    scene = bulk_on("w", batch_timeout_s=5.0)
    scene.ask("a0")
    scene.now += 4.0
    scene.sent[b"w"].insert(0, scene.sent[b"w"].pop())
    scene.answer("w")
    assert scene.wait(4.9) == []
    assert scene.wait(0.2) == [WorkerStuck(b"w")]


def test_a_hang_in_an_express_batch_is_noticed() -> None:
    scene = bulk_on("w", batch_timeout_s=5.0)
    scene.ask("a0")
    scene.answer("w")
    scene.answer("w")
    assert scene.wait(5.0) == [WorkerStuck(b"w")]


def test_a_suspect_waits_for_an_express_batch_too() -> None:
    scene = bulk_on("w")
    scene.ask("a0")
    for name in ("u", "v"):
        scene.start(name)  # gets z2, which will be a suspect
        scene.lose(name)
    assert sent(scene.answer("w")) == sent(scene.answer("w")) == []
    assert sent(scene.answer("w")) == [(b"w", ["z2"])]


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


# Workers that die


def test_what_a_lost_worker_had_goes_first_to_the_next() -> None:
    scene = Scene()
    scene.start("v")
    for name in ("a0", "a1", "b0"):
        scene.ask(name)
    assert sent(scene.lose("v")) == []
    assert sent(scene.start("w")) == [(b"w", ["a0", "a1", "b0"])]
    assert len(scene.answer("w")) == 3


def test_a_late_answer_of_a_lost_worker_is_dropped() -> None:
    scene = Scene()
    scene.start("v")
    (dispatch,) = only(scene.ask("a0"), Dispatch)
    scene.lose("v")
    late = BatchAnswered(b"v", dispatch.batch_id, ["late"], [5])
    assert scene.play(late) == []
    scene.start("v")
    assert scene.play(late) == []
    assert scene.answer("v") == [Deliver(b"a", 0, "answer to a0")]


def test_a_worker_that_is_ready_again_has_started_anew() -> None:
    scene = Scene()
    scene.start("w")
    scene.ask("a0")
    scene.sent.clear()
    assert sent(scene.start("w")) == [(b"w", ["a0"])]
    assert len(scene.scheduler.workers) == 1


@pytest.mark.parametrize("answers", [[], ["one", "too many"]])
def test_a_worker_that_miscounts_its_answers_is_ended_and_its_requests_go_on(
    answers: list[str],
) -> None:
    scene = Scene()
    scene.start("v", "w")
    scene.ask("a0")
    batch_id = scene.sent[b"v"][0].batch_id
    actions = scene.play(BatchAnswered(b"v", batch_id, answers, [1] * len(answers)))
    assert only(actions, WorkerStuck) == [WorkerStuck(b"v")]
    assert sent(actions) == [(b"w", ["a0"])]
    assert scene.lose("v") == []


def test_a_stuck_worker_that_then_miscounts_is_not_reported_again() -> None:
    scene = Scene(batch_timeout_s=5.0)
    scene.start("w")
    scene.ask("a0")
    assert scene.wait(5.0) == [WorkerStuck(b"w")]
    assert scene.play(BatchAnswered(b"w", scene.sent[b"w"][0].batch_id, [], [])) == []


def killed_twice(*names: str) -> Scene:
    """A scene in which these requests were in hand when two workers died; none is left."""
    scene = Scene()
    for name in names:
        scene.ask(name)
    for worker in ("u", "v"):
        scene.start(worker)
        scene.lose(worker)
    return scene


def test_a_request_that_killed_two_workers_is_tried_alone() -> None:
    scene = killed_twice("a0", "a1")
    scene.ask("b0")
    assert sent(scene.start("w")) == [(b"w", ["a0"])]
    assert sent(scene.ask("b1")) == []
    assert sent(scene.answer("w")) == [(b"w", ["a1"])]
    assert sent(scene.answer("w")) == [(b"w", ["b0", "b1"])]


def test_a_request_that_killed_three_workers_fails_alone() -> None:
    scene = killed_twice("a0", "a1")
    scene.start("w")
    assert codes(scene.lose("w")) == ["worker_failed"]
    scene.start("x")
    assert scene.answer("x") == [Deliver(b"a", 1, "answer to a1")]


def test_a_busy_worker_is_kept_from_more_work_until_it_can_try_a_suspect() -> None:
    scene = Scene(max_batches_per_worker=2)
    scene.start("w")
    scene.ask("b0")
    scene.ask("b1")
    scene.ask("a0")
    for name in ("u", "v"):
        scene.start(name)
        scene.lose(name)
    scene.ask("c0")
    assert scene.answer("w") == [Deliver(b"b", 0, "answer to b0")]
    assert sent(scene.answer("w")) == [(b"w", ["a0"])]
    assert sent(scene.answer("w")) == [(b"w", ["c0"])]


def test_only_one_suspect_is_tried_at_a_time() -> None:
    scene = killed_twice("a0", "a1")
    scene.start("w")
    assert sent(scene.start("x")) == []
    assert sent(scene.ask("b0")) == [(b"x", ["b0"])]


def test_a_worker_is_free_again_when_its_suspect_was_cancelled_before_the_trial() -> None:
    scene = Scene()
    scene.start("w")
    scene.ask("b0")
    scene.ask("b1")
    scene.ask("a0")
    for name in ("u", "v"):
        scene.start(name)
        scene.lose(name)
    scene.answer("w")
    scene.play(RequestsCancelled(b"a", [0]))
    assert sent(scene.ask("c0")) == [(b"w", ["c0"])]


# Workers that hang


def test_a_worker_that_holds_a_batch_too_long_is_stuck_and_said_so_once() -> None:
    scene = Scene(batch_timeout_s=5.0)
    scene.start("w")
    scene.ask("a0")
    assert scene.scheduler.next_wakeup() == 105.0
    assert scene.wait(4.9) == []
    assert scene.wait(0.1 + 1e-9) == [WorkerStuck(b"w")]
    assert scene.wait(50.0) == []
    assert sent(scene.ask("a1")) == []
    scene.start("x")
    assert sent(scene.lose("w")) == [(b"x", ["a0"])]


def test_a_waiting_batch_is_timed_from_when_it_runs() -> None:
    scene = Scene(batch_timeout_s=5.0)
    scene.start("w")
    scene.ask("a0")
    scene.ask("a1")
    scene.now += 4.0
    scene.answer("w")
    assert scene.wait(4.9) == []
    assert scene.wait(0.2) == [WorkerStuck(b"w")]


def test_an_answer_that_comes_just_in_time_is_no_hang() -> None:
    scene = Scene(batch_timeout_s=5.0)
    scene.start("w")
    scene.ask("a0")
    scene.now += 5.0
    assert scene.answer("w") == [Deliver(b"a", 0, "answer to a0")]


def test_an_answer_out_of_order_gives_the_running_batch_no_more_time() -> None:
    scene = Scene(batch_timeout_s=5.0)
    scene.start("w")
    scene.ask("a0")
    scene.ask("a1")
    scene.now += 4.0
    scene.sent[b"w"].reverse()
    scene.answer("w")
    assert scene.wait(1.0) == [WorkerStuck(b"w")]


def test_a_stuck_worker_is_not_reported_again_for_its_next_batch() -> None:
    scene = Scene(batch_timeout_s=5.0)
    scene.start("w")
    scene.ask("a0")
    scene.ask("a1")
    scene.wait(5.0)
    scene.answer("w")
    assert scene.wait(50.0) == []


def test_a_suspect_does_not_wait_for_a_stuck_worker() -> None:
    scene = Scene(batch_timeout_s=5.0, max_batches_per_worker=2)
    scene.start("w", "x")
    for name in ("b0", "b1", "b2", "b3", "a0"):
        scene.ask(name)
    for name in ("u", "v"):
        scene.start(name)
        scene.lose(name)
    scene.ask("c0")
    scene.answer("w")  # w is kept free from now on, but hangs
    scene.now += 4.0
    assert sent(scene.answer("x")) == [(b"x", ["c0"])]
    assert scene.wait(1.0) == [WorkerStuck(b"w")]
    scene.ask("c1")
    assert sent(scene.answer("x")) == []
    assert sent(scene.answer("x")) == [(b"x", ["a0"])]


def test_a_stuck_worker_may_still_answer() -> None:
    scene = Scene(batch_timeout_s=5.0)
    scene.start("w")
    scene.ask("a0")
    scene.wait(6.0)
    assert scene.answer("w") == [Deliver(b"a", 0, "answer to a0")]
    assert sent(scene.ask("a1")) == []


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


def test_a_request_never_costs_more_than_its_truncated_rows() -> None:
    costs = CostModel()
    costs.max_row_tokens = 64
    assert costs.estimate(2, 1_000_000) == 128
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


def test_batches_are_filled_by_what_truncated_rows_cost() -> None:
    scene = Scene()
    scene.play(WorkerReady(b"w", 20, 1_000, 10))
    scene.ask("a0")
    scene.ask("a1")
    for i in range(2, 6):
        scene.ask(f"a{i}", nbytes=10_000)
    assert sent(scene.answer("w")) == [(b"w", ["a2", "a3"])]


def test_what_a_request_carried_is_let_go_with_its_end() -> None:
    scene = Scene()
    scene.ask("a0")
    (request,) = scene.scheduler._ledger.requests_of(b"a")
    scene.play(RequestsCancelled(b"a", [0]))
    assert request.payload is None
