"""What holds of every architecture, whichever way it is computed."""

from __future__ import annotations

import numpy as np
import torch
from model_reference import Reference, close, encode, pooled, values_of, view
from tiny_models import save_tiny_model
from transformers import AutoTokenizer

from bert_serving.server.model.replica import EncodeRequest

POOLINGS = ("none", "mean", "max", "mean_max", "first", "last")
LIMIT = 62

ROWS = [
    "hello world",
    "",
    " \t\n",
    "word",
    "Crème brûlée at the café 😀 :-)",
    ("Who wrote it?", "Nobody knows who wrote it."),
    ("", "only the second"),
    " ".join(f"word{number}" for number in range(100)),
    ("a long question " * 20, "a long answer " * 30),
    "hello world",
]


def make_tiny_model(directory, model_class, tokenizer, settings):
    """Write a tiny model; return the directory, and what transformers makes of it."""
    _, model = save_tiny_model(directory, model_class, tokenizer, **settings)
    theirs = AutoTokenizer.from_pretrained(directory)
    return directory, Reference(getattr(model, "base_model", model), theirs, LIMIT)


def check_views(replica, reference):
    """Check every pooling of every layer, of rows of all kinds in one request."""
    tokens = replica.tokenize(ROWS, is_tokenized=False, max_length=None)
    layers = range(replica.info.num_layers + 1)
    views = {
        f"{layer} {pooling}": view(layers=layer, pooling=pooling)
        for layer in layers
        for pooling in POOLINGS
    }
    answers = replica.encode([EncodeRequest(tokens, views)])[0]
    expected = reference.hidden_states(ROWS)
    assert tokens.lengths.tolist() == [state.shape[1] for state in expected]
    for layer in layers:
        for pooling in POOLINGS:
            close(
                values_of(answers[f"{layer} {pooling}"], pooling),
                [pooled(state[layer], pooling) for state in expected],
            )


def check_alone(replica, reference):
    """Check each row in a request of its own."""
    for row, expected in zip(ROWS, reference.hidden_states(ROWS), strict=True):
        _, alone = encode(replica, [row], view(layers=-1, pooling="none"))
        close([alone.values], [expected[-1]])


def check_lengths(bare, reference):
    """Check rows of bare tokens, from one to as many as the model takes."""
    limit = bare.info.max_length
    ids = np.random.default_rng(0).integers(10, 100, limit)
    rows = [bare.token_texts(ids[:length]) for length in (1, 2, 3, 17, limit)]
    _, answer = encode(bare, rows, view(layers=(0, -1), pooling="mean"), is_tokenized=True)
    for values, row in zip(answer.values, rows, strict=True):
        states = reference.states_of(input_ids=torch.tensor([ids[: len(row)].tolist()]))
        close([values], [np.concatenate([states[0].mean(0), states[-1].mean(0)])])
