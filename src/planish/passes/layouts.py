"""How ops behave when their tensors are stored with permuted axes.

A *layout* of a value is a permutation: the value is stored as ``transpose(value, layout)``. Some
ops can work on stored tensors directly, with other attributes. `spread` says which layouts such an
op needs for its values once one of them has a layout; `stored_op` gives the op to run then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planish.graph.dims import DimLike, floordiv
from planish.graph.graph import Node, Value
from planish.ops.base import Op, normalize_axis
from planish.ops.elementwise import Elementwise
from planish.ops.indexing import Gather
from planish.ops.matmul import MatMul
from planish.ops.normalization import LogSoftmax, Softmax
from planish.ops.reduce import ArgMax, CumSum, Reduction, TopK
from planish.ops.shape import BroadcastTo, Concat, Identity, Pad, Reshape, Slice, Tile

Layout = tuple[int, ...]

PER_AXIS = (BroadcastTo, Pad, Slice, Tile)
"""Ops whose attributes list something for every axis of the result."""

ALONG_AXIS = (Concat, CumSum, LogSoftmax, Softmax, TopK)
"""Ops with an attribute `axis`, whose results have the rank of their inputs."""


def inverse(layout: Layout) -> Layout:
    """The permutation that undoes another one."""
    return tuple(layout.index(i) for i in range(len(layout)))


def compose(first: Layout, second: Layout) -> Layout:
    """The permutation of transposing by `first` and then by `second`."""
    return tuple(first[i] for i in second)


def is_identity(layout: Layout) -> bool:
    """Whether transposing by a permutation changes nothing."""
    return layout == tuple(range(len(layout)))


def keeps_order(layout: Layout, shape: Sequence[DimLike]) -> bool:
    """Whether transposing leaves all elements in place in memory: only axes of size 1 move."""
    moved = [axis for axis in layout if shape[axis] != 1]
    return moved == sorted(moved)


def spread(node: Node, value: Value, layout: Layout) -> dict[Value, Layout] | None:
    """Layouts of all the values of a node where `value`, one of them, has the given layout.

    Constants are left out, as are operands of lower rank, which broadcast. None: the op cannot
    work on that layout.
    """
    op, output = node.op, node.outputs[0]
    rank = len(layout)
    if isinstance(op, Reshape):
        return _spread_reshape(node, value, layout)
    if isinstance(op, Reduction | ArgMax):
        if op.keepdims or not _reduced(node):
            return {node.inputs[0]: layout, output: layout}
        if value is output:
            return None  # where the reduced axes are stored is open
        return {value: layout, output: _reduced_layout(node, layout)}
    if isinstance(op, Gather):
        if not _is_simple_gather(node) or value not in (node.inputs[0], output):
            return None
        return {v: layout for v in (node.inputs[0], output) if not v.is_constant}
    if isinstance(op, MatMul):
        if value not in (node.inputs[0], output) or not _is_of_rows(node, layout):
            return None
        return {node.inputs[0]: layout, output: layout}
    if isinstance(op, Elementwise | Identity):
        if output.type.rank != rank:
            return None
        same = [v for v in node.inputs if v.type.rank == rank]
    elif isinstance(op, (*PER_AXIS, *ALONG_AXIS)):
        same = list(node.inputs)
        if any(v.type.rank != rank for v in (*same, output)):
            return None
    else:
        return None
    return {v: layout for v in (*same, *node.outputs) if not v.is_constant}


def stored_op(node: Node, layouts: dict[Value, Layout]) -> Op:
    """The op of `node` as it works on stored tensors."""
    op, output = node.op, node.outputs[0]
    if isinstance(op, Reshape):
        return Reshape(tuple(output.shape[a] for a in layouts[output]))
    if isinstance(op, Reduction):
        layout = layouts[node.inputs[0]]
        return replace(op, axes=tuple(sorted(layout.index(a) for a in _reduced(node))))
    if isinstance(op, ArgMax):
        return replace(op, axis=layouts[node.inputs[0]].index(_reduced(node)[0]))
    layout = layouts[output]
    if isinstance(op, (*ALONG_AXIS, Gather)):
        return replace(op, axis=layout.index(normalize_axis(op.axis, len(layout))))
    if isinstance(op, BroadcastTo):
        return BroadcastTo(tuple(op.shape[a] for a in layout))
    if isinstance(op, Tile):
        return Tile(tuple(op.repeats[a] for a in layout))
    if isinstance(op, Pad):
        return replace(op, padding=tuple(op.padding[a] for a in layout))
    if isinstance(op, Slice):
        begin, size, strides = (
            tuple(part[a] for a in layout)  # type: ignore[index]
            for part in (op.begin, op.size, op.strides)
        )
        return Slice(begin, size, strides)  # type: ignore[arg-type]
    return op


def _is_of_rows(node: Node, layout: Layout) -> bool:
    """Whether a product by constant weights does not care in which order the rows are stored."""
    assert isinstance(node.op, MatMul)
    _, weights = node.inputs
    flat = weights.is_constant and weights.type.rank == 2 and not node.op.transpose_a
    return flat and layout[-1] == len(layout) - 1


def _is_simple_gather(node: Node) -> bool:
    assert isinstance(node.op, Gather)
    _, indices = node.inputs
    return indices.is_constant and indices.type.rank == 1 and node.op.batch_dims == 0


def _reduced(node: Node) -> tuple[int, ...]:
    op, rank = node.op, node.inputs[0].type.rank
    axes = op.axes if isinstance(op, Reduction) else (op.axis,)  # type: ignore[attr-defined]
    return tuple(normalize_axis(a, rank) for a in axes)


def _reduced_layout(node: Node, layout: Layout) -> Layout:
    gone = _reduced(node)
    left = [a for a in range(len(layout)) if a not in gone]
    return tuple(left.index(a) for a in layout if a not in gone)


# ---- reshapes --------------------------------------------------------------------------------

Groups = list[tuple[list[int], list[int]]]
"""Runs of axes before a reshape, and what each becomes."""


def _spread_reshape(node: Node, value: Value, layout: Layout) -> dict[Value, Layout] | None:
    (x,), y = node.inputs, node.output
    groups = reshape_groups(x.shape, y.shape)
    if groups is None:
        return None
    if value is y:
        groups = [(b, a) for a, b in groups]
    other = x if value is y else y
    order = _group_order(groups, value.shape, layout)
    if order is None or other.is_constant:
        return None
    return {value: layout, other: tuple(a for g in order for a in groups[g][1])}


def reshape_groups(before: Sequence[DimLike], after: Sequence[DimLike]) -> Groups | None:
    """Splits a reshape into runs of axes that are merged or split on their own.

    ``[N, 8, H, W] -> [N, 2, 4, H, W]`` is ``N -> N, 8 -> 2, 4, H -> H, W -> W``. Where symbols
    leave it open, the last axes form one run. None if a dimension is 0.
    """
    if 0 in before or 0 in after:
        return None
    groups: Groups = []
    i = j = 0
    while i < len(before) and j < len(after):
        left, right = [i], [j]
        a, b = before[i], after[j]
        while a != b:
            if _divides(a, b) and left[-1] + 1 < len(before):
                left.append(left[-1] + 1)
                a = a * before[left[-1]]
            elif right[-1] + 1 < len(after) and _divides(b, a):
                right.append(right[-1] + 1)
                b = b * after[right[-1]]
            elif left[-1] + 1 < len(before) and isinstance(a, int) and isinstance(b, int) and a < b:
                left.append(left[-1] + 1)
                a = a * before[left[-1]]
            elif right[-1] + 1 < len(after) and isinstance(a, int) and isinstance(b, int):
                right.append(right[-1] + 1)
                b = b * after[right[-1]]
            else:  # symbols leave it open which axes belong together
                left, right = [*range(i, len(before))], [*range(j, len(after))]
                break
        groups.append((left, right))
        i, j = left[-1] + 1, right[-1] + 1
    groups += [([k], []) for k in range(i, len(before))]
    groups += [([], [k]) for k in range(j, len(after))]
    ones = [before[k] for k in range(i, len(before))] + [after[k] for k in range(j, len(after))]
    return groups if all(d == 1 for d in ones) else None


def _divides(a: DimLike, b: DimLike) -> bool:
    return floordiv(b, a) * a == b


def _group_order(groups: Groups, shape: Sequence[DimLike], layout: Layout) -> list[int] | None:
    """In which order the groups are stored; None if one of them is not stored in one piece."""
    place = {axis: i for i, axis in enumerate(layout)}
    group_of = {axis: g for g, (axes, _) in enumerate(groups) for axis in axes}
    real = [axis for axis in layout if shape[axis] != 1]
    runs: list[int] = []
    for i, axis in enumerate(real):
        if i and group_of[axis] == group_of[real[i - 1]]:
            if axis < real[i - 1]:
                return None
        elif group_of[axis] in runs:
            return None
        else:
            runs.append(group_of[axis])

    def position(g: int) -> float:
        axes = groups[g][0]
        big = [place[a] for a in axes if shape[a] != 1] or [place[a] for a in axes]
        return min(big) if big else len(layout) + g

    return sorted(range(len(groups)), key=position)
