"""The fast kernels of a device give what torch's plain ones do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bert_serving.server.model import compiled as compiled_module
from bert_serving.server.model.bert import finish_layer
from bert_serving.server.model.compiled import (
    LONGEST_ROW,
    WIDEST_HEAD,
    Codes,
    CompiledKernels,
    EmbeddingWeights,
    LayerStack,
    LayerWeights,
    Spans,
    levels_here,
    load_compiled,
    load_level,
)
from bert_serving.server.model.device import cpu_lack
from bert_serving.server.model.kernels import Layer, PlainKernels, attend_fused, layer_norm
from bert_serving.server.model.kernels_cpu import CpuKernels, PackedLinear
from bert_serving.server.model.kernels_int8 import (
    Int8Kernels,
    Int8Product,
    QuantizedLinear,
    finish,
    quantize,
)
from bert_serving.server.model.packing import pack, padded_size
from bert_serving.server.model.replica import nothing

HEADS = 4


def random_batch(lengths, width=16):
    """Return a micro-batch's groups, and a query, key and value for each of its tokens."""
    (batch,) = pack(np.array(lengths), np.arange(len(lengths)), sum(lengths))
    torch.manual_seed(0)
    qkv = torch.randn(padded_size(sum(lengths)), 3 * HEADS * width)
    qkv[:, : HEADS * width] *= width**-0.5
    return batch.groups, qkv


def compiled_for(level):
    """Return what was compiled for a level of instructions; None for torch's own."""
    if level == "torch":
        return None
    try:
        return load_level(level)
    except OSError:
        pytest.skip("no kernels were compiled for this machine")


LEVELS = [*levels_here(), "torch"]


@pytest.fixture(params=LEVELS)
def kernels(request):
    """The kernels of a CPU, with all that is compiled for it in turn, and without."""
    return CpuKernels(compiled_for(request.param), multiplies=True)


TYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)


@pytest.mark.parametrize(
    "lengths",
    [
        [1],
        [5] * 7,
        [3, 3, 9, 200],
        list(range(1, 70)),
        [*range(1, 33), *range(1, 33), 32, 33, 130],
        np.random.default_rng(0).integers(1, 60, 150).tolist(),
        [7, LONGEST_ROW, LONGEST_ROW + 1],
    ],
    ids=lambda lengths: f"{len(lengths)} rows to {max(lengths)}",
)
@pytest.mark.parametrize("width", [16, 32, 48, 64])
@TYPES
def test_attention_is_that_of_torch(kernels, lengths, width, dtype, tolerance):
    groups, qkv = random_batch(lengths, width)
    expected = attend_fused(qkv, groups, HEADS)
    mixed = kernels.attention(groups, HEADS)(qkv.to(dtype))
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed.float(), expected, rtol=tolerance, atol=tolerance)
    assert not mixed[sum(lengths) :].any()


def test_attention_keeps_to_float_where_scores_are_far_apart(kernels):
    groups, qkv = random_batch([1, 4, 17, 40])
    qkv[:, : HEADS * 16] *= 300  # weights of nearly one and nearly zero
    expected = attend_fused(qkv, groups, HEADS)
    mixed = kernels.attention(groups, HEADS)(qkv)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("column", [0, HEADS * 16, 2 * HEADS * 16], ids=["query", "key", "value"])
