"""Normalizations: by given or computed statistics, softmax, local response."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.graph.graph import Value
from planish.graph.types import DType, TensorType
from planish.ops.base import Op, broadcast_shapes, normalize_axis, require
from planish.ops.operands import expect_count, expect_float, widen


@dataclass(frozen=True)
class BatchNorm(Op):
    """``(x - mean) / sqrt(variance + epsilon) * scale + offset`` along the last axis.

    Inputs: x ``[..., C]``; scale, offset, mean, variance ``[C]``, each of x's dtype or float32.
    """

    epsilon: float

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 5)
        x, *parameters = inputs
        expect_float(self, x)
        require(x.type.rank >= 1, "batch_norm needs a channel axis")
        for value in parameters:
            _expect_parameter(self, x, value, (x.shape[-1],))
        return [x.type]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        x, scale, offset, mean, variance = (widen(a) for a in inputs)
        factor = scale / np.sqrt(variance + variance.dtype.type(self.epsilon))
        return [((x - mean) * factor + offset).astype(inputs[0].dtype, copy=False)]


@dataclass(frozen=True)
class LayerNorm(Op):
    """Normalizes to mean 0 and variance 1 over the axes from `axis` to the end.

    Inputs: x, and scale and offset, which broadcast to x and are of its dtype or float32. Ba,
    Kiros & Hinton, "Layer Normalization", arXiv:1607.06450.
    """

    axis: int
    epsilon: float

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 3)
        x, *parameters = inputs
        expect_float(self, x)
        normalize_axis(self.axis, x.type.rank)
        for value in parameters:
            _expect_parameter(self, x, value, None)
            require(
                broadcast_shapes(x.shape, value.shape) == x.shape,
                f"layer_norm of {x.type} has a parameter {value.type}, which does not broadcast",
            )
        return [x.type]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        x, scale, offset = (widen(a) for a in inputs)
        axes = tuple(range(normalize_axis(self.axis, x.ndim), x.ndim))
        output = _standardized(x, axes, self.epsilon) * scale + offset
        return [output.astype(inputs[0].dtype, copy=False)]


@dataclass(frozen=True)
class InstanceNorm(Op):
    """Normalizes each channel of each instance to mean 0 and variance 1.

    Inputs: x ``[N, *spatial, C]``; scale and offset ``[C]`` of x's dtype or float32. Ulyanov,
    Vedaldi & Lempitsky, "Instance Normalization", arXiv:1607.08022.
    """

    epsilon: float

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 3)
        x, *parameters = inputs
        expect_float(self, x)
        require(x.type.rank >= 3, f"instance_norm needs [N, *spatial, C], not {x.type}")
        for value in parameters:
            _expect_parameter(self, x, value, (x.shape[-1],))
        return [x.type]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        x, scale, offset = (widen(a) for a in inputs)
        output = _standardized(x, tuple(range(1, x.ndim - 1)), self.epsilon) * scale + offset
        return [output.astype(inputs[0].dtype, copy=False)]


@dataclass(frozen=True)
class Softmax(Op):
    """``exp(x) / sum(exp(x))`` along an axis."""

    axis: int

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        expect_float(self, *inputs)
        normalize_axis(self.axis, inputs[0].type.rank)
        return [inputs[0].type]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        e = np.exp(_below_zero(widen(inputs[0]), self.axis))
        output = e / np.sum(e, self.axis, keepdims=True)
        return [output.astype(inputs[0].dtype, copy=False)]


@dataclass(frozen=True)
class QuantizedSoftmax(Softmax):
    """Softmax whose weights are integers before they are divided by their sum.

    ``w / sum(w)`` with ``w = round(exp(x - max(x)) * levels)`` along an axis: so it can multiply
    integers, and a row's greatest weight has all the levels, however flat the row.
    """

    levels: int

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        w = np.rint(np.exp(_below_zero(widen(inputs[0]), self.axis)) * self.levels)
        output = w / np.sum(w, self.axis, keepdims=True)
        return [output.astype(inputs[0].dtype, copy=False)]


@dataclass(frozen=True)
class LogSoftmax(Op):
    """``x - log(sum(exp(x)))`` along an axis."""

    axis: int

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        expect_float(self, *inputs)
        normalize_axis(self.axis, inputs[0].type.rank)
        return [inputs[0].type]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        x = _below_zero(widen(inputs[0]), self.axis)
        output = x - np.log(np.sum(np.exp(x), self.axis, keepdims=True))
        return [output.astype(inputs[0].dtype, copy=False)]


MOST_RADIUS = 512
"""Channels on either side that may be summed: kernels are written out for all of them."""


@dataclass(frozen=True)
class Lrn(Op):
    """Local response normalization over the last axis, by TensorFlow's formula.

    ``x / (bias + alpha * sum(x²)) ** beta``, where the sum runs over the `radius` channels on
    either side. (ONNX divides its alpha by the window's size.) Krizhevsky, Sutskever & Hinton,
    "ImageNet Classification with Deep Convolutional Neural Networks", section 3.3.
    """

    radius: int
    bias: float
    alpha: float
    beta: float

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        expect_float(self, *inputs)
        require(inputs[0].type.rank >= 1, "lrn needs a channel axis")
        require(0 <= self.radius <= MOST_RADIUS, f"lrn cannot have the radius {self.radius}")
        return [inputs[0].type]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        x = widen(inputs[0])
        kind = x.dtype.type
        margin = [(0, 0)] * (x.ndim - 1) + [(self.radius, self.radius)]
        squares = np.pad(np.square(x), margin)
        total = np.zeros_like(x)
        for shift in range(2 * self.radius + 1):
            total += squares[..., shift : shift + x.shape[-1]]
        output = x / np.power(kind(self.bias) + kind(self.alpha) * total, kind(self.beta))
        return [output.astype(inputs[0].dtype, copy=False)]


def _expect_parameter(op: Op, x: Value, value: Value, shape: tuple | None) -> None:
    require(
        value.dtype in (x.dtype, DType.FLOAT32),
        f"{op.name} of {x.dtype.value} has a parameter of {value.dtype.value}",
        cure="cast the parameter",
    )
    require(
        shape is None or value.shape == shape, f"{op.name} of {x.type} has a parameter {value.type}"
    )


def _standardized(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    centered = x - np.mean(x, axes, keepdims=True)
    variance = np.mean(np.square(centered), axes, keepdims=True)
    return centered / np.sqrt(variance + x.dtype.type(epsilon))


def _below_zero(x: np.ndarray, axis: int) -> np.ndarray:
    """`x` shifted so that its largest element along the axis is 0: no exponential overflows."""
    return x - np.max(x, axis, keepdims=True, initial=-np.inf)
