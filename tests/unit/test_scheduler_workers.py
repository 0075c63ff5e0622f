"""Workers that die or hang, and the requests that they had in hand."""

from __future__ import annotations

import pytest
from scheduler_scene import Scene, codes, only, sent

from bert_serving.server.scheduling.events import (
    BatchAnswered,
    Deliver,
    Dispatch,
    RequestsCancelled,
    WorkerBusy,
    WorkerDone,
    WorkerRetired,
    WorkerStuck,
)

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


def test_a_worker_that_gets_on_with_a_long_batch_is_not_stuck_until_it_gives_no_sign() -> None:
    scene = Scene(batch_timeout_s=5.0)
    scene.start("w")
    assert scene.play(WorkerBusy(b"w")) == []
    assert scene.scheduler.next_wakeup() is None
    scene.ask("a0", ttl_s=1_000.0)
    for _ in range(5):
        assert scene.wait(4.9) == []
        assert scene.play(WorkerBusy(b"w")) == []
    assert scene.wait(4.9) == []
    assert scene.wait(0.1 + 1e-9) == [WorkerStuck(b"w")]
    assert scene.play(WorkerBusy(b"w")) == []
    assert scene.wait(50.0) == []


def test_of_several_workers_the_one_that_is_silent_for_longest_is_stuck() -> None:
    scene = Scene(batch_timeout_s=5.0)
    scene.start("v", "w")
    scene.ask("a0")
    scene.ask("a1")
    scene.now += 4.0
    scene.play(WorkerBusy(b"v"))
    assert scene.wait(1.0) == [WorkerStuck(b"w")]
    assert scene.wait(4.0) == [WorkerStuck(b"v")]


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


# workers that are retired


def test_a_retired_worker_answers_what_it_has_gets_no_more_and_is_done() -> None:
    scene = Scene()
    scene.start("w0")
    scene.ask("a0")
    scene.ask("a1")
    assert scene.play(WorkerRetired(b"w0")) == []
    assert scene.ask("a2") == []
    assert only(scene.answer("w0"), WorkerDone) == []
    assert only(scene.answer("w0"), WorkerDone) == [WorkerDone(b"w0")]
    assert sent(scene.start("w1")) == [(b"w1", ["a2"])]


def test_an_idle_worker_is_done_as_soon_as_it_is_retired_and_told_once() -> None:
    scene = Scene()
    scene.start("w0")
    assert scene.play(WorkerRetired(b"w0")) == [WorkerDone(b"w0")]
    assert scene.play(WorkerRetired(b"w0")) == []
    assert scene.play(WorkerRetired(b"nobody")) == []


def test_what_a_retired_worker_dies_with_goes_to_another() -> None:
    scene = Scene()
    scene.start("w0")
    scene.ask("a0")
    scene.play(WorkerRetired(b"w0"))
    scene.start("w1")
    assert sent(scene.lose("w0")) == [(b"w1", ["a0"])]


def test_a_retired_worker_that_hangs_is_stuck() -> None:
    scene = Scene(batch_timeout_s=10.0)
    scene.start("w0")
    scene.ask("a0")
    scene.play(WorkerRetired(b"w0"))
    assert only(scene.wait(10.0), WorkerStuck) == [WorkerStuck(b"w0")]
