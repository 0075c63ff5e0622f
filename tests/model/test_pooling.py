"""Every pooling of every choice of layers is what NumPy makes of transformers' hidden states."""

from __future__ import annotations

import numpy as np
import pytest
from model_reference import TEXTS, close, encode, pooled, values_of, view

from bert_serving.server.model.replica import EncodeRequest

LAYERS = [(-2,), (-1,), (0,), (-2, -1), (1, 0, -1)]
REDUCTIONS = ("concat", "sum", "mean")
POOLINGS = ("none", "mean", "max", "mean_max", "first", "last")


def joined(states, layers, layer_reduce):
    chosen = [states[layer].astype(np.float64) for layer in layers]
    if layer_reduce == "concat":
        return np.concatenate(chosen, axis=1)
    return np.sum(chosen, axis=0) / (len(layers) if layer_reduce == "mean" else 1)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_and_join_is_right(replica, states, pooling):
    tokens = replica.tokenize(TEXTS, is_tokenized=False, max_length=None)
    assert tokens.truncated.tolist() == [n in (9, 10) for n in range(len(TEXTS))]
    views = {
        f"{layers} {reduce}": view(layers=layers, layer_reduce=reduce, pooling=pooling)
        for layers in LAYERS
        for reduce in REDUCTIONS
    }
    answers = replica.encode([EncodeRequest(tokens, views)])[0]
    assert len(answers) == len(views)
    for name, wanted in views.items():
        expected = [
            pooled(joined(state, wanted.layers, wanted.layer_reduce), pooling) for state in states
        ]
        # a sum of three layers has three times the error
        scale = len(wanted.layers) if wanted.layer_reduce == "sum" else 1
        close(values_of(answers[name], pooling), expected, scale * 1e-5)
        assert answers[name].values.dtype == np.float32


@pytest.mark.parametrize("pooling", POOLINGS)
def test_dims_then_normalize_then_dtype(replica, states, pooling):
    wanted = view(layers=(-2, -1), pooling=pooling, dims=500, normalize=True, dtype="float16")
    _, answer = encode(replica, TEXTS, wanted)
    assert answer.values.dtype == np.float16
    assert answer.values.shape[1] == 500
    assert answer.values.flags.c_contiguous
    expected = [pooled(joined(state, (-2, -1), "concat"), pooling)[..., :500] for state in states]
    expected = [value / np.linalg.norm(value, axis=-1, keepdims=True) for value in expected]
    close(values_of(answer, pooling), expected, 5e-4)


def test_more_dims_than_there_are_change_nothing(replica):
    assert encode(replica, ["a"], view(dims=10_000))[1].values.shape == (1, 384)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_masked_special_tokens_are_left_out(load, states, pooling):
    replica = load(mask_cls_sep=True)
    tokens, answer = encode(replica, TEXTS, view(pooling=pooling))
    ends = np.cumsum(tokens.lengths)
    for number, values in enumerate(values_of(answer, pooling)):
        special = tokens.special[ends[number] - tokens.lengths[number] : ends[number]]
        state = states[number][-2]
        if pooling in ("first", "last"):
            expected = pooled(state, pooling)
        elif pooling == "none":
            expected = np.where(special[:, None], 0, state)
        elif special.all():
            expected = np.zeros(384 * (2 if pooling == "mean_max" else 1))
        else:
            expected = pooled(state[~special], pooling)
        close([values], [expected])
    assert tokens.special.sum() == 2 * len(TEXTS) + 3  # three pairs among them


def test_a_zero_vector_stays_zero_when_normalized(load):
    _, answer = encode(load(mask_cls_sep=True), ["", "a"], view(normalize=True))
    assert np.array_equal(answer.values[0], np.zeros(384))
    assert np.linalg.norm(answer.values[1]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("layer", [7, -8, 100])
def test_a_layer_that_is_not_there_is_refused(replica, layer):
    with pytest.raises(ValueError, match=rf"layers=\[{layer}\].*-7 to 6.*6 layers"):
        replica.check_view(view(layers=layer))
