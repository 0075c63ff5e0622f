"""The packed BERT computes what transformers computes, whatever else is in the batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from model_reference import (
    TEXTS,
    Reference,
    close,
    edit_json,
    encode,
    rows_of,
    smallest_cosine,
    view,
)
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
)

from bert_serving.client.view import DEFAULT_VIEW
from bert_serving.server.model.bert import BertEncoder
from bert_serving.server.model.checkpoint import find_checkpoint
from bert_serving.server.model.kernels import PlainKernels
from bert_serving.server.model.replica import DeviceLost, EncodeRequest


def test_every_hidden_state_of_every_token_is_that_of_transformers(replica, states):
    tokens = replica.tokenize(TEXTS, is_tokenized=False, max_length=None)
    views = {str(layer): view(layers=layer, pooling="none") for layer in range(-7, 7)}
    answers = replica.encode([EncodeRequest(tokens, views)])[0]
    for layer in range(-7, 7):
        answer = answers[str(layer)]
        assert list(answer.row_splits) == [0, *np.cumsum(tokens.lengths)]
        close(rows_of(answer), [state[layer] for state in states])


def test_bfloat16_is_close_in_direction(load, states):
    replica = load(dtype="bfloat16")
    assert replica.info.dtype == "bfloat16"
    for layer in (0, -2, -1):
        _, answer = encode(replica, TEXTS, view(layers=layer))
        means = [state[layer].mean(0) for state in states]
        assert smallest_cosine(answer.values, means) >= 0.999
        assert layer == 0 or np.abs(answer.values - means).max() > 1e-5  # bfloat16 indeed


def test_int8_is_close_in_direction(load, states):
    replica = load(dtype="int8")
    assert replica.info.dtype == "int8"
    for layer in (1, -2, -1):
        _, answer = encode(replica, TEXTS, view(layers=layer))
        means = [state[layer].mean(0) for state in states]
        cosine = smallest_cosine(answer.values, means)
        assert 0.99 <= cosine < 0.99999, "8 bits indeed"


def test_in_int8_a_row_does_not_depend_on_others(load):
    replica = load(dtype="int8")
    loud = ["! " * 200, *TEXTS]  # a scale for all would be another one beside these
    _, alone = encode(replica, TEXTS[3:4])
    _, among = encode(replica, [*loud, TEXTS[3], *loud])
    close(among.values[len(loud) : len(loud) + 1], alone.values, tolerance=1e-6)


def test_a_row_is_the_same_alone_and_among_others(replica):
    rng = np.random.default_rng(0)
    others = [" ".join(["some words"] * int(n)) for n in rng.integers(0, 12, 500)]
    _, alone = encode(replica, TEXTS[:8])
    _, among = encode(replica, [*others[:250], *TEXTS[:8], *others[250:]])
    close(among.values[250:258], alone.values)
    for number in (0, 77, 507):
        text = (*others[:250], *TEXTS[:8], *others[250:])[number]
        close(among.values[number : number + 1], encode(replica, [text])[1].values)


@pytest.mark.parametrize("budget", [1, 100, 100_000])
def test_the_token_budget_changes_nothing(load, replica, budget):
    _, answer = encode(load(max_batch_tokens=budget), TEXTS, view(pooling="none"))
    close(answer.values, encode(replica, TEXTS, view(pooling="none"))[1].values)


def test_requests_of_a_batch_get_their_own_rows_and_views(replica, states):
    def request(numbers, **views):
        rows = [TEXTS[number] for number in numbers]
        tokens = replica.tokenize(rows, is_tokenized=False, max_length=None)
        return EncodeRequest(tokens, views)

    flat = view(layers=1, pooling="none")
    answers = replica.encode(
        [
            request([3, 0, 9], mean=DEFAULT_VIEW, tokens=flat),
            request([5]),
            request([6, 1], cls=view(layers=-1, pooling="first"), same=DEFAULT_VIEW),
            request([]),
            request([], mean=DEFAULT_VIEW, tokens=flat),
            request([7], tokens=flat),
        ]
    )
    assert [sorted(answer) for answer in answers] == [
        ["mean", "tokens"], [], ["cls", "same"], [], ["mean", "tokens"], ["tokens"]
    ]  # fmt: skip
    close(answers[0]["mean"].values, [states[number][-2].mean(0) for number in (3, 0, 9)])
    close(rows_of(answers[0]["tokens"]), [states[number][1] for number in (3, 0, 9)])
    close(answers[2]["cls"].values, [states[number][-1][0] for number in (6, 1)])
    close(answers[2]["same"].values, [states[number][-2].mean(0) for number in (6, 1)])
    assert answers[4]["mean"].values.shape == (0, 384)
    assert list(answers[4]["tokens"].row_splits) == [0]
    close(rows_of(answers[5]["tokens"]), [states[7][1]])


def test_no_requests_give_no_answers(replica):
    assert replica.encode([]) == []


def test_layers_that_nobody_asks_for_are_not_built(load):
    replica = load()
    built = [layer is not None for layer in replica._encoder._layers]
    assert built == [True] * 5 + [False]
    encode(replica, ["a"], view(layers=-1))
    assert replica._encoder._layers[5] is not None
    assert not [name for name in replica._encoder._weights if name.startswith("encoder.")]


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_layer_is_not_built_of_files_that_were_written_over(load, tiny_dir, is_sharded):
    directory, _ = tiny_dir()
    path = directory / "model.safetensors"
    if is_sharded:
        path = path.rename(directory / "part.safetensors")
        index = {"weight_map": {"some weight": path.name}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    ours, expected = load(directory), encode(load(directory), ["a"], view(layers=-1))[1].values
    content = path.read_bytes()
    others = content[:-8000] + bytes(8000)
    path.with_name("new").write_bytes(others)
    path.with_name("new").rename(path)
    close(encode(ours, ["a"], view(layers=-1))[1].values, expected)  # as it was mapped
    ours = load(directory)
    path.write_bytes(content)
    with pytest.raises(DeviceLost, match=f"the model's files were written over: {path}"):
        encode(ours, ["a"], view(layers=-1))
    ours = load(directory)
    path.unlink()
    close(encode(ours, ["a"], view(layers=-1))[1].values, expected)


@pytest.mark.parametrize(
    "activation",
    ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "relu", "silu", "swish"],
)
def test_every_activation_is_that_of_transformers(load, tiny_dir, activation):
    check_tiny(load, *tiny_dir(hidden_act=activation))


@pytest.mark.parametrize("model_class", [BertModel, BertForMaskedLM, BertForSequenceClassification])
def test_models_saved_by_any_class_of_transformers_are_read(load, tiny_dir, model_class):
    directory, model = tiny_dir(model_class)
    check_tiny(load, directory, getattr(model, "bert", model))


def test_other_sizes_and_constants_are_honoured(load, tiny_dir):
    check_tiny(load, *tiny_dir(layer_norm_eps=0.1, num_attention_heads=1, num_hidden_layers=1))


def test_old_pytorch_files_are_read(load, tiny_dir):
    directory, model = tiny_dir()
    (directory / "model.safetensors").unlink()
    weights = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in model.state_dict().items()
    }  # fmt: skip
    for is_new in (True, False):
        torch.save(weights, directory / "pytorch_model.bin", _use_new_zipfile_serialization=is_new)
        check_tiny(load, directory, model)


def test_sharded_weights_are_read(load, tiny_dir):
    directory, model = tiny_dir()
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="1MB")
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    check_tiny(load, directory, model)


def test_weights_in_16_bits_are_computed_in_32(load, tiny_dir):
    directory, model = tiny_dir()
    model.half().save_pretrained(directory)
    check_tiny(load, directory, model.float())


def test_a_model_with_one_segment_refuses_pairs(load, tiny_dir):
    directory, model = tiny_dir(type_vocab_size=1)
    check_tiny(load, directory, model)
    with pytest.raises(ValueError, match="no pairs"):
        encode(load(directory), [("a", "b")])


def test_plain_kernels_give_the_same_values(replica):
    weights = find_checkpoint(None).read_weights()
    packed = replica._encoder
    plain = BertEncoder(
        packed.config, weights, device=torch.device("cpu"), dtype=torch.float32,
        kernels=PlainKernels(),
    )  # fmt: skip
    plain_replica = type(replica)(plain, replica._tokenizer, replica.info)
    _, answer = encode(plain_replica, TEXTS, view(layers=-1, pooling="none"))
    expected = encode(replica, TEXTS, view(layers=-1, pooling="none"))[1].values
    close(answer.values, expected)


def check_tiny(load, directory, model):
    """Check that the directory, loaded, computes what the model does, in every layer."""
    rows = ["hello world", "", "today the weather is fine", "hello world"]
    expected = Reference(model, BertTokenizerFast.from_pretrained(directory)).hidden_states(rows)
    replica = load(directory)
    for layer in range(model.config.num_hidden_layers + 1):
        _, answer = encode(replica, rows, view(layers=layer, pooling="none"))
        close(rows_of(answer), [states[layer] for states in expected])


def test_a_tiny_model_is_sensitive_to_its_settings(load, tiny_dir):
    directory, model = tiny_dir(hidden_act="gelu")
    edit_json(directory / "config.json", hidden_act="relu")
    with pytest.raises(AssertionError, match="Not equal"):
        check_tiny(load, directory, model)
    edit_json(directory / "config.json", hidden_act="gelu_new")
    with pytest.raises(AssertionError, match="Not equal"):
        check_tiny(load, directory, model)
