"""Which nodes work row by row along a dimension, so that more rows change none of the first ones.

A dimension that depends on the data may then be taken too large: the rows past the count hold
anything, and nothing of it gets into the others. Reading by such a row's index is safe: kernels
clamp indices into the dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from planish.graph.dims import DimLike, bounds, floordiv, product, substitute, symbol, symbols
from planish.graph.graph import Node, Value, mentions
from planish.ops.base import Op, normalize_axis
from planish.ops.conv import Conv
from planish.ops.elementwise import Elementwise, Select
from planish.ops.indexing import Gather, GatherNd, OneHot
from planish.ops.matmul import MatMul
from planish.ops.normalization import LayerNorm, LogSoftmax, Softmax
from planish.ops.operands import normalize_axes
from planish.ops.pool import AvgPool, MaxPool
from planish.ops.reduce import ArgMax, ArgMin, CumSum, Reduction, TopK
from planish.ops.sampling import CropAndResize, RoiAlign
from planish.ops.shape import BroadcastTo, Concat, Identity, Pad, Reshape, Slice, Tile, Transpose
from planish.ops.spatial import Resize

COSTLY = (MatMul, Conv, MaxPool, AvgPool, Resize, TopK, RoiAlign, CropAndResize)
"""Ops that take so long for a row that rows past the count are a waste."""

MOST_FILLED = 1 << 20
"""Up to how many rows are filled up by their numbers, which are a constant of the model."""

ANY_SIZE = (0, 1 << 62)
"""Where a dimension lies of which nothing is known."""


def is_row_wise(node: Node, name: str, limit: DimLike) -> bool:
    """Whether a node works row by row along the dimension `name`, which is at most `limit`.

    Nodes that do not mention it do.
    """
    values = (*node.inputs, *node.outputs)
    if not any(_axes(v, name) for v in values) and name not in mentions(node):
        return True
    if not all(_is_multiple(d, name) for v in values for d in v.shape if name in symbols(d)):
        return False
    for kinds, rule in _RULES:
        if isinstance(node.op, kinds):
            return rule(node, _Rows(name, limit))
    return False


class _Rows:
    """The dimension in question."""

    def __init__(self, name: str, limit: DimLike) -> None:
        self.name, self.limit = name, limit

    def axes(self, value: Value) -> set[int]:
        return _axes(value, self.name)

    def inside(self, dim: Any) -> bool:
        """Whether a dimension, or any item of a tuple, mentions it."""
        if isinstance(dim, tuple):
            return any(map(self.inside, dim))
        return not isinstance(dim, bool | str | float | None) and self.name in symbols(dim)

    def at_limit(self, dim: DimLike) -> DimLike:
        return substitute(dim, {self.name: self.limit})


def _axes(value: Value, name: str) -> set[int]:
    return {i for i, d in enumerate(value.shape) if name in symbols(d)}


def _is_multiple(dim: DimLike, name: str) -> bool:
    """Whether a dimension is ``n * factor``, the factor without n."""
    factor = floordiv(dim, symbol(name))
    return name not in symbols(factor) and factor * symbol(name) == dim


def _always(node: Node, rows: _Rows) -> bool:
    return True


def _slice(node: Node, rows: _Rows) -> bool:
    """It takes the first rows, of as many as there may be or of the same number; or is no part of
    the dimension.
    """
    op, (x,) = node.op, node.inputs
    assert isinstance(op, Slice)
    if rows.inside(op.begin):
        return False
    for begin, size, stride, dim in zip(op.begin, op.size, op.strides, x.shape, strict=True):
        if not rows.inside(size) and not rows.inside(dim):
            continue
        room = rows.at_limit(dim) - rows.at_limit(size)
        if begin != 0 or stride != 1 or not rows.inside(size):
            return False
        if not isinstance(room, int) or room < 0:
            return False
    return True


def _reshape(node: Node, rows: _Rows) -> bool:
    """The dimension keeps its place: as many elements come before it, so that rows stay rows."""
    (x,) = node.inputs
    before, after = sorted(rows.axes(x)), sorted(rows.axes(node.output))
    if len(before) != 1 or len(after) != 1:
        return False
    return product(x.shape[: before[0]]) == product(node.output.shape[: after[0]])


def _free_of(axes: Callable[[Any, int], Sequence[int]]) -> Callable[[Node, _Rows], bool]:
    """It combines elements along some axes only, which must be others."""

    def rule(node: Node, rows: _Rows) -> bool:
        x = node.inputs[0]
        own = [v for k, v in node.op.attributes().items() if k in ("k", "depth")]
        combined = normalize_axes(axes(node.op, x.type.rank), x.type.rank)
        return not rows.inside(tuple(own)) and rows.axes(x).isdisjoint(combined)

    return rule


def _batch_only(node: Node, rows: _Rows) -> bool:
    """It is the batch of the first input, and nothing else."""
    own: tuple[Any, ...] = tuple(node.op.attributes().values())
    others = any(rows.axes(v) for v in node.inputs[1:])
    return rows.axes(node.inputs[0]) <= {0} and not others and not rows.inside(own)


def _cumsum(node: Node, rows: _Rows) -> bool:
    """A running sum sees only what comes before."""
    assert isinstance(node.op, CumSum)
    return not node.op.reverse or _free_of(lambda op, rank: (op.axis,))(node, rows)


def _regions(node: Node, rows: _Rows) -> bool:
    """It is the number of regions that are taken from images."""
    images, *regions = node.inputs
    own: tuple[Any, ...] = tuple(node.op.attributes().values())
    return (
        not rows.axes(images) and all(rows.axes(v) <= {0} for v in regions) and not rows.inside(own)
    )


def _matmul(node: Node, rows: _Rows) -> bool:
    op, (a, b) = node.op, node.inputs
    assert isinstance(op, MatMul)
    depth_a = a.type.rank - (2 if op.transpose_a else 1)
    depth_b = b.type.rank - (1 if op.transpose_b else 2)
    return depth_a not in rows.axes(a) and depth_b not in rows.axes(b)


def _gather(node: Node, rows: _Rows) -> bool:
    op, (data, _) = node.op, node.inputs
    assert isinstance(op, Gather)
    return normalize_axis(op.axis, data.type.rank) not in rows.axes(data)


def _gather_nd(node: Node, rows: _Rows) -> bool:
    op, (data, indices) = node.op, node.inputs
    assert isinstance(op, GatherNd)
    depth = int(indices.shape[-1])  # type: ignore[arg-type]
    return rows.axes(data).isdisjoint(range(op.batch_dims, op.batch_dims + depth))


def _concat(node: Node, rows: _Rows) -> bool:
    assert isinstance(node.op, Concat)
    axis = normalize_axis(node.op.axis, node.output.type.rank)
    return not any(axis in rows.axes(v) for v in (*node.inputs, node.output))


def _pad(node: Node, rows: _Rows) -> bool:
    """It pads other axes, or to a fixed number of rows, of which a `Select` takes those that are
    meant: then all that it gives past the count may be anything.

    Whoever makes such a `Pad` adds the `Select` (`planish.frontends.counting.refilled`).
    """
    op, (x,) = node.op, node.inputs
    assert isinstance(op, Pad)
    for axis, (before, after) in enumerate(op.padding):
        if axis not in rows.axes(x):
            if rows.inside((before, after)):
                return False
        elif (before, after) != (0, 0):
            room = rows.at_limit(after)
            least, _ = bounds(room, dict.fromkeys(symbols(room), ANY_SIZE))
            if rows.inside(before) or least < 0 or not is_filled_up(node, axis, rows.name):
                return False
            users = node.output.users
            if not users or not all(_selects(user, node.output) for user in users):
                return False
    return True


def is_filled_up(node: Node, axis: int, name: str) -> bool:
    """Whether a `Pad` puts constants around `name` rows, so that they become a fixed number."""
    (x,), length = node.inputs, node.output.shape[axis]
    fixed = isinstance(length, int) and length <= MOST_FILLED
    return fixed and x.shape[axis] == symbol(name) and getattr(node.op, "mode", "") == "constant"


def _selects(node: Node, value: Value) -> bool:
    condition, *branches = node.inputs if isinstance(node.op, Select) else (None, None)
    return condition is not value and value in branches


def _tile(node: Node, rows: _Rows) -> bool:
    op, (x,) = node.op, node.inputs
    assert isinstance(op, Tile)
    return not rows.inside(op.repeats) and all(op.repeats[a] == 1 for a in rows.axes(x))


_Rule = Callable[[Node, _Rows], bool]
_RULES: tuple[tuple[type[Op] | tuple[type[Op], ...], _Rule], ...] = (
    ((Elementwise, Identity, Transpose, BroadcastTo), _always),
    (Slice, _slice),
    (Reshape, _reshape),
    (Reduction, _free_of(lambda op, rank: op.axes)),
    ((ArgMax, ArgMin, Softmax, LogSoftmax, TopK), _free_of(lambda op, rank: (op.axis,))),
    (CumSum, _cumsum),
    (LayerNorm, _free_of(lambda op, rank: range(normalize_axis(op.axis, rank), rank))),
    (OneHot, _free_of(lambda op, rank: ())),
    (MatMul, _matmul),
    (Gather, _gather),
    (GatherNd, _gather_nd),
    (Concat, _concat),
    (Pad, _pad),
    (Tile, _tile),
    ((Conv, MaxPool, AvgPool, Resize), _batch_only),
    ((RoiAlign, CropAndResize), _regions),
)
