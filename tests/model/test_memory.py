"""A replica whose device runs out of memory computes less at a time, and answers all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_reference import TEXTS, close, encode, view

from bert_serving.server.model.calibration import CPU_BUDGETS
from bert_serving.server.model.device import is_out_of_memory
from bert_serving.server.model.encoder_replica import EncoderReplica
from bert_serving.server.model.replica import DeviceLost, EncodeRequest

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"


class SmallEncoder:
    """An encoder on a device with memory for so many tokens."""

    def __init__(self, encoder, tokens, error=None):
        self._encoder = encoder
        self._error = error or torch.OutOfMemoryError(MESSAGE)
        self._tokens = tokens
        self.sizes = []

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def forward(self, batch, wanted, **options):
        self.sizes.append(len(batch.ids))
        states = self._encoder.forward(batch, wanted, **options)
        if len(batch.ids) > self._tokens:
            raise self._error
        return states


@pytest.fixture
def small(replica):
    """A factory of replicas with memory for so many tokens."""

    def make(tokens, **options):
        encoder = SmallEncoder(replica._encoder, tokens, **options)
        return encoder, EncoderReplica(encoder, replica._tokenizer, replica.info)

    return make


def test_the_budget_is_halved_until_it_fits(replica, small, caplog):
    encoder, ours = small(100)
    texts = ["today the weather is fine"] * 50 + ["hello world"] * 50
    wanted = view(pooling="none")
    tokens, answer = encode(ours, texts, wanted)
    close(answer.values, encode(replica, texts, wanted)[1].values)
    assert len(tokens.ids) == 550
    assert 50 <= ours.max_batch_tokens <= 275 // 2
    assert len(caplog.records) >= 2
    assert caplog.records[0].message == (
        f"out of memory on cpu with 550 tokens: 275 at a time from now on ({MESSAGE})"
    )
    encoder.sizes.clear()
    close(encode(ours, texts)[1].values, encode(replica, texts)[1].values)
    assert max(encoder.sizes) <= 100  # remembered


def test_what_was_computed_is_not_computed_again(replica, small):
    encoder, ours = small(500)
    lengths = [*[4] * 60, 300, 500]
    texts = [" ".join(["fine"] * (length - 2)) for length in lengths]
    ours.max_batch_tokens = 900
    close(encode(ours, texts)[1].values, encode(replica, texts)[1].values)
    done = [size for size in encoder.sizes if size <= 500]
    assert sum(done) == sum(lengths)
    assert len(done) < len(encoder.sizes)


def test_a_row_that_does_not_fit_fails_with_the_reason(small):
    _, ours = small(100)
    with pytest.raises(RuntimeError, match=r"not enough memory on cpu for one row of 512 tokens"):
        encode(ours, [*TEXTS[:5], TEXTS[9]])
    _, answer = encode(ours, TEXTS[:5])
    assert np.isfinite(answer.values).all()


@pytest.mark.parametrize("text", ["fine " * 300, "fine"], ids=["a long row", "a short row"])
def test_a_device_with_no_memory_for_the_shortest_row_is_lost(small, text):
    _, ours = small(2)
    with pytest.raises(DeviceLost, match=r"no memory for (3|16) tokens on cpu: CUDA out of memory"):
        encode(ours, [text])


def test_it_goes_down_to_a_row_at_a_time(replica, small):
    encoder, ours = small(12)
    texts = ["today the weather is fine and dry"] * 20 + ["fine"] * 3
    close(encode(ours, texts)[1].values, encode(replica, texts)[1].values)
    assert ours.max_batch_tokens >= 1
    assert max(size for size in encoder.sizes[-20:]) <= 12


class FailingKernels:
    """Kernels whose n-th part from now on finds no memory."""

    def __init__(self, kernels, number):
        self._kernels = kernels
        self._left = number

    def __getattr__(self, name):
        return getattr(self._kernels, name)

    def linear(self, *args):
        return self._make(self._kernels.linear, args)

    def add_norm(self, *args):
        return self._make(self._kernels.add_norm, args)

    def _make(self, make, args):
        self._left -= 1
        if not self._left:
            raise torch.OutOfMemoryError(MESSAGE)
        return make(*args)


@pytest.mark.parametrize("number", range(1, 7))
def test_a_layer_that_did_not_fit_when_it_was_built_is_built_again(load, tiny_dir, number):
    directory, _ = tiny_dir()
    ours = load(directory)
    texts = ["today the weather is fine"] * 4
    expected = encode(load(directory), texts, view(layers=-1))[1].values
    encoder = ours._encoder  # has built its first layer only
    encoder._kernels = FailingKernels(encoder._kernels, number)
    close(encode(ours, texts, view(layers=-1))[1].values, expected)
    assert not encoder._weights


def test_other_failures_are_not_taken_for_it(small):
    encoder, ours = small(5, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        encode(ours, TEXTS[:5])
    assert ours.max_batch_tokens == CPU_BUDGETS[-1]
    assert len(encoder.sizes) == 1


def test_calibration_takes_no_more_than_fits(small):
    _, ours = small(300)
    assert ours.calibrate().max_batch_tokens == ours.max_batch_tokens <= 512
    assert ours.encode([]) == []


def test_every_device_says_it_in_its_own_way():
    with pytest.raises(RuntimeError) as info:
        torch.empty(1 << 60)
    assert is_out_of_memory(info.value)
    assert is_out_of_memory(torch.OutOfMemoryError(MESSAGE))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("could not create a primitive"))  # oneDNN, under RLIMIT_AS
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_a_batch_of_requests_gets_all_answers(replica, small):
    _, ours = small(60)
    requests = [
        EncodeRequest(ours.tokenize(TEXTS[n : n + 3], is_tokenized=False, max_length=24), {"v": v})
        for n, v in ((0, view()), (3, view(pooling="max")), (6, view(pooling="none")))
    ]
    for ours_of, theirs_of in zip(ours.encode(requests), replica.encode(requests), strict=True):
        close(ours_of["v"].values, theirs_of["v"].values)
