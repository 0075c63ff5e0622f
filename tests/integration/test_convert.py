"""Google's checkpoints, served directly and after `bert-serving-convert`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from server_process import BOOT_S, COMMANDS, SECOND, Starter
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from bert_serving.server.model.checkpoint import find_checkpoint
from bert_serving.server.model.google_checkpoint import CONVERTED_FILES

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed"
)
WRITER = Path(__file__).parents[1] / "model" / "write_google_checkpoint.py"
TEXTS = ["hello world", "Crème BRÛLÉE :-)", "many words " * 12]
PAST_TENSORFLOW_S = 2 * BOOT_S
TINY = ("-cpu", "-dtype", "float32", "-max_batch_tokens", "256")


@pytest.fixture(scope="module")
def google(run_folder: Path) -> Iterator[tuple[Path, Path, Any]]:
    """A Google directory, a fine-tuned one without its vocabulary, transformers' model of both."""
    source, pretrained, tuned = (run_folder / name for name in ("hf", "google", "tuned"))
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
        num_labels=3,
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(source)
    shutil.copy(find_checkpoint(None).directory / "vocab.txt", source)
    wanted = (source, pretrained, "bert_model.ckpt", source, tuned, "model.ckpt-343")
    command = [sys.executable, WRITER, *wanted]
    subprocess.run(command, check=True, capture_output=True, timeout=120 * SECOND)
    for name in ("vocab.txt", "bert_config.json"):
        (tuned / name).unlink()
    yield pretrained, tuned, model
    for folder in (source, pretrained, tuned):
        shutil.rmtree(folder)


@pytest.fixture
def cache(run_folder: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a cache of the test's own."""
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture
def no_tensorflow(tmp_path: Path) -> dict[str, str]:
    """An environment in which TensorFlow cannot be imported."""
    (tmp_path / "tensorflow.py").write_text(
        "raise ModuleNotFoundError('No module named tensorflow', name='tensorflow')"
    )
    return {"PYTHONPATH": str(tmp_path)}


def convert(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMANDS / "bert-serving-convert", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120 * SECOND,
        env={**os.environ, **environment},
    )


@torch.inference_mode()
def outputs(google: tuple[Path, Path, Any]) -> list[Any]:
    """Return what transformers gives for each text, computed alone."""
    directory, _, model = google
    tokenizer = BertTokenizerFast(str(directory / "vocab.txt"))
    return [
        model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True) for text in TEXTS
    ]


def default_means(google: tuple[Path, Path, Any]) -> Any:
    return np.stack([out.hidden_states[-2][0].numpy().mean(0) for out in outputs(google)])


def test_a_google_directory_is_served_and_converted_by_one_of_its_workers(
    start_server: Starter, google: Any, cache: dict[str, str]
) -> None:
    options = ("-model_dir", str(google[0]), "-num_worker", "2", *TINY)
    server = start_server(*options, wait=False, environment=cache)
    server.wait_ready(PAST_TENSORFLOW_S)
    with server.client() as client:
        np.testing.assert_allclose(
            client.encode(TEXTS), default_means(google), rtol=1e-5, atol=1e-5
        )
    assert server.log.count(f"converting {google[0]}/bert_model.ckpt, once, to ") == 1
    assert "oneDNN" not in server.log


def test_a_fine_tuned_checkpoint_serves_the_probabilities_of_its_labels(
    start_server: Starter, google: Any, cache: dict[str, str]
) -> None:
    server = start_server(
        *("-model_dir", str(google[0]), "-tuned_model_dir", str(google[1])),
        *("-ckpt_name", "model.ckpt-343", "-pooling_strategy", "CLASSIFICATION", *TINY),
        wait=False,
        environment=cache,
    )
    server.wait_ready(PAST_TENSORFLOW_S)
    expected = torch.cat([out.logits for out in outputs(google)]).softmax(1).numpy()
    with server.client() as client:
        np.testing.assert_allclose(client.encode(TEXTS), expected, rtol=1e-5, atol=1e-5)


def test_without_tensorflow_a_server_ends_and_says_what_to_type(
    start_server: Starter, google: Any, cache: dict[str, str], no_tensorflow: dict[str, str]
) -> None:
    environment = {**cache, **no_tensorflow}
    server = start_server("-model_dir", str(google[0]), wait=False, environment=environment)
    assert server.wait(BOOT_S) != 0
    assert "run pip install 'bert-serving-server[tf]'" in server.log


def test_what_is_converted_is_served_without_tensorflow(
    start_server: Starter, google: Any, tmp_path: Path, no_tensorflow: dict[str, str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run = convert(google[0], out, "-tuned_model_dir", google[1], "-ckpt_name", "model.ckpt-343")
    assert run.returncode == 0
    assert run.stderr == ""
    assert run.stdout == (
        f"{out}: 2 layers, 32 dimensions, 3 labels; "
        f"serve it with bert-serving-start -model_dir {out}\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "tensorflow.py") == [
        "out"
    ]
    server = start_server("-model_dir", str(out), *TINY, environment=no_tensorflow)
    with server.client() as client:
        np.testing.assert_allclose(
            client.encode(TEXTS), default_means(google), rtol=1e-5, atol=1e-5
        )


def test_an_earlier_conversion_is_only_replaced_when_told_so(google: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in CONVERTED_FILES:
        (out / name).touch()
    refused = convert(google[0], out, "-cased_tokenization")
    assert refused.returncode == 1
    assert refused.stderr == (
        f"bert-serving-convert: {out} is not empty: -overwrite replaces an earlier conversion\n"
    )
    assert convert(google[0], out, "-cased_tokenization", "-overwrite").returncode == 0
    assert '"do_lower_case": false' in (out / "tokenizer_config.json").read_text()
    (out / "notes.txt").touch()
    refused = convert(google[0], out, "-overwrite")
    assert refused.returncode == 1
    assert "has other files than a conversion's, such as notes.txt" in refused.stderr
    assert list(tmp_path.iterdir()) == [out]


def test_what_cannot_be_converted_is_refused_in_one_line_and_leaves_nothing(
    google: Any, tmp_path: Path, no_tensorflow: dict[str, str]
) -> None:
    out = tmp_path / "out"
    for status, message, run in [
        (2, "missing: no such directory", convert(tmp_path / "missing", out)),
        (1, "did you mean -ckpt_name model.ckpt-343?", convert(google[1], out)),
        (1, "is a Hugging Face directory already", convert(google[1].with_name("hf"), out)),
        (1, "is a file: expected a new or empty directory", convert(google[0], WRITER)),
        (1, "reading it needs TensorFlow", convert(google[0], out, **no_tensorflow)),
    ]:
        assert run.returncode == status
        assert message in run.stderr.strip().rpartition("\n")[2]
        assert status == 2 or run.stderr.count("\n") == 1
        assert run.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["tensorflow.py"]
