"""What a view may ask of a model: every replica counts layers and refuses the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bert_serving.client.view import HEADS, View

from .replica import ModelInfo

ENCODER_HEADS = {"pooler": "pooler", "classification": "logits", "regression": "logits"}
"""Which of an encoder's heads each of the client's is made of; `auto` is made of layers."""


def check_view(view: View, info: ModelInfo) -> None:
    """Raise ValueError if a model cannot give a (filled) view: no such layer, no such head."""
    resolve_layers(view.layers or (), info.num_layers)
    if view.pooling in HEADS and view.pooling not in info.head_sizes:
        others = ", ".join(name for name in HEADS if name in info.head_sizes) or "none"
        raise ValueError(
            f"pooling={view.pooling!r}: the model {info.name} has no such head "
            f"(heads it has: {others})"
        )


def client_heads(encoder_heads: Mapping[str, int]) -> dict[str, int]:
    """Return the widths of the client's heads that an encoder's heads give."""
    return {
        name: encoder_heads[source]
        for name, source in ENCODER_HEADS.items()
        if source in encoder_heads
    }


def resolve_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Return layer numbers without negative ones: 0 the embeddings, `num_layers` the last.

    Raises:
        ValueError: a layer that a model of `num_layers` layers does not have.

    """
    wrong = [layer for layer in layers if not -num_layers - 1 <= layer <= num_layers]
    if wrong or not layers:
        raise ValueError(
            f"layers={list(layers)}: expected numbers from {-num_layers - 1} to {num_layers}, "
            f"as the model has {num_layers} layers and layer 0, the embeddings"
        )
    return tuple(layer % (num_layers + 1) for layer in layers)
