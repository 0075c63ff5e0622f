"""The model's own heads give what transformers' models give, whatever else is in the batch."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import torch
from model_reference import close, encode, view
from safetensors.torch import load_file, save_file
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizerFast,
    CamembertConfig,
    CamembertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    TextClassificationPipeline,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from bert_serving.client.view import DEFAULT_VIEW
from bert_serving.server.model.replica import EncodeRequest, ModelLoadError

ROWS: list = [
    "hello world",
    "",
    ("Who wrote it?", "Nobody knows, but many have read it."),
    "today the weather is fine, and tomorrow it will be finer",
    "a " * 200,
    ("a long question " * 20, "a long answer " * 30),
]
POOLER, LABELS, SCORES = (view(pooling=name) for name in ("pooler", "classification", "regression"))


@torch.inference_mode()
def outputs(model, directory, rows, part):
    """Return a part of what a model of transformers gives for rows, each computed alone."""
    tokenizer = BertTokenizerFast.from_pretrained(directory)
    every = []
    for row in rows:
        texts = row if isinstance(row, tuple) else (row,)
        inputs = tokenizer(*texts, return_tensors="pt", truncation=True, max_length=64)
        if model.config.model_type != "bert":
            del inputs["token_type_ids"]
        every.append(getattr(model(**inputs), part).numpy())
    return np.concatenate(every)


@pytest.fixture
def tiny_kin(tmp_path, embedded_dir):
    """A factory of directories with a tiny model of BERT's kin, and BERT's tokenizer."""

    def make(model_class, config_class, **config):
        sizes = {"vocab_size": 30522, "initializer_range": 0.3, "pad_token_id": 0, **config}
        torch.manual_seed(0)
        model = model_class(config_class(**sizes)).eval()
        model.save_pretrained(tmp_path)
        shutil.copy(embedded_dir / "tokenizer.json", tmp_path)
        return tmp_path, model

    return make


@pytest.mark.parametrize(
    ("num_labels", "problem_type"),
    [
        *[(number, None) for number in (1, 2, 5)],
        *[(number, "single_label_classification") for number in (2, 5)],
        *[(number, "multi_label_classification") for number in (1, 2, 5)],
        *[(number, "regression") for number in (1, 5)],
    ],
)
def test_probabilities_are_those_of_the_pipeline_of_transformers(
    load, tiny_dir, num_labels, problem_type
):
    directory, model = tiny_dir(
        BertForSequenceClassification, num_labels=num_labels, problem_type=problem_type
    )
    tokenizer = BertTokenizerFast.from_pretrained(directory)
    pipeline = TextClassificationPipeline(model=model, tokenizer=tokenizer, device="cpu")
    texts = [row for row in ROWS if isinstance(row, str)]
    shown = pipeline(texts, top_k=None, truncation=True, max_length=64)
    expected = [
        [{label["label"]: label["score"] for label in labels}[f"LABEL_{n}"]
         for n in range(num_labels)]
        for labels in shown
    ]  # fmt: skip
    replica = load(directory)
    close(encode(replica, texts, LABELS)[1].values, expected)
    assert replica.info.head_sizes == {
        "pooler": 32, "classification": num_labels, "regression": num_labels, "auto": 32
    }  # fmt: skip


def test_every_head_of_bert_is_that_of_transformers(load, tiny_dir):
    directory, model = tiny_dir(BertForSequenceClassification, num_labels=5)
    replica = load(directory)
    scores = outputs(model, directory, ROWS, "logits")
    close(encode(replica, ROWS, SCORES)[1].values, scores)
    close(encode(replica, ROWS, LABELS)[1].values, torch.tensor(scores).softmax(1).numpy())
    close(
        encode(replica, ROWS, POOLER)[1].values,
        outputs(model.bert, directory, ROWS, "pooler_output"),
    )


def test_the_pooler_of_the_embedded_model_is_that_of_transformers(replica, reference, embedded_dir):
    rows = [row for row in ROWS if len(str(row)) < 100]
    expected = outputs(reference.model, embedded_dir, rows, "pooler_output")
    close(encode(replica, rows, POOLER)[1].values, expected)
    assert replica.info.head_sizes == {"pooler": 384, "auto": 384}


KIN = [
    (RobertaForSequenceClassification, RobertaConfig),
    (XLMRobertaForSequenceClassification, XLMRobertaConfig),
    (CamembertForSequenceClassification, CamembertConfig),
    (ElectraForSequenceClassification, ElectraConfig),
]
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 65,
}  # fmt: skip


@pytest.mark.parametrize(("model_class", "config_class"), KIN)
def test_heads_of_berts_kin_are_those_of_transformers(load, tiny_kin, model_class, config_class):
    directory, model = tiny_kin(model_class, config_class, num_labels=3, **SIZES)
    check_scores(load(directory, max_seq_len=64), directory, model)


def test_the_head_of_distilbert_is_that_of_transformers(load, tiny_kin):
    directory, model = tiny_kin(
        DistilBertForSequenceClassification, DistilBertConfig, num_labels=3,
        dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64,
    )  # fmt: skip
    check_scores(load(directory), directory, model)


def check_scores(replica, directory, model):
    rows = [row for row in ROWS if isinstance(row, str)]
    close(encode(replica, rows, SCORES)[1].values, outputs(model, directory, rows, "logits"))
    assert replica.info.head_sizes == {"classification": 3, "regression": 3, "auto": 32}


def test_the_pooler_of_roberta_is_that_of_transformers(load, tiny_kin):
    directory, model = tiny_kin(RobertaModel, RobertaConfig, **SIZES)
    rows = [row for row in ROWS if isinstance(row, str)]
    replica = load(directory, max_seq_len=64)
    close(encode(replica, rows, POOLER)[1].values, outputs(model, directory, rows, "pooler_output"))


@pytest.fixture
def classifier(load, tiny_dir):
    directory, model = tiny_dir(BertForSequenceClassification, num_labels=5)
    return load(directory), directory, model


def test_heads_mix_with_all_other_views_and_requests_of_a_batch(classifier):
    replica, directory, model = classifier
    rng = np.random.default_rng(0)
    others = [" ".join(["some words"] * int(n)) for n in rng.integers(0, 12, 300)]

    def request(rows, **views):
        return EncodeRequest(replica.tokenize(rows, is_tokenized=False, max_length=None), views)

    tokens = view(layers=1, pooling="none")
    answers = replica.encode(
        [
            request(others[:150], mean=DEFAULT_VIEW),
            request(ROWS, labels=LABELS, scores=SCORES, pooler=POOLER, mean=DEFAULT_VIEW),
            request(others[150:], tokens=tokens, labels=LABELS),
            request([], labels=LABELS),
        ]
    )
    close(answers[1]["scores"].values, outputs(model, directory, ROWS, "logits"))
    for name, wanted in {"labels": LABELS, "pooler": POOLER, "mean": DEFAULT_VIEW}.items():
        close(answers[1][name].values, encode(replica, ROWS, wanted)[1].values)
    close(answers[2]["tokens"].values, encode(replica, others[150:], tokens)[1].values)
    assert answers[3]["labels"].values.shape == (0, 5)


def test_a_row_has_the_same_probabilities_alone_and_among_others(classifier):
    replica, _, _ = classifier
    others = [" ".join(["word"] * (number % 17)) for number in range(300)]
    among = encode(replica, [*others[:200], *ROWS, *others[200:]], LABELS)[1].values
    for number, row in enumerate(ROWS):
        close(among[200 + number : 201 + number], encode(replica, [row], LABELS)[1].values)


def test_the_layers_of_a_view_do_not_matter_to_a_head(classifier):
    replica, _, _ = classifier
    for wanted in (POOLER, LABELS):
        expected = encode(replica, ROWS, wanted)[1].values
        odd = view(layers=[0, 1], layer_reduce="sum", pooling=wanted.pooling)
        assert np.array_equal(encode(replica, ROWS, odd)[1].values, expected)


def test_masked_special_tokens_do_not_matter_to_a_head(load, classifier):
    replica, directory, _ = classifier
    masked = load(directory, mask_cls_sep=True)
    expected = encode(replica, ROWS, POOLER)[1].values
    assert np.array_equal(encode(masked, ROWS, POOLER)[1].values, expected)


def test_a_head_is_cut_scaled_and_typed_as_any_view(classifier):
    replica, _, _ = classifier
    wanted = view(pooling="pooler", dims=7, normalize=True, dtype="float16")
    values = encode(replica, ROWS, wanted)[1].values
    expected = encode(replica, ROWS, POOLER)[1].values[:, :7]
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert values.dtype == np.float16
    close(values, expected, 1e-3)


def test_heads_compute_in_float32_whatever_the_encoder_does(load, classifier):
    replica, directory, _ = classifier
    halved = load(directory, dtype="bfloat16")
    values = encode(halved, ROWS, POOLER)[1].values
    close(values, encode(replica, ROWS, POOLER)[1].values, 0.2)
    # bfloat16 has 8 bits: in float32 almost no number is one of its own
    rounded = torch.from_numpy(values).bfloat16().float().numpy()
    assert (values != rounded).mean() > 0.9


@pytest.mark.parametrize(
    ("model_class", "heads", "missing"),
    [
        (BertModel, "pooler, auto", ["classification", "regression"]),
        (BertForMaskedLM, "auto", ["pooler", "classification", "regression"]),
        (BertForTokenClassification, "auto", ["pooler", "classification"]),
    ],
)
def test_a_head_that_the_model_does_not_have_is_refused(
    load, tiny_dir, model_class, heads, missing
):
    replica = load(tiny_dir(model_class)[0])
    for name in missing:
        message = rf"pooling='{name}': the model .* has no such head \(heads it has: {heads}\)"
        with pytest.raises(ValueError, match=message):
            replica.check_view(view(pooling=name))


def test_a_classifier_of_tokens_is_no_head_even_beside_a_pooler(load, tiny_dir):
    directory, _ = tiny_dir(BertForTokenClassification)
    weights = load_file(directory / "model.safetensors")
    # as transformers before version 4 saved it
    weights |= {"bert.pooler.dense.weight": torch.eye(32), "bert.pooler.dense.bias": torch.ones(32)}
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    assert load(directory).info.head_sizes == {"pooler": 32, "auto": 32}


def test_another_number_of_labels_than_the_checkpoint_has_is_refused(load, tiny_dir):
    directory, _ = tiny_dir(BertForSequenceClassification, num_labels=3)
    assert load(directory, num_labels=3).info.head_sizes["classification"] == 3
    with pytest.raises(ModelLoadError, match=r"num_labels=2: the checkpoint has 3 labels$"):
        load(directory, num_labels=2)
    with pytest.raises(ModelLoadError, match=r"num_labels=2: .* no labels, as it has no class"):
        load(num_labels=2)


def test_a_head_of_another_shape_is_refused(load, tiny_dir):
    directory, _ = tiny_dir(BertForSequenceClassification)
    weights = load_file(directory / "model.safetensors")
    for name, changed in {
        "classifier.weight": torch.zeros(2, 31),
        "classifier.bias": torch.zeros(3),
        "bert.pooler.dense.weight": torch.zeros(32, 32, dtype=torch.int32),
    }.items():
        save_file({**weights, name: changed}, directory / "model.safetensors", {"format": "pt"})
        match = re.escape(f"weight {name.removeprefix('bert.')} is")
        with pytest.raises(ModelLoadError, match=match):
            load(directory)
    del weights["classifier.bias"]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"no weight classifier\.bias"):
        load(directory)
