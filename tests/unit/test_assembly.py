"""Putting answers together, in whatever order they come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_serving.client.assembly import Assembly
from bert_serving.client.errors import MalformedMessage
from bert_serving.client.protocol import Result, RowTokens, ViewArray

DIM = 3


def no_rows(_: str) -> Any:
    return np.empty((0, DIM), np.float32)


def a_result(start: int, rows: int, *, shows_tokens: bool = False, **fields: Any) -> Result:
    """An answer whose row number n has the vector (n, n, n) and n % 3 + 2 tokens."""
    numbers = np.arange(start, start + rows)
    n_tokens = [int(number) % 3 + 2 for number in numbers]
    splits = [0, *np.cumsum(n_tokens).tolist()]
    of_token = np.repeat(numbers, n_tokens)
    tokens = None
    if shows_tokens:
        texts = [f"t{number}" for number in of_token]
        tokens = RowTokens(texts, of_token.astype(np.int32), np.zeros(len(texts), np.uint8))
    known: dict[str, Any] = {
        "id": 1,
        "views": {
            "pooled": ViewArray(np.repeat(numbers[:, None], DIM, 1).astype(np.float32)),
            "tokens": ViewArray(np.repeat(of_token[:, None], DIM, 1).astype(np.float32), splits),
        },
        "n_tokens": n_tokens,
        "truncated": [row for row in range(rows) if (start + row) % 5 == 0],
        "tokens": tokens,
        "queue_ms": 1.0,
        "tokenize_ms": 2.0,
        "compute_ms": 3.0,
    }
    return Result(**{**known, **fields})


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.randoms(), st.booleans())
def test_answers_in_any_order_give_rows_in_theirs(
    sizes: list[int], chance: Any, total_is_known: bool
) -> None:
    total = sum(sizes)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    parts = list(zip(starts, sizes, strict=True))
    chance.shuffle(parts)
    assembly = Assembly(["pooled", "tokens"], total if total_is_known else None, show_tokens=True)
    for start, rows in parts:
        assembly.add(start, rows, a_result(start, rows, shows_tokens=True))
    encoding = assembly.finish(no_rows)
    pooled = encoding.views["pooled"]
    assert isinstance(pooled, np.ndarray)
    assert pooled.shape == (total, DIM)
    assert pooled[:, 0].tolist() == list(range(total))
    assert encoding.n_tokens.tolist() == [number % 3 + 2 for number in range(total)]
    assert np.flatnonzero(encoding.truncated).tolist() == list(range(0, total, 5))
    assert encoding.tokens is not None and encoding.token_ids is not None
    for number, row in enumerate(encoding.views["tokens"]):
        length = number % 3 + 2
        assert row.tolist() == [[number] * DIM] * length
        assert encoding.tokens[number] == [f"t{number}"] * length
        assert encoding.token_ids[number].tolist() == [number] * length
    assert encoding.queue_ms == len(sizes)
    assert encoding.compute_ms == 3 * len(sizes)


def test_no_rows_are_what_the_caller_says_they_are() -> None:
    encoding = Assembly(["pooled"], 0, show_tokens=True).finish(no_rows)
    assert encoding.views["pooled"].shape == (0, DIM)  # type: ignore[union-attr]
    assert encoding.n_tokens.dtype == np.int64 and encoding.truncated.dtype == np.bool_
    assert encoding.tokens == [] and encoding.token_ids == []


def test_tokens_alone_can_be_asked_for() -> None:
    assembly = Assembly([], 2, show_tokens=True)
    assembly.add(0, 2, a_result(0, 2, shows_tokens=True, views={}))
    encoding = assembly.finish(no_rows)
    assert encoding.views == {}
    assert encoding.tokens == [["t0", "t0"], ["t1", "t1", "t1"]]


def test_nothing_of_a_received_buffer_is_kept() -> None:
    result = a_result(0, 4, shows_tokens=True)
    assembly = Assembly(["pooled", "tokens"], 4, show_tokens=True)
    assembly.add(0, 4, result)
    encoding = assembly.finish(no_rows)
    assert not np.shares_memory(encoding.views["pooled"], result.views["pooled"].values)
    assert not np.shares_memory(encoding.views["tokens"][0], result.views["tokens"].values)
    assert result.tokens is not None and encoding.token_ids is not None
    assert not np.shares_memory(encoding.token_ids[0], result.tokens.ids)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"n_tokens": [2, 3]}, "answered 2 rows"),
        ({"views": {}}, r"views \[\]"),
        ({"views": {"other": ViewArray(np.zeros((1, DIM), np.float32))}}, "'other'"),
        ({"tokens": RowTokens([], np.empty(0, np.int32), np.empty(0, np.uint8))}, "answered"),
    ],
    ids=["rows", "no views", "other views", "tokens"],
)
def test_an_answer_for_something_else_is_malformed(fields: dict[str, Any], text: str) -> None:
    assembly = Assembly(["pooled", "tokens"], 1)
    with pytest.raises(MalformedMessage, match=text):
        assembly.add(0, 1, a_result(0, 1, **fields))


@pytest.mark.parametrize("values", [np.zeros((1, 9), np.float32), np.zeros((1, DIM), np.float16)])
def test_a_view_that_changes_its_width_or_dtype_is_malformed(values: Any) -> None:
    assembly = Assembly(["pooled"], 2)
    views = {"pooled": a_result(0, 1).views["pooled"]}
    assembly.add(0, 1, a_result(0, 1, views=views))
    with pytest.raises(MalformedMessage, match="changed"):
        assembly.add(1, 1, a_result(1, 1, views={"pooled": ViewArray(values)}))
