"""The fake replica keeps the promises that other tests rely on."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from bert_serving.client.view import DEFAULT_VIEW, View
from bert_serving.server.model.fake import (
    FakeReplica,
    fake_embedding,
    fake_token_embeddings,
    fake_tokens,
)
from bert_serving.server.model.loading import ReplicaConfig, load_replica
from bert_serving.server.model.replica import EncodeRequest, ModelLoadError

TEXTS = ["hello world", "", "two words", "世界 ok 😀", "dog", "god", "hello world"]


@pytest.fixture
def replica():
    return FakeReplica(8)


def encode(replica, rows, view=DEFAULT_VIEW, **options):
    options = {"is_tokenized": False, "max_length": None, **options}
    tokens = replica.tokenize(rows, **options)
    return tokens, replica.encode([EncodeRequest(tokens, {"v": view})])[0]["v"]


def view(**fields):
    return View(**fields).filled_from(DEFAULT_VIEW)


def test_loading_the_fake_does_not_import_torch():
    code = (
        "import sys; from bert_serving.server.model.loading import *;"
        "load_replica(ReplicaConfig(model_dir='fake:384')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pooled_values_are_what_the_oracle_says(replica):
    _, answer = encode(replica, TEXTS)
    assert answer.row_splits is None
    np.testing.assert_array_equal(answer.values, [fake_embedding(text, 8) for text in TEXTS])


def test_pairs_and_tokens_are_what_the_oracle_says(replica):
    pairs = [("a b", "c"), "a b c", ("c", "a b")]
    _, answer = encode(replica, pairs)
    np.testing.assert_array_equal(answer.values, [fake_embedding(row, 8) for row in pairs])
    tokens = [["a", "b"], (["a"], ["b"])]
    _, answer = encode(replica, tokens, is_tokenized=True)
    np.testing.assert_array_equal(answer.values, [fake_embedding(row, 8) for row in tokens])


def test_embeddings_of_different_rows_differ():
    rows = ["a b", "b a", ["a", "b"], ("a", "b"), (["a"], ["b"]), "a  b", ["a b"], ("b", "a")]
    embeddings = {fake_embedding(row, 16).tobytes() for row in rows}
    assert len(embeddings) == len(rows)
    values = np.array([fake_embedding(f"text {number}", 16) for number in range(1000)])
    assert len(np.unique(values, axis=0)) == 1000
    assert values.min() >= -0.5
    assert values.max() < 0.5
    assert abs(values.mean()) < 0.02


def test_a_token_is_a_word(replica):
    rows, _ = encode(replica, TEXTS)
    assert rows.lengths.tolist() == [len(text.split()) + 2 for text in TEXTS]
    assert not rows.truncated.any()
    assert rows.special.sum() == 2 * len(TEXTS)
    texts = replica.token_texts(rows.ids)
    assert texts == [token for text in TEXTS for token in fake_tokens(text)]
    assert texts[:4][0::3] == ["[CLS]", "[SEP]"]


def test_texts_tokenize_the_same_one_by_one_and_among_pairs(replica):
    alone = replica.tokenize(TEXTS, is_tokenized=False, max_length=None)
    among = replica.tokenize([*TEXTS, ("a", "b c")], is_tokenized=False, max_length=None)
    size = len(alone.ids)
    np.testing.assert_array_equal(among.ids[:size], alone.ids)
    np.testing.assert_array_equal(among.special[:size], alone.special)
    assert among.lengths.tolist() == [*alone.lengths.tolist(), 6]
    assert among.segment_ids[size:].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("others", [[], [("a", "b")]])
def test_a_long_row_is_cut_and_flagged(replica, others):
    words = [f"w{number}" for number in range(2000)]
    texts = ["short", " ".join(words), *others]
    rows = replica.tokenize(texts, is_tokenized=False, max_length=10)
    assert rows.lengths.tolist()[:2] == [3, 10]
    assert rows.truncated.tolist()[:2] == [False, True]
    expected = [*fake_tokens("short"), *fake_tokens(" ".join(words))[:9], "[SEP]"]
    assert replica.token_texts(rows.ids)[:13] == expected
    assert replica.tokenize(texts, is_tokenized=False, max_length=None).lengths[1] == 512


def test_of_a_pair_the_longer_side_is_cut(replica):
    rows = replica.tokenize([("a b c d e f", "x y")], is_tokenized=False, max_length=8)
    assert rows.truncated.tolist() == [True]
    assert rows.segment_ids.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert rows.special.tolist() == [True, False, False, False, True, False, False, True]


def test_a_max_length_without_room_is_refused(replica):
    with pytest.raises(ValueError, match="at least 3"):
        replica.tokenize(["a"], is_tokenized=False, max_length=2)


def test_no_rows_at_all_give_empty_arrays(replica):
    rows, answer = encode(replica, [])
    assert len(rows) == 0
    assert answer.values.shape == (0, 8)


def test_a_token_level_view_has_a_vector_a_word(replica):
    rows, answer = encode(replica, TEXTS, view(pooling="none"))
    assert list(answer.row_splits) == [0, *np.cumsum(rows.lengths)]
    expected = np.concatenate([fake_token_embeddings(text, 8) for text in TEXTS])
    np.testing.assert_array_equal(answer.values, expected)


def test_views_have_the_width_and_type_they_ask_for(replica):
    base = fake_embedding("dog", 8)
    wide = encode(replica, ["dog"], view(layers=(-1, 0), pooling="mean_max"))[1].values[0]
    np.testing.assert_array_equal(wide, np.tile(base, 4))
    summed = encode(replica, ["dog"], view(layers=(-1, 0), layer_reduce="sum"))[1].values[0]
    np.testing.assert_array_equal(summed, base)
    half = encode(replica, ["dog"], view(dims=4, normalize=True, dtype="float16"))[1].values[0]
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, base[:4] / np.linalg.norm(base[:4]), atol=1e-3)


def test_a_layer_that_is_not_there_is_refused(replica):
    replica.check_view(view(layers=(-13, 12)))
    for layer in (-14, 13):
        with pytest.raises(ValueError, match=r"-13 to 12.*12 layers"):
            replica.check_view(view(layers=(layer,)))


def test_texts_misbehave_in_encode_and_only_there(replica):
    rows = replica.tokenize(["fine", "fake:raise"], is_tokenized=False, max_length=None)
    with pytest.raises(RuntimeError, match="told to fail"):
        replica.encode([EncodeRequest(rows, {"v": DEFAULT_VIEW})])
    started = time.monotonic()
    _, answer = encode(replica, ["fake:sleep 0.05", "fake:sleep soon", "fake:else"])
    assert time.monotonic() - started >= 0.05
    np.testing.assert_array_equal(answer.values[0], fake_embedding("fake:sleep 0.05", 8))


def test_a_crash_ends_the_process():
    code = (
        "from bert_serving.server.model.fake import *; r = FakeReplica(8);"
        "rows = r.tokenize(['fake:crash'], is_tokenized=False, max_length=None);"
        "r.encode([EncodeRequest(rows, {})])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1


@pytest.mark.parametrize(
    "name", ["fake:", "fake:0", "fake:x", "fake:8?bot=fail", "fake:8?boot=x", "fake:8?row_us=x"]
)
def test_a_wrong_name_is_refused(name):
    with pytest.raises(ModelLoadError, match="model_dir='fake:"):
        load_replica(ReplicaConfig(model_dir=name))


def test_options_slow_down_or_fail_the_boot():
    with pytest.raises(ModelLoadError, match="told to fail"):
        load_replica(ReplicaConfig(model_dir="fake:8?boot=fail"))
    started = time.monotonic()
    replica = load_replica(
        ReplicaConfig(model_dir="fake:8?boot_s=0.05&row_us=10000", max_batch_tokens=77)
    )
    assert time.monotonic() - started >= 0.05
    assert replica.max_batch_tokens == 77
    started = time.monotonic()
    encode(replica, ["a", "b"])
    assert time.monotonic() - started >= 0.02


def test_settings_that_no_model_can_have_are_refused():
    with pytest.raises(ModelLoadError, match=r"dtype='int3'.*float32"):
        ReplicaConfig(dtype="int3")
    with pytest.raises(ModelLoadError, match="max_batch_tokens=0"):
        ReplicaConfig(max_batch_tokens=0)
