"""Micro-batches hold every row once, inside their budget, in groups of equal length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_serving.server.model.packing import pack, padded_parts, padded_size


def pack_all(lengths, max_tokens):
    lengths = np.array(lengths, np.int32)
    return pack(lengths, np.arange(len(lengths)), max_tokens)


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 100))
def test_every_token_is_packed_once_and_leads_back_to_its_row(lengths, max_tokens):
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    position_of = np.concatenate([np.arange(n) for n in lengths] or [np.empty(0, int)])
    seen = []
    for batch in pack_all(lengths, max_tokens):
        assert len(batch.tokens) <= max_tokens or len(batch.rows) == 1
        own = [lengths[row] for row in batch.rows]
        np.testing.assert_array_equal(row_of[batch.tokens], np.repeat(batch.rows, own))
        np.testing.assert_array_equal(position_of[batch.tokens], batch.positions)
        seen += batch.tokens.tolist()
    assert sorted(seen) == list(range(sum(lengths)))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(1, 100))
def test_groups_cover_a_micro_batch_and_have_one_length_each(lengths, max_tokens):
    for batch in pack_all(lengths, max_tokens):
        row = token = 0
        for group in batch.groups:
            assert (group.row, group.token) == (row, token)
            rows = batch.rows[row : row + group.rows]
            assert [lengths[number] for number in rows] == [group.length] * group.rows
            row, token = row + group.rows, group.end
        assert (row, token) == (len(batch.rows), len(batch.tokens))
        own_lengths = [group.length for group in batch.groups]
        assert own_lengths == sorted(set(own_lengths))


def test_only_the_rows_asked_for_are_packed():
    lengths = np.array([5, 3, 0, 5], np.int32)
    (batch,) = pack(lengths, np.array([3, 1, 2]), 100)
    assert batch.rows.tolist() == [1, 3]
    assert batch.tokens.tolist() == [5, 6, 7, 8, 9, 10, 11, 12]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_nothing_packs_into_nothing(lengths):
    assert pack_all(lengths, 10) == []


def test_micro_batches_fill_what_they_are_padded_to():
    sizes = [len(batch.tokens) for batch in pack_all([10] * 110, 1000)]
    assert (padded_size(550), padded_size(140)) == (576, 144)
    assert sizes == [960, 140]


def test_micro_batches_are_about_equal_where_none_would_be_less_padding():
    assert [len(batch.tokens) for batch in pack_all([16] * 96, 1024)] == [768, 768]
    assert [len(batch.tokens) for batch in pack_all([1] * 4096, 1024)] == [1024] * 4


@given(
    st.lists(st.integers(1, 64), min_size=64, max_size=400), st.integers(256, 2048).map(padded_size)
)
def test_little_of_full_micro_batches_is_padding(lengths, max_tokens):
    *full, _ = [len(batch.tokens) for batch in pack_all(lengths, max_tokens)]
    assert all(padded_size(size) - size < 64 for size in full)  # what a row leaves free


@given(st.lists(st.integers(1, 16), min_size=16, max_size=400), st.integers(64, 2048))
def test_no_size_of_all_micro_batches_would_be_better(lengths, max_tokens):
    def padded(sizes):
        return sum(padded_size(size) + 16 for size in sizes)

    sizes = [len(batch.tokens) for batch in pack_all(lengths, max_tokens)]
    for size in range(-(-sum(lengths) // -(-sum(lengths) // max_tokens)), max_tokens + 1):
        full, last = [], 0
        for length in sorted(lengths):
            if last + length > size:
                full.append(last)
                last = 0
            last += length
        assert padded(sizes) <= padded([*full, last]) + 16 * len(full)  # what a row leaves free


def test_rows_of_equal_length_keep_their_order():
    (batch,) = pack_all([2] * 50, 1000)
    assert batch.rows.tolist() == list(range(50))


def test_sizes_are_rounded_up_to_few_and_by_little() -> None:
    sizes = [padded_size(tokens) for tokens in range(1, 2049)]
    assert all(0 <= size - tokens < max(8, tokens / 8) for tokens, size in enumerate(sizes, 1))
    assert len(set(sizes)) == 48
    assert padded_size(1024) == 1024
    assert padded_size(0) == 0


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.floats(0, 1), st.integers(0, 99))
def test_padded_parts_hold_every_group_once_and_waste_little(lengths, share, least):
    (batch,) = pack_all(lengths, 10_000)
    parts = padded_parts(batch.groups, share, least)
    assert [group for part in parts for group in part] == list(batch.groups)
    for part in parts:
        *shorter, longest = part
        tokens = sum(group.rows * group.length for group in part)
        padded = sum(group.rows for group in part) * longest.length
        # the last group came only while there was too little, or little to waste
        before = tokens - longest.rows * longest.length
        assert not shorter or before < least or padded <= (1 + share) * tokens


def test_rows_of_very_different_lengths_are_not_padded_to_the_longest():
    (batch,) = pack_all([2] * 50 + [3] * 50 + [100], 10_000)
    lengths = [[group.length for group in part] for part in padded_parts(batch.groups, 0.25, 64)]
    assert lengths == [[2, 3], [100]]
    lengths = [[group.length for group in part] for part in padded_parts(batch.groups, 0.25, 512)]
    assert lengths == [[2, 3, 100]]
