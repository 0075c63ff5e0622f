"""Checkpoints that TensorFlow wrote serve what transformers computes from the same weights."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from model_reference import Reference, close, edit_json, encode, rows_of, view
from safetensors.torch import save_file
from tiny_models import save_tiny_model
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
)

from bert_serving.server.model import google_checkpoint, tensorflow_reader
from bert_serving.server.model.checkpoint import find_checkpoint
from bert_serving.server.model.conversions import converted
from bert_serving.server.model.replica import ModelLoadError
from bert_serving.server.model.tensorflow_reader import Variable

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed"
)
WRITER = Path(__file__).with_name("write_google_checkpoint.py")
TUNED = "model.ckpt-343"
TEXTS = ["hello world", "", "Crème BRÛLÉE :-)", "word " * 100, ("Who?", "Nobody knows it.")]


def save(directory, model_class, **config):
    directory.mkdir()
    return save_tiny_model(directory, model_class, **config)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A Google directory and a fine-tuned one, each with its model of transformers."""
    folder = tmp_path_factory.mktemp("written")
    _, encoder = save(folder / "hf", BertModel)
    _, classifier = save(folder / "hf-tuned", BertForSequenceClassification, num_labels=3)
    pretrained, tuned = folder / "google", folder / "tuned"
    wanted = (folder / "hf", pretrained, "bert_model.ckpt", folder / "hf-tuned", tuned, TUNED)
    subprocess.run([sys.executable, WRITER, *wanted], check=True, capture_output=True)
    return (pretrained, encoder), (tuned, classifier)


@pytest.fixture(scope="session")
def pretrained(written):
    """A Google directory, and the model of transformers whose weights it has."""
    return written[0]


@pytest.fixture(scope="session")
def tuned(written):
    """A directory with nothing but a fine-tuned checkpoint, and its model of transformers."""
    for name in ("vocab.txt", "bert_config.json"):
        (written[1][0] / name).unlink()
    return written[1]


