"""The engine for GPUs gives what transformers does, with a plain attention, on a CPU.

Nothing of this shows that it works on a GPU: `tests/gpu` does, where there is one.
"""

from __future__ import annotations

import inspect
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from model_reference import TEXTS, Reference, close, encode, rows_of, view
from torch.nn.attention.varlen import varlen_attn
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    DistilBertModel,
    ElectraModel,
    RobertaModel,
)
from varlen_reference import CPU, Captures, as_on_cuda, plain_varlen_attn

from bert_serving.server.model import cuda_graphs
from bert_serving.server.model.cuda_graphs import Shape
from bert_serving.server.model.encoder import TokenBatch
from bert_serving.server.model.kernels import attend_fused
from bert_serving.server.model.kernels_cuda import (
    CudaKernels,
    VarlenAttention,
    find_varlen_attend,
)
from bert_serving.server.model.packing import Group, pack, padded_size
from bert_serving.server.model.replica import EncodeRequest
from bert_serving.server.model.segments import row_splits

HEADS, WIDTH = 4, 16
LENGTHS = [
    [1],
    [5] * 7,
    [3, 3, 9, 200],
    list(range(1, 40)),
    np.random.default_rng(0).integers(1, 60, 30).tolist(),
]


def random_batch(lengths):
    """Return a micro-batch's groups, and a query, key and value for each of its tokens."""
    (batch,) = pack(np.array(lengths), np.arange(len(lengths)), sum(lengths))
    torch.manual_seed(0)
    qkv = torch.randn(padded_size(sum(lengths)), 3 * HEADS * WIDTH)
    qkv[:, : HEADS * WIDTH] *= WIDTH**-0.5
    return batch.groups, qkv


# attention


def test_the_plain_attention_takes_what_torch_takes():
    ours, theirs = (
        list(inspect.signature(attend).parameters.values())
        for attend in (plain_varlen_attn, varlen_attn)
    )
    assert [(p.name, p.kind) for p in ours[:7]] == [(p.name, p.kind) for p in theirs[:7]]
    assert {p.name for p in ours} <= {p.name for p in theirs}


def test_the_plain_attention_is_that_of_torch_a_row_at_a_time():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 12, HEADS, WIDTH)
    splits = torch.tensor([0, 4, 4, 11], dtype=torch.int32)
    mixed = plain_varlen_attn(query, key, value, splits, splits, 7, 7, num_splits=1)
    for start, end in pairwise(splits.tolist()):
        rows = [part[start:end].transpose(0, 1) for part in (query, key, value)]
        expected = F.scaled_dot_product_attention(*rows).transpose(0, 1)
        torch.testing.assert_close(mixed[start:end], expected, rtol=1e-5, atol=1e-5)
    assert mixed[11:].isnan().all()
    short = plain_varlen_attn(query, key, value, splits, splits, 6, 6, num_splits=1)
    assert short[10].isnan().all()
    assert not short[:10].isnan().any()


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: f"{len(lengths)} rows")
def test_attention_over_splits_is_that_by_groups(lengths):
    groups, qkv = random_batch(lengths)
    expected = attend_fused(qkv, groups, HEADS)[: sum(lengths)]
    mixed = CudaKernels(CPU, plain_varlen_attn).attention(groups, HEADS)(qkv)
    torch.testing.assert_close(mixed[: sum(lengths)], expected, rtol=1e-5, atol=1e-5)
    assert mixed[sum(lengths) :].isnan().all()
    splits = torch.from_numpy(np.append(row_splits(groups), [sum(lengths)] * 5)).int()
    padded = VarlenAttention(splits, 2 * max(lengths), HEADS, plain_varlen_attn)(qkv)
    torch.testing.assert_close(padded, mixed, equal_nan=True)


@pytest.mark.parametrize(
    ("dtype", "head_size"),
    [(torch.float32, 64), (torch.bfloat16, 512), (torch.bfloat16, 20)],
)
def test_what_flash_attention_cannot_do_goes_by_groups(dtype, head_size):
    assert find_varlen_attend(torch.device("cuda", 0), dtype, head_size) is None
    groups, qkv = random_batch(LENGTHS[3])
    mixed = CudaKernels(CPU, None).attention(groups, HEADS)(qkv)
    torch.testing.assert_close(mixed, attend_fused(qkv, groups, HEADS))


# the whole model


@pytest.mark.parametrize("has_graphs", [False, True])
def test_every_hidden_state_is_that_of_transformers(replica, states, has_graphs):
    ours = as_on_cuda(replica, None, Captures() if has_graphs else None)
    tokens = ours.tokenize(TEXTS, is_tokenized=False, max_length=None)
    views = {str(layer): view(layers=layer, pooling="none") for layer in (0, 3, -2, -1)}
    for _ in range(3 if has_graphs else 1):
        answers = ours.encode([EncodeRequest(tokens, views)])[0]
        for name, answer in answers.items():
            close(rows_of(answer), [state[int(name)] for state in states])


def test_a_graph_is_right_for_all_that_fits_in_it(replica):
    captures = Captures()
    ours = as_on_cuda(replica, None, captures)
    rng = np.random.default_rng(0)
    for _ in range(12):
        texts = [" ".join(["some words"] * int(n)) for n in rng.integers(0, 9, rng.integers(1, 9))]
        for wanted in (view(), view(layers=(1, -1), pooling="max")):
            close(encode(ours, texts, wanted)[1].values, encode(replica, texts, wanted)[1].values)
    assert ours._encoder.num_graphs == len(captures.played) <= 8
    assert sum(captures.played) >= 12


