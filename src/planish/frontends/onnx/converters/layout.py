"""What converters share: layouts, reshapes, and indices as tensors.

ONNX's images are channels-first and ours channels-last; the passes cancel the transposes that stand
back to back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.frontends.onnx.context import KNOWN_LIMIT, Conversion
from planish.graph import DimLike, DType, Value
from planish.ops import BroadcastTo, CumSum, Reshape, Transpose


def channels_last(c: Conversion, x: Value) -> Value:
    """``[N, C, *spatial]`` as ``[N, *spatial, C]``."""
    rank = x.type.rank
    return x if rank < 3 else c.aux(Transpose((0, *range(2, rank), 1)), x)


def channels_first(c: Conversion, x: Value) -> Value:
    """``[N, *spatial, C]`` as ``[N, C, *spatial]``."""
    rank = x.type.rank
    return x if rank < 3 else c.aux(Transpose((0, rank - 1, *range(1, rank - 1))), x)


def require_image(c: Conversion, x: Value) -> int:
    """How many spatial dimensions ``[N, C, *spatial]`` has.

    Raises
    ------
    ShapeError
        It has none.
    """
    if x.type.rank < 3:
        raise c.shape_error(f"{c.node.op_type} needs an input [N, C, *spatial], not {x.type}")
    return x.type.rank - 2


def reshaped(c: Conversion, x: Value, shape: Sequence[DimLike]) -> Value:
    """The value under another shape; itself if it has it already."""
    return x if tuple(shape) == x.shape else c.aux(Reshape(tuple(shape)), x)


def broadcast(c: Conversion, x: Value, shape: Sequence[DimLike]) -> Value:
    """The value broadcast to a shape; itself if it has it already."""
    return x if tuple(shape) == x.shape else c.aux(BroadcastTo(tuple(shape)), x)


def transposed(c: Conversion, x: Value, perm: Sequence[int]) -> Value:
    """The value with its axes permuted; a constant is permuted right away."""
    perm = tuple(perm)
    if perm == tuple(range(len(perm))):
        return x
    if x.data is not None:
        return c.graph.constant(np.ascontiguousarray(x.data.transpose(perm)), x.name)
    return c.aux(Transpose(perm), x)


def iota(c: Conversion, size: DimLike, dtype: DType = DType.INT64) -> Value:
    """``0, 1, …, size - 1`` as a vector, also where the size is symbolic."""
    if isinstance(size, int) and size <= KNOWN_LIMIT:
        return c.constant(np.arange(size), dtype)
    ones = c.aux(BroadcastTo((size,)), c.constant(1, dtype))
    return c.aux(CumSum(0, exclusive=True), ones)
