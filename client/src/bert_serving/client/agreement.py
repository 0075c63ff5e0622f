"""What several servers must have in common, so that any of them may compute a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import ModelMismatch
from .messages import Limits, Welcome

# not its device and dtype: a GPU in 16 bits and a CPU may well stand in for one another
_MODEL = (
    "name",
    "architecture",
    "num_layers",
    "hidden_size",
    "max_length",
    "vocab_size",
    "head_sizes",
)


def mismatch(addresses: tuple[str, str], one: Welcome, other: Welcome) -> ModelMismatch | None:
    """Return the error for two servers that would answer the same request differently."""
    if not one.model or not other.model:  # one that starts says nothing of its model yet
        return None
    differing = [f"{name}: {a!r} and {b!r}" for name, a, b in _compared(one, other) if a != b]
    if not differing:
        return None
    return ModelMismatch(
        f"{addresses[0]} and {addresses[1]} serve different things ({'; '.join(differing)}): "
        "give servers= only such as have the same model and the same default view"
    )


def smallest(limits: Sequence[Limits]) -> Limits:
    """Return limits within all of these, so that any server takes what is cut to them.

    A call is cut for the workers of all.
    """
    return Limits(
        max_rows=min(one.max_rows for one in limits),
        max_bytes=min(one.max_bytes for one in limits),
        window=min(one.window for one in limits),
        max_request_bytes=min(one.max_request_bytes for one in limits),
        workers=sum(one.workers for one in limits),
        min_rows=max(one.min_rows for one in limits),
    )


def _compared(one: Welcome, other: Welcome) -> list[tuple[str, Any, Any]]:
    pairs = [(name, one.model.get(name), other.model.get(name)) for name in _MODEL]
    return [*pairs, ("default view", one.default_view.to_wire(), other.default_view.to_wire())]
