"""Cutting what callers pass into requests of bounded size."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_strategies import text_rows, token_rows

from bert_serving.client.chunking import Chunk, RowSource
from bert_serving.client.errors import TooLarge
from bert_serving.client.protocol import Limits
from bert_serving.client.rows import unpack_rows

SMALL = Limits(max_rows=3, max_bytes=40)


def chunks(source: RowSource, limits: Limits = SMALL) -> list[Chunk]:
    taken = []
    while (chunk := source.take(limits)) is not None:
        taken.append(chunk)
    return taken


def rows_of(taken: list[Chunk], *, is_tokenized: bool = False) -> list[Any]:
    rows: list[Any] = []
    for chunk in taken:
        assert chunk.start == len(rows)
        rows += unpack_rows(chunk.buffer, chunk.rows, is_tokenized=is_tokenized)
    return rows


def plain(row: Any) -> Any:
    return tuple(map(plain, row)) if isinstance(row, tuple) else row


limits_of_any_size = st.builds(
    Limits,
    max_rows=st.integers(1, 5),
    max_bytes=st.integers(1, 100),
    workers=st.integers(1, 3),
    min_rows=st.integers(1, 9),
)


@given(text_rows, limits_of_any_size, st.booleans())
def test_texts_come_out_as_they_went_in(rows: list[Any], limits: Limits, drawn: bool) -> None:
    source = RowSource(iter(rows) if drawn else rows)
    taken = chunks(source, limits)
    assert rows_of(taken) == rows
    assert source.total == len(rows)
    assert source.is_exhausted
    for chunk in taken:
        assert chunk.rows <= limits.max_rows
        assert chunk.rows == 1 or len(chunk.buffer) <= limits.max_bytes


@given(token_rows, limits_of_any_size)
def test_tokens_come_out_as_they_went_in(rows: list[Any], limits: Limits) -> None:
    source = RowSource(rows, is_tokenized=True)
    assert rows_of(chunks(source, limits), is_tokenized=True) == rows


@pytest.mark.parametrize("kind", [tuple, iter, np.array, pd.Series, lambda rows: (r for r in rows)])
def test_any_ordered_container_gives_its_rows(kind: Any) -> None:
    assert rows_of(chunks(RowSource(kind(["a", "b", "c", "d"])))) == ["a", "b", "c", "d"]


def test_tokens_may_come_as_a_table_of_strings() -> None:
    table = np.array([["a", "b"], ["c", "d"]])
    source = RowSource(table, is_tokenized=True)
    assert rows_of(chunks(source), is_tokenized=True) == [["a", "b"], ["c", "d"]]


def test_the_number_of_rows_is_known_where_it_can_be() -> None:
    assert RowSource(["a", "b"]).total == 2
    assert RowSource(pd.Series(["a"])).total == 1
    assert RowSource(iter(["a", "b"])).total is None
    assert RowSource([]).is_exhausted
    assert not RowSource(iter([])).is_exhausted


def test_an_iterator_is_drawn_from_chunk_by_chunk() -> None:
    drawn = []

    def rows() -> Iterator[str]:
        for number in range(100):
            drawn.append(number)
            yield "a"

    source = RowSource(rows())
    assert not drawn
    source.take(SMALL)
    assert len(drawn) == 3


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (0, []),
        (1, [1]),
        (40, [40]),  # two parts would have fewer than 32
        (64, [32, 32]),
        (70, [35, 35]),
        (100, [34, 34, 32]),
        (190, [64, 64, 62]),
        (200, [64, 64, 64, 8]),
    ],
)
def test_a_call_is_cut_so_that_each_worker_gets_a_part(total: int, expected: list[int]) -> None:
    limits = Limits(max_rows=64, workers=3, min_rows=32)
    assert [chunk.rows for chunk in chunks(RowSource(["a"] * total), limits)] == expected


def test_an_iterator_of_unknown_length_is_cut_into_full_requests() -> None:
    limits = Limits(max_rows=64, workers=3, min_rows=32)
    taken = chunks(RowSource("a" for _ in range(100)), limits)
    assert [chunk.rows for chunk in taken] == [64, 36]


def test_limits_may_change_between_chunks() -> None:
    source = RowSource(iter("abcdefgh"))
    first = source.take(Limits(max_rows=5, max_bytes=4))  # two of the five that were drawn
    second = source.take(Limits(max_rows=1))
    assert first is not None and second is not None
    assert rows_of([first, second, *chunks(source)]) == list("abcdefgh")
    assert second.rows == 1


def test_a_row_alone_may_be_longer_than_max_bytes_but_not_than_a_request() -> None:
    source = RowSource(["a", "b" * 60, "c" * 99])
    limits = Limits(max_bytes=40, max_request_bytes=80)
    assert [chunk.rows for chunk in (source.take(limits), source.take(limits)) if chunk] == [1, 1]
    with pytest.raises(TooLarge, match=r"row 2 has \d+ bytes, .* at most 80 "):
        source.take(limits)


@pytest.mark.parametrize("row", [1, None, b"a", ["a"], ("a",), ("a", 1), ("a", "b", "c"), {}])
def test_a_row_that_is_no_text_is_named_before_anything_is_taken(row: Any) -> None:
    with pytest.raises(TypeError, match=f"row 2 is .*{type(row).__name__}"):
        RowSource(["a", "b", row])


@pytest.mark.parametrize("row", [1, None, "a", ["a", 1], ("a", ["b"]), [["a"], ["b"], ["c"]]])
def test_a_row_that_is_no_list_of_tokens_is_named(row: Any) -> None:
    with pytest.raises(TypeError, match="row 1 is"):
        RowSource([["a"], row], is_tokenized=True)


def test_a_wrong_row_of_an_iterator_is_named_when_it_is_reached() -> None:
    source = RowSource(iter(["a", "b", "c", "d", 5]))
    assert source.take(SMALL) is not None
    with pytest.raises(TypeError, match="row 4 is int 5"):
        source.take(SMALL)


def test_the_hint_for_tokens_stands_where_it_helps() -> None:
    with pytest.raises(TypeError, match="need is_tokenized=True"):
        RowSource([["a", "b"]])


@pytest.mark.parametrize("rows", ["text", b"text", {"a": 1}, {"a"}, 5, None, np.array("a")])
def test_what_has_no_rows_in_order_is_refused(rows: Any) -> None:
    with pytest.raises(TypeError):
        RowSource(rows)


def test_a_data_frame_is_refused_rather_than_taken_for_its_column_names() -> None:
    with pytest.raises(TypeError, match="a DataFrame has several columns: pass one of them"):
        RowSource(pd.DataFrame({"text": ["a"]}))


@pytest.mark.parametrize("blank", ["", "  ", "\n\t"])
def test_a_blank_text_is_refused_only_when_asked(blank: str) -> None:
    assert rows_of(chunks(RowSource([blank]))) == [blank]
    with pytest.raises(ValueError, match="row 1 is blank; pass on_empty='encode'"):
        RowSource(["a", blank], on_empty="error")
    source = RowSource(iter(["a", "b", "c", blank]), on_empty="error")
    source.take(SMALL)
    with pytest.raises(ValueError, match="row 3 is blank"):
        source.take(SMALL)


@pytest.mark.parametrize("blank", [[], ([], [])])
def test_a_row_without_tokens_is_blank(blank: Any) -> None:
    with pytest.raises(ValueError, match="row 0 is blank"):
        RowSource([blank], is_tokenized=True, on_empty="error")


@pytest.mark.parametrize("blank", [(" ", "\t"), "  |||  ", ("", "")])
def test_a_pair_of_blank_texts_is_blank(blank: Any) -> None:
    with pytest.raises(ValueError, match="row 1 is blank"):
        RowSource(["a", blank], on_empty="error", pair_separator="|||")
    RowSource([("", "a"), "a ||| "], on_empty="error", pair_separator="|||")


def test_an_unknown_on_empty_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of encode, error"):
        RowSource(["a"], on_empty="skip")


def test_a_text_that_is_no_unicode_is_refused_with_where_it_is() -> None:
    with pytest.raises(ValueError, match=r"row between 0 and 2 .*surrogates.*\\ud800"):
        RowSource(["a", "b", "c\ud800"]).take(SMALL)


def test_subclasses_of_str_are_packed_as_plain_texts() -> None:
    class Text(str):
        pass

    assert rows_of(chunks(RowSource([Text("a"), np.str_("b"), (Text("c"), "d")]))) == [
        "a", "b", ("c", "d"),
    ]  # fmt: skip


class Colour(str, enum.Enum):
    RED = "red"


def test_the_text_of_an_enum_is_its_value() -> None:
    rows = [Colour.RED, (Colour.RED, "b")]
    assert rows_of(chunks(RowSource(rows))) == ["red", ("red", "b")]
    tokens = [[Colour.RED], ([Colour.RED], ["b"])]
    packed = chunks(RowSource(tokens, is_tokenized=True))
    assert rows_of(packed, is_tokenized=True) == [["red"], (["red"], ["b"])]


@pytest.mark.parametrize("drawn", [False, True])
def test_a_separator_makes_pairs_of_rows_that_contain_it(drawn: bool) -> None:
    rows = ["a ||| b", "c", ("d ||| e", "f"), "||| g"]
    source = RowSource(iter(rows) if drawn else rows, pair_separator=" ||| ")
    assert rows_of(chunks(source)) == [("a", "b"), "c", ("d ||| e", "f"), "||| g"]
    tokens = RowSource([["a", "|||", "b"]], is_tokenized=True, pair_separator=" ||| ")
    assert rows_of(chunks(tokens), is_tokenized=True) == [(["a"], ["b"])]


def test_an_iterator_that_must_be_counted_is_drawn_at_once() -> None:
    source = RowSource(iter("abcd"), is_counted=True)
    assert source.total == 4
    assert rows_of(chunks(source)) == list("abcd")