@TYPES
def test_what_is_no_number_is_attended_as_by_torch(kernels, value, column, dtype, tolerance):
    lengths = [1, 4, 17, 40]
    groups, qkv = random_batch(lengths)
    qkv[3, column] = value  # of the row of four
    expected = torch.cat([attend_row(row) for row in qkv[: sum(lengths)].split(lengths)])
    mixed = kernels.attention(groups, HEADS)(qkv.to(dtype)).float()[: sum(lengths)]
    torch.testing.assert_close(mixed, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def attend_row(qkv):
    """Return the mixed values of one row, by a softmax that keeps what is no number."""
    query, key, value = qkv.view(len(qkv), 3, HEADS, -1).permute(1, 2, 0, 3)
    mixed = (query @ key.transpose(1, 2)).softmax(-1) @ value
    return mixed.transpose(0, 1).flatten(1)


@pytest.mark.parametrize("width", [20, WIDEST_HEAD, WIDEST_HEAD + 16, 2048])
@TYPES
def test_heads_of_any_width_are_attended(kernels, width, dtype, tolerance):
    lengths = np.array([3, LONGEST_ROW])
    (batch,) = pack(lengths, np.arange(2), int(lengths.sum()))
    qkv = torch.randn(int(lengths.sum()), 3 * 2 * width)
    qkv[:, : 2 * width] *= width**-0.5
    expected = attend_fused(qkv, batch.groups, 2)
    mixed = kernels.attention(batch.groups, 2)(qkv.to(dtype)).float()
    torch.testing.assert_close(mixed, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("hidden", [16, 20, 384, 768])
@TYPES
def test_the_sum_and_its_norm_are_those_of_torch(kernels, hidden, dtype, tolerance):
    torch.manual_seed(0)
    x, residual = torch.randn(2, 9, hidden).mul_(3).to(dtype)
    weight, bias = torch.rand(2, hidden).to(dtype)
    both = x.float() + residual.float()
    expected = layer_norm(both, weight.float(), bias.float(), 1e-12)
    normed = kernels.add_norm(weight, bias, 1e-12)(x, residual)
    assert normed.dtype == dtype
    torch.testing.assert_close(normed.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("width", [16, 20, 384])
@pytest.mark.parametrize("tokens", [1, 40])
def test_embeddings_are_those_of_torch(kernels, tokens, width):
    torch.manual_seed(0)
    sizes = 100, 2, 64
    tables = [torch.randn(size, width) for size in sizes]
    numbers = [torch.randint(size, (tokens,)) for size in sizes]
    weight, bias = torch.rand(2, width)
    rows = sum(table[of] for table, of in zip(tables, numbers, strict=True))
    embed = kernels.embed(tables, weight, bias, 1e-12)
    torch.testing.assert_close(
        embed(numbers), layer_norm(rows, weight, bias, 1e-12), rtol=1e-5, atol=1e-5
    )
    alone = kernels.embed(tables[:1], weight, bias, 1e-12)
    expected = layer_norm(tables[0][numbers[0]], weight, bias, 1e-12)
    torch.testing.assert_close(alone(numbers[:1]), expected, rtol=1e-5, atol=1e-5)
    for wrong in (-1, 2):
        with pytest.raises(IndexError):
            embed([numbers[0], torch.full((tokens,), wrong), numbers[2]])


def test_embeddings_may_be_kept_in_half_the_bits(kernels):
    tables = [torch.randn(9, 32).bfloat16(), torch.randn(9, 32)]
    numbers = [torch.arange(9), torch.arange(9).flip(0)]
    weight, bias = torch.ones(32), torch.zeros(32)
    expected = layer_norm(tables[0].float() + tables[1].flip(0), weight, bias, 1e-12)
    embedded = kernels.embed(tables, weight, bias, 1e-12)(numbers)
    assert embedded.dtype == torch.float32
    torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=[level for level in LEVELS if level != "torch"])
def compiled(request):
    """What is compiled for this machine, a level of instructions at a time."""
    return compiled_for(request.param)


def product_of(compiled, x, weight, bias, *, has_gelu=False):
    """Return the compiled product of what it reads as panels."""
    return compiled.linear(x, compiled.panels(weight), bias, has_gelu=has_gelu)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 7, 96, 97, 250])
