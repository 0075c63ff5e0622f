"""What model tests compare with, and how."""

from __future__ import annotations

import inspect
import json
from itertools import pairwise

import numpy as np
import torch

from bert_serving.client.view import DEFAULT_VIEW, View
from bert_serving.server.model.replica import EncodeRequest

TEXTS: list = [
    "hello world",
    "",
    " \t\n",
    "word",
    "Crème brûlée at the café 😀👩‍👩‍👧 :-)",
    "今天天气很好,我们去公园吧。",
    "The quick brown fox jumps over the lazy dog, then sleeps until the next morning.",
    ("Who wrote it?", "Nobody knows who wrote it, but many have read it."),
    ("", "only the second"),
    " ".join(f"word{number}" for number in range(2000)),
    ("a long question " * 200, "a long answer " * 300),
    "hello world",
]


class Reference:
    """Hidden states as transformers has them, a row at a time: no padding that could matter."""

    def __init__(self, model, tokenizer, max_length=512):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_length = max_length
        # also where the tokenizer would not give them by itself: they are part of the model
        self.has_segments = (
            "token_type_ids" in inspect.signature(model.forward).parameters
            and getattr(model.config, "type_vocab_size", 0) > 0
        )

    def hidden_states(self, rows):
        """Return for each row the float32 array [layers + 1, tokens, hidden]."""
        return [torch.cat(self.output_of(row).hidden_states).numpy() for row in rows]

    @torch.inference_mode()
    def output_of(self, row):
        """Return transformers' output of a text or a pair."""
        texts = row if isinstance(row, tuple) else (row,)
        inputs = self.tokenizer(
            *texts,
            return_tensors="pt",
            truncation=True,
            max_length=self.max_length,
            return_token_type_ids=self.has_segments,
        )
        return self.model(**inputs, output_hidden_states=True)

    @torch.inference_mode()
    def states_of(self, **inputs):
        """Return the hidden states of one row's input tensors."""
        return torch.cat(self.model(**inputs, output_hidden_states=True).hidden_states).numpy()


def edit_json(path, **changes):
    """Change some fields of a JSON file; None takes a field out."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def view(**fields):
    return View.parse(fields).filled_from(DEFAULT_VIEW)


def encode(replica, rows, wanted=None, *, is_tokenized=False, max_length=None):
    """Return the token rows and the array of one view of rows that go in as one request."""
    tokens = replica.tokenize(rows, is_tokenized=is_tokenized, max_length=max_length)
    wanted = wanted or view()
    replica.check_view(wanted)
    return tokens, replica.encode([EncodeRequest(tokens, {"v": wanted})])[0]["v"]


def rows_of(answer):
    """Return a token-level answer as a list of arrays, one a row."""
    return [answer.values[start:end] for start, end in pairwise(answer.row_splits)]


def close(actual, desired, tolerance=1e-5):
    """Check fp32 values: the tolerance is absolute up to 1, and relative beyond.

    Float32 leaves no more: transformers' own hidden states are up to 1e-5 from float64's.
    """
    for ours, theirs in zip(actual, desired, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def pooled(values, pooling):
    """Return what a pooling should make of a row's values `[tokens, dim]`."""
    return {
        "none": lambda: values,
        "mean": lambda: values.mean(0),
        "max": lambda: values.max(0),
        "mean_max": lambda: np.concatenate([values.mean(0), values.max(0)]),
        "first": lambda: values[0],
        "last": lambda: values[-1],
    }[pooling]()


def values_of(answer, pooling):
    """Return an answer's values, a row at a time."""
    return rows_of(answer) if pooling == "none" else list(answer.values)


def smallest_cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / norms).min())
