"""Every packed architecture computes what transformers computes of the same files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architecture_checks import (
    LIMIT,
    POOLINGS,
    ROWS,
    check_alone,
    check_lengths,
    check_views,
    make_tiny_model,
)
from model_reference import Reference, close, encode, smallest_cosine, view
from tiny_models import save_tiny_model
from torch._dynamo.utils import counters
from transformers import (
    AutoTokenizer,
    BertModel,
    CamembertModel,
    Data2VecTextModel,
    DistilBertForSequenceClassification,
    DistilBertModel,
    ElectraForPreTraining,
    ElectraModel,
    ErnieModel,
    RemBertModel,
    RobertaForMaskedLM,
    RobertaModel,
    SplinterModel,
    XLMRobertaModel,
)

from bert_serving.server.model.bert import BertEncoder
from bert_serving.server.model.checkpoint import find_checkpoint
from bert_serving.server.model.families import FAMILIES
from bert_serving.server.model.kernels import PlainKernels

# name: the class that saved it, its tokenizer, its settings, and how to get to its encoder
MODELS = {
    "bert": (BertModel, "word_piece", {}),
    "roberta": (RobertaModel, "byte_level", {"type_vocab_size": 1}),
    "roberta under a head": (RobertaForMaskedLM, "byte_level", {"type_vocab_size": 1}),
    "roberta with a far padding": (
        RobertaModel, "byte_level", {"type_vocab_size": 1, "pad_token_id": 5,
                                     "max_position_embeddings": 68}
    ),
    "xlm-roberta": (XLMRobertaModel, "unigram", {"type_vocab_size": 1}),
    "camembert": (CamembertModel, "unigram", {"type_vocab_size": 1}),
    "data2vec-text": (Data2VecTextModel, "byte_level", {"type_vocab_size": 1}),
    "distilbert": (DistilBertModel, "word_piece", {"hidden_dim": 64}),
    "distilbert under a head": (
        DistilBertForSequenceClassification, "word_piece", {"hidden_dim": 64, "activation": "relu"}
    ),
    "electra": (ElectraModel, "word_piece", {"embedding_size": 16}),
    "electra of one width": (ElectraModel, "word_piece", {"embedding_size": 32}),
    "electra under a head": (ElectraForPreTraining, "word_piece", {"embedding_size": 16}),
    "ernie": (ErnieModel, "word_piece", {}),
    "splinter": (SplinterModel, "word_piece", {}),
    "rembert": (RemBertModel, "albert", {"input_embedding_size": 16}),
    "rembert of one width": (RemBertModel, "albert", {"input_embedding_size": 32}),
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def made(name, tmp_path_factory):
    """A directory, and what transformers makes of it."""
    return make_tiny_model(tmp_path_factory.mktemp("model"), *MODELS[name])


@pytest.fixture(scope="module")
def packed(load, made):
    replica = load(made[0], max_seq_len=LIMIT)
    assert isinstance(replica._encoder, BertEncoder)
    return replica


def test_all_views_of_all_layers_are_those_of_transformers(name, made, packed):
    check_views(packed, made[1])
    assert packed.info.architecture == name.split(" ")[0]


def test_a_row_is_the_same_alone(made, packed):
    check_alone(packed, made[1])


def test_every_length_up_to_the_limit_is_right(load, made):
    replica = load(made[0], no_special_token=True)
    assert replica.info.max_length == replica._encoder.config.max_length
    check_lengths(replica, made[1])


@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.999), ("int8", 0.99)])
def test_fewer_bits_are_close_in_direction(load, made, dtype, least):
    directory, reference = made
    replica = load(directory, dtype=dtype, max_seq_len=LIMIT)
    expected = reference.hidden_states(ROWS)
    for layer in range(replica.info.num_layers + 1):
        _, answer = encode(replica, ROWS, view(layers=layer))
        assert smallest_cosine(answer.values, [state[layer].mean(0) for state in expected]) >= least


def test_padding_in_a_text_is_counted_as_transformers_does(load, made, packed):
    reference = made[1]
    padding = reference.model.config.pad_token_id
    ids = [10, padding, 11, padding, padding, 12]
    bare = load(made[0], no_special_token=True)
    rows = [bare.token_texts(np.array(ids[:length])) for length in (3, 6, 1)]
    _, answer = encode(bare, rows, view(layers=-1), is_tokenized=True)
    for values, row in zip(answer.values, rows, strict=True):
        inputs = torch.tensor([ids[: len(row)]])
        states = reference.states_of(input_ids=inputs, attention_mask=torch.ones_like(inputs))
        close([values], [states[-1].mean(0)])


def test_position_embeddings_can_be_left_out(load, made):
    directory, reference = made
    replica = load(directory, no_position_embeddings=True, max_seq_len=LIMIT)
    expected = reference.hidden_states(ROWS)
    weight = reference.model.get_input_embeddings().weight
    table = reference.model.embeddings.position_embeddings.weight
    assert table.shape[1] == weight.shape[1]
    kept = table.data.clone()
    try:
        table.data.zero_()
        without = reference.hidden_states(ROWS)
    finally:
        table.data.copy_(kept)
    assert np.abs(without[0] - expected[0]).max() > 0.1
    _, answer = encode(replica, ROWS, view(layers=-1))
    close(answer.values, [state[-1].mean(0) for state in without])


def test_every_family_is_tried():
    assert {name.split(" ")[0] for name in MODELS} == set(FAMILIES)


def test_a_row_without_tokens_is_zeros(load, tmp_path):
    directory, _ = save_tiny_model(tmp_path, BertModel)
    bare = load(directory, no_special_token=True)
    for pooling in (*POOLINGS, "pooler"):
        for rows in ([[], ["hello"], []], [[]], []):
            _, answer = encode(bare, rows, view(pooling=pooling), is_tokenized=True)
            if pooling == "none":
                assert list(answer.row_splits) == [[0], [0, 0], None, [0, 0, 1, 1]][len(rows)]
            else:
                is_zero = [not values.any() for values in answer.values]
                assert is_zero == [not row for row in rows]


def test_compile_is_told_to_do_nothing_on_a_cpu(load, tmp_path, caplog):
    directory, _ = save_tiny_model(tmp_path, BertModel)
    with caplog.at_level("INFO"):
        load(directory, compile=True, gpu_memory_fraction=0.5)
    assert [record.message for record in caplog.records] == [
        "compile changes nothing here: on a CPU this model's operations are hand-picked"
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own
def test_compiled_layers_give_the_same_and_are_one_graph(load, tmp_path):
    directory, model = save_tiny_model(tmp_path, BertModel, num_hidden_layers=10)
    replica = load(directory, max_seq_len=LIMIT)
    checkpoint = find_checkpoint(str(directory))
    replica._encoder = BertEncoder(
        replica._encoder.config, checkpoint.read_weights(), device=torch.device("cpu"),
        dtype=torch.float32, kernels=PlainKernels(), compile=True,
    )  # fmt: skip
    before = counters["stats"]["unique_graphs"]
    check_views(replica, Reference(model, AutoTokenizer.from_pretrained(directory), LIMIT))
    assert counters["stats"]["unique_graphs"] == before + 1
