"""Pairs written with a separator: where a text or a list of tokens is cut, and where not."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_serving.client.pairs import (
    BERT_AS_SERVICE_SEPARATOR,
    check_separator,
    split_text,
    split_tokens,
)


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("who? ||| me", ("who?", "me")),
        ("a ||| b ||| c", ("a ||| b", "c")),
        ("  a ||| b  ", ("a", "b")),
        ("a|||b", "a|||b"),
        ("a |||", "a |||"),
        ("a ||| ", "a ||| "),
        (" ||| b", " ||| b"),
        ("a ||| b\nc", "a ||| b\nc"),
        (" no pair ", " no pair "),
        ("", ""),
    ],
)
def test_a_text_is_cut_at_its_last_separator(text: str, row: Any) -> None:
    assert split_text(text, BERT_AS_SERVICE_SEPARATOR) == row


@pytest.mark.parametrize(
    ("tokens", "row"),
    [
        (["a", "|||", "b"], (["a"], ["b"])),
        (["a", "|||", "b", "|||", "c"], (["a"], ["b", "|||", "c"])),
        (["|||", "b"], ([], ["b"])),
        (["a", "|||"], ["a"]),
        (["a", " ||| ", "b"], ["a", " ||| ", "b"]),
        (["a", "b"], ["a", "b"]),
        ([], []),
    ],
)
def test_tokens_are_cut_at_the_first_that_is_the_bare_separator(tokens: Any, row: Any) -> None:
    assert split_tokens(tokens, BERT_AS_SERVICE_SEPARATOR) == row


def test_another_separator_can_be_chosen() -> None:
    assert split_text("a => b", " => ") == ("a", "b")
    assert split_tokens(["a", "=>", "b"], " => ") == (["a"], ["b"])
    assert split_text("a|", "|") == "a"


@given(st.text(st.sampled_from("a| \t\n"), max_size=14))
def test_texts_are_cut_where_a_greedy_pattern_would_cut_them(text: str) -> None:
    match = re.fullmatch(r"(.*) \|\|\| (.*)", text.strip())
    assert split_text(text, " ||| ") == (match.groups() if match else text)


@pytest.mark.parametrize("separator", ["", "  ", 3, b" ||| "])
def test_a_separator_is_text_that_is_not_blank(separator: Any) -> None:
    with pytest.raises(ValueError, match="pair_separator="):
        check_separator(separator)


def test_a_separator_or_none_is_returned() -> None:
    assert check_separator(None) is None
    assert check_separator(" => ") == " => "
