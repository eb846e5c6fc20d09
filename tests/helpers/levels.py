"""Products of bytes with what follows them in quantized networks, as tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.fusion.task import Task, make_task
from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType, TensorType
from planish.ops import (
    Cast,
    ConvInteger,
    DecodeFloat8,
    EncodeFloat8,
    Gelu,
    MatMulFloat8,
    MatMulInteger,
    Quantize,
    ew,
)
from planish.ops.float8 import encode


class Levels:
    """A chain of ops on levels, with random constants."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.graph = rng, Graph()
        self.nodes: list[Node] = []

    def input(self, shape: Sequence[int], dtype: DType = DType.INT8) -> Value:
        name = f"x{len(self.graph.inputs)}"
        return self.graph.input(name, TensorType(tuple(shape), dtype))

    def levels(self, shape: Sequence[int], dtype: DType = DType.INT8) -> Value:
        """Constants of all values."""
        info = np.iinfo(dtype.numpy)
        data = self.rng.integers(info.min, info.max, tuple(shape), dtype.numpy, endpoint=True)
        return self.graph.constant(data)

    def floats(self, shape: Sequence[int], scale: float = 1.0) -> Value:
        return self.graph.constant(
            (self.rng.standard_normal(tuple(shape)) * scale).astype(np.float32)
        )

    def halves(self, shape: Sequence[int], dtype: DType) -> Value:
        return self.graph.constant(self.rng.standard_normal(tuple(shape)).astype(dtype.numpy))

    def zero(self, number: int, dtype: DType) -> Value:
        return self.graph.constant(np.asarray(number, dtype.numpy))

    def zeros(self) -> tuple[Value, Value]:
        """The zero points of two factors that need none."""
        return self.zero(0, DType.INT8), self.zero(0, DType.INT8)

    def add(self, op, *values: Value) -> Value:
        value = self.graph.add(op, *values)
        assert value.producer is not None
        self.nodes.append(value.producer)
        return value

    def quantized(self, x: Value, dtype: DType = DType.INT8, scale: float = 0.02) -> Value:
        """A float tensor as levels."""
        info = np.iinfo(dtype.numpy)
        numbers = (np.float32(scale), np.float32(128 * (dtype is DType.UINT8)))
        return self.add(
            Quantize(dtype, int(info.min), int(info.max)), x, *map(self.graph.constant, numbers)
        )

    def requantized(self, sums: Value, depth: int, residual: bool, to: DType | None) -> Value:
        """Sums scaled to levels as `fold_scales` writes it; to None: to floats."""
        channels = sums.shape[-1]
        y = self.add(ew.Mul(), self.add(Cast(DType.FLOAT32), sums), self._scales(channels, depth))
        y = self.add(ew.Add(), y, self.floats((channels,), 20))
        if residual:
            wide = self.add(Cast(DType.FLOAT32), self.input(sums.shape))
            y = self.add(ew.Add(), y, self.add(ew.Mul(), wide, self.floats((channels,))))
        if to is None:
            return y
        low, high = (-100, 127) if to is DType.INT8 else (3, 255)
        numbers = (np.float32(1), np.float32(0))
        return self.add(Quantize(to, low, high), y, *map(self.graph.constant, numbers))

    def _scales(self, channels: int, depth: int) -> Value:
        scales = self.rng.uniform(0.5, 1.5, channels) / (60 * depth**0.5)
        return self.graph.constant(scales.astype(np.float32))

    def task(self, *outputs: Value) -> Task:
        for i, output in enumerate(outputs):
            self.graph.mark_output(output, f"y{i}")
        of_bytes = ConvInteger | MatMulFloat8 | MatMulInteger
        anchor = next(n for n in self.nodes if isinstance(n.op, of_bytes))
        return make_task(self.nodes, anchor)


def conv_of_levels(
    rng: np.random.Generator,
    shape: Sequence[int],
    filters: int,
    window: Sequence[int] = (1, 1),
    stride: int = 1,
    padding: Sequence[tuple[int, int]] | None = None,
    dilation: int = 1,
    groups: int = 1,
    dtype: DType = DType.INT8,
    zero: int = 0,
    weights: DType = DType.INT8,
    weight_zero: int | None = 0,
    residual: bool = False,
    to: DType | None = DType.INT8,
    quantize: bool = False,
) -> Task:
    """A convolution of levels, requantized; `weight_zero` None: random ones, by channel."""
    b = Levels(rng)
    x = b.input(shape, DType.FLOAT32 if quantize else dtype)
    if quantize:
        x = b.quantized(x, dtype)
    spatial = len(window)
    w = b.levels((*window, shape[-1] // groups, filters), weights)
    depth = int(np.prod(window)) * shape[-1] // groups
    op = ConvInteger(
        (stride,) * spatial, tuple(padding or ((0, 0),) * spatial), (dilation,) * spatial, groups
    )
    zeros = b.zero(zero, dtype), _weight_zero(b, weight_zero, filters, weights)
    return b.task(b.requantized(b.add(op, x, w, *zeros), depth, residual, to))


def product_of_levels(
    rng: np.random.Generator,
    left: Sequence[int],
    right: Sequence[int],
    op: MatMulInteger | None = None,
    dtype: DType = DType.INT8,
    zero: int = 0,
    weight_zero: int | None = 0,
    residual: bool = False,
    to: DType | None = DType.INT8,
    constant: bool = True,
) -> Task:
    """A matrix product of levels, requantized."""
    b = Levels(rng)
    op = op or MatMulInteger()
    x = b.input(left, dtype)
    w = b.levels(right) if constant else b.input(right)
    columns = right[-2 if op.transpose_b else -1]
    zeros = b.zero(zero, dtype), _weight_zero(b, weight_zero, columns, DType.INT8)
    return b.task(b.requantized(b.add(op, x, w, *zeros), left[-1], residual, to))


def _weight_zero(b: Levels, zero: int | None, columns: int, dtype: DType) -> Value:
    if zero is not None:
        return b.zero(zero, dtype)
    return b.graph.constant(b.rng.integers(-3, 4, columns).astype(dtype.numpy))


def product_of_codes(
    rng: np.random.Generator,
    left: Sequence[int],
    right: Sequence[int],
    to: DType = DType.INT8,
    residual: bool = False,
    gelu: bool = False,
    quantize: bool = False,
    transpose_b: bool = False,
    constant: bool = True,
) -> Task:
    """A product of codes of FP8 with a bias, as codes or floats; `quantize`: of floats."""
    b = Levels(rng)
    x = b.input(left, DType.FLOAT32 if quantize else DType.INT8)
    half = b.graph.constant(np.float32(0.5))
    if quantize:
        x = b.add(EncodeFloat8(), x, half)
    w = b.graph.constant(encode(rng.standard_normal(tuple(right)))) if constant else b.input(right)
    sums = b.add(MatMulFloat8(False, transpose_b), x, w)
    channels = sums.shape[-1]
    scales = rng.uniform(0.5, 1.5, channels) / left[-1] ** 0.5
    y = b.add(DecodeFloat8(), sums, b.graph.constant(scales.astype(np.float32)))
    y = b.add(ew.Add(), y, b.floats((channels,), 0.5))
    if residual:
        y = b.add(ew.Add(), y, b.input(sums.shape, DType.FLOAT32))
    if gelu:
        y = b.add(Gelu(), y)
    if to is DType.INT8:
        y = b.add(EncodeFloat8(), y, half)
    elif to is not DType.FLOAT32:
        y = b.add(Cast(to), y)
    return b.task(y)
