"""Tokens are those of transformers' tokenizer, cut the same way, and flagged."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import fields

import numpy as np
import pytest
from model_reference import TEXTS, edit_json
from tiny_tokenizers import save_tokenizer
from transformers import AutoTokenizer, BertTokenizerFast

from bert_serving.server.model.replica import ModelLoadError
from bert_serving.server.model.tokenizer_files import load_tokenizer

WORDS = (
    "the a Émile naïve 北京 😀 don't [MASK] [SEP] ##ing x-ray 3.14 supercalifragilistic \u200b ﬁ İ"
)


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(0)
    words = WORDS.split(" ")
    return [" ".join(draw.choices(words, k=draw.randrange(12))) for _ in range(150)] + TEXTS


@pytest.fixture
def directory(tmp_path, embedded_dir):
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(embedded_dir / name, tmp_path)
    return tmp_path


def load(directory, lower_case=None, **options):
    return load_tokenizer(
        directory, max_positions=512, lower_case=lower_case, parallel=False, **options
    )


def check_same(ours, theirs, rows, max_length=None):
    """Check ids, segments, special and truncated flags of every row."""
    tokens = ours.tokenize(rows, is_tokenized=False, max_length=max_length)
    end = 0
    for row, length, is_cut in zip(rows, tokens.lengths, tokens.truncated, strict=True):
        # as a batch of one: alone, transformers takes a pair with an empty second text for no pair
        options = {
            "return_special_tokens_mask": True,
            "return_token_type_ids": True,
            "verbose": False,
        }
        whole = theirs([row], **options)
        expected = theirs([row], truncation=True, max_length=max_length or 512, **options)
        own = slice(end, end + length)
        assert tokens.ids[own].tolist() == expected["input_ids"][0], row
        assert tokens.segment_ids[own].tolist() == expected["token_type_ids"][0], row
        assert tokens.special[own].tolist() == [
            bool(flag) for flag in expected["special_tokens_mask"][0]
        ]
        assert is_cut == (len(whole["input_ids"][0]) > length)
        end += length
    assert end == len(tokens.ids)
    check_alone(ours, rows, tokens, is_tokenized=False, max_length=max_length)


def check_alone(tokenizer, rows, tokens, **options):
    """Check that rows one by one are what they are together."""
    alone = [tokenizer.tokenize([row], **options) for row in rows]
    for field in fields(tokens):
        parts = [getattr(one, field.name) for one in alone]
        assert {part.dtype for part in parts} == {getattr(tokens, field.name).dtype}
        assert np.concatenate(parts).tolist() == getattr(tokens, field.name).tolist()


@pytest.mark.parametrize("max_length", [None, 4, 5, 8, 9])
def test_texts_and_pairs_are_tokenized_as_by_transformers(embedded_dir, texts, max_length):
    theirs = BertTokenizerFast.from_pretrained(embedded_dir)
    if max_length:
        # transformers takes a minute to cut a long pair to very few tokens
        texts = [text for text in texts if len(str(text)) < 1000]
    singles = [text for text in texts if isinstance(text, str)]
    pairs = [
        *zip(singles[::2], singles[1::2], strict=False),
        ("a b c d e f", "x"),
        ("x", "a b c d"),
    ]
    check_same(load(embedded_dir), theirs, [*texts, *pairs], max_length)


@pytest.mark.parametrize("has_json", [True, False])
@pytest.mark.parametrize("in_config", [None, True, False])
@pytest.mark.parametrize("lower_case", [None, True, False])
def test_case_is_folded_as_transformers_does(directory, texts, has_json, in_config, lower_case):
    edit_json(directory / "tokenizer_config.json", do_lower_case=in_config)
    if not has_json:
        (directory / "tokenizer.json").unlink()
    option = {} if lower_case is None else {"do_lower_case": lower_case}
    theirs = BertTokenizerFast.from_pretrained(directory, **option)
    check_same(load(directory, lower_case), theirs, texts[:60])


def test_the_cased_option_changes_something(directory):
    folded, cased = (
        load(directory, flag).tokenize(["Paris"], is_tokenized=False, max_length=None)
        for flag in (True, False)
    )
    assert folded.ids.tolist() != cased.ids.tolist()


def test_a_directory_with_a_vocabulary_only_is_enough(directory, texts):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    check_same(load(directory), BertTokenizerFast.from_pretrained(directory), texts)


NUMBER = 30522  # of the first token behind the vocabulary
SPECIAL = ["[E1]", "[/E1]"]


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens.json": {"covidword": NUMBER, "[E1]": NUMBER + 2, "[/E1]": NUMBER + 1}},
        {
            "added_tokens.json": {"[/E1]": NUMBER + 1, "[E1]": NUMBER},
            "special_tokens_map.json": {"additional_special_tokens": SPECIAL},
        },
        {
            "added_tokens.json": {"Café_X": NUMBER, "[E1]": NUMBER + 1},
            "tokenizer_config.json": {"additional_special_tokens": SPECIAL},
        },
        {"special_tokens_map.json": {"additional_special_tokens": SPECIAL}},
        {"tokenizer_config.json": {"additional_special_tokens": SPECIAL, "do_lower_case": False}},
        {
            "tokenizer_config.json": {
                "added_tokens_decoder": {str(NUMBER): {"content": "covidword"}},
                "additional_special_tokens": SPECIAL,
            },
            "special_tokens_map.json": {"additional_special_tokens": ["café"]},
        },
    ],
)
def test_tokens_added_to_a_vocabulary_are_those_of_transformers(directory, files):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    rows = [
        "A covidword, COVIDWORD [E1]Bob[/E1] e1 [e1] [SEP]",
        "covidwords xcovidword covid word",
        ("Café_X café_x cafe_x", "[E1] [/E1]"),
    ]
    ours = load(directory)
    check_same(ours, BertTokenizerFast.from_pretrained(directory), rows)
    assert ours.vocab_size > NUMBER


def test_added_tokens_that_are_written_as_objects_are_known(directory):
    (directory / "tokenizer.json").unlink()
    token = {"content": "[E1]", "lstrip": False, "rstrip": False, "normalized": False}
    tokens = json.dumps({"additional_special_tokens": [token]})
    (directory / "special_tokens_map.json").write_text(tokens)
    edit_json(directory / "tokenizer_config.json", added_tokens_decoder=None)
    ours = load(directory)
    ids = ours.tokenize(["a [E1]"], is_tokenized=False, max_length=None).ids
    assert ours.token_texts(ids) == ["[CLS]", "a", "[E1]", "[SEP]"]


def test_broken_added_tokens_are_refused(directory):
    (directory / "tokenizer.json").unlink()
    edit_json(directory / "tokenizer_config.json", added_tokens_decoder=None)
    for content in ("[]", "{", '{"a": "b", "c": 1}'):
        (directory / "added_tokens.json").write_text(content)
        with pytest.raises(ModelLoadError) as caught:
            load(directory)
        assert "\n" not in str(caught.value)


def test_the_files_own_limit_holds(directory):
    edit_json(directory / "tokenizer_config.json", model_max_length=7)
    tokens = load(directory).tokenize([TEXTS[6]], is_tokenized=False, max_length=100)
    assert tokens.lengths.tolist() == [7]


def test_tokens_given_are_looked_up_as_they_are(embedded_dir):
    tokenizer = load(embedded_dir)
    rows = [["hello", "Hello", "##ing", "[MASK]", "no such token"], [], (["hello"], ["world", "x"])]
    tokens = tokenizer.tokenize(rows, is_tokenized=True, max_length=None)
    assert tokens.lengths.tolist() == [7, 2, 6]
    assert tokenizer.token_texts(tokens.ids) == [
        *("[CLS]", "hello", "[UNK]", "##ing", "[MASK]", "[UNK]", "[SEP]"),
        *("[CLS]", "[SEP]"),
        *("[CLS]", "hello", "[SEP]", "world", "x", "[SEP]"),
    ]
    assert tokens.segment_ids.tolist() == [0] * 9 + [0, 0, 0, 1, 1, 1]
    texts = tokenizer.token_texts(tokens.ids)
    assert tokens.special.tolist() == [text in ("[CLS]", "[SEP]") for text in texts]
    check_alone(tokenizer, rows, tokens, is_tokenized=True, max_length=None)


def test_tokens_given_are_cut_and_flagged(embedded_dir):
    rows = [["hello"] * 20, ["hello"], (["hello"] * 9, ["world"] * 2)]
    tokenizer = load(embedded_dir)
    tokens = tokenizer.tokenize(rows, is_tokenized=True, max_length=8)
    assert tokens.lengths.tolist() == [8, 3, 8]
    assert tokens.truncated.tolist() == [True, False, True]
    check_alone(tokenizer, rows, tokens, is_tokenized=True, max_length=8)
    assert tokenizer.token_texts(tokens.ids[-8:]) == [
        *("[CLS]", "hello", "hello", "hello", "[SEP]", "world", "world", "[SEP]")
    ]


def test_types_are_those_of_token_rows(embedded_dir):
    for rows in ([], ["a"], [("a", "b"), "c"]):
        tokens = load(embedded_dir).tokenize(rows, is_tokenized=False, max_length=None)
        assert len(tokens) == len(rows)
        types = [tokens.ids.dtype, tokens.segment_ids.dtype, tokens.special.dtype,
                 tokens.lengths.dtype, tokens.truncated.dtype]  # fmt: skip
        assert types == [np.int32, np.uint8, np.bool_, np.int32, np.bool_]


def test_a_max_length_without_room_is_refused(embedded_dir):
    with pytest.raises(ValueError, match="max_length=3: expected more than the 3 special tokens"):
        load(embedded_dir).tokenize(["a"], is_tokenized=False, max_length=3)


def test_broken_files_are_refused_in_one_line(directory):
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadError, match="tokenizer cannot be read") as caught:
        load(directory)
    assert "\n" not in str(caught.value)
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.txt").write_text("[UNK]\nhello\n")
    with pytest.raises(ModelLoadError, match=r"vocabulary has no \[CLS\], \[SEP\]"):
        load(directory)
    (directory / "vocab.txt").unlink()
    with pytest.raises(ModelLoadError, match=r"no tokenizer.json or vocab.txt"):
        load(directory)


KINDS = ("byte_level", "unigram", "albert", "deberta")


@pytest.mark.parametrize("max_length", [None, 7, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_tokenized_as_by_transformers(tmp_path, texts, kind, max_length):
    save_tokenizer(kind, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    marked = ["a <mask> b", "a [MASK], b </s> c [SEP] d<s>", " leading and trailing ", "x<pad>y"]
    singles = [*marked, *(text for text in texts if isinstance(text, str) and len(text) < 1000)]
    pairs = [*zip(singles[::2], singles[1::2], strict=False), ("a", "a b c d e f g h"), ("", "")]
    check_same(load(tmp_path), theirs, [*singles, *pairs], max_length)


@pytest.mark.parametrize(
    ("kind", "around", "between", "segments"),
    [
        ("byte_level", ("<s>", "</s>"), ("</s>", "</s>"), [0, 0, 0, 0, 0, 0]),
        ("unigram", ("<s>", "</s>"), ("</s>", "</s>"), [0, 0, 0, 0, 0, 0]),
        ("albert", ("[CLS]", "[SEP]"), ("[SEP]",), [0, 0, 0, 1, 1]),
        ("deberta", ("[CLS]", "[SEP]"), ("[SEP]",), [0, 0, 0, 1, 1]),
    ],
)
def test_special_tokens_are_those_of_the_kind(tmp_path, kind, around, between, segments):
    save_tokenizer(kind, tmp_path)
    tokenizer = load(tmp_path)
    tokens = tokenizer.tokenize([(["a"], ["a"])], is_tokenized=True, max_length=None)
    texts = tokenizer.token_texts(tokens.ids)
    assert texts == [around[0], "a", *between, "a", around[1]]
    assert tokens.segment_ids.tolist() == segments
    assert tokens.special.tolist() == [text != "a" for text in texts]


def test_a_tokenizer_of_files_of_another_kind_is_converted(tmp_path, texts):
    save_tokenizer("byte_level", tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(merge) for merge in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    whole = load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    converted = load(tmp_path)
    rows = [*texts[:50], ("a", "b c")]
    for name in ("ids", "segment_ids", "special", "lengths"):
        ours, expected = (
            getattr(tokenizer.tokenize(rows, is_tokenized=False, max_length=None), name)
            for tokenizer in (converted, whole)
        )
        assert ours.tolist() == expected.tolist()


def test_mpnets_vocabulary_is_not_taken_for_berts(tmp_path):
    words = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "hello", "<mask>"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mpnet"}))
    tokenizer = load(tmp_path)
    tokens = tokenizer.tokenize(["Hello", ("hello", "hello")], is_tokenized=False, max_length=None)
    assert tokenizer.token_texts(tokens.ids) == [
        *("<s>", "hello", "</s>"),
        *("<s>", "hello", "</s>", "</s>", "hello", "</s>"),
    ]


def test_a_tokenizer_that_cannot_be_converted_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ctrl"}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ModelLoadError, match=r"CTRLTokenizer is written in Python.*put a tokeniz"):
        load(tmp_path)
    (tmp_path / "vocab.json").rename(tmp_path / "spiece.model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "albert"}))
    with pytest.raises(ModelLoadError, match="pip install sentencepiece protobuf") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unknown_token_is_named_where_there_is_no_token_for_it(tmp_path):
    save_tokenizer("byte_level", tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    for vocab in (content["model"]["vocab"],):
        vocab["<other>"] = vocab.pop("<unk>")
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<unk>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    edit_json(tmp_path / "tokenizer_config.json", unk_token=None)
    tokenizer = load(tmp_path)
    rows = [["a", "no such token"]]
    with pytest.raises(ValueError, match="token 'no such token' is not in the vocabulary"):
        tokenizer.tokenize(rows, is_tokenized=True, max_length=None)
    assert tokenizer.tokenize(["Ω"], is_tokenized=False, max_length=None).lengths.tolist() == [4]


def test_tokens_go_in_as_they_are_without_special_tokens(embedded_dir):
    tokenizer = load(embedded_dir, no_special_token=True)
    rows = [["hello", "[SEP]"], [], (["hello"], ["world"]), ["hello"] * 10]
    tokens = tokenizer.tokenize(rows, is_tokenized=True, max_length=8)
    assert tokens.lengths.tolist() == [2, 0, 5, 8]
    assert tokens.truncated.tolist() == [False, False, False, True]
    assert tokenizer.token_texts(tokens.ids[:7]) == [
        *("hello", "[SEP]"),
        *("[CLS]", "hello", "[SEP]", "world", "[SEP]"),
    ]
    assert tokens.special.tolist() == [0, 0, 1, 0, 1, 0, 1, *[0] * 8]
    check_alone(tokenizer, rows, tokens, is_tokenized=True, max_length=8)
    texts = tokenizer.tokenize(["hello"], is_tokenized=False, max_length=None)
    assert tokenizer.token_texts(texts.ids) == ["[CLS]", "hello", "[SEP]"]
