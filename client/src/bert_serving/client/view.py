"""What a caller wants from the hidden states: layers, how they are joined, pooled and shaped.

A view may leave fields open (None); the server fills them from its own default view.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

LAYER_REDUCTIONS = ("concat", "sum", "mean")
HEADS = ("pooler", "classification", "regression", "auto")
"""Poolings that are the model's own: not every model has each, and it says how wide they are."""

POOLINGS = ("none", "mean", "max", "mean_max", "first", "last", *HEADS)
OUTPUT_DTYPES = ("float32", "float16")

# bert-as-service's names beside the field's
_POOLING_ALIASES = {
    "reduce_mean": "mean",
    "reduce_max": "max",
    "reduce_mean_max": "mean_max",
    "first_token": "first",
    "cls_token": "first",
    "cls": "first",
    "last_token": "last",
    "sep_token": "last",
    "cls_pooled": "pooler",
}

MAX_LAYERS = 256
MAX_DIMS = 1 << 20


@dataclass(frozen=True)
class View:
    """One way to turn a row's hidden states into an array.

    Attributes:
        layers: which hidden states, numbered as transformers' `hidden_states`: 0 the
            embeddings, 1 the first layer, -1 the last.
        layer_reduce: how several layers become one: `concat` (side by side), `sum`, `mean`.
        pooling: `none` (a vector a token), `mean`, `max`, `mean_max` (both, side by side),
            `first` ([CLS]), `last` (the final [SEP]); or what the model's own head makes of
            the last layer: `pooler` (its trained summary of [CLS]), `classification`
            (probabilities of its labels), `regression` (its scores as they are), `auto` (what
            sentence-transformers would give).
        normalize: scale each vector to length 1.
        dims: keep only the first so many dimensions, before `normalize`; None keeps all.
        dtype: of the answer, `float32` or `float16`.

    """

    layers: tuple[int, ...] | None = None
    layer_reduce: str | None = None
    pooling: str | None = None
    normalize: bool | None = None
    dims: int | None = None
    dtype: str | None = None

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> View:
        """Return the view that a mapping describes, as it comes from a caller or the wire.

        Raises:
            ValueError: an unknown option, or a value that is not allowed, with what is.

        """
        if not options:
            return OPEN_VIEW
        unknown = sorted(str(name) for name in options if name not in _FIELDS)
        if unknown:
            raise ValueError(f"unknown view option {', '.join(unknown)}; known: {sorted(_FIELDS)}")
        return cls(
            layers=_layers(options.get("layers")),
            layer_reduce=_choice("layer_reduce", options.get("layer_reduce"), LAYER_REDUCTIONS),
            pooling=_pooling(options.get("pooling")),
            normalize=_flag("normalize", options.get("normalize")),
            dims=_size("dims", options.get("dims")),
            dtype=_dtype(options.get("dtype")),
        )

    def to_wire(self) -> dict[str, Any]:
        """Return the fields that are set, as msgpack can pack them."""
        given = {name: getattr(self, name) for name in _FIELDS if getattr(self, name) is not None}
        if self.layers is not None:
            given["layers"] = list(self.layers)
        return given

    def filled_from(self, default: View) -> View:
        """Return this view with every open field taken from `default`."""
        missing = {name: getattr(default, name) for name in _FIELDS if getattr(self, name) is None}
        return replace(self, **missing) if missing else self

    def width(self, hidden_size: int, head_sizes: Mapping[str, int]) -> int:
        """Return the number of dimensions of this (filled) view's vectors.

        Args:
            hidden_size: of the model.
            head_sizes: the widths of those of `HEADS` that the model has.

        """
        layers = len(self.layers or ()) if self.layer_reduce == "concat" else 1
        width = hidden_size * layers * (2 if self.pooling == "mean_max" else 1)
        width = head_sizes.get(self.pooling or "", width)
        return min(width, self.dims or width)


_FIELDS = tuple(field.name for field in fields(View))

OPEN_VIEW = View()
"""Whatever the server's default is."""

DEFAULT_VIEW = View(
    layers=(-2,), layer_reduce="concat", pooling="mean", normalize=False, dtype="float32"
)
"""The mean over tokens of the second-to-last hidden layer, as bert-as-service has it."""


def _layers(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if type(value) is int:
        value = (value,)
    if isinstance(value, str | bytes | bytearray) or not isinstance(value, Iterable):
        raise _not_allowed("layers", value, "an int or a list of ints, such as [-2, -1]")
    layers = tuple(value)
    if not 0 < len(layers) <= MAX_LAYERS or not all(_is_layer(layer) for layer in layers):
        allowed = f"1 to {MAX_LAYERS} ints between -{MAX_LAYERS} and {MAX_LAYERS}"
        raise _not_allowed("layers", value, f"{allowed}, such as [-2, -1]")
    return layers


def _is_layer(value: Any) -> bool:
    return type(value) is int and abs(value) <= MAX_LAYERS


def _pooling(value: Any) -> str | None:
    if isinstance(value, str):
        value = value.lower()
        value = _POOLING_ALIASES.get(value, value)
    return _choice("pooling", value, POOLINGS)


def _dtype(value: Any) -> str | None:
    # NumPy's float32 type and dtype are what callers have at hand
    name = getattr(value, "__name__", getattr(value, "name", value))
    return _choice("dtype", name, OUTPUT_DTYPES)


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in allowed:
        raise _not_allowed(name, value, f"one of {', '.join(allowed)}")
    return value


def _flag(name: str, value: Any) -> bool | None:
    if value is not None and type(value) is not bool:
        raise _not_allowed(name, value, "True or False")
    return value


def _size(name: str, value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 0 < value <= MAX_DIMS):
        raise _not_allowed(name, value, f"an int between 1 and {MAX_DIMS}")
    return value


def _not_allowed(name: str, value: Any, allowed: str) -> ValueError:
    got = reprlib.repr(value)  # repr fails on what a peer can nest
    return ValueError(f"{name}={got}: expected {allowed}")