@pytest.mark.parametrize("inputs", [16, 784, 3072])
@pytest.mark.parametrize("outputs", [64, 448])
def test_the_compiled_product_is_as_exact_as_that_of_onednn(compiled, tokens, inputs, outputs):
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(size) for size in ((tokens, inputs), (outputs, inputs), outputs))
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    y = product_of(compiled, x, weight, bias)
    off, packed_off = ((of - exact).std() for of in (y, PackedLinear(weight, bias)(x)))
    assert off <= 1.1 * packed_off
    # a token is computed alone as it is beside others, to the last bit
    assert torch.equal(product_of(compiled, x[-1:], weight, bias), y[-1:])
    with_gelu = product_of(compiled, x, weight, bias, has_gelu=True)
    torch.testing.assert_close(with_gelu, torch.nn.functional.gelu(y), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_the_compiled_product_is_the_same_with_any_number_of_threads(compiled, threads):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(200, 64), torch.randn(1536, 64), torch.randn(1536)
    before = torch.get_num_threads()
    expected = product_of(compiled, x, weight, bias)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(product_of(compiled, x, weight, bias), expected)
    finally:
        torch.set_num_threads(before)


def test_gelu_is_as_exact_as_torchs(compiled):
    def gelu(x):
        width = x.shape[1]
        return product_of(compiled, x, torch.eye(width), torch.zeros(width), has_gelu=True)

    x = torch.cat([torch.linspace(-15, 15, 48_000), torch.linspace(-1e-3, 1e-3, 576)]).view(-1, 64)
    exact = torch.nn.functional.gelu(x.double())
    assert ((gelu(x) - exact).abs() <= 3e-7 * x.abs()).all()
    far, limits = torch.tensor([[-1e30, 1e30, 0.0, -1e-30]]), torch.tensor([[0, 1e30, 0, -5e-31]])
    torch.testing.assert_close(gelu(far.tile(16)), limits.tile(16), rtol=0, atol=0)
    assert gelu(torch.full((1, 64), torch.nan)).isnan().all()


def random_layer(kernels, activation="gelu", hidden=64, inner=256, seed=1):
    """Return the parts of a layer that was not trained, with `HEADS` heads."""
    torch.manual_seed(seed)

    def linear(outputs, inputs, activation=None):
        weight = torch.randn(outputs, inputs) * inputs**-0.5
        return kernels.linear(weight, torch.randn(outputs), activation)

    norms = [kernels.add_norm(torch.rand(hidden), torch.randn(hidden), 1e-12) for _ in range(2)]
    return Layer(
        qkv=linear(3 * hidden, hidden),
        attention_out=linear(hidden, hidden),
        attention_norm=norms[0],
        feed_in=linear(inner, hidden, activation),
        feed_out=linear(hidden, inner),
        feed_norm=norms[1],
    )


@pytest.mark.parametrize("inner", [64, 256])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("lengths", [[1], [5] * 7, [1, 2, 3, 30], [LONGEST_ROW, 300]], ids=len)
def test_whole_layers_are_their_parts_to_the_last_bit(compiled, lengths, count, inner):
    kernels = CpuKernels(compiled, multiplies=True)
    layers = [random_layer(kernels, inner=inner, seed=seed) for seed in range(count)]
    attend = kernels.attention(random_batch(lengths)[0], HEADS)
    x = torch.randn(sum(lengths), 64)
    before = x.clone()
    whole = kernels.whole_layers(layers)
    assert whole.takes(attend)
    y = whole(x, attend)
    assert torch.equal(x, before)
    for layer in layers:
        x = finish_layer(layer, x, attend(layer.qkv(x)), nothing)
    assert torch.equal(y, x)


def test_layers_are_computed_in_parts_where_they_are_not_known_as_a_whole(compiled):
    kernels = CpuKernels(compiled, multiplies=True)
    known = random_layer(kernels)
    whole = kernels.whole_layers([known, known])
    assert not whole.takes(PlainKernels().attention(random_batch([3, 5])[0], HEADS))
    assert not whole.takes(kernels.attention(random_batch([LONGEST_ROW + 1])[0], HEADS))
    assert not whole.takes(kernels.attention(random_batch([3, 5])[0], 3))  # heads of 21 and 1/3
    assert kernels.whole_layers([known, random_layer(kernels, activation="relu")]) is None
    assert kernels.whole_layers([random_layer(kernels, hidden=60)]) is None
    assert CpuKernels(compiled).whole_layers([random_layer(CpuKernels(compiled))]) is None
    assert PlainKernels().whole_layers([random_layer(PlainKernels())]) is None


@pytest.mark.parametrize("outputs", [20, 48, 1536])
@pytest.mark.parametrize("tokens", [1, 7, 129])
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "relu", "silu"])
def test_a_linear_is_that_of_torch(kernels, activation, tokens, outputs):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(outputs, 32), torch.randn(outputs), torch.randn(tokens, 32)
    expected = PlainKernels().linear(weight, bias, activation)(x)
    y = kernels.linear(weight, bias, activation)(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_codes_are_those_of_torch(compiled):
    torch.manual_seed(0)
    x = torch.randn(9, 48) * torch.logspace(-20, 20, 9)[:, None]
    x[3], x[4], x[5] = 0, x[4].abs(), x[5] - 10
    x = x.bfloat16()
    codes, scales, totals = compiled.quantize(x)
    expected = quantize(x)
    torch.testing.assert_close(scales, expected.scales)
    torch.testing.assert_close(totals, expected.totals)
    # halves may be rounded either way
    assert (codes.int() - expected.codes.int()).abs().max() <= 1
    assert not codes[3].any() and not scales[3]
    assert (codes.amin(1) == 0).all() and (codes.amax(1)[scales > 0] == 255).all()
    error = codes * scales[:, None] + x.float().amin(1, keepdim=True) - x.float()
    assert (error.abs() <= scales[:, None] * 0.51).all()


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_products_become_numbers_as_with_torch(compiled, activation):
    torch.manual_seed(0)
    product = torch.linspace(-40, 40, 9 * 48).view(9, 48).bfloat16()
    codes = Codes(torch.empty(9, 0), torch.rand(9), torch.randn(9))
    means, bias = torch.randn(2, 48)
    expected = finish(product, codes, means, bias, activation)
    is_gelu = activation == "gelu"
    finished = compiled.finish(product.clone(), codes, means, bias, has_gelu=is_gelu)
    torch.testing.assert_close(finished, expected, rtol=0.01, atol=5e-4)


def test_an_offset_of_all_codes_falls_out_of_the_product():
    torch.manual_seed(0)
    weight = torch.randn(64, 384) + torch.randn(64, 1)
    product = Int8Product(weight)
    torch.testing.assert_close(product.means, weight.mean(1))
    codes = torch.randint(200, (5, 384), dtype=torch.uint8)
    assert torch.equal(product(codes), product(codes + 55))
    assert not product(torch.full((1, 384), 255, dtype=torch.uint8)).any()
    expected = codes.float() @ (weight - weight.mean(1, keepdim=True)).T
    cosine = torch.nn.functional.cosine_similarity(product(codes).float(), expected)
    assert cosine.min() > 0.9999


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "relu", "silu"])
def test_a_linear_of_8_bits_is_nearly_that_of_float(level, activation):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(96, 64), torch.randn(96), torch.randn(33, 64)
    linear = Int8Kernels(compiled_for(level)).linear(weight, bias, activation)
    assert isinstance(linear, QuantizedLinear)
    expected = PackedLinear(weight, bias, activation)(x)
    y = linear(x.bfloat16()).float()
    assert torch.nn.functional.cosine_similarity(y, expected).min() > 0.999
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.4)
    # a token is computed alone as it is beside others
    assert torch.equal(linear(x[7:8].bfloat16()).float(), y[7:8])


