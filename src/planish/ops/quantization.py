"""What quantized models compute with: conversions between floats and levels, integer products.

Each op rounds where its framework does. Written as separate multiplications and additions they
would be at the mercy of rewrites that are harmless elsewhere (``x / c`` as ``x * (1 / c)``): an
error in the last bit is a whole level when it meets a rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.graph.graph import Value
from planish.graph.types import DType, TensorType
from planish.ops.base import Op, broadcast_shapes, require
from planish.ops.conv import Conv, Padding
from planish.ops.elementwise import Elementwise
from planish.ops.matmul import MatMul
from planish.ops.operands import expect_count

_BYTES = (DType.INT8, DType.UINT8)

# ---- elementwise -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExactDiv(Elementwise):
    """``a / b`` of floats, correctly rounded: no pass turns it into a multiplication."""

    arity: ClassVar[int] = 2
    accepts: ClassVar[str] = "float"

    def compute(self, *inputs: np.ndarray) -> np.ndarray:
        a, b = inputs
        return a / b


@dataclass(frozen=True)
class Quantize(Elementwise):
    """``clip(round(x / scale) + zero, low, high)`` as integers; halves are rounded to even.

    Inputs: x, scale and zero point, all float32. NaN becomes 0.
    """

    to: DType
    low: int
    high: int
    arity: ClassVar[int] = 3

    def _operand_dtype(self, inputs: Sequence[Value]) -> DType:
        _expect_float32(self, inputs)
        limits = np.iinfo(self.to.numpy) if self.to.is_integer else None
        require(
            limits is not None and limits.min <= self.low <= self.high <= limits.max,
            f"{self.name} cannot give {self.to.value} from {self.low} to {self.high}",
        )
        return self.to

    def _result_dtype(self, inputs: Sequence[np.ndarray]) -> DType:
        return self.to

    def compute(self, *inputs: np.ndarray) -> np.ndarray:
        x, scale, zero = inputs
        level = np.clip(np.rint(x / scale) + zero, np.float32(self.low), np.float32(self.high))
        return np.nan_to_num(level, nan=0.0)


@dataclass(frozen=True)
class Dequantize(Elementwise):
    """``(x - zero) * scale`` in float32, of integers x and float32 scale and zero point."""

    arity: ClassVar[int] = 3

    def _operand_dtype(self, inputs: Sequence[Value]) -> DType:
        _expect_float32(self, inputs[1:])
        x = inputs[0].dtype
        require(x.is_integer, f"{self.name} needs integers, not {x.value}")
        return DType.FLOAT32

    def _result_dtype(self, inputs: Sequence[np.ndarray]) -> DType:
        return DType.FLOAT32

    def compute(self, *inputs: np.ndarray) -> np.ndarray:
        x, scale, zero = inputs
        return (x.astype(np.float32) - zero) * scale


@dataclass(frozen=True)
class SnapToLevels(Elementwise):
    """``round(x * scale) * inverse``: the nearest level, as a float (inputs x, scale, inverse).

    Halves are rounded to even, or with `half_up` up.
    """

    half_up: bool = False
    arity: ClassVar[int] = 3
    accepts: ClassVar[str] = "float"

    def compute(self, *inputs: np.ndarray) -> np.ndarray:
        x, scale, inverse = inputs
        scaled = x * scale
        level = np.floor(scaled + x.dtype.type(0.5)) if self.half_up else np.rint(scaled)
        return level * inverse


@dataclass(frozen=True)
class FakeQuant(Elementwise):
    """TensorFlow's simulated quantization to levels of which one is exactly 0.

    Inputs, all float32: x, the least and the greatest value, the distance of levels, its inverse,
    and the level of 0 above the least. With `divide` values are divided by the distance, else
    multiplied by the inverse.
    """

    divide: bool = False
    arity: ClassVar[int] = 6

    def _operand_dtype(self, inputs: Sequence[Value]) -> DType:
        _expect_float32(self, inputs)
        return DType.FLOAT32

    def compute(self, *inputs: np.ndarray) -> np.ndarray:
        x, least, greatest, scale, inverse, zero = inputs
        shifted = np.maximum(np.minimum(x, greatest), least) - least
        level = shifted / scale if self.divide else shifted * inverse
        return np.floor(level - zero + np.float32(0.5)) * scale


def _expect_float32(op: Op, inputs: Sequence[Value]) -> None:
    given = ", ".join(v.dtype.value for v in inputs)
    require(all(v.dtype is DType.FLOAT32 for v in inputs), f"{op.name} needs float32, not {given}")


# ---- products of 8-bit integers ----------------------------------------------------------------


@dataclass(frozen=True)
class MatMulInteger(Op):
    """Product of matrices of int8 or uint8: ``(a - a_zero) @ (b - b_zero)`` as int32.

    Sums wrap around.

    Inputs: a ``[..., M, K]``, b ``[..., K, N]`` (with `transpose_b` ``[..., N, K]``), and their
    zero points: a scalar or ``[..., M, 1]`` of a's dtype, a scalar or ``[..., N]`` of b's.
    """

    transpose_a: bool = False
    transpose_b: bool = False

    def infer(self, *inputs: Value) -> list[TensorType]:
        a, b, a_zero, b_zero = _integers(self, inputs)
        product = MatMul(self.transpose_a, self.transpose_b)
        (result,) = product.infer(_as_int32(a), _as_int32(b))
        *batch, rows, columns = result.shape
        for zero, most in ((a_zero, (*batch, rows, 1)), (b_zero, (*batch, 1, columns))):
            require(
                broadcast_shapes(zero.shape, most) == tuple(most),
                f"{self.name} of {a.type} and {b.type} has a zero point of shape {zero.shape}",
            )
        return [result]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        a, b, a_zero, b_zero = (x.astype(np.int32) for x in inputs)
        left = np.swapaxes(a, -1, -2) if self.transpose_a else a
        right = np.swapaxes(b, -1, -2) if self.transpose_b else b
        return MatMul().reference(left - a_zero, right - b_zero)


@dataclass(frozen=True)
class ConvInteger(Op):
    """Convolution of int8 or uint8 as int32; see `Conv` for layouts and attributes.

    Inputs: activations, filters, and their zero points: a scalar, and a scalar or ``[K]``. What is
    padded counts as the zero point.
    """

    strides: tuple[int, ...]
    padding: Padding
    dilations: tuple[int, ...]
    groups: int = 1

    @property
    def convolution(self) -> Conv:
        """The same convolution of integers that need no zero point."""
        return Conv(self.strides, self.padding, self.dilations, self.groups)

    def infer(self, *inputs: Value) -> list[TensorType]:
        x, w, x_zero, w_zero = _integers(self, inputs)
        result = self.convolution.infer(_as_int32(x), _as_int32(w))
        require(
            x_zero.shape == () and w_zero.shape in ((), w.shape[-1:]),
            f"{self.name} of filters {w.type} has zero points of shapes {x_zero.shape} and "
            f"{w_zero.shape}",
        )
        return result

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        x, w, x_zero, w_zero = (v.astype(np.int32) for v in inputs)
        return self.convolution.reference(x - x_zero, w - w_zero)


def _integers(op: Op, inputs: Sequence[Value]) -> Sequence[Value]:
    expect_count(op, inputs, 4)
    for value, zero in zip(inputs[:2], inputs[2:], strict=True):
        require(
            value.dtype in _BYTES,
            f"{op.name} needs int8 or uint8, not {value.dtype.value}",
        )
        require(
            zero.dtype is value.dtype,
            f"{op.name} of {value.dtype.value} has a zero point of {zero.dtype.value}",
        )
    return inputs


def _as_int32(value: Value) -> Value:
    """A value of the same shape, to ask another op's rule with."""
    return Value(value.name, TensorType(value.shape, DType.INT32))
