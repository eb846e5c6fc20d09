"""Convolution against ONNX Runtime and TensorFlow."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.one_op import check, check_symbolic, infer, run, tensor
from helpers.onnx_op import onnx_op
from planish.errors import ShapeError
from planish.graph.dims import ceildiv, evaluate, symbol
from planish.ops import Conv, ConvTranspose, Fold
from planish.ops.conv import same_padding

RNG = np.random.default_rng(0)
GEOMETRIES = [
    # spatial, window, strides, padding, dilations
    ((9,), (3,), (2,), ((1, 0),), (1,)),
    ((8, 7), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    ((8, 7), (2, 3), (2, 1), ((0, 1), (1, 2)), (1, 1)),
    ((10, 9), (3, 2), (1, 2), ((1, 1), (0, 0)), (2, 3)),
    ((5, 6, 4), (2, 2, 3), (1, 2, 1), ((1, 0), (0, 1), (1, 1)), (1, 1, 1)),
]
GROUPS = [(1, 3, 5), (4, 4, 4), (4, 4, 8), (2, 6, 4), (3, 6, 9)]  # groups, channels, filters


def _onnx_conv(x, w, strides, padding, dilations, groups):
    (output,) = onnx_op(
        "Conv",
        [np.moveaxis(x, -1, 1), np.moveaxis(w, (-1, -2), (0, 1))],
        strides=strides,
        pads=[*(p[0] for p in padding), *(p[1] for p in padding)],
        dilations=dilations,
        group=groups,
    )
    return np.moveaxis(output, 1, -1)


@pytest.mark.parametrize(("spatial", "window", "strides", "padding", "dilations"), GEOMETRIES)
@pytest.mark.parametrize(("groups", "channels", "filters"), GROUPS)
def test_like_onnx(spatial, window, strides, padding, dilations, groups, channels, filters):
    x = RNG.normal(size=(2, *spatial, channels)).astype(np.float32)
    w = RNG.normal(size=(*window, channels // groups, filters)).astype(np.float32)
    expected = _onnx_conv(x, w, strides, padding, dilations, groups)
    check(Conv(strides, padding, dilations, groups), [x, w], expected, rtol=1e-4, atol=1e-5)


def test_depthwise_like_tensorflow():
    tf = pytest.importorskip("tensorflow")
    x = RNG.normal(size=(2, 7, 6, 3)).astype(np.float32)
    w = RNG.normal(size=(3, 3, 3, 2)).astype(np.float32)  # two filters per channel
    expected = tf.nn.depthwise_conv2d(x, w, (1, 1, 1, 1), "SAME").numpy()
    op = Conv((1, 1), ((1, 1), (1, 1)), (1, 1), 3)
    check(op, [x, w.reshape(3, 3, 1, 6)], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("groups", "channels", "filters"), GROUPS)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integers_are_exact(groups, channels, filters, dtype):
    """Sums beyond float32's 24 bits; ONNX Runtime convolves 7 bits at a time, exactly."""
    x = RNG.integers(0, 2**14, (1, 6, channels)).astype(dtype)
    w = RNG.integers(-(2**7), 2**7, (3, channels // groups, filters)).astype(dtype)
    geometry = ((1,), ((1, 1),), (1,), groups)
    low, high = (
        _onnx_conv(part.astype(np.float32), w.astype(np.float32), *geometry).astype(dtype)
        for part in (x % 128, x // 128)
    )
    check(Conv(*geometry), [x, w * 300], (high * 128 + low) * 300)


def test_integer_sums_wrap_around():
    x, w = np.full((1, 1, 3), 2**30, np.int32), np.full((1, 3, 1), 5, np.int32)
    (output,) = run(Conv((1,), ((0, 0),), (1,)), x, w)
    assert output.item() == (15 * 2**30 + 2**31) % 2**32 - 2**31


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("groups", [1, 4])
def test_halves_are_rounded_once(dtype, groups):
    x = RNG.normal(size=(1, 8, 4)).astype(dtype)
    w = RNG.normal(size=(3, 4 // groups, 4)).astype(dtype)
    op = Conv((1,), ((0, 0),), (1,), groups)
    (output,) = run(op, x, w)
    (wide,) = run(op, x.astype(np.float32), w.astype(np.float32))
    np.testing.assert_array_equal(output.astype(np.float32), wide.astype(dtype).astype(np.float32))


@settings(max_examples=50)
@given(
    st.integers(0, 3),
    st.integers(5, 12),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_symbols(batch, size, window, stride, dilation, margin):
    op = Conv((stride,), (margin,), (dilation,))
    types = [tensor("f32", "N", "L", 2), tensor("f32", window, 2, 3)]
    bindings = {"N": batch, "L": size}
    check_symbolic(op, types, bindings)
    run(op, *(np.ones(t.bind(bindings), np.float32) for t in types))


def test_window_larger_than_input_gives_nothing():
    op = Conv((1,), ((0, 0),), (1,))
    (output,) = run(op, np.ones((2, 3, 1), np.float32), np.ones((5, 1, 4), np.float32))
    assert output.shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("groups", "x", "w"),
    [
        (1, tensor("f32", 1, 8, 3), tensor("f32", 3, 4, 2)),
        (1, tensor("f32", 1, 8, 8, 3), tensor("f32", 3, 3, 2)),
        (1, tensor("f32", 1, 8, 3), tensor("f16", 3, 3, 2)),
        (1, tensor("f32", 1, 8, 3), tensor("f32", "K", 3, 2)),
        (1, tensor("f32", 1, 8, 3), tensor("f32", 0, 3, 2)),
        (2, tensor("f32", 1, 8, 4), tensor("f32", 3, 2, 3)),
    ],
)
def test_refuses(groups, x, w):
    with pytest.raises(ShapeError):
        infer(Conv((1,), ((0, 0),), (1,), groups), x, w)


# ---- transposed convolutions, windows put back -------------------------------------------------


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_transposed_is_the_gradient(data):
    """``<conv(a), b> == <a, conv_transpose(b)>``, with channels of the filters exchanged."""
    rank = data.draw(st.integers(1, 3))

    def draw(low, high):
        return tuple(data.draw(st.integers(low, high)) for _ in range(rank))

    window, strides, dilations = draw(1, 3), draw(1, 3), draw(1, 2)
    padding = tuple(zip(draw(0, 2), draw(0, 2), strict=True))
    size = tuple(n + (k - 1) * d for n, k, d in zip(draw(1, 4), window, dilations, strict=True))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    a, w = rng.standard_normal((2, *size, 3)), rng.standard_normal((*window, 3, 4))
    (forward,) = run(Conv(strides, padding, dilations), a, w)
    b = rng.standard_normal(forward.shape)
    before = tuple(before for before, _ in padding)
    back = ConvTranspose(size, strides, before, dilations)
    (gradient,) = run(back, b, np.ascontiguousarray(w.swapaxes(-1, -2)))
    np.testing.assert_allclose((forward * b).sum(), (a * gradient).sum(), rtol=1e-9, atol=1e-9)


def test_transposed_groups():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 6)), rng.standard_normal((3, 2, 9))
    op = ConvTranspose((9,), (2,), (0,), (1,), 3)
    (whole,) = run(op, x, w)
    for g in range(3):
        one = ConvTranspose((9,), (2,), (0,), (1,))
        (part,) = run(one, x[..., 2 * g : 2 * g + 2], w[..., 3 * g : 3 * g + 3])
        np.testing.assert_allclose(whole[..., 3 * g : 3 * g + 3], part)


def test_transposed_symbols():
    length = symbol("L")
    op = ConvTranspose((length * 2 + 1,), (2,), (length % 2,), (1,))
    types = [tensor("f32", "N", "L", 2), tensor("f32", 3, 2, 3)]
    check_symbolic(op, types, {"N": 2, "L": 5}, ConvTranspose((11,), (2,), (1,), (1,)))


@pytest.mark.parametrize(
    ("op", "w"),
    [
        (ConvTranspose((9, 9), (2,), (0,), (1,)), tensor("f32", 3, 4, 2)),
        (ConvTranspose((9,), (2,), (0,), (1,)), tensor("f32", 3, 2, 4)),
        (ConvTranspose((-1,), (2,), (0,), (1,)), tensor("f32", 3, 4, 2)),
        (ConvTranspose((9,), (0,), (0,), (1,)), tensor("f32", 3, 4, 2)),
        (ConvTranspose((9,), (2,), (0,), (1,), 0), tensor("f32", 3, 4, 2)),
    ],
)
def test_transposed_refuses(op, w):
    with pytest.raises(ShapeError):
        infer(op, tensor("f32", 1, 4, 4), w)


def test_windows_put_back():
    """Every element comes back as often as a window holds it."""
    x = np.arange(12.0).reshape(1, 3, 4, 1)
    windows = np.stack([x[:, i : i + 2, j : j + 3] for i in range(2) for j in range(2)], -2)
    op = Fold((3, 4), (2, 2), (1, 1), (0, 0), (1, 1))
    (y,) = run(op, windows)
    held = np.outer([1, 2, 1], [1, 2, 2, 1])[None, ..., None]
    np.testing.assert_array_equal(y, x * held)
    with pytest.raises(ShapeError):
        infer(op, tensor("f32", 1, 2, 3, 5, 1))


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_same_padding(size, window, stride, lower):
    length = symbol("L")
    symbolic = same_padding(length, window, stride, lower=lower)
    before, after = same_padding(size, window, stride, lower=lower)
    assert max(evaluate(symbolic[1], {"L": size}), 0) == after
    assert evaluate(symbolic[0], {"L": size}) == before
    op = Conv((stride,), (symbolic,), (1,))
    (found,) = infer(op, tensor("f32", 1, "L", 1), tensor("f32", window, 1, 1))
    assert found.shape[1] == ceildiv(length, stride)
