"""Which matrix product is faster on a machine is measured once."""

from __future__ import annotations

import logging

import pytest

from bert_serving.server.model import product_choice
from bert_serving.server.model.compiled import load_compiled
from bert_serving.server.model.product_choice import is_compiled_faster


@pytest.fixture
def compiled(monkeypatch):
    """What is compiled for this machine."""
    found = load_compiled()
    if found is None:
        pytest.skip("no kernels were compiled for this machine")
    monkeypatch.setattr(found, "level", "another")  # of which nobody knows which is faster
    return found


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A folder of its own for what is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bert-serving"


def test_it_is_measured_and_kept(compiled, cache, caplog):
    with caplog.at_level(logging.INFO):
        first = is_compiled_faster(compiled)
    assert "of oneDNN's time" in caplog.text
    (kept,) = cache.glob("product-*.json")
    assert (float(kept.read_text()) < 0.95) == first
    for ratio in (0.5, 2.0):
        kept.write_text(str(ratio))
        assert is_compiled_faster(compiled) == (ratio < 1)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b"null"])
def test_what_is_no_ratio_is_measured_again(compiled, cache, monkeypatch, content):
    monkeypatch.setattr(product_choice, "_LIMIT_S", 0)
    is_compiled_faster(compiled)
    (kept,) = cache.glob("product-*.json")
    kept.write_bytes(content)
    is_compiled_faster(compiled)
    assert float(kept.read_text()) > 0


def test_with_avx2_it_is_known(compiled, cache, monkeypatch):
    monkeypatch.setattr(compiled, "level", "avx2")
    assert is_compiled_faster(compiled)
    assert not cache.exists()


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_a_model_multiplies_with_the_faster_one(
    compiled, cache, load, tiny_dir, monkeypatch, ratio
):
    monkeypatch.setattr(product_choice, "_ratio", lambda _: ratio)
    multiplied = []
    product = type(compiled).linear

    def linear(self, *arguments, **options):
        multiplied.append(self)
        return product(self, *arguments, **options)

    monkeypatch.setattr(type(compiled), "linear", linear)
    directory, _ = tiny_dir()
    load(directory)
    assert bool(multiplied) == (ratio < 1)
