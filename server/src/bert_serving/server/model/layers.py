"""Layer numbers as views give them, made plain: every replica counts the same way."""

from __future__ import annotations

from collections.abc import Sequence


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
