"""What a caller's arguments mean, and what is refused before anything is sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bert_serving.client import options
from bert_serving.client.assembly import Encoding
from bert_serving.client.options import TruncationWarning
from bert_serving.client.view import View


@pytest.mark.parametrize("view", [View(dtype="int8"), View(dims=0), View(layers=())])
def test_what_is_in_a_view_is_checked(view: View) -> None:
    with pytest.raises(ValueError, match="expected"):
        options.encode_options(views={"v": view})


def test_a_view_is_taken_as_it_is() -> None:
    view = View(layers=(-1, 2), pooling="max", dims=3, normalize=True)
    views = {"v": view, "w": {}, "x": View(dtype=np.float32)}  # type: ignore[arg-type]
    checked = options.encode_options(views=views).views  # type: ignore[arg-type]
    assert checked == {"v": view, "w": View(), "x": View(dtype="float32")}


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_length": 0},
        {"max_length": 1 << 64},
        {"max_length": 2.0},
        {"group": "\ud800"},
        {"group": ""},
        {"views": {"\udfff": {}}},
        {"views": {7: {}}},
    ],
)
def test_what_could_not_be_sent_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        options.encode_options(**{"views": {}, **wrong})


def test_an_identity_is_always_text() -> None:
    assert options.sender_name("a\ud800b") == "a?b"
    assert options.sender_name(b"a\xffb") == "a\ufffdb"


def test_answers_are_joined_to_rows() -> None:
    one, two = np.ones(4), np.zeros((2, 4))
    assert options.joined([one, two, one], [True, False, True]).tolist() == [
        [1] * 4, [0] * 4, [0] * 4, [1] * 4
    ]  # fmt: skip
    assert options.joined([[1.0], [[2.0], [3.0]]], [True, False]) == [[1.0], [2.0], [3.0]]


def test_answers_of_different_widths_are_joined_to_a_list() -> None:
    wide, narrow, tokens = np.ones((1, 4)), np.zeros((2, 3)), np.zeros((5, 3))
    assert [row.shape for row in options.joined([wide, narrow], [False, False])] == [
        (4,), (3,), (3,)
    ]  # fmt: skip
    assert [row.shape for row in options.joined([tokens, [tokens]], [True, False])] == [(5, 3)] * 2


def test_a_warning_says_how_long_rows_are_that_were_cut() -> None:
    encoding = Encoding(
        views={},
        n_tokens=np.array([7, 512, 512]),
        truncated=np.array([False, True, True]),
        tokens=None,
        token_ids=None,
        segment_ids=None,
        queue_ms=0.0,
        tokenize_ms=0.0,
        compute_ms=0.0,
    )
    with pytest.warns(TruncationWarning, match="2 of 3 rows were cut to 512 tokens"):
        options.warn_if_cut(encoding, stacklevel=1)
