"""What is no BERT is computed by transformers, with the same views and the same promises."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from architecture_checks import (
    LIMIT,
    ROWS,
    check_alone,
    check_lengths,
    check_views,
    make_tiny_model,
)
from model_reference import Reference, close, edit_json, encode, smallest_cosine, view
from safetensors.torch import load_file, save_file
from test_loading import refused
from tiny_models import save_tiny_model
from transformers import (
    AlbertForMaskedLM,
    AlbertForSequenceClassification,
    AlbertModel,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    BigBirdModel,
    ConvBertModel,
    DebertaV2ForSequenceClassification,
    DebertaV2Model,
    ErnieModel,
    FNetModel,
    GPT2Model,
    IBertModel,
    ModernBertModel,
    MPNetModel,
    NystromformerModel,
    T5Model,
)

from bert_serving.server.model.device import cpu_lack
from bert_serving.server.model.transformers_encoder import TransformersEncoder

ALBERT = (AlbertModel, "albert", {"embedding_size": 16})
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "type_vocab_size": 0,
}
MODERNBERT = {
    "local_attention": 8,
    "global_attn_every_n_layers": 2,
    "num_hidden_layers": 3,
    **dict.fromkeys(("bos_token_id", "cls_token_id"), 0),
    **dict.fromkeys(("eos_token_id", "sep_token_id"), 2),
}

# name: the class that saved it, its tokenizer, its settings
MODELS = {
    "albert": ALBERT,
    "albert under a head": (AlbertForMaskedLM, "albert", {"embedding_size": 16}),
    "mpnet": (MPNetModel, "byte_level", {}),
    "deberta-v2": (DebertaV2Model, "deberta", DEBERTA),
    "deberta-v2 with segments": (DebertaV2Model, "deberta", {"type_vocab_size": 2}),
    "modernbert": (ModernBertModel, "byte_level", MODERNBERT),
    "ibert": (IBertModel, "byte_level", {"type_vocab_size": 1}),
    "nystromformer": (
        NystromformerModel,
        "word_piece",
        {"vocab_size": 30522, "segment_means_seq_len": 64},
    ),
    "convbert": (ConvBertModel, "word_piece", {"embedding_size": 16}),
    "fnet": (FNetModel, "albert", {}),
    "ernie with tasks": (ErnieModel, "word_piece", {"use_task_id": True}),
    "bert of another activation": (BertModel, "word_piece", {"hidden_act": "mish"}),
}
MIXES_PADDING = ("convbert", "fnet", "nystromformer")


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def made(name, tmp_path_factory):
    """A directory, and what transformers makes of it."""
    return make_tiny_model(tmp_path_factory.mktemp("model"), *MODELS[name])


@pytest.fixture(scope="module")
def replica(load, made):
    replica = load(made[0], max_seq_len=LIMIT)
    assert isinstance(replica._encoder, TransformersEncoder)
    return replica


def test_all_views_of_all_layers_are_those_of_transformers(name, made, replica):
    check_views(replica, made[1])
    assert replica.info.architecture == name.split(" ")[0]


def test_a_row_is_the_same_alone(made, replica):
    check_alone(replica, made[1])


def test_every_length_up_to_the_limit_is_right(load, made):
    check_lengths(load(made[0], no_special_token=True), made[1])


@pytest.mark.skipif(cpu_lack("int8") is not None, reason="it is refused on this CPU anyway")
def test_int8_is_refused(made):
    refused(
        "dtype='int8': this model is computed by transformers", model_dir=str(made[0]), dtype="int8"
    )


@pytest.mark.skipif(cpu_lack("bfloat16") is not None, reason="this CPU has no bfloat16")
def test_bfloat16_is_close_in_direction(load, name, made):
    directory, reference = made
    if name == "fnet":
        refused(
            "FNetModel cannot be computed in bfloat16", model_dir=str(directory), dtype="bfloat16"
        )
        return
    replica = load(directory, dtype="bfloat16", max_seq_len=LIMIT)
    assert replica._encoder._model.dtype == torch.bfloat16
    assert replica._encoder._is_padded == (name not in MIXES_PADDING)
    expected = reference.hidden_states(ROWS)
    for layer in range(replica.info.num_layers + 1):
        _, answer = encode(replica, ROWS, view(layers=layer))
        assert smallest_cosine(answer.values, [state[layer].mean(0) for state in expected]) >= 0.999


def test_rows_are_padded_unless_that_would_change_them(name, replica):
    assert replica._encoder._is_padded == (name not in MIXES_PADDING)


def test_rows_of_big_bird_are_attended_in_full(load, tmp_path):
    settings = {"block_size": 1, "num_random_blocks": 1, "type_vocab_size": 2}
    directory, model = save_tiny_model(tmp_path, BigBirdModel, "byte_level", **settings)
    assert model.config.attention_type == "block_sparse"
    model.set_attention_type("original_full")
    theirs = Reference(model, AutoTokenizer.from_pretrained(directory), LIMIT)
    replica = load(directory, max_seq_len=LIMIT)
    assert replica._encoder._model.config.attention_type == "original_full"
    check_views(replica, theirs)


@pytest.mark.parametrize(
    ("model_class", "tokenizer", "settings"),
    [
        (AlbertForSequenceClassification, "albert", {"embedding_size": 16}),
        (BertForSequenceClassification, "word_piece", {"hidden_act": "mish"}),
        (DebertaV2ForSequenceClassification, "deberta", DEBERTA),
    ],
)
def test_labels_have_the_scores_that_transformers_gives_them(
    load, tmp_path, model_class, tokenizer, settings
):
    directory, model = save_tiny_model(tmp_path, model_class, tokenizer, num_labels=3, **settings)
    replica = load(directory, max_seq_len=LIMIT)
    assert replica.info.head_sizes["classification"] == 3
    theirs = Reference(model, AutoTokenizer.from_pretrained(directory), LIMIT)
    check_views(replica, theirs)
    _, answer = encode(replica, ROWS, view(pooling="classification"))
    scores = [theirs.output_of(row).logits.softmax(-1).numpy()[0] for row in ROWS]
    close(answer.values, scores)


def test_a_pooler_gives_what_transformers_gives(load, tmp_path):
    directory, model = save_tiny_model(tmp_path, *ALBERT[:2], **ALBERT[2])
    theirs = Reference(model, AutoTokenizer.from_pretrained(directory), LIMIT)
    _, answer = encode(load(directory, max_seq_len=LIMIT), ROWS, view(pooling="pooler"))
    close(answer.values, [theirs.output_of(row).pooler_output.numpy()[0] for row in ROWS])


def test_a_pooler_that_was_never_trained_is_not_served(load, tmp_path):
    directory, _ = save_tiny_model(tmp_path, AlbertForMaskedLM, "albert", embedding_size=16)
    replica = load(directory)
    assert "pooler" not in replica.info.head_sizes
    with pytest.raises(ValueError, match="no such head"):
        encode(replica, ["a"], view(pooling="pooler"))


def change_weights(directory, change):
    path = directory / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})


def test_weights_that_are_missing_or_too_many_are_refused(tmp_path):
    directory, _ = save_tiny_model(
        tmp_path, AlbertForSequenceClassification, "albert", embedding_size=16
    )
    change_weights(directory, lambda weights: weights.pop("classifier.weight"))
    refused("the checkpoint has no weight classifier.weight$", model_dir=str(directory))
    directory, _ = save_tiny_model(tmp_path, MPNetModel, "byte_level")
    extra = "encoder.layer.0.attention.attn.more.weight"
    change_weights(directory, lambda weights: weights.update({extra: torch.zeros(3)}))
    refused(f"no place for: {extra}$", model_dir=str(directory))
    change_weights(directory, lambda weights: [weights.pop(name) for name in list(weights)[:9]])
    refused("has no weight .*, .*, .* and [56] more$", model_dir=str(directory))
    (directory / "model.safetensors").unlink()
    refused("transformers cannot load it: .*model.safetensors", model_dir=str(directory))


@pytest.mark.parametrize(
    ("model_class", "settings", "match"),
    [
        (GPT2Model, {}, "model_type='gpt2' is a decoder: expected an encoder"),
        (T5Model, {"d_kv": 8}, "model_type='t5' is an encoder with a decoder"),
        (BertModel, {"is_decoder": True}, r"a decoder \(is_decoder=true\)"),
    ],
)
def test_decoders_are_refused(tmp_path, model_class, settings, match):
    directory, _ = save_tiny_model(tmp_path, model_class, "byte_level", **settings)
    refused(match, model_dir=str(directory))


def test_models_that_nobody_knows_are_refused(tmp_path):
    directory, _ = save_tiny_model(tmp_path, *ALBERT[:2], **ALBERT[2])
    for changes, match in [
        ({"model_type": "fortune_teller"}, "model_type='fortune_teller' cannot be served"),
        ({"model_type": "vit"}, "model_type='vit' reads no texts"),
        ({"hidden_act": "magic"}, "model_type='albert': .*magic"),
        ({"num_attention_heads": 5}, r"key.bias is \(32,\): config.json asks for \(30,\)"),
        ({"intermediate_size": 65}, r"ffn.bias is \(64,\): config.json asks for \(65,\)"),
    ]:
        directory, _ = save_tiny_model(tmp_path, *ALBERT[:2], **ALBERT[2])
        edit_json(directory / "config.json", **changes)
        refused(match, model_dir=str(directory))


def test_positions_cannot_be_left_out(tmp_path):
    directory, _ = save_tiny_model(tmp_path, *ALBERT[:2], **ALBERT[2])
    refused("no_position_embeddings: .*expected a model of bert", model_dir=str(directory),
            no_position_embeddings=True)  # fmt: skip


def run_server_code(directory, code, **environment):
    """Load a directory in a process of its own, and return what it wrote."""
    code = (
        "from bert_serving.server.model.loading import *\n"
        f"config = dict(model_dir={str(directory)!r}, max_batch_tokens=64, num_threads=1)\n{code}"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_transformers_says_nothing_while_it_loads(tmp_path):
    directory, _ = save_tiny_model(tmp_path, AlbertForMaskedLM, "albert", embedding_size=16)
    ran = run_server_code(directory, "load_replica(ReplicaConfig(**config))")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.slow
def test_without_a_compiler_compile_is_refused_at_start(tmp_path):
    directory, _ = save_tiny_model(tmp_path, *ALBERT[:2], **ALBERT[2])
    code = (
        "try: load_replica(ReplicaConfig(compile=True, **config))\n"
        "except ModelLoadError as error: print(error)"
    )
    ran = run_server_code(
        directory, code, CXX="/nonexistent/g++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache")
    )
    assert "the model cannot be compiled: " in ran.stdout, ran.stderr
    assert "start without -compile" in ran.stdout
    assert ran.stdout.count("\n") == 1


@pytest.mark.slow
def test_a_compiled_model_gives_the_same(load, tmp_path):
    directory, model = save_tiny_model(
        tmp_path, AlbertModel, "albert", embedding_size=16, num_hidden_layers=1
    )
    replica = load(directory, compile=True, max_seq_len=LIMIT)
    assert replica._encoder._run is not replica._encoder._model
    theirs = Reference(model, AutoTokenizer.from_pretrained(directory), LIMIT)
    check_views(replica, theirs)
    _, answer = encode(replica, ROWS, view(pooling="pooler"))
    close(answer.values, [theirs.output_of(row).pooler_output.numpy()[0] for row in ROWS])
