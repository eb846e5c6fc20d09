"""Normalizations against TensorFlow and ONNX Runtime."""

import numpy as np
import pytest

from helpers.one_op import check, check_symbolic, infer, run, tensor
from helpers.onnx_op import onnx_op
from planish.errors import ShapeError
from planish.ops import (
    BatchNorm,
    InstanceNorm,
    LayerNorm,
    LogSoftmax,
    Lrn,
    QuantizedSoftmax,
    Softmax,
)

tf = pytest.importorskip("tensorflow")
RNG = np.random.default_rng(0)
X = RNG.normal(2, 3, size=(2, 5, 4, 6)).astype(np.float32)
SCALE, OFFSET, MEAN = (RNG.normal(size=6).astype(np.float32) for _ in range(3))
VARIANCE = RNG.random(6).astype(np.float32)
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def test_batch_norm_like_tensorflow():
    parameters = [SCALE, OFFSET, MEAN, VARIANCE]
    expected = tf.raw_ops.FusedBatchNormV3(
        x=X,
        scale=SCALE,
        offset=OFFSET,
        mean=MEAN,
        variance=VARIANCE,
        epsilon=1e-3,
        is_training=False,
    ).y.numpy()
    check(BatchNorm(1e-3), [X, *parameters], expected, **CLOSE)
    half = X.astype(np.float16)
    (output,) = run(BatchNorm(1e-3), half, *parameters)
    np.testing.assert_allclose(output.astype(np.float32), expected, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("axis", [1, 3, -1])
def test_layer_norm_like_onnx(axis):
    shape = X.shape[axis:]
    scale, offset = (RNG.normal(size=shape).astype(np.float32) for _ in range(2))
    expected = onnx_op("LayerNormalization", [X, scale, offset], axis=axis, epsilon=1e-3)
    check(LayerNorm(axis, 1e-3), [X, scale, offset], expected, **CLOSE)


def test_instance_norm_like_onnx():
    expected = onnx_op(
        "InstanceNormalization", [np.moveaxis(X, -1, 1), SCALE, OFFSET], epsilon=1e-3
    )
    expected = np.moveaxis(expected[0], 1, -1)
    check(InstanceNorm(1e-3), [X, SCALE, OFFSET], expected, **CLOSE)


@pytest.mark.parametrize("axis", [0, -1])
def test_weights_of_a_quantized_softmax_are_whole_parts_of_the_greatest(axis):
    large = X * 100  # must not overflow
    for x in (X, large):
        (found,) = run(QuantizedSoftmax(axis, 255), x)
        np.testing.assert_allclose(found.sum(axis), 1, rtol=1e-5)
        parts = found / found.max(axis, keepdims=True) * 255
        np.testing.assert_allclose(parts, np.rint(parts), atol=1e-3)
        exact = tf.nn.softmax(x, axis).numpy()
        np.testing.assert_allclose(parts, exact / exact.max(axis, keepdims=True) * 255, atol=0.51)


@pytest.mark.parametrize("axis", [0, 2, -1])
@pytest.mark.parametrize(
    ("kind", "theirs"), [(Softmax, tf.nn.softmax), (LogSoftmax, tf.nn.log_softmax)]
)
def test_softmax_like_tensorflow(kind, theirs, axis):
    large = X * 100  # must not overflow
    check(kind(axis), [large], theirs(large, axis).numpy(), rtol=1e-5, atol=1e-5)
    half = X.astype(np.float16)
    expected = theirs(X, axis).numpy().astype(np.float16)
    check(kind(axis), [half], expected, rtol=2e-3, atol=1e-2)


@pytest.mark.parametrize("radius", [0, 1, 2, 9])
def test_lrn_like_tensorflow(radius):
    attributes = {"bias": 1.5, "alpha": 0.7, "beta": 0.6}
    expected = tf.nn.local_response_normalization(X, radius, **attributes).numpy()
    check(Lrn(radius, **attributes), [X], expected, rtol=1e-4, atol=1e-6)


def test_symbols():
    bindings = {"N": 3, "H": 4, "C": 5}
    x, channel = tensor("f16", "N", "H", "C"), tensor("f32", "C")
    check_symbolic(BatchNorm(0.1), [x, *[channel] * 4], bindings)
    check_symbolic(LayerNorm(-1, 0.1), [x, channel, channel], bindings)
    check_symbolic(InstanceNorm(0.1), [x, channel, channel], bindings)
    for op in (Softmax(-1), LogSoftmax(0), Lrn(1, 1.0, 1.0, 0.5)):
        check_symbolic(op, [x], bindings)


def test_empty():
    nothing = np.zeros((0, 3), np.float32)
    check(Softmax(0), [nothing], nothing)
    check(LogSoftmax(1), [nothing], nothing)


@pytest.mark.parametrize(
    ("op", "types"),
    [
        (BatchNorm(0.1), [tensor("f32", 2, 3), *[tensor("f32", 2)] * 4]),
        (BatchNorm(0.1), [tensor("f32", 2, 3), *[tensor("f16", 3)] * 4]),
        (BatchNorm(0.1), [tensor("i32", 2, 3), *[tensor("f32", 3)] * 4]),
        (BatchNorm(0.1), [tensor("f32", 2, 3)]),
        (LayerNorm(2, 0.1), [tensor("f32", 2, 3), tensor("f32", 3), tensor("f32", 3)]),
        (LayerNorm(1, 0.1), [tensor("f32", 1, 3), tensor("f32", 2, 3), tensor("f32", 3)]),
        (InstanceNorm(0.1), [tensor("f32", 2, 3), tensor("f32", 3), tensor("f32", 3)]),
        (Softmax(1), [tensor("f32", 2)]),
        (LogSoftmax(0), [tensor("i32", 2)]),
        (Lrn(-1, 1.0, 1.0, 0.5), [tensor("f32", 2)]),
        (Lrn(32768, 1.0, 1.0, 0.5), [tensor("f32", 2)]),
    ],
)
def test_refuses(op, types):
    with pytest.raises(ShapeError):
        infer(op, *types)
