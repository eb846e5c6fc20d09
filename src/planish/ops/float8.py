"""What networks in FP8 compute with: numbers as codes of E4M3, and products of such codes.

A code is a byte: a sign, four bits of exponent, three of mantissa, 448 at most and no infinities
(Micikevicius et al., "FP8 Formats for Deep Learning", arXiv:2209.05433). In a graph codes are int8:
whatever only moves them needs to know nothing of them, and code 0 is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes
import numpy as np

from planish.graph.graph import Value
from planish.graph.types import DType, TensorType
from planish.ops.base import Op, require
from planish.ops.elementwise import Elementwise
from planish.ops.matmul import MatMul
from planish.ops.operands import expect_count

GREATEST, LEAST_NORMAL = 448.0, 2.0**-6
"""The greatest number that has a code, and the least one with all bits of a mantissa."""


def encode(numbers: np.ndarray) -> np.ndarray:
    """The codes of the nearest numbers that have one, int8; halves go to the even one.

    What is beyond `GREATEST` saturates; NaN is 127.
    """
    inside = np.clip(numbers, -GREATEST, GREATEST).astype(np.float32)
    codes = inside.astype(ml_dtypes.float8_e4m3fn).view(np.int8)
    return np.where(np.isnan(inside), np.int8(127), codes)


def decode(codes: np.ndarray) -> np.ndarray:
    """What codes stand for, float32."""
    return codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)


@dataclass(frozen=True)
class EncodeFloat8(Elementwise):
    """The codes of ``x / scale``; see `encode`. Inputs: x and scale, float32."""

    arity: ClassVar[int] = 2

    def _operand_dtype(self, inputs: Sequence[Value]) -> DType:
        require(
            all(v.dtype is DType.FLOAT32 for v in inputs),
            f"{self.name} needs float32, not {', '.join(v.dtype.value for v in inputs)}",
        )
        return DType.INT8

    def _result_dtype(self, inputs: Sequence[np.ndarray]) -> DType:
        return DType.INT8

    def compute(self, *inputs: np.ndarray) -> np.ndarray:
        x, scale = inputs
        return encode(x / scale)


@dataclass(frozen=True)
class DecodeFloat8(Elementwise):
    """What codes, or sums of products of codes, stand for by a scale, as float32.

    Inputs: codes, int8, or sums, float32; and the scale, float32. Nothing between the sums and what
    they stand for is lowered: half floats could not hold the sums.
    """

    arity: ClassVar[int] = 2

    def _operand_dtype(self, inputs: Sequence[Value]) -> DType:
        x, scale = inputs
        require(
            x.dtype in (DType.INT8, DType.FLOAT32) and scale.dtype is DType.FLOAT32,
            f"{self.name} needs int8 or float32, and float32, not {x.dtype.value} and "
            f"{scale.dtype.value}",
        )
        return DType.FLOAT32

    def _result_dtype(self, inputs: Sequence[np.ndarray]) -> DType:
        return DType.FLOAT32

    def compute(self, *inputs: np.ndarray) -> np.ndarray:
        x, scale = inputs
        return (decode(x) if x.dtype == np.int8 else x) * scale


@dataclass(frozen=True)
class MatMulFloat8(Op):
    """Product of matrices of codes, summed in float32: see `MatMul` for shapes and attributes."""

    transpose_a: bool = False
    transpose_b: bool = False

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 2)
        for value in inputs:
            require(
                value.dtype is DType.INT8, f"{self.name} needs int8 codes, not {value.dtype.value}"
            )
        given = [Value(v.name, TensorType(v.shape, DType.FLOAT32)) for v in inputs]
        return self._product.infer(*given)

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        return self._product.reference(*map(decode, inputs))

    @property
    def _product(self) -> MatMul:
        return MatMul(self.transpose_a, self.transpose_b)