@pytest.mark.skipif(cpu_lack("bfloat16") is not None, reason="this CPU has no bfloat16")
def test_sizes_that_fill_no_vectors_are_not_quantized():
    linear = Int8Kernels(None).linear(torch.ones(20, 64).bfloat16(), torch.ones(20).bfloat16())
    assert not isinstance(linear, QuantizedLinear)
    assert (linear(torch.ones(2, 64).bfloat16()) == 65).all()


@pytest.mark.parametrize("level", LEVELS)
def test_tokens_of_one_number_are_exact(level):
    torch.manual_seed(0)
    weight, bias = torch.randn(32, 64), torch.randn(32)
    linear = Int8Kernels(compiled_for(level)).linear(weight, bias)
    x = torch.tensor([0.0, 3.0, -1e4])[:, None].expand(3, 64).contiguous()
    torch.testing.assert_close(
        linear(x.bfloat16()).float(), x @ weight.T + bias, rtol=0.01, atol=0.01
    )


def test_a_weight_of_zeros_gives_the_bias():
    bias = torch.arange(32.0)
    linear = Int8Kernels(load_compiled()).linear(torch.zeros(32, 16), bias)
    assert torch.equal(linear(torch.randn(3, 16).bfloat16()).float(), bias.expand(3, 32))


