"""Very long texts: the tokens are those of the whole text, and not all of it is read for them."""

from __future__ import annotations

import random
from dataclasses import fields

import pytest
from tiny_tokenizers import save_tokenizer
from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from bert_serving.server.model import tokenizer as tokenizer_module
from bert_serving.server.model.long_texts import part_chars, read_in_parts, reads_word_by_word
from bert_serving.server.model.tokenizer_files import load_tokenizer

WORDS = [
    *("the", "naïve", "Émile", "北京", "😀", "don't", "x-ray", "3.14", "a\xa0b", "supercali" * 30),
    *(
        "\u0301accent",
        "a\u0301\u0316",
        "[MASK]",
        "[SEP]b",
        "##ing",
        "\u200b",
        "\x00",
        "ﬁ",
        "İ",
        "각",
    ),
]
SPACES = [" ", " ", " ", "  ", "\n", "\t\r\n", "\u2003", "", " " * 300]
SHORT = ["", "a", "hello world"]


def long_texts(seed: int) -> list[str]:
    draw = random.Random(seed)
    mixed = [
        "".join(draw.choice(WORDS) + draw.choice(SPACES) for _ in range(words))
        for words in (100, 300)
    ]
    return [*mixed, " " * 5_000, "a" * 2_500, "word " * 1_000, "b" * 1_500 + " c" * 900]


def options(**others):
    return {"max_positions": 512, "lower_case": None, "parallel": False, **others}


@pytest.mark.parametrize("max_length", [None, 4, 5, 130])
@pytest.mark.parametrize("case", [{}, {"lower_case": False}, {"lower_case_first": True}])
def test_tokens_are_those_of_the_whole_text(embedded_dir, monkeypatch, case, max_length):
    by_parts = load_tokenizer(embedded_dir, **options(**case))
    monkeypatch.setattr(tokenizer_module, "reads_word_by_word", lambda _: False)
    whole = load_tokenizer(embedded_dir, **options(**case))
    texts = long_texts(max_length or 0)
    pairs = [(one, other) for one in [*texts, *SHORT] for other in [*texts, *SHORT]]
    for rows in ([*texts, *SHORT], pairs, [*pairs[:9], *texts], *([row] for row in texts)):
        got, expected = (
            tokenizer.tokenize(rows, is_tokenized=False, max_length=max_length)
            for tokenizer in (by_parts, whole)
        )
        for field in fields(expected):
            values = getattr(got, field.name).tolist()
            assert values == getattr(expected, field.name).tolist(), field.name


class Reader:
    """Reads words as pieces, and counts what it reads."""

    def __init__(self) -> None:
        self.chars = self.longest = 0

    def __call__(self, texts):
        self.chars += sum(map(len, texts))
        self.longest = max(self.longest, *map(len, texts))
        return [list(map(hash, text.split())) for text in texts]


def test_no_more_is_read_than_is_kept():
    words = " ".join(f"w{number}" for number in range(100_000))
    read = Reader()
    for row, others in ((words, 0), (("a b", words), 3), ((words, "a b"), 3)):
        read.chars = 0
        pieces = read_in_parts([row], 100, read)
        assert max(map(len, pieces)) >= 100
        assert read.chars <= part_chars(100) + 10 + others


def test_a_text_with_few_pieces_is_read_to_the_end_in_parts():
    text = (" " * 5_000 + "word") * 50
    read = Reader()
    assert read_in_parts([text], 100, read) == [[hash("word")] * 50]
    assert read.chars == len(text)
    assert read.longest < 10_000


def test_of_a_pair_it_is_known_which_text_has_more_pieces():
    few, many = "longword" * 500 + " a" * 700, "b " * 2_000
    for row in ((few, many), (many, few)):
        pieces = dict(zip(row, read_in_parts([row], 100, Reader()), strict=True))
        assert len(pieces[few]) == 701
        assert len(pieces[many]) > 701


@pytest.mark.parametrize("kind", ["byte_level", "unigram", "albert", "deberta"])
def test_what_may_look_further_reads_all(tmp_path, kind):
    save_tokenizer(kind, tmp_path)
    assert not reads_word_by_word(RustTokenizer.from_file(str(tmp_path / "tokenizer.json")))


@pytest.mark.parametrize(
    ("added", "is_certain"),
    [("[NEW]", True), ("new token", False), ("\u3000", False), ("北京", False)],
)
def test_an_added_token_may_stand_on_both_sides_of_white_space(embedded_dir, added, is_certain):
    rust = RustTokenizer.from_file(str(embedded_dir / "tokenizer.json"))
    rust.add_tokens([AddedToken(added)])
    assert reads_word_by_word(rust) is is_certain