@pytest.fixture
def google_dir(pretrained, tmp_path):
    """A copy of the Google directory, to be changed."""
    return Path(shutil.copytree(pretrained[0], tmp_path / "google"))


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory):
    """A cache for all tests, but those that ask for one of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bert-serving"


@pytest.fixture
def other_tensorflow(tmp_path, monkeypatch):
    """Put a module in TensorFlow's place, for the processes that a test starts."""
    folder = tmp_path / "instead"

    def put(source):
        folder.mkdir(exist_ok=True)
        (folder / "tensorflow.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return put


NOT_INSTALLED = "raise ModuleNotFoundError('No module named tensorflow', name='tensorflow')"


def convert(model_dir, tuned_dir=None, ckpt_name="bert_model.ckpt", config_name="bert_config.json"):
    tuned_dir = tuned_dir and str(tuned_dir)
    return converted(find_checkpoint(str(model_dir), tuned_dir), ckpt_name, config_name)


def refused(match, *args, **options):
    with pytest.raises(ModelLoadError, match=match) as caught:
        convert(*args, **options)
    assert "\n" not in str(caught.value)


def conversions(cache):
    """Return the directories in the cache, those of interrupted conversions too."""
    return [path for path in cache.glob("*/*") if path.is_dir()]


def states_of(model, directory, lower_case=True):
    vocab = BertTokenizerFast(str(directory / "vocab.txt"), do_lower_case=lower_case)
    return Reference(model, vocab, max_length=64).hidden_states(TEXTS)


def check_states(replica, states):
    for layer in range(3):
        _, answer = encode(replica, TEXTS, view(layers=layer, pooling="none"))
        close(rows_of(answer), [state[layer] for state in states])


def test_every_hidden_state_is_that_of_transformers(load, pretrained):
    directory, model = pretrained
    replica = load(directory)
    assert replica.info.name == str(directory)
    check_states(replica, states_of(model, directory))
    assert "tensorflow" not in sys.modules


def test_a_fine_tuned_checkpoint_gives_the_same_probabilities(load, pretrained, tuned):
    replica = load(pretrained[0], tuned_model_dir=str(tuned[0]), ckpt_name=TUNED)
    check_states(replica, states_of(tuned[1].bert, pretrained[0]))
    tokenizer = BertTokenizerFast(str(pretrained[0] / "vocab.txt"))
    with torch.inference_mode():
        logits = [
            tuned[1](**tokenizer("hello " * count, return_tensors="pt")).logits[0]
            for count in range(4)
        ]
    _, labels = encode(
        replica, ["hello " * count for count in range(4)], view(pooling="classification")
    )
    close(labels.values, torch.stack(logits).softmax(1).numpy())


def test_transformers_reads_a_conversion_whole(pretrained, tuned, caplog):
    directory = convert(pretrained[0], tuned[0], ckpt_name=TUNED).directory
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        classifier, report = BertForSequenceClassification.from_pretrained(
            directory, output_loading_info=True
        )
        encoder, encoder_report = AutoModel.from_pretrained(directory, output_loading_info=True)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not any(report.values())
    assert not encoder_report["missing_keys"]
    assert "MISSING" not in caplog.text
    assert classifier.config.num_labels == 3
    for name, weight in tuned[1].state_dict().items():
        assert torch.equal(classifier.state_dict()[name], weight), name
        if name.startswith("bert."):
            assert torch.equal(encoder.state_dict()[name.removeprefix("bert.")], weight), name
    tokens = AutoTokenizer.from_pretrained(directory).tokenize("Crème BRÛLÉE")
    assert tokens == BertTokenizerFast(str(directory / "vocab.txt")).tokenize("creme brulee")


def test_case_is_folded_unless_the_operator_says_otherwise(load, pretrained):
    directory, model = pretrained
    cased = load(directory, lower_case=False)
    check_states(cased, states_of(model, directory, lower_case=False))
    assert list(encode(cased, ["HELLO"])[0].ids) != list(encode(load(directory), ["HELLO"])[0].ids)


def test_only_the_first_start_needs_tensorflow_unless_the_files_change(
    google_dir, other_tensorflow, cache, caplog, capfd, monkeypatch
):
    caplog.set_level(logging.INFO, "bert_serving")
    first = convert(google_dir)
    assert capfd.readouterr() == ("", "")  # of all that TensorFlow has to say
    (line,) = caplog.messages
    assert line == f"converting {google_dir}/bert_model.ckpt, once, to {first.directory}"
    (first.directory.parent / ".interrupted-123").mkdir()
    other_tensorflow(NOT_INSTALLED)
    assert convert(google_dir) == first
    monkeypatch.delenv("PYTHONPATH")
    assert len(caplog.messages) == 1
    edit_json(google_dir / "bert_config.json", hidden_act="relu")
    second = convert(google_dir)
    assert conversions(cache) == [second.directory]  # what was there before is gone
    assert second != first
    assert json.loads((second.directory / "config.json").read_text())["hidden_act"] == "relu"


def test_weights_of_hugging_face_go_before_googles(google_dir, other_tensorflow):
    other_tensorflow(NOT_INSTALLED)
    save_tiny_model(google_dir, BertModel)
    assert convert(google_dir) == find_checkpoint(str(google_dir))
    (google_dir / f"{TUNED}.index").touch()  # unless they are asked for by name
    refused("needs TensorFlow", google_dir, ckpt_name=TUNED)


def test_fine_tuned_weights_of_hugging_face_take_the_place_of_others(load, tmp_path):
    base, _ = save(tmp_path / "base", BertModel)
    _, model = save(tmp_path / "tuned", BertForSequenceClassification, num_labels=3)
    states = states_of(model.bert, base)
    check_states(load(base, tuned_model_dir=str(tmp_path / "tuned")), states)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "config.json"):
        (tmp_path / "tuned" / name).unlink()
    replica = load(base, tuned_model_dir=str(tmp_path / "tuned"))
    check_states(replica, states)
    assert replica.info.name == str(tmp_path / "tuned")


def test_without_tensorflow_the_error_says_what_to_type(google_dir, other_tensorflow, cache):
    other_tensorflow(NOT_INSTALLED)
    refused(
        r"google/bert_model.ckpt: reading it needs TensorFlow: "
        r"run pip install 'bert-serving-server\[tf\]', or run bert-serving-convert DIR OUT",
        google_dir,
    )
    assert not conversions(cache)


def test_a_tensorflow_that_fails_is_named(google_dir, other_tensorflow):
    other_tensorflow("raise ImportError('wrong\\nprotobuf')")
    refused("bert_model.ckpt: TensorFlow cannot be imported: wrong protobuf", google_dir)
    other_tensorflow("import os; os.abort()")
    refused("bert_model.ckpt: the process that read it was ended by SIGABRT", google_dir)
    other_tensorflow("raise SystemError('last words')")
    refused("that read it exited with status 1: SystemError: last words", google_dir)


