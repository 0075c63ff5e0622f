from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_strategies import odd_values, text_rows, texts, token_rows

from bert_serving.client import rows as rows_module
from bert_serving.client.errors import MalformedMessage, ProtocolError
from bert_serving.client.rows import pack_rows, unpack_rows


@given(text_rows)
def test_texts_and_pairs_come_back_as_they_were(rows: list[Any]) -> None:
    assert unpack_rows(memoryview(pack_rows(rows)), len(rows), is_tokenized=False) == rows


@given(token_rows)
def test_tokens_and_pairs_of_tokens_come_back_as_they_were(rows: list[Any]) -> None:
    assert unpack_rows(pack_rows(rows), len(rows), is_tokenized=True) == rows


def test_a_tuple_of_rows_packs_as_a_list_does() -> None:
    assert pack_rows(("a", ("b", "c"))) == pack_rows(["a", ("b", "c")])


def test_two_strings_are_two_tokens_or_a_pair_of_texts_as_the_header_says() -> None:
    buffer = pack_rows([["a", "b"]])
    assert unpack_rows(buffer, 1, is_tokenized=True) == [["a", "b"]]
    assert unpack_rows(buffer, 1, is_tokenized=False) == [("a", "b")]


def test_a_text_that_is_not_valid_unicode_is_the_callers_value_error() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        pack_rows(["\ud800"])


@pytest.mark.parametrize("announced", [0, 1, 3])
def test_another_number_of_rows_than_announced_is_malformed(announced: int) -> None:
    with pytest.raises(MalformedMessage, match=f"the {announced} rows"):
        unpack_rows(pack_rows(["a", "b"]), announced, is_tokenized=False)


@pytest.mark.parametrize("value", [None, "ab", {"a": "b", "c": "d"}, 2, b"ab"])
def test_a_rows_buffer_that_is_no_list_is_malformed(value: Any) -> None:
    with pytest.raises(MalformedMessage):
        unpack_rows(msgpack.packb(value), 2, is_tokenized=False)


@pytest.mark.parametrize(
    "row", [None, 1, b"a", {}, [], ["a"], ["a", "b", "c"], ["a", b"b"], [["a"], ["b"]]]
)
def test_a_row_that_is_neither_text_nor_pair_is_malformed(row: Any) -> None:
    with pytest.raises(MalformedMessage, match="row 1 is neither a text"):
        unpack_rows(msgpack.packb(["fine", row]), 2, is_tokenized=False)


@pytest.mark.parametrize(
    "row", [None, 1, "a", {}, ["a", 1], ["a", ["b"]], [["a"]], [["a"], ["b"], ["c"]], [["a"], [1]]]
)
def test_a_row_that_is_neither_tokens_nor_pair_is_malformed(row: Any) -> None:
    with pytest.raises(MalformedMessage, match="row 1 is neither a list of tokens"):
        unpack_rows(msgpack.packb([["fine"], row]), 2, is_tokenized=True)


def test_texts_are_no_tokens_even_if_every_row_is_one() -> None:
    with pytest.raises(MalformedMessage, match="row 0 is neither a list of tokens"):
        unpack_rows(pack_rows(["a", "b"]), 2, is_tokenized=True)


def test_the_size_of_a_rows_buffer_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = pack_rows(["0123456789"])
    monkeypatch.setattr(rows_module, "MAX_ROWS_BYTES", len(buffer) - 1)
    with pytest.raises(MalformedMessage, match="at most 11"):
        unpack_rows(buffer, 1, is_tokenized=False)


odd_rows = st.lists(texts | st.lists(texts, max_size=3) | odd_values, max_size=3)


@given(st.binary(max_size=30) | odd_rows.map(msgpack.packb), st.integers(0, 3), st.booleans())
def test_any_buffer_gives_rows_or_a_protocol_error(
    buffer: bytes, announced: int, is_tokenized: bool
) -> None:
    try:
        rows = unpack_rows(buffer, announced, is_tokenized=is_tokenized)
    except ProtocolError:
        return
    assert len(rows) == announced
    assert unpack_rows(pack_rows(rows), announced, is_tokenized=is_tokenized) == rows
