"""Products with a layer norm behind them, as graphs and tasks."""

from __future__ import annotations

import numpy as np

from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType, TensorType
from planish.ops import Cast, EncodeFloat8, LayerNorm, MatMulFloat8, MatMulInteger, Quantize, ew
from planish.ops.float8 import DecodeFloat8, encode
from planish.ops.matmul import MatMul

I8, F16, F32 = DType.INT8, DType.FLOAT16, DType.FLOAT32


class NormalizedNet:
    """A product, a bias, a residual, a layer norm.

    Parameters
    ----------
    rows, depth, columns : int
        `rows` may be a tuple: axes.
    dtype : DType
        Of what is normalized.
    factors : str
        "floats", "levels" or "codes": of the product. Then residual and result are bytes as well.
    residual : bool
    kept : bool
        Whether somebody else reads what is normalized.
    shift : float
        What is added to all of it: a mean that is large beside the deviation.
    axis : int
        Of the layer norm.
    by_column : bool
        Whether its scale and offset are constants of a number per column.
    """

    def __init__(
        self,
        rows: int | tuple[int, ...] = 40,
        depth: int = 24,
        columns: int = 64,
        *,
        dtype: DType = F16,
        factors: str = "floats",
        residual: bool = True,
        kept: bool = False,
        shared: bool = False,
        shift: float = 0.0,
        axis: int = -1,
        by_column: bool = True,
        constant: bool = True,
        seed: int | None = None,
    ) -> None:
        self.rng, self.graph = np.random.default_rng(seed), Graph("normalized")
        lead = (rows,) if isinstance(rows, int) else rows
        self.factors, self.is_kept = factors, kept
        y = self._product(lead, depth, columns, dtype, constant)
        if shared:
            self.graph.mark_output(self.graph.add(ew.Neg(), y), "others")
        y = self._add(ew.Add(), y, self._constant((columns,), dtype, 1.0, shift))
        if residual:
            y = self._add(ew.Add(), y, self._residual((*lead, columns), dtype))
        self.inner = y
        scale, offset = (self._constant((columns,), dtype) for _ in range(2))
        if not by_column:
            scale = self.graph.input("scale", scale.type)
        y = self._add(LayerNorm(axis, 1e-5), y, scale, offset)
        self.norm = y.producer
        if factors != "floats":
            y = self._add(Cast(F32), y)
        if factors == "levels":
            y = self._add(Quantize(I8, -128, 127), y, self._number(0.03), self._number(0))
        elif factors == "codes":
            y = self._add(EncodeFloat8(), y, self._number(2.0**-6))
        self.result = y
        self.graph.mark_output(y, "y")
        if kept:
            self.graph.mark_output(self._add(ew.Abs(), self.inner), "others")

    def _add(self, op, *values: Value) -> Value:
        return self.graph.add(op, *values)

    def _number(self, value: float) -> Value:
        return self.graph.constant(np.float32(value))

    def _constant(self, shape, dtype: DType, scale: float = 1.0, shift: float = 0.0) -> Value:
        drawn = self.rng.standard_normal(shape) * scale + shift
        return self.graph.constant(drawn.astype(dtype.numpy))

    def _product(self, lead, depth: int, columns: int, dtype: DType, constant: bool) -> Value:
        kind = dtype if self.factors == "floats" else I8
        x = self.graph.input("x", TensorType((*lead, depth), kind))
        right = depth, columns
        if self.factors == "floats":
            w = self._constant(right, dtype, depth**-0.5)
            if not constant:
                w = self.graph.input("w", w.type)
            return self._add(MatMul(), x, w)
        scales = self.rng.uniform(0.5, 1.5, columns).astype(np.float32)
        if self.factors == "codes":
            w = self.graph.constant(encode(self.rng.standard_normal(right)))
            sums = self._add(MatMulFloat8(), x, w)
            y = self._add(DecodeFloat8(), sums, self.graph.constant(scales * depth**-0.5))
            return self._add(Cast(dtype), y)
        w = self.graph.constant(self.rng.integers(-127, 128, right).astype(np.int8))
        zeros = (self.graph.constant(np.int8(0)) for _ in range(2))
        sums = self._add(Cast(F32), self._add(MatMulInteger(), x, w, *zeros))
        y = self._add(ew.Mul(), sums, self.graph.constant(scales * np.float32(2e-4 * depth**-0.5)))
        return self._add(Cast(dtype), y)

    def _residual(self, shape, dtype: DType) -> Value:
        if self.factors == "floats":
            return self.graph.input("r", TensorType(shape, dtype))
        r = self.graph.input("r", TensorType(shape, I8))
        if self.factors == "codes":
            y = self._add(DecodeFloat8(), r, self._number(2.0**-6))
        else:
            y = self._add(ew.Mul(), self._add(Cast(F32), r), self._number(0.03))
        return self._add(Cast(dtype), y)

    @property
    def product(self) -> Node:
        """The product's node."""
        kinds = MatMul | MatMulFloat8 | MatMulInteger
        return next(n for n in self.graph.nodes if isinstance(n.op, kinds))

    @property
    def task(self) -> Task:
        """The one proposed task of all of it."""
        (task,) = normalized_tasks(self.graph)
        return task

    def arrays(self, task: Task) -> list[np.ndarray]:
        """Random inputs of a task."""
        return [v.data if v.data is not None else self._drawn(v) for v in task.inputs]

    def _drawn(self, value: Value) -> np.ndarray:
        shape = value.type.bind({})
        if value.dtype is not I8:
            return self.rng.standard_normal(shape).astype(value.dtype.numpy)
        if self.factors == "codes":
            return encode(self.rng.standard_normal(shape) * (100 if value.name == "r" else 1))
        return self.rng.integers(-128, 128, shape).astype(np.int8)


def normalized_tasks(graph: Graph) -> list[Task]:
    """Products with a layer norm that are proposed."""
    return [task for task in propose(graph) if task.normalized]