def test_nothing_goes_on_when_the_worker_is_killed(google_dir, other_tensorflow, tmp_path):
    pid_file = tmp_path / "pid"
    other_tensorflow(
        f"import os, pathlib, time; path = pathlib.Path({str(pid_file)!r} + '.new')\n"
        "path.write_text(str(os.getpid())); path.rename(path.with_suffix('')); time.sleep(600)"
    )
    script = (
        "from pathlib import Path\n"
        "from bert_serving.server.model.tensorflow_reader import read_variables\n"
        f"read_variables(Path({str(google_dir)!r}), [], Path({str(tmp_path / 'out')!r}))\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", script])
    eventually(pid_file.exists)
    reader = int(pid_file.read_text())
    worker.kill()
    worker.wait()
    eventually(lambda: not Path(f"/proc/{reader}").exists())


def eventually(condition, within=60.0):
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_name_that_is_not_there_is_answered_with_the_one_that_is(google_dir):
    refused(
        r"model.ckpt.index: no such file: did you mean -ckpt_name bert_model.ckpt\?$",
        google_dir,
        ckpt_name="model.ckpt",
    )
    shutil.copy(google_dir / "bert_model.ckpt.index", google_dir / "model.ckpt-7.index")
    refused(
        "give -ckpt_name, one of bert_model.ckpt, model.ckpt-7$", google_dir, ckpt_name="model.ckpt"
    )
    for path in google_dir.glob("*.index"):
        path.unlink()
    refused("bert_model.ckpt.index: no such file$", google_dir)


@pytest.mark.parametrize("name", ["vocab.txt", "bert_config.json"])
def test_a_missing_file_is_named(google_dir, name):
    (google_dir / name).unlink()
    refused(f"google/{name}: no such file$", google_dir)


def test_a_configuration_of_another_name_is_found(google_dir, other_tensorflow):
    other_tensorflow(NOT_INSTALLED)
    shutil.move(google_dir / "bert_config.json", google_dir / "config_3.json")
    refused("bert_config.json: no such file$", google_dir)
    refused("needs TensorFlow", google_dir, config_name="config_3.json")
    shutil.move(google_dir / "config_3.json", google_dir / "config.json")
    refused("needs TensorFlow", google_dir)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_size": None}, "bert_config.json: hidden_size=None: expected an int above 0"),
        ({"vocab_size": "many"}, "bert_config.json: vocab_size='many': expected an int above 0"),
    ],
)
def test_a_configuration_without_sizes_is_refused(google_dir, changes, match):
    edit_json(google_dir / "bert_config.json", **changes)
    refused(match, google_dir)


def test_a_configuration_of_other_weights_is_refused(google_dir, cache):
    edit_json(google_dir / "bert_config.json", num_hidden_layers=3)
    missing = "no variable bert/encoder/layer_2/attention/self/query/kernel"
    refused(f"google/bert_model.ckpt: .*{missing}", google_dir)
    assert not conversions(cache)


def test_a_variable_of_another_shape_is_refused():
    wanted = Variable("dense/kernel", "dense.weight", (32, None))
    for shape in ([32, 64], [32, 1]):
        tensorflow_reader._check(wanted, {"dense/kernel": shape})
    for shape in ([31, 64], [32], [32, 64, 1], []):
        with pytest.raises(ModelLoadError, match=r"dense/kernel is \(.*\(32, any\)"):
            tensorflow_reader._check(wanted, {"dense/kernel": shape})


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("bert_model.ckpt.data-00000-of-00001", lambda content: content[:1_000_000]),
        ("bert_model.ckpt.index", lambda content: b"x" * len(content)),
    ],
    ids=["the data is cut", "the index is garbage"],
)
def test_damaged_files_are_refused(google_dir, cache, name, damage):
    path = google_dir / name
    path.write_bytes(damage(path.read_bytes()))
    refused("google/bert_model.ckpt: cannot be read: ", google_dir)
    assert not conversions(cache)


@pytest.mark.parametrize("biases", [0, 2])
def test_a_head_whose_parts_do_not_fit_is_refused(tmp_path, biases):
    head = {"classifier.weight": torch.zeros(3, 32), "classifier.bias": torch.zeros(biases)}
    if not biases:
        del head["classifier.bias"]
    save_file(head, tmp_path / "weights")
    match = f"model.ckpt: output_weights are of 3 labels, output_bias of {biases}$"
    with pytest.raises(ModelLoadError, match=match):
        google_checkpoint._head_config(tmp_path / "weights", tmp_path / "model.ckpt")


def test_a_cache_that_cannot_be_made_is_named(google_dir, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    refused("file/bert-serving.*: Not a directory: set XDG_CACHE_HOME", google_dir)
