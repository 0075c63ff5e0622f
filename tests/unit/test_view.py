from __future__ import annotations

from dataclasses import fields
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_strategies import filled_views, maps, nested, odd_values, views

from bert_serving.client.view import DEFAULT_VIEW, MAX_DIMS, MAX_LAYERS, POOLINGS, View

NAMES = [field.name for field in fields(View)]


@given(views)
def test_a_view_comes_back_from_the_wire_as_it_was(view: View) -> None:
    assert View.parse(msgpack.unpackb(msgpack.packb(view.to_wire()))) == view


def test_what_is_open_or_nil_stays_open_and_off_the_wire() -> None:
    assert View.parse(dict.fromkeys(NAMES)) == View.parse({}) == View()
    assert View().to_wire() == {}


def test_the_default_is_the_mean_of_the_second_to_last_layer() -> None:
    assert DEFAULT_VIEW.to_wire() == {
        "layers": [-2],
        "layer_reduce": "concat",
        "pooling": "mean",
        "normalize": False,
        "dtype": "float32",
    }


@pytest.mark.parametrize(
    ("given_layers", "layers"), [(-1, (-1,)), ([0, 12], (0, 12)), ((3,), (3,)), (range(2), (0, 1))]
)
def test_layers_may_be_one_int_or_several(given_layers: Any, layers: tuple[int, ...]) -> None:
    assert View.parse({"layers": given_layers}).layers == layers


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("NONE", "none"),
        ("REDUCE_MEAN", "mean"),
        ("REDUCE_MAX", "max"),
        ("REDUCE_MEAN_MAX", "mean_max"),
        ("FIRST_TOKEN", "first"),
        ("CLS_TOKEN", "first"),
        ("cls", "first"),
        ("LAST_TOKEN", "last"),
        ("sep_token", "last"),
        *[(pooling, pooling) for pooling in POOLINGS],
    ],
)
def test_every_name_of_a_pooling_becomes_its_canonical_name(name: str, pooling: str) -> None:
    assert View.parse({"pooling": name}).to_wire() == {"pooling": pooling}


@pytest.mark.parametrize("dtype", ["float16", np.float16, np.dtype("float16"), np.dtype(">f2")])
def test_a_dtype_may_be_what_numpy_calls_it(dtype: Any) -> None:
    assert View.parse({"dtype": dtype}).dtype == "float16"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layers", "-2"),
        ("layers", []),
        ("layers", [-2.0]),
        ("layers", [True]),
        ("layers", True),
        ("layers", {"a": 1}),
        ("layers", b"\x01\x02"),
        ("layers", [0] * (MAX_LAYERS + 1)),
        ("layers", MAX_LAYERS + 1),
        ("layers", [-MAX_LAYERS - 1]),
        ("layers", 2**70),
        ("layer_reduce", "max"),
        ("layer_reduce", 1),
        ("pooling", "average"),
        ("pooling", 1),
        ("normalize", 1),
        ("normalize", "yes"),
        ("dims", 0),
        ("dims", -1),
        ("dims", True),
        ("dims", 1.5),
        ("dims", MAX_DIMS + 1),
        ("dtype", "float64"),
        ("dtype", "FLOAT32"),
        ("dtype", 32),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_value_that_is_not_allowed_is_a_value_error_that_names_its_field(
    name: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=f"^{name}="):
        View.parse({name: value})


@pytest.mark.parametrize("name", NAMES)
def test_a_value_too_deep_to_print_is_a_value_error_too(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}="):
        View.parse({name: nested(1000)})


def test_an_unknown_option_is_a_value_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown view option poling; known: .*'pooling'"):
        View.parse({"poling": "mean"})


@given(st.dictionaries(st.sampled_from(NAMES), odd_values) | maps)
def test_any_mapping_gives_a_view_that_can_travel_or_a_value_error(options: dict[str, Any]) -> None:
    try:
        view = View.parse(options)
    except ValueError:
        return
    assert View.parse(msgpack.unpackb(msgpack.packb(view.to_wire()))) == view


@given(views, filled_views)
def test_open_fields_and_only_those_are_filled_from_the_default(view: View, default: View) -> None:
    filled = view.filled_from(default)
    for name in NAMES:
        own = getattr(view, name)
        assert getattr(filled, name) == (own if own is not None else getattr(default, name))


@pytest.mark.parametrize(
    ("options", "width"),
    [
        ({}, 384),
        ({"layers": [-1, -2, -3]}, 1152),
        ({"layers": [-1, -2, -3], "layer_reduce": "mean"}, 384),
        ({"pooling": "mean_max"}, 768),
        ({"layers": [1, 2], "pooling": "mean_max"}, 1536),
        ({"layers": [1, 2], "layer_reduce": "sum", "pooling": "mean_max"}, 768),
        ({"dims": 128}, 128),
        ({"dims": MAX_DIMS}, 384),
        ({"pooling": "none", "layers": [1, 2]}, 768),
    ],
    ids=str,
)
def test_the_width_follows_from_layers_pooling_and_dims(
    options: dict[str, Any], width: int
) -> None:
    assert (
        View.parse(options)
        .filled_from(DEFAULT_VIEW)
        .width(384, {"pooler": 384, "classification": 3})
        == width
    )