@pytest.mark.parametrize(
    ("model_class", "tokenizer", "settings"),
    [
        (BertModel, "word_piece", {"hidden_act": "gelu_new"}),
        (RobertaModel, "byte_level", {"type_vocab_size": 1, "pad_token_id": 5,
                                      "max_position_embeddings": 70}),
        (DistilBertModel, "word_piece", {"hidden_dim": 64}),
        (ElectraModel, "word_piece", {"embedding_size": 16}),
    ],
)  # fmt: skip
def test_every_kind_of_embeddings_is_captured(load, tiny_dir, model_class, tokenizer, settings):
    directory, model = tiny_dir(model_class, tokenizer, **settings)
    rows = ["hello world", "", "today the weather is fine", "hello world"]
    captures = Captures()
    ours = as_on_cuda(load(directory), directory, captures)
    states = Reference(model, AutoTokenizer.from_pretrained(directory)).hidden_states(rows)
    for some in (rows, rows[:3], rows[1:], rows[2:3]):
        expected = [states[rows.index(row)] for row in some]
        for layer in (0, -1):
            _, answer = encode(ours, some, view(layers=layer, pooling="none"))
            close(rows_of(answer), [state[layer] for state in expected])
    assert sum(captures.played) >= 4


def test_heads_are_the_same_of_a_graph(load, tiny_dir):
    directory, _ = tiny_dir(BertForSequenceClassification, num_labels=3)
    replica = load(directory)
    ours = as_on_cuda(replica, directory, Captures())
    rows = ["hello world", "", "today the weather is fine"]
    for pooling in ("pooler", "classification", "regression") * 3:
        wanted = view(pooling=pooling)
        close(encode(ours, rows, wanted)[1].values, encode(replica, rows, wanted)[1].values)
    assert ours._encoder.num_graphs == 1


def test_what_is_computed_between_layers_changes_nothing(replica, states):
    captures = Captures()
    ours = as_on_cuda(replica, None, captures)
    wanted = view(pooling="none")
    calls = []

    def between_layers():
        calls.append(encode(ours, TEXTS[:3], wanted)[1])

    tokens = ours.tokenize(TEXTS[3:9], is_tokenized=False, max_length=None)
    for _ in range(4):
        answers = ours.encode([EncodeRequest(tokens, {"v": wanted})], between_layers=between_layers)
        close(rows_of(answers[0]["v"]), [state[-2] for state in states[3:9]])
    assert len(calls) > 3
    for answer in calls:
        close(rows_of(answer), [state[-2] for state in states[:3]])
    assert sum(captures.played) >= 4


# graphs


def token_batch(tokens, rows, longest):
    """Return so many rows and tokens as far as a shape looks at them."""
    ids = torch.zeros(tokens, dtype=torch.long)
    groups = [Group(0, 0, rows - 1, 1), Group(rows - 1, tokens - longest, 1, longest)]
    return TokenBatch(ids, ids, ids, groups)


def test_shapes_have_room_and_are_few():
    shapes = set()
    for tokens in [*range(1, 3000), 5000, 6145, cuda_graphs.MOST_TOKENS]:
        longest = min(tokens, 512)
        shape = Shape.of(token_batch(tokens, max(tokens // 16, 1), longest))
        assert shape.tokens >= tokens
        assert shape.tokens <= max(64, tokens * 1.5)
        assert shape.tokens == padded_size(shape.tokens)
        assert shape.rows >= max(tokens // 16, 1)
        assert shape.longest >= longest
        shapes.add(shape)
    assert max(shape.tokens for shape in shapes) == cuda_graphs.MOST_TOKENS
    assert len(shapes) <= 40


def test_only_what_comes_again_and_is_small_is_captured(load, tiny_dir, monkeypatch):
    most = 1024
    assert most < cuda_graphs.MOST_TOKENS  # whose square a plain attention takes in memory
    monkeypatch.setattr(cuda_graphs, "MOST_TOKENS", most)
    directory, _ = tiny_dir()
    captures = Captures()
    ours = as_on_cuda(load(directory), directory, captures, max_batch_tokens=2 * most)
    encode(ours, ["a"])
    assert not captures.played
    encode(ours, ["b"])
    assert captures.played == [1]
    encode(ours, ["c"])
    assert captures.played == [2]
    many = ["today the weather is fine"] * (most // 6)
    tokens, _ = encode(ours, many)
    assert len(tokens.ids) > most
    encode(ours, many)
    assert captures.played == [2]


def test_graphs_are_bounded(load, tiny_dir):
    directory, _ = tiny_dir()
    replica = load(directory)
    ours = as_on_cuda(replica, directory, Captures(), most_graphs=3)
    for count in (1, 10, 20, 40, 80, 1, 10):
        rows = ["hello world"] * count
        for _ in range(2):
            close(encode(ours, rows)[1].values, encode(replica, rows)[1].values)
        assert ours._encoder.num_graphs <= 3
    assert ours._encoder.num_graphs == 3


def test_without_graphs_it_goes_on(load, tiny_dir, caplog):
    def refuse(run):
        raise torch.AcceleratorError("operation not permitted when stream is capturing")

    directory, _ = tiny_dir()
    replica = load(directory)
    ours = as_on_cuda(replica, directory, refuse)
    for _ in range(4):
        close(encode(ours, ["hello world"])[1].values, encode(replica, ["hello world"])[1].values)
    (record,) = caplog.records
    assert record.message == (
        "no CUDA graphs from now on, small batches are slower: "
        "operation not permitted when stream is capturing"
    )
    assert ours._encoder.num_graphs == 0
