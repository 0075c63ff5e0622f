"""The machine's best matrix product, as the benchmark asks for it: in a process with torch."""

from __future__ import annotations

import pytest

from bert_serving.server.benchmark.machine import best_matrix_product
from bert_serving.server.model.device import cpu_lack


def go_on() -> None:
    """Have nothing against going on."""


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_matrix_product_is_measured_in_a_process_of_its_own(dtype: str) -> None:
    if (lack := cpu_lack(dtype)) is not None:
        pytest.skip(f"{dtype} on this CPU: {lack}")
    product = best_matrix_product(dtype, "cpu", 1, go_on)
    assert product.reason == ""
    assert product.gflops is not None and product.gflops > 0.1
    assert "GFLOP/s" in str(product)


def test_a_device_that_is_not_there_has_none_and_a_reason() -> None:
    product = best_matrix_product("float32", "nothing", 1, go_on)
    assert product.gflops is None
    assert "expected cpu, cuda" in product.reason


def test_a_type_that_a_processor_is_slow_in_has_none_and_a_reason() -> None:
    product = best_matrix_product("float16", "cpu", 1, go_on)
    assert product.gflops is None
    assert "no CPU is good at it" in product.reason


def test_a_measurement_can_be_interrupted() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        best_matrix_product("float32", "cpu", 1, interrupt)
