"""The least value that a tensor's elements can have, as far as its ops tell (not its inputs)."""

from __future__ import annotations

import math

from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.elementwise import Clip, HardSigmoid, ew
from planish.ops.normalization import Softmax
from planish.ops.pool import AvgPool, MaxPool
from planish.ops.reduce import ReduceMax, ReduceMean, ReduceMin
from planish.ops.shape import BroadcastTo, Concat, Identity, Pad, Reshape, Slice, Tile, Transpose

NOT_NEGATIVE = (
    ew.Relu,
    ew.Square,
    ew.Abs,
    ew.Sigmoid,
    ew.Exp,
    ew.Softplus,
    ew.Sqrt,
    ew.SquaredDifference,
    HardSigmoid,
    Softmax,
)
"""Ops whose results are never negative."""

SELECTING = (
    BroadcastTo,
    Concat,
    Identity,
    MaxPool,
    ReduceMax,
    ReduceMean,
    ReduceMin,
    Reshape,
    Slice,
    Tile,
    Transpose,
    ew.Minimum,
)
"""Ops whose results are not less than the least of their inputs."""

OVERFLOWING = (ew.Square, ew.Abs, ew.SquaredDifference)
"""Ops whose integer results may wrap around to negative ones."""

DEPTH = 16
"""How many ops the analysis looks back."""


def least(value: Value, depth: int = DEPTH) -> float:
    """A lower bound of the elements, or minus infinity. NaN is not considered."""
    op, node = value.op, value.producer
    if value.data is not None:
        known = value.data.size and value.dtype is not DType.BOOL
        return float(value.data.min()) if known else -math.inf
    if node is None or depth == 0:
        return 0.0 if value.dtype.name.startswith("UINT") else -math.inf
    if isinstance(op, OVERFLOWING) and not value.dtype.is_float:
        return -math.inf
    if isinstance(op, NOT_NEGATIVE):
        return 0.0
    if isinstance(op, Clip):
        return min(op.low, op.high)
    below = [least(v, depth - 1) for v in node.inputs]
    if isinstance(op, SELECTING):
        return min(below)
    if isinstance(op, ew.Maximum):
        return max(below)
    if isinstance(op, Pad):
        return min(below[0], op.value if op.mode == "constant" else math.inf)
    if isinstance(op, AvgPool):
        return min(below[0], 0.0) if op.count_include_pad else below[0]
    if isinstance(op, ew.Add) and value.dtype.is_float:
        return sum(below)
    return -math.inf
