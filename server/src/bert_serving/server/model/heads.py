"""The heads in a checkpoint of the BERT kind: dense layers on each row's first token.

A head makes one vector of a row's last hidden state: `pooler`, the summary of [CLS] that
the model was trained with, and `logits`, the scores of its labels. Which heads there are,
and of which layers, is told from the names of the weights. They compute in float32
whatever the encoder computes in: they are a millionth of its work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its usual name

from .checkpoint import take
from .families import class_names
from .replica import ModelLoadError

Activation = Callable[[torch.Tensor], torch.Tensor]

softmax: Activation = partial(torch.softmax, dim=-1)
POOLER, LOGITS = "pooler", "logits"

# classes of transformers whose `classifier` is not for rows
_OTHER_CLASSIFIERS = ("ForTokenClassification", "ForMultipleChoice")


@dataclass(frozen=True)
class Dense:
    """One dense layer: `activation(x @ weight.T + bias)`, in float32."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    activation: Activation

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's values, `[rows, out]`, of `[rows, in]`."""
        return self.activation(F.linear(x, self.weight, self.bias))


class Heads:
    """A checkpoint's heads, by their names in `States`; each is dense layers, first to last."""

    def __init__(self, layers: Mapping[str, Sequence[Dense]]) -> None:
        self._layers = layers
        self.sizes = {name: len(dense[-1].weight) for name, dense in layers.items()}

    def __call__(self, firsts: torch.Tensor, names: AbstractSet[str]) -> dict[str, torch.Tensor]:
        """Return what some heads make of rows' first tokens, each float32 `[rows, width]`."""
        values = {}
        for name in names:
            x = firsts.float()
            for dense in self._layers[name]:
                x = dense(x)
            values[name] = x
        return values


NO_HEADS = Heads({})


def find_heads(
    weights: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    hidden_size: int,
    device: torch.device,
) -> Heads:
    """Return the heads that a checkpoint has.

    Args:
        weights: by name, without the prefix of the encoder's.
        config: the model's `config.json`.
        hidden_size: of the encoder.
        device: where to compute them.

    Raises:
        ModelLoadError: a head's weight is missing or has another shape than it must.

    """

    def dense(name: str, size: int, activation: Activation) -> Dense:
        weight = take(weights, f"{name}.weight", (size, hidden_size))
        bias = take(weights, f"{name}.bias", (size,))
        return Dense(weight.to(device).float(), bias.to(device).float(), activation)

    heads = {}
    if "pooler.dense.weight" in weights:
        heads[POOLER] = [dense("pooler.dense", hidden_size, torch.tanh)]
    layers = _label_layers(weights, config)
    if layers is not None:
        first, activation, last = layers
        num_labels = len(weights[f"{last}.weight"])
        heads[LOGITS] = [
            dense(first, hidden_size, activation),
            dense(last, num_labels, as_it_is),
        ]
    return Heads(heads)


def check_num_labels(wanted: int | None, sizes: Mapping[str, int]) -> None:
    """Raise ModelLoadError if the operator expects another number of labels than there are."""
    found = sizes.get(LOGITS, 0)
    if wanted is not None and wanted != found:
        raise ModelLoadError(
            f"num_labels={wanted}: the checkpoint has {found or 'no'} labels"
            + ("" if found else ", as it has no classification head")
        )


def label_activation(config: Mapping[str, Any], sizes: Mapping[str, int]) -> Activation:
    """Return what makes a model's scores probabilities, as transformers' pipeline does it.

    That is its `text-classification`: a model of one label, or of several that do not
    exclude each other, has a sigmoid; the scores of one for regression stay as they are.
    """
    problem = config.get("problem_type")
    if problem == "regression":
        return as_it_is
    if problem == "multi_label_classification" or sizes.get(LOGITS) == 1:
        return torch.sigmoid
    return softmax


def as_it_is(x: torch.Tensor) -> torch.Tensor:
    """Return x: the activation of a layer that has none."""
    return x


def _label_layers(
    weights: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> tuple[str, Activation, str] | None:
    """Return the names of the two layers of the label head, and what is between them."""
    if any(name.endswith(_OTHER_CLASSIFIERS) for name in class_names(config)):
        return None
    # RoBERTa and its kin; ELECTRA has their names for another computation
    is_electra = config.get("model_type") == "electra"
    known: list[tuple[str, Activation, str]] = [
        ("classifier.dense", F.gelu if is_electra else torch.tanh, "classifier.out_proj"),
        ("pre_classifier", torch.relu, "classifier"),  # DistilBERT
        ("pooler.dense", torch.tanh, "classifier"),  # BERT
    ]
    for first, activation, last in known:
        if f"{first}.weight" in weights and f"{last}.weight" in weights:
            return first, activation, last
    return None
