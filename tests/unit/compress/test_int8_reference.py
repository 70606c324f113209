"""What ONNX Runtime computes from an int8 file, against integer arithmetic in numpy."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from ssdistill.compress import Context
from ssdistill.compress.int8.affine import affine_step, dequantize_affine, quantize_affine
from ssdistill.compress.int8.ranges import mse_range
from ssdistill.compress.quantize import Quantize
from ssdistill.measure.hardware import int8_saturates
from ssdistill.models.wrapped import Wrapped

BITS = [
    pytest.param(False, id="8 bits", marks=pytest.mark.skipif(
        int8_saturates(), reason="sums of 8-bit products overflow on this processor")),
    pytest.param(True, id="7 bits"),
]  # fmt: skip
"""``reduce_range``: 7-bit weights give the exact sums on every processor."""


class Flat(nn.Module):
    """One convolution, all of its outputs side by side."""

    def __init__(self, stride, groups):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=stride, padding=1, groups=groups)

    def forward(self, x_BCHW):
        return self.conv(x_BCHW).flatten(1)


def quantized(net, shape, folder, reduce_range):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(48, *shape, generator=generator)
    model = Wrapped(net.eval(), x[:4])
    step = Quantize(
        scheme="u8s8", calibration_images=32, check_images=16, reduce_range=reduce_range
    )
    found = step.apply(model, Context(lambda n, seed: x[:n], folder))
    return found, onnx.load(found.path).graph, x[:5]


def constants(graph):
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer}


def parts_of(graph, kind):
    """Input, weight, bias and output of the only node of a kind: (integers, scale, zero point)."""
    values = constants(graph)
    makers = {name: node for node in graph.node for name in node.output}
    (node,) = [n for n in graph.node if n.op_type == kind]
    read = []
    for name in node.input:
        maker = makers[name]
        assert maker.op_type == "DequantizeLinear"
        scale = values[maker.input[1]]
        zero = values[maker.input[2]] if len(maker.input) > 2 else np.zeros((), np.int32)
        read.append((values.get(maker.input[0]), scale, zero))
    (after,) = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.output[0] and
                n.input[0] == node.output[0]]  # fmt: skip
    return read, (values[after.input[1]], values[after.input[2]]), node


def levels(x, scale, zero):
    """uint8 levels of float32 numbers, rounding halves to even as the standard says."""
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.uint8)


def outputs(accumulator_i32, scale_of_sum, out_scale, out_zero):
    level = np.rint(accumulator_i32 * scale_of_sum / out_scale) + out_zero
    return (np.clip(level, 0, 255) - int(out_zero)) * out_scale


@pytest.mark.parametrize("reduce_range", BITS)
def test_a_linear_layer_is_the_integer_product(reduce_range, tmp_path):
    torch.manual_seed(0)
    found, graph, x_BC = quantized(nn.Linear(24, 10), (24,), tmp_path, reduce_range)
    ((_, x_scale, x_zero), (w, w_scale, w_zero), (bias, b_scale, _)), out, node = parts_of(
        graph, "Gemm"
    )
    assert w.dtype == np.int8 and bias.dtype == np.int32 and not w_zero.any()
    assert np.abs(w).max() == (64 if reduce_range else 127)
    if any(a.name == "transB" and a.i for a in node.attribute):
        w = w.T
    x_q = levels(x_BC.numpy(), x_scale, x_zero)
    accumulator = (x_q.astype(np.int32) - int(x_zero)) @ w.astype(np.int32) + bias
    assert np.allclose(b_scale, x_scale * w_scale, rtol=1e-5)
    expected = outputs(accumulator, x_scale * w_scale, *out)
    difference = np.abs(found(x_BC).embedding_BD.numpy() - expected)
    assert difference.max() <= out[0] * 1.01
    assert (difference < out[0] / 2).mean() > 0.9


@pytest.mark.parametrize("reduce_range", BITS)
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
def test_a_convolution_is_the_integer_convolution(stride, groups, reduce_range, tmp_path):
    torch.manual_seed(0)
    found, graph, x_BCHW = quantized(Flat(stride, groups), (4, 6, 6), tmp_path, reduce_range)
    ((_, x_scale, x_zero), (w, w_scale, _), (bias, _, _)), out, _ = parts_of(graph, "Conv")
    assert w.dtype == np.int8 and w_scale.shape == (6,), "weights per output channel"
    x_q = levels(x_BCHW.numpy(), x_scale, x_zero).astype(np.int32) - int(x_zero)
    padded = np.pad(x_q, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    windows = windows[:, :, ::stride, ::stride]
    width = 4 // groups
    accumulator = np.stack(
        [
            np.einsum(
                "bchwij,cij->bhw",
                windows[:, (o // (6 // groups)) * width :][:, :width],
                w[o].astype(np.int32),
            )
            + bias[o]
            for o in range(6)
        ],
        1,
    )
    scale = (x_scale * w_scale).reshape(1, -1, 1, 1)
    expected = outputs(accumulator, scale, *out).reshape(len(x_BCHW), -1)
    difference = np.abs(found(x_BCHW).embedding_BD.numpy() - expected)
    assert difference.max() <= out[0] * 1.01
    assert (difference < out[0] / 2).mean() > 0.9


def test_the_textbook_example_of_affine_quantization():
    w = torch.tensor([0.9, -1.0, 1.0, -3.0, 3.0])
    assert affine_step(-1, 1, 8) == 2 / 255
    assert quantize_affine(w, -1, 1, 8).tolist() == [242, 0, 255, 0, 255]
    assert float(dequantize_affine(torch.tensor(242), -1, 1, 8)) == pytest.approx(
        0.898039, abs=1e-6
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_affine_levels_are_at_most_half_a_step_away(bits):
    w = torch.linspace(-0.7, 1.9, 1000, dtype=torch.float64)
    back = dequantize_affine(quantize_affine(w, -0.7, 1.9, bits), -0.7, 1.9, bits)
    assert (back - w).abs().max() <= affine_step(-0.7, 1.9, bits) / 2 + 1e-12
    assert len(back.unique()) == 2**bits


def histogram(x):
    top = np.abs(x).max()
    counts, edges = np.histogram(x, 2048, (-top, top))
    return counts, edges, x.min(), x.max()


def test_the_mse_range_clips_outliers_and_keeps_what_is_uniform():
    generator = np.random.default_rng(0)
    uniform = generator.uniform(0, 2, 20000)
    low, high = mse_range(*histogram(uniform))
    assert low == 0 and high == pytest.approx(2, abs=0.03)
    heavy = np.append(generator.standard_normal(20000), [30.0, 30.0])
    for bits, limit in ((4, 12), (8, 30)):
        low, high = mse_range(*histogram(heavy), bits)
        assert heavy.min() <= low < -1.5 and 1.5 < high < limit


@pytest.mark.parametrize("bits", [4, 8])
def test_no_other_range_of_the_grid_has_a_smaller_error(bits):
    x = np.maximum(np.random.default_rng(1).laplace(size=4000), 0)
    low, high = mse_range(*histogram(x), bits)

    def error(top):
        values = torch.from_numpy(x)
        back = dequantize_affine(quantize_affine(values, 0, top, bits), 0, top, bits)
        return float((back - values).square().sum())

    assert low == 0 and error(high) <= error(x.max())
    # Of 256 levels, the last one may be worth its distance; of 16 it is not.
    assert bits == 8 or error(high) < error(x.max())
    assert error(high) <= 1.05 * min(error(s * x.max()) for s in np.linspace(0.2, 1, 81))


def test_a_range_of_nothing_is_left_alone():
    assert mse_range(np.zeros(8), np.linspace(-1, 1, 9), 0, 0) == (0, 0)
