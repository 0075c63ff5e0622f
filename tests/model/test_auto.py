"""`auto` is what sentence-transformers gives, from its own directories and from any other."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from model_reference import TEXTS, close, edit_json, encode, view
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    Transformer,
)

from bert_serving.server.model.replica import EncodeRequest, ModelLoadError

SENTENCES = [text for text in TEXTS if isinstance(text, str)]
AUTO = view(pooling="auto", layers=-1)
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def expected(model, sentences=SENTENCES):
    return model.encode(sentences, convert_to_numpy=True)


@pytest.fixture
def sentence_dir(tiny_dir, tmp_path):
    """A factory of directories as sentence-transformers saves them, of a tiny BERT."""

    def make(*modules, **options):
        directory, _ = tiny_dir()
        torch.manual_seed(1)
        model = SentenceTransformer(
            modules=[Transformer(str(directory), **options), *modules], device="cpu"
        )
        saved = tmp_path / "saved"
        model.save(str(saved))
        return saved, model

    return make


@pytest.fixture
def sentence_load(load):
    def sentence_load(directory=None, **options):
        return load(directory, as_sentence_transformers=True, **options)

    return sentence_load


def test_the_embedded_model_is_that_of_sentence_transformers(sentence_load, embedded_dir):
    replica = sentence_load()
    tokens, answer = encode(replica, SENTENCES, AUTO)
    close(answer.values, expected(SentenceTransformer(str(embedded_dir), device="cpu")))
    assert tokens.lengths.max() == replica.info.max_length == 256
    assert tokens.truncated.any()


@pytest.mark.parametrize("mode", [*MODES, ("mean", "max"), ("lasttoken", "cls", "mean")])
def test_every_pooling_is_that_of_sentence_transformers(sentence_load, sentence_dir, mode):
    directory, model = sentence_dir(Pooling(32, mode))
    replica = sentence_load(directory)
    close(encode(replica, SENTENCES, AUTO)[1].values, expected(model))


@pytest.mark.parametrize(
    "flags", [["cls_token"], ["mean_tokens", "cls_token"], ["lasttoken", "max_tokens"], []]
)
def test_poolings_are_read_as_older_versions_wrote_them(sentence_load, sentence_dir, flags):
    directory, _ = sentence_dir(Pooling(32, "max"))
    every = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    config = {f"pooling_mode_{flag}": flag in flags for flag in every}
    (directory / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, **config})
    )
    model = SentenceTransformer(str(directory), device="cpu")
    close(encode(sentence_load(directory), SENTENCES, AUTO)[1].values, expected(model))


@pytest.mark.parametrize(
    "activation",
    ["Identity", "Tanh", "Sigmoid", "ReLU", "LeakyReLU", "ELU", "GELU", "SiLU", "Mish"],
)
def test_every_activation_of_a_dense_layer_is_that_of_torch(
    sentence_load, sentence_dir, activation
):
    function = getattr(torch.nn, activation)()
    directory, model = sentence_dir(Pooling(32, "mean"), Dense(32, 8, True, function))
    replica = sentence_load(directory)
    close(encode(replica, SENTENCES, AUTO)[1].values, expected(model))
    assert replica.info.head_sizes["auto"] == 8


def test_modules_work_one_after_the_other(sentence_load, sentence_dir):
    directory, model = sentence_dir(
        Pooling(32, ("cls", "mean")),
        Dense(64, 16, bias=False),
        Normalize(),
        Dense(16, 48, activation_function=torch.nn.GELU()),
        Dense(48, 48, use_residual=True),
        Dense(48, 20, use_residual=True),
        Normalize(),
    )
    replica = sentence_load(directory)
    values = encode(replica, SENTENCES, AUTO)[1].values
    close(values, expected(model))
    assert replica.info.head_sizes["auto"] == values.shape[1] == 20


def test_weights_in_the_old_format_are_read(sentence_load, sentence_dir):
    directory, model = sentence_dir(Pooling(32), Dense(32, 8))
    folder = directory / "2_Dense"
    (folder / "model.safetensors").unlink()
    torch.save(model[2].state_dict(), folder / "pytorch_model.bin")
    close(encode(sentence_load(directory), SENTENCES, AUTO)[1].values, expected(model))


def test_a_dimension_to_cut_at_is_honoured(sentence_load, sentence_dir):
    directory, _ = sentence_dir(Pooling(32), Normalize())
    edit_json(directory / "config_sentence_transformers.json", truncate_dim=10)
    model = SentenceTransformer(str(directory), device="cpu")
    replica = sentence_load(directory)
    close(encode(replica, SENTENCES, AUTO)[1].values, expected(model))
    assert replica.info.head_sizes["auto"] == 10


def test_a_directory_of_any_other_kind_is_the_mean_of_the_last_layer(load, tiny_dir):
    directory, _ = tiny_dir()
    replica = load(directory)
    mean = view(pooling="mean", layers=-1)
    model = SentenceTransformer(str(directory), device="cpu")
    close(encode(replica, SENTENCES, AUTO)[1].values, expected(model))
    close(encode(replica, SENTENCES, AUTO)[1].values, encode(replica, SENTENCES, mean)[1].values)
    assert replica.info.head_sizes["auto"] == 32
    assert replica.advice(mean) is None


@pytest.mark.parametrize("lower_case", [False, True])
def test_case_is_folded_where_sentence_transformers_folds_it(
    sentence_load, sentence_dir, lower_case
):
    directory, _ = sentence_dir(Pooling(32))
    edit_json(directory / "tokenizer_config.json", do_lower_case=False, strip_accents=None)
    edit_json(directory / "sentence_bert_config.json", do_lower_case=lower_case)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["normalizer"].update(lowercase=False, strip_accents=None)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    rows = ["Hello WORLD", "hello world", "Crème BRÛLÉE", "crème brûlée"]
    model = SentenceTransformer(str(directory), device="cpu")
    values = encode(sentence_load(directory), rows, AUTO)[1].values
    close(values, expected(model, rows))
    assert np.array_equal(values[0], values[1]) is lower_case
    cased = encode(sentence_load(directory, lower_case=False), rows, AUTO)[1].values
    assert not np.array_equal(cased[0], cased[1])


def test_rows_are_cut_where_sentence_transformers_cuts_them_if_auto_is_the_default(
    load, sentence_dir
):
    directory, _ = sentence_dir(Pooling(32))
    edit_json(directory / "sentence_bert_config.json", max_seq_length=10)
    model = SentenceTransformer(str(directory), device="cpu")
    replica = load(directory, as_sentence_transformers=True)
    close(encode(replica, SENTENCES, AUTO)[1].values, expected(model))
    assert replica.info.max_length == model.max_seq_length == 10
    assert load(directory).info.max_length == 64
    chosen = load(directory, as_sentence_transformers=True, max_seq_len=20)
    assert chosen.info.max_length == 20
    edit_json(directory / "sentence_bert_config.json", max_seq_length=1000)
    assert load(directory, as_sentence_transformers=True).info.max_length == 64


def test_a_row_is_the_same_alone_and_in_a_batch_of_many_views(sentence_load, sentence_dir):
    directory, model = sentence_dir(Pooling(32, ("max", "weightedmean")), Dense(64, 8))
    replica = sentence_load(directory)
    rows = [" ".join(["word"] * (number % 17)) for number in range(300)] + SENTENCES
    tokens = replica.tokenize(rows, is_tokenized=False, max_length=None)
    views = {
        "auto": AUTO,
        "pooler": view(pooling="pooler"),
        "tokens": view(pooling="none", layers=0),
        "before": view(pooling="auto", layers=-2),
        "both": view(pooling="auto", layers=[-1, -2], layer_reduce="mean"),
    }
    answers = replica.encode([EncodeRequest(tokens, views)])[0]
    close(answers["auto"].values, expected(model, rows))
    close(answers["auto"].values[300:301], encode(replica, rows[300:301], AUTO)[1].values)
    assert np.abs(answers["before"].values - answers["auto"].values).max() > 0.01
    assert answers["both"].values.shape == (len(rows), 8)


def test_special_tokens_are_pooled_by_auto_even_when_they_are_masked(load, replica):
    masked = load(mask_cls_sep=True)
    rows = ["hello world", ""]
    close(encode(masked, rows, AUTO)[1].values, encode(replica, rows, AUTO)[1].values)


def test_auto_is_cut_scaled_and_typed_as_any_view(replica):
    rows = SENTENCES[:5]
    wanted = view(pooling="auto", layers=-1, dims=7, normalize=True, dtype="float16")
    values = encode(replica, rows, wanted)[1].values
    plain = encode(replica, rows, AUTO)[1].values[:, :7]
    assert values.dtype == np.float16
    close(values, plain / np.linalg.norm(plain, axis=1, keepdims=True), 1e-3)


def test_several_layers_side_by_side_are_refused(replica):
    match = r"takes vectors of 384 dimensions, layers=\[-1, -2\] side by side have 768"
    with pytest.raises(ValueError, match=match):
        replica.check_view(view(pooling="auto", layers=[-1, -2]))
    with pytest.raises(ValueError, match="expected numbers from -7 to 6"):
        replica.check_view(view(pooling="auto", layers=9))


def check_unavailable(load, directory, match):
    """Check that a model is served, but for `auto`, and that the error says why."""
    replica = load(directory)
    assert "auto" not in replica.info.head_sizes
    assert replica.advice(view()) is None
    encode(replica, ["a"])
    with pytest.raises(ValueError, match=f"^pooling='auto': .*{match}") as caught:
        replica.check_view(AUTO)
    assert "\n" not in str(caught.value)


def test_a_module_that_is_not_known_is_named(load, sentence_dir):
    directory, _ = sentence_dir(Pooling(32), LayerNorm(32))
    check_unavailable(load, directory, r"the module .*LayerNorm: known are Transformer, Pooling")
    modules = directory / "modules.json"
    entries = json.loads(modules.read_text())
    for name in ("custom_st.Pooling", "os.system", "sentence_transformersx.Pooling", "Pooling"):
        entries[1]["type"] = name
        modules.write_text(json.dumps(entries))
        check_unavailable(load, directory, f"names the module {name}: known are")


def test_modules_that_do_not_fit_together_make_auto_unavailable(load, sentence_dir):
    directory, _ = sentence_dir(Pooling(32), Dense(32, 8))
    modules = directory / "modules.json"
    content = modules.read_text()
    entries = json.loads(content)
    for changed, match in [
        (entries[:1], "has Transformer: expected a Transformer"),
        (entries[1:], "has Pooling, Dense: expected a Transformer"),
        (entries[::-1], "has Dense, Pooling, Transformer"),
        ([], "has nothing"),
        ([{**entries[0], "path": "0_Transformer"}, *entries[1:]], "in the directory itself"),
        ([*entries[:2], {**entries[2], "path": "../2_Dense"}], "is not inside"),
        ([*entries[:2], {**entries[2], "path": "3_Dense"}], "No such file"),
        ([1], "expected modules"),
        ({}, "has nothing"),
        ({"a": 1}, "expected modules"),
    ]:
        modules.write_text(json.dumps(changed))
        check_unavailable(load, directory, match)
    modules.write_text("[")
    check_unavailable(load, directory, "expected modules")


@pytest.mark.parametrize(
    ("file", "changes", "match"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "pooling_mode='median': known are"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", 1]}, "known are cls, max, mean"),
        ("1_Pooling/config.json", {"pooling_mode": []}, "known are cls, max, mean"),
        ("2_Dense/config.json", {"in_features": 31}, "2_Dense takes 31 and gives 8 .* has 32"),
        ("2_Dense/config.json", {"out_features": 9}, "linear.bias is .*8.*asks for .*9"),
        ("2_Dense/config.json", {"out_features": "8"}, "takes 32 and gives 8"),
        ("2_Dense/config.json", {"activation_function": "os.system"}, "'os.system': known"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Module"}, "known are those"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "module_input_name="),
        ("sentence_bert_config.json", {"max_seq_length": "10"}, "max_seq_length='10'"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "'fill-mask'"),
    ],
)
def test_a_setting_that_is_not_known_makes_auto_unavailable(
    load, sentence_dir, file, changes, match
):
    directory, _ = sentence_dir(Pooling(32), Dense(32, 8))
    edit_json(directory / file, **changes)
    check_unavailable(load, directory, match)


def test_missing_weights_make_auto_unavailable(load, sentence_dir):
    directory, _ = sentence_dir(Pooling(32), Dense(32, 8))
    (directory / "2_Dense" / "model.safetensors").unlink()
    check_unavailable(load, directory, "no model.safetensors or pytorch_model.bin")
    shutil.rmtree(directory / "1_Pooling")
    check_unavailable(load, directory, "config.json: No such file")


def test_a_normalize_without_a_folder_of_its_own_is_known(sentence_load, sentence_dir):
    directory, model = sentence_dir(Pooling(32), Normalize())
    shutil.rmtree(directory / "2_Normalize", ignore_errors=True)
    close(encode(sentence_load(directory), SENTENCES, AUTO)[1].values, expected(model))


def test_the_advice_says_what_to_type_for_the_vectors_that_the_model_was_made_for(replica):
    advice = replica.advice(view())
    assert "mean pooling of the last layer, Normalize, of at most 256 tokens" in advice
    assert advice.endswith("-pooling_strategy AUTO -pooling_layer -1")
    assert replica.advice(view(pooling="auto")) == advice  # of the second-to-last layer
    assert replica.advice(AUTO) is None


def test_a_budget_of_few_tokens_changes_nothing(load, replica):
    close(
        encode(load(max_batch_tokens=1), SENTENCES[:8], AUTO)[1].values,
        encode(replica, SENTENCES[:8], AUTO)[1].values,
    )


def test_a_replica_that_has_no_auto_does_not_become_ready_by_it(load, sentence_dir):
    directory, _ = sentence_dir(Pooling(32), LayerNorm(32))
    with pytest.raises(ModelLoadError, match="takes at most 64"):
        load(directory, max_seq_len=65, as_sentence_transformers=True)
    with pytest.raises(ValueError, match="LayerNorm"):
        load(directory, as_sentence_transformers=True).check_view(AUTO)
