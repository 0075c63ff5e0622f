"""On a GPU the engine computes what transformers computes on a CPU, by every way that it has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_reference import (
    TEXTS,
    Reference,
    close,
    encode,
    pooled,
    rows_of,
    smallest_cosine,
    values_of,
    view,
)
from tiny_models import save_tiny_model
from torch.nn.attention.varlen import varlen_attn
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    ElectraModel,
    RobertaModel,
)
from varlen_reference import plain_varlen_attn

from bert_serving.server.model.calibration import CUDA_BUDGETS
from bert_serving.server.model.cuda_graphs import GraphedEncoder
from bert_serving.server.model.kernels_cuda import find_varlen_attend
from bert_serving.server.model.replica import EncodeRequest

POOLINGS = ("none", "mean", "max", "mean_max", "first", "last")
HALVES = ("bfloat16", "float16")


@pytest.fixture(scope="module", params=HALVES)
def half(request, load):
    return load(dtype=request.param)


@pytest.fixture(scope="module")
def bare(load):
    return load(dtype="bfloat16", no_cuda_graphs=True)


def sentences(count, seed=0, longest=20):
    lengths = np.random.default_rng(seed).integers(0, longest, count)
    return [" ".join(["some words"] * int(length)) for length in lengths]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_view_in_16_bit_is_near_to_that_of_transformers(half, states, pooling):
    tokens = half.tokenize(TEXTS, is_tokenized=False, max_length=None)
    views = {str(layer): view(layers=layer, pooling=pooling) for layer in (0, 3, -2, -1)}
    for _ in range(3):  # as usual, captured, and by the graph
        answers = half.encode([EncodeRequest(tokens, views)])[0]
        for name, answer in answers.items():
            expected = [pooled(state[int(name)], pooling) for state in states]
            for ours, theirs in zip(values_of(answer, pooling), expected, strict=True):
                assert smallest_cosine(ours, theirs) >= 0.999


def test_float32_is_within_the_tolerance(load, states):
    replica = load(dtype="float32")
    assert not isinstance(replica._encoder, GraphedEncoder)
    for layer in (0, 3, -2, -1):
        _, answer = encode(replica, TEXTS, view(layers=layer, pooling="none"))
        close(rows_of(answer), [state[layer] for state in states])


def test_special_tokens_are_left_out(load, states):
    replica = load(dtype="float32", mask_cls_sep=True)
    tokens, answer = encode(replica, TEXTS, view(pooling="mean_max"))
    ends = np.cumsum(tokens.lengths)
    for number, values in enumerate(answer.values):
        special = tokens.special[ends[number] - tokens.lengths[number] : ends[number]]
        state = states[number][-2]
        expected = np.zeros(768) if special.all() else pooled(state[~special], "mean_max")
        close([values], [expected])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("model_class", "tokenizer", "settings"),
    [
        (RobertaModel, "byte_level", {"type_vocab_size": 1}),
        (ElectraModel, "word_piece", {"embedding_size": 16}),
    ],
)
def test_other_architectures_are_near_as_well(
    load, tmp_path, dtype, model_class, tokenizer, settings
):
    directory, model = save_tiny_model(tmp_path, model_class, tokenizer, **settings)
    rows = ["hello world", "", "today the weather is fine", "hello world"]
    expected = Reference(model, AutoTokenizer.from_pretrained(directory)).hidden_states(rows)
    replica = load(directory, dtype=dtype)
    for _ in range(3):
        _, answer = encode(replica, rows, view(layers=-1))
        assert smallest_cosine(answer.values, [state[-1].mean(0) for state in expected]) >= 0.999


def test_heads_are_computed(load, tmp_path):
    directory, model = save_tiny_model(tmp_path, BertForSequenceClassification, num_labels=3)
    rows = ["hello world", "", "today the weather is fine"]
    reference = Reference(model, AutoTokenizer.from_pretrained(directory))
    logits = torch.cat([reference.output_of(row).logits for row in rows])
    for dtype, tolerance in (("float32", 1e-4), ("bfloat16", 0.05)):
        _, answer = encode(load(directory, dtype=dtype), rows, view(pooling="classification"))
        np.testing.assert_allclose(answer.values, logits.softmax(-1), atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_over_splits_is_what_it_is_taken_for(dtype):
    device = torch.device("cuda", 0)
    varlen = find_varlen_attend(device, dtype, 64)
    if varlen is None:
        pytest.skip("this GPU has no FlashAttention")
    assert varlen is varlen_attn
    torch.manual_seed(0)
    qkv = torch.randn(400, 3, 4, 64, device=device, dtype=dtype)
    splits = torch.tensor([0, 1, 18, 18, 146, 390, 390, 390], dtype=torch.int32, device=device)
    parts = qkv.unbind(1)
    ours = varlen(*parts, splits, splits, 256, 256, scale=0.1, num_splits=1)
    plain = plain_varlen_attn(
        *(part.cpu().float() for part in parts), splits.cpu(), splits.cpu(), 256, 256,
        scale=0.1, num_splits=1,
    )  # fmt: skip
    torch.testing.assert_close(ours[:390].cpu().float(), plain[:390], rtol=0.02, atol=0.02)


def test_graphs_give_what_launches_give(load, bare):
    graphed = load(dtype="bfloat16")
    if not isinstance(graphed._encoder, GraphedEncoder):
        pytest.skip("this GPU has no FlashAttention")
    for round_ in range(3):
        for count in (1, 2, 7, 30, 100, 250):
            rows = sentences(count, seed=round_)
            for wanted in (view(), view(layers=(1, -1), pooling="max"), view(pooling="none")):
                _, ours = encode(graphed, rows, wanted)
                _, theirs = encode(bare, rows, wanted)
                assert smallest_cosine(ours.values, theirs.values) >= 0.9995
    assert graphed._encoder.num_graphs >= 6


def test_a_row_is_the_same_alone_and_among_others(half):
    others = sentences(500)
    _, alone = encode(half, TEXTS[:8])
    _, among = encode(half, [*others, *TEXTS[:8], *others])
    assert smallest_cosine(among.values[500:508], alone.values) >= 0.9999


def test_micro_batches_that_follow_each_other_do_not_mix(load, bare):
    rows = sentences(3000, longest=12)
    _, in_parts = encode(load(dtype="bfloat16", max_batch_tokens=512), rows)
    _, at_once = encode(bare, rows)
    assert smallest_cosine(in_parts.values, at_once.values) >= 0.9995


def test_the_budget_is_measured(load, bare):
    replica = load(dtype="bfloat16", max_batch_tokens=None)
    assert replica.max_batch_tokens in CUDA_BUDGETS
    rows = sentences(20_000)
    _, answer = encode(replica, rows)
    assert smallest_cosine(answer.values[::97], encode(bare, rows[::97])[1].values) >= 0.9995


def test_out_of_memory_halves_the_budget(load, bare, caplog):
    replica = load(dtype="bfloat16", max_batch_tokens=1 << 18)
    rows = sentences(20_000)
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    allowed = torch.cuda.memory_reserved() + (256 << 20)
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        _, answer = encode(replica, rows)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 256 <= replica.max_batch_tokens < 1 << 18
    assert "out of memory on cuda:0" in caplog.text
    assert smallest_cosine(answer.values[::97], encode(bare, rows[::97])[1].values) >= 0.9995


@pytest.mark.slow
def test_compiled_layers_give_the_same(load, bare):
    compiled = load(dtype="bfloat16", compile=True)
    for count in (1, 7, 7, 7, 1000):
        rows = sentences(count)
        assert smallest_cosine(encode(compiled, rows)[1].values, encode(bare, rows)[1].values) > (
            0.999
        )
