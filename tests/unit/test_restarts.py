"""The back-off of a worker that keeps going down."""

from __future__ import annotations

import pytest

from bert_serving.server.scheduling.restarts import (
    FIRST_DELAY_S,
    MAX_DELAY_S,
    STABLE_AFTER_S,
    RestartPolicy,
)


def test_the_delay_doubles_up_to_its_limit() -> None:
    policy = RestartPolicy()
    delays = [policy.on_exit(float(now), 0.0) for now in range(12)]
    assert delays[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert delays[-2:] == [MAX_DELAY_S, MAX_DELAY_S]


def test_a_worker_that_never_comes_up_is_retried_for_ever() -> None:
    policy = RestartPolicy()
    assert max(policy.on_exit(float(now), 0.0) for now in range(5_000)) == MAX_DELAY_S


def test_jitter_shortens_a_delay_by_at_most_a_quarter() -> None:
    assert RestartPolicy().on_exit(0.0, 0.5) == pytest.approx(FIRST_DELAY_S * 0.875)
    assert RestartPolicy().on_exit(0.0, 0.999999) >= FIRST_DELAY_S * 0.75


def test_jitter_does_not_carry_over_into_later_delays() -> None:
    policy = RestartPolicy()
    policy.on_exit(0.0, 0.9)
    assert policy.on_exit(1.0, 0.0) == pytest.approx(2 * FIRST_DELAY_S)


def test_a_worker_that_stayed_up_starts_over() -> None:
    policy = RestartPolicy()
    for now in range(5):
        policy.on_exit(float(now), 0.0)
    policy.on_healthy(10.0)
    assert policy.on_exit(10.0 + STABLE_AFTER_S, 0.0) == FIRST_DELAY_S


def test_a_worker_that_was_up_for_a_moment_does_not_start_over() -> None:
    policy = RestartPolicy()
    policy.on_exit(0.0, 0.0)
    policy.on_healthy(1.0)
    assert policy.on_exit(STABLE_AFTER_S, 0.0) == pytest.approx(2 * FIRST_DELAY_S)


def test_being_healthy_counts_from_the_first_report() -> None:
    policy = RestartPolicy()
    policy.on_exit(0.0, 0.0)
    policy.on_healthy(1.0)
    policy.on_healthy(STABLE_AFTER_S)
    assert policy.on_exit(1.0 + STABLE_AFTER_S, 0.0) == FIRST_DELAY_S


def test_being_healthy_once_does_not_count_for_the_next_life() -> None:
    policy = RestartPolicy()
    policy.on_healthy(0.0)
    policy.on_exit(1.0, 0.0)
    assert policy.on_exit(1.0 + STABLE_AFTER_S, 0.0) == pytest.approx(2 * FIRST_DELAY_S)
