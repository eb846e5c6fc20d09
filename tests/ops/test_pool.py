"""Pooling against ONNX Runtime and TensorFlow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.one_op import check, check_symbolic, infer, run, tensor
from helpers.onnx_op import onnx_op
from planish.errors import ShapeError
from planish.graph.dims import symbol
from planish.ops import AvgPool, MaxPool, MaxPoolIndices

CASES = [
    # spatial, window, strides, padding, dilations
    ((9,), (3,), (2,), ((1, 0),), (1,)),
    ((8, 7), (2, 3), (2, 1), ((0, 1), (1, 2)), (1, 1)),
    ((10, 9), (3, 2), (1, 2), ((1, 1), (0, 0)), (2, 3)),
    ((5, 6, 4), (2, 2, 3), (1, 2, 1), ((1, 0), (0, 1), (1, 1)), (1, 1, 1)),
]


def _channels_last(x):
    return np.moveaxis(x, 1, -1)


def _pads(padding):
    return [*(p[0] for p in padding), *(p[1] for p in padding)]


@pytest.mark.parametrize(("spatial", "window", "strides", "padding", "dilations"), CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.uint8])
def test_max_like_onnx(spatial, window, strides, padding, dilations, dtype):
    x = (np.random.default_rng(0).normal(size=(2, 3, *spatial)) * 50).astype(dtype)
    (expected,) = onnx_op(
        "MaxPool",
        [x],
        kernel_shape=window,
        strides=strides,
        pads=_pads(padding),
        dilations=dilations,
    )
    op = MaxPool(window, strides, padding, dilations)
    check(op, [_channels_last(x)], _channels_last(expected))


@pytest.mark.parametrize(("spatial", "window", "strides", "padding", "dilations"), CASES)
@pytest.mark.parametrize("count_include_pad", [False, True])
def test_average_like_onnx(spatial, window, strides, padding, dilations, count_include_pad):
    x = np.random.default_rng(0).normal(size=(2, 3, *spatial)).astype(np.float32)
    (expected,) = onnx_op(
        "AveragePool",
        [x],
        kernel_shape=window,
        strides=strides,
        pads=_pads(padding),
        count_include_pad=int(count_include_pad),
    )
    op = AvgPool(window, strides, padding, count_include_pad)
    check(op, [_channels_last(x)], _channels_last(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_same_like_tensorflow(dtype):
    tf = pytest.importorskip("tensorflow")
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype(dtype)
    padding = ((1, 1), (0, 1))  # SAME for a 3 x 3 window and stride 2
    expected = tf.nn.max_pool2d(x.astype(np.float32), 3, 2, "SAME").numpy().astype(dtype)
    check(MaxPool((3, 3), (2, 2), padding, (1, 1)), [x], expected)
    expected = tf.nn.avg_pool2d(x.astype(np.float32), 3, 2, "SAME").numpy().astype(dtype)
    tolerance = 1e-6 if dtype is np.float32 else 1e-3
    check(AvgPool((3, 3), (2, 2), padding), [x], expected, rtol=tolerance, atol=tolerance)


def test_window_of_padding_only():
    x = np.ones((1, 2, 1), np.float32)
    (largest,) = run(MaxPool((1,), (1,), ((1, 0),), (1,)), x)
    (mean,) = run(AvgPool((1,), (1,), ((1, 0),)), x)
    assert largest.ravel().tolist() == [-np.inf, 1, 1]
    assert mean.ravel().tolist() == [0, 1, 1]


@settings(max_examples=50)
@given(
    st.integers(1, 3),
    st.integers(9, 14),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_symbols(batch, size, window, stride, dilation, margin):
    op = MaxPool((window, 1), (stride, 1), (margin, (0, 0)), (dilation, 1))
    type = tensor("f32", "N", "H", "W", 2)
    bindings = {"N": batch, "H": size, "W": 3}
    check_symbolic(op, [type], bindings)
    run(op, np.zeros(type.bind(bindings), np.float32))


def test_window_larger_than_input_gives_nothing():
    (output,) = run(MaxPool((5,), (1,), ((0, 0),), (1,)), np.ones((2, 3, 1), np.float32))
    assert output.shape == (2, 0, 1)


@pytest.mark.parametrize(
    "op",
    [
        MaxPool((2,), (1,), ((0, 0),), (1,)),
        MaxPool((2, 2), (1,), ((0, 0), (0, 0)), (1, 1)),
        MaxPool((2, 0), (1, 1), ((0, 0), (0, 0)), (1, 1)),
        AvgPool((2, 2), (1, 0), ((0, 0), (0, 0))),
        AvgPool((2, 2), (1, 1), ((0, -1), (0, 0))),
    ],
)
def test_refuses(op):
    with pytest.raises(ShapeError):
        infer(op, tensor("f32", 1, 4, 4, 2))


def test_average_refuses_integers():
    with pytest.raises(ShapeError, match="floating-point"):
        infer(AvgPool((2,), (1,), ((0, 0),)), tensor("i32", 1, 4, 2))


@pytest.mark.parametrize(("spatial", "window", "strides", "padding", "dilations"), CASES)
def test_indices(spatial, window, strides, padding, dilations):
    x = np.random.default_rng(0).standard_normal((2, *spatial, 3)).astype(np.float32)
    values, places = run(MaxPoolIndices(window, strides, padding, dilations), x)
    (largest,) = run(MaxPool(window, strides, padding, dilations), x)
    np.testing.assert_array_equal(values, largest)
    taken = np.take_along_axis(x.reshape(2, -1, 3), places.reshape(2, -1, 3), 1)
    np.testing.assert_array_equal(taken.reshape(values.shape), values)


def test_dilated_mean():
    x = np.arange(8, dtype=np.float32).reshape(1, 8, 1)
    (y,) = run(AvgPool((2,), (1,), ((1, 1),), False, (3,)), x)
    np.testing.assert_array_equal(y.ravel(), [2, 1.5, 2.5, 3.5, 4.5, 5.5, 5])


def test_symbolic_padding():
    length = symbol("L")
    types = [tensor("f32", 1, "L", 2)]
    for op in (
        MaxPool((3,), (2,), ((0, length % 2),), (1,)),
        AvgPool((3,), (2,), ((0, length % 2),)),
    ):
        bound = type(op)(**{**op.attributes(), "padding": ((0, 1),)})
        check_symbolic(op, types, {"L": 7}, bound)
