"""Small requests go by express to workers that compute large ones."""

from __future__ import annotations

from typing import Any

import pytest
from scheduler_scene import Scene, only, sent

from bert_serving.server.scheduling.events import (
    Action,
    Deliver,
    Dispatch,
    RequestsCancelled,
    WorkerStuck,
)
from bert_serving.server.scheduling.queues import MAX_SMALL_BYTES


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


def test_one_row_that_is_very_long_is_no_small_request() -> None:
    scene = bulk_on("w")
    assert express(scene.ask("a0", nbytes=MAX_SMALL_BYTES + 1)) == []
    assert express(scene.ask("a1", nbytes=MAX_SMALL_BYTES)) == [(b"w", ["a1"])]


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


@pytest.mark.parametrize(
    ("budget", "nbytes", "taken"),
    [
        (2_000, 1_000, 1),  # 252 tokens each, by estimate: a quarter of the budget has one
        (4_000, 1_000, 3),
        (400, 200, 4),  # 52 each: a small budget's quarter would be too little
        (100, 120, 3),  # 32 each
    ],
)
def test_an_express_batch_is_a_quarter_of_the_budget_or_256_tokens(
    budget: int, nbytes: int, taken: int
) -> None:
    scene = bulk_on("w", tokens=budget)
    scene.ask("a0", rows=16, nbytes=8_000)  # or one request
    for number in range(5):
        scene.ask(f"b{number}", nbytes=nbytes)
    assert scene.sent[b"w"][-1].payloads == ["a0"]
    scene.sent[b"w"].reverse()
    assert express(scene.answer("w")) == [(b"w", [f"b{number}" for number in range(taken)])]


def test_small_requests_wait_for_the_lane_rather_than_behind_large_ones() -> None:
    scene = bulk_on("w")
    scene.ask("a0")
    scene.ask("a1")
    assert sent(scene.answer("w")) == [(b"w", ["z2"])]  # though it is a1's turn
    assert express(scene.answer("w")) == []
    assert express(scene.answer("w")) == [(b"w", ["a1"])]


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


def test_small_requests_go_by_express_however_many_have_gone_before() -> None:
    scene = bulk_on("w")
    for number in range(1_000):  # far more than their share of the tokens
        assert express(scene.ask(f"a{number}", nbytes=40)) == [(b"w", [f"a{number}"])]
        scene.sent[b"w"].insert(0, scene.sent[b"w"].pop())
        scene.answer("w")


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
