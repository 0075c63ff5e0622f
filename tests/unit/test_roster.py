"""What clients are told of the workers: how large their requests should be."""

from __future__ import annotations

from typing import Any

import pytest

from bert_serving.client.messages import Limits
from bert_serving.server.config import ServerConfig
from bert_serving.server.control import addresses
from bert_serving.server.roles import BrokerConfig, broker_config
from bert_serving.server.roster import TOKENS_A_ROW, Roster, most_unanswered


def told_broker(workers: int = 1, **options: Any) -> BrokerConfig:
    return broker_config(ServerConfig(**options), addresses(1), num_worker=workers)


def limits(budget: int, **options: Any) -> Limits:
    """Return what a client is told when a worker has come that takes so many tokens."""
    roster = Roster(told_broker(**options))
    worker = {"worker": 0, "pid": 1, "host": "here", "device": "cpu", "model": {}}
    roster.mark_ready(b"w", {**worker, "max_batch_tokens": budget})
    return roster.limits()


def test_a_request_of_a_large_call_fills_a_worker() -> None:
    assert limits(2_048).max_rows == 2_048 // TOKENS_A_ROW


@pytest.mark.parametrize("budget", [64, 128, 256, 512])
@pytest.mark.parametrize("priority_batch_size", [0, 1, 16, 40])
def test_a_part_of_a_large_call_is_not_taken_for_a_small_request(
    budget: int, priority_batch_size: int
) -> None:
    told = limits(budget, priority_batch_size=priority_batch_size)
    assert told.max_rows > priority_batch_size
    assert told.window >= 1


def test_a_request_has_no_more_rows_than_a_batch_may() -> None:
    assert limits(2_048, max_batch_size=8).max_rows == 8


@pytest.mark.parametrize("budget", [64, 2_048])
@pytest.mark.parametrize("priority_batch_size", [0, 16, 40])
def test_a_call_is_shared_by_workers_in_parts_that_are_no_small_requests(
    budget: int, priority_batch_size: int
) -> None:
    told = limits(budget, priority_batch_size=priority_batch_size, workers=4)
    assert told.workers == 4
    assert priority_batch_size < told.min_rows <= told.max_rows


@pytest.mark.parametrize("budget", [64, 2_048, 1 << 17])
@pytest.mark.parametrize("workers", [1, 64])
@pytest.mark.parametrize("options", [{}, {"max_batch_size": 8_192}, {"max_queue_rows": 1}])
def test_a_window_of_one_row_requests_may_be_unanswered(
    budget: int, workers: int, options: dict[str, Any]
) -> None:
    most = most_unanswered(told_broker(workers, **options))
    told = limits(budget, workers=workers, **options)
    assert told.window * told.max_rows <= most <= 1 << 19
    assert Limits.window * Limits.max_rows <= most  # before a worker has come