def test_what_an_older_compiler_has_left_out_is_done_by_the_next_level(monkeypatch, tmp_path):
    levels = [level for level in levels_here() if compiled_for(level)]
    if len(levels) < 2:
        pytest.skip("only one level of instructions here")
    for level in levels[1:]:
        name = f"kernels.{level}.so"
        (tmp_path / name).symlink_to(compiled_module._FOLDER / name)
    monkeypatch.setattr(compiled_module, "_FOLDER", tmp_path)
    assert isinstance(load_compiled.__wrapped__(), CompiledKernels)


def test_compiled_kernels_refuse_what_they_would_misread():
    compiled = load_compiled()
    if not isinstance(compiled, CompiledKernels):
        pytest.skip("no kernels were compiled for this machine")
    qkv, mixed = torch.zeros(4, 96), torch.zeros(4, 32)
    four, five = (Spans(np.array([0]), np.array([tokens])) for tokens in (4, 5))
    with pytest.raises(AssertionError):  # a row that a thread's stack has no room for
        Spans(np.array([0]), np.array([LONGEST_ROW + 1]))
    with pytest.raises(AssertionError):  # numbers of another size
        Spans(np.array([0], np.int32), np.array([4], np.int32))
    with pytest.raises(AssertionError):  # a row beyond the tokens
        compiled.attend(qkv, mixed, five, 2)
    wide = torch.zeros(4, 3 * 1024), torch.zeros(4, 1024)
    with pytest.raises(AssertionError):  # heads that a thread's stack has no room for
        compiled.attend(*wide, four, 2)
    with pytest.raises(AssertionError):  # columns of something larger
        compiled.attend(qkv, torch.zeros(4, 64)[:, :32], four, 2)
    with pytest.raises(AssertionError):  # outputs that fill no panel
        compiled.panels(torch.ones(20, 32))
    panels = compiled.panels(torch.ones(64, 32))
    with pytest.raises(AssertionError):  # the panels of another weight
        compiled.linear(torch.ones(4, 48), panels, torch.ones(64), has_gelu=False)
    narrow, wide = (panels, torch.ones(64)), (compiled.panels(torch.ones(96, 32)), torch.ones(96))
    norm = torch.ones(32), torch.ones(32)
    with pytest.raises(AssertionError):  # a layer whose parts do not fit
        LayerWeights([narrow, narrow, narrow, wide], [norm, norm], 1e-12)
    square = [(compiled.panels(torch.ones(out, 96)), torch.ones(out)) for out in (288, 96, 96, 96)]
    of_96 = LayerWeights(square, [(torch.ones(96), torch.ones(96))] * 2, 1e-12)
    thin = [(compiled.panels(torch.ones(out, 32)), torch.ones(out)) for out in (96, 32, 32, 32)]
    of_32 = LayerWeights(thin, [norm, norm], 1e-12)
    with pytest.raises(AssertionError):  # a layer over a row beyond the tokens
        compiled.layers(LayerStack([of_96]), torch.ones(4, 96), five, 2)
    with pytest.raises(AssertionError):  # hidden states of another size
        compiled.layers(LayerStack([of_96]), torch.ones(4, 32), four, 2)
    with pytest.raises(AssertionError):  # layers of two sizes
        LayerStack([of_96, of_32])
    with pytest.raises(AssertionError):  # a table of another width
        EmbeddingWeights([mixed, torch.ones(4, 64)], *norm, 1e-12)
    with pytest.raises(AssertionError):  # a table without its numbers
        compiled.embed(EmbeddingWeights([mixed, mixed], *norm, 1e-12), [torch.arange(4)])
    with pytest.raises(AssertionError):  # two types
        compiled.add_norm(mixed, mixed.bfloat16(), torch.ones(32), torch.ones(32), 1e-12)
