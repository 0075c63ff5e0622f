"""Of the deepest layer, what is wanted of first tokens only is computed for them only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from model_reference import TEXTS, close, encode, view
from varlen_reference import as_on_cuda

from bert_serving.client.view import DEFAULT_VIEW
from bert_serving.server.model.auto_pooling import AutoPooling
from bert_serving.server.model.bert import FEW_TOKENS, BertEncoder
from bert_serving.server.model.checkpoint import find_checkpoint
from bert_serving.server.model.encoder_replica import EncoderReplica
from bert_serving.server.model.kernels import PlainKernels
from bert_serving.server.model.replica import EncodeRequest
from bert_serving.server.model.sentence_recipe import SentenceRecipe

FIRST = view(layers=-1, pooling="first")
MANY = 2 * TEXTS  # so that each micro-batch has more than few tokens


def plainly(replica):
    """Return a replica like another one, whose products are padded, as libraries need it."""
    encoder = BertEncoder(
        replica._encoder.config,
        find_checkpoint(None).read_weights(),
        device=torch.device("cpu"),
        dtype=torch.float32,
        kernels=PlainKernels(),
    )
    return EncoderReplica(encoder, replica._tokenizer, replica.info)


WAYS = {
    "here": lambda replica: replica,
    "plainly": plainly,
    "as on CUDA": lambda replica: as_on_cuda(replica, None, max_batch_tokens=2048),
}


def watch(replica, number):
    """Return the tokens that the last product of a layer is of, as a list that grows."""
    encoder = replica._encoder
    layer = encoder._layers[number] or encoder._build_layer(number)
    seen = []

    def feed_out(x):
        seen.append(len(x))
        return layer.feed_out(x)

    encoder._layers[number] = replace(layer, feed_out=feed_out)
    encoder._runs.clear()
    return seen


@pytest.mark.parametrize("layers", [(-1,), (2,), (-2, -1), (0, -1), (0,)], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_first_tokens_are_those_of_transformers(replica, states, way, layers):
    ours = WAYS[way](replica)
    _, answer = encode(ours, TEXTS, view(layers=layers, pooling="first"))
    close(answer.values, [np.concatenate([state[n][0] for n in layers]) for state in states])


def test_nothing_is_computed_of_other_tokens(load):
    replica = load()
    seen = watch(replica, 5)
    tokens, _ = encode(replica, MANY, FIRST)
    assert len(tokens.ids) > 1024  # more than one micro-batch
    assert sum(seen) == len(MANY)
    seen.clear()
    mixed = view(layers=(1, -1), layer_reduce="sum", pooling="first")
    replica.encode([EncodeRequest(tokens, {"a": mixed, "b": DEFAULT_VIEW, "c": FIRST})])
    assert sum(seen) == len(MANY)


def test_few_tokens_are_computed_in_one_go(load):
    replica = load()
    seen = watch(replica, 5)
    tokens, _ = encode(replica, TEXTS[:4], FIRST)
    assert len(tokens.ids) <= FEW_TOKENS
    assert sum(seen) == len(tokens.ids)


def test_a_batch_in_which_others_want_every_token_gives_the_same(load, states):
    replica = load()
    seen = watch(replica, 5)
    tokens = replica.tokenize(TEXTS, is_tokenized=False, max_length=None)
    answers = replica.encode(
        [
            EncodeRequest(tokens, {"v": FIRST}),
            EncodeRequest(tokens, {"v": view(layers=-1)}),
        ]
    )
    assert sum(seen) == 2 * len(tokens.ids)
    close(answers[0]["v"].values, [state[-1][0] for state in states])
    close(answers[1]["v"].values, [state[-1].mean(0) for state in states])


def test_what_is_computed_between_does_not_change_it(replica, states):
    inner = []

    def between_layers():
        inner.append(encode(replica, TEXTS[:5], FIRST)[1].values)

    tokens = replica.tokenize(TEXTS, is_tokenized=False, max_length=None)
    answer = replica.encode([EncodeRequest(tokens, {"v": FIRST})], between_layers=between_layers)
    close(answer[0]["v"].values, [state[-1][0] for state in states])
    assert len(inner) > 6
    for values in inner:
        close(values, [state[-1][0] for state in states[:5]])


def test_auto_takes_first_tokens_only_where_its_recipe_does(load, states):
    replica = load()
    for modes in (("cls",), ("cls", "mean")):
        recipe = SentenceRecipe(AutoPooling(modes, 384, 384 * len(modes)))
        ours = EncoderReplica(replica._encoder, replica._tokenizer, replica.info, recipe=recipe)
        seen = watch(ours, 5)
        tokens, answer = encode(ours, MANY, view(pooling="auto", layers=-1))
        assert sum(seen) == (len(MANY) if modes == ("cls",) else len(tokens.ids))
        close(answer.values[:, :384], [state[-1][0] for state in [*states, *states]])


def test_a_head_is_of_first_tokens(load, reference):
    replica = load()
    seen = watch(replica, 5)
    _, answer = encode(replica, MANY, view(pooling="pooler"))
    assert sum(seen) == len(MANY)
    close(answer.values, [reference.output_of(text).pooler_output[0].numpy() for text in MANY])
