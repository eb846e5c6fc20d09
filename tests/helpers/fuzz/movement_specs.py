"""How to apply ops that move elements, and those whose inputs say which."""

from __future__ import annotations

import numpy as np

import planish.ops as ops
from helpers.fuzz.draft import FLOATS, NUMBERS, Draft, Skip, is_static
from helpers.fuzz.recipe import Domain, Ref
from helpers.fuzz.table import Choice, axis_of, image, spec
from planish.graph.dims import DimLike
from planish.graph.types import DType

F32, I64, I32, BOOL = DType.FLOAT32, DType.INT64, DType.INT32, DType.BOOL


# ---- movement ------------------------------------------------------------------------------


@spec("reshape")
def _reshape(d: Draft) -> Choice:
    x = d.pick(ranks=(1, 5))
    shape: list[DimLike] = list(d.value(x).shape)
    action = d.integer(0, 3)
    if action == 0:  # two neighbours become one
        if len(shape) < 2:
            raise Skip
        i = d.integer(0, len(shape) - 2)
        shape[i : i + 2] = [shape[i] * shape[i + 1]]
    elif action == 1:  # one becomes two
        i = d.integer(0, len(shape) - 1)
        n = shape[i]
        if not is_static(n):
            raise Skip
        f = d.one_of([f for f in range(1, int(n) + 1) if int(n) % f == 0])  # type: ignore[arg-type]
        shape[i : i + 1] = [f, int(n) // f]  # type: ignore[arg-type]
    elif action == 2:
        shape.insert(d.integer(0, len(shape)), 1)
    else:
        shape = [n for n in shape if n != 1]
    return ops.Reshape(tuple(shape)), (x,)


@spec("transpose")
def _transpose(d: Draft) -> Choice:
    x = d.pick(ranks=(3, 5) if d.chance(0.7) else (2, 2))
    perm = tuple(int(p) for p in d.rng.permutation(d.value(x).type.rank))
    return ops.Transpose(perm), (x,)


@spec("broadcast_to")
def _broadcast_to(d: Draft) -> Choice:
    x = d.pick(ranks=(0, 4))
    shape = [d.integer(1, 5) if n == 1 else n for n in d.value(x).shape]
    if d.chance(0.4):
        shape = [d.one_of([2, 3, d.batch]), *shape]
    return ops.BroadcastTo(tuple(shape)), (x,)


@spec("slice")
def _slice(d: Draft) -> Choice:
    x = d.pick(ranks=(1, 5))
    begin: list[DimLike] = []
    size: list[DimLike] = []
    strides = []
    for n in d.value(x).shape:
        if not is_static(n) or d.chance(0.4) or n == 0:
            begin, size, strides = [*begin, 0], [*size, n], [*strides, 1]
            continue
        stride = d.one_of([1, 1, 1, 2, 3, -1, -2])
        low, high = sorted((d.integer(0, int(n) - 1), d.integer(0, int(n) - 1)))  # type: ignore[arg-type]
        begin.append(high if stride < 0 else low)
        size.append((high - low) // abs(stride) + 1)
        strides.append(stride)
    return ops.Slice(tuple(begin), tuple(size), tuple(strides)), (x,)


@spec("pad")
def _pad(d: Draft) -> Choice:
    x = d.pick(ranks=(1, 4))
    if d.chance(0.4):  # as before a convolution or a pooling
        x = image(d, FLOATS)
        around = [(d.integer(0, 2), d.integer(0, 2)) for _ in d.value(x).shape[2:]]
        return ops.Pad(((0, 0), *around, (0, 0))), (x,)
    mode = d.one_of(["constant", "constant", "reflect", "symmetric", "edge"])
    padding = []
    for n in d.value(x).shape:
        most = 3 if is_static(n) or mode == "constant" else 0
        if mode != "constant" and is_static(n):
            most = min(3, int(n) - (1 if mode == "reflect" else 0))  # type: ignore[arg-type]
        padding.append((d.integer(0, max(most, 0)), d.integer(0, max(most, 0))))
    value = d.one_of([0.0, 0.0, 1.0, 3.0]) if mode == "constant" else 0.0
    return ops.Pad(tuple(padding), mode, value), (x,)


@spec("concat")
def _concat(d: Draft) -> Choice:
    x = d.pick(ranks=(1, 4))
    mine = d.value(x)
    axis = axis_of(d, mine.type.rank) % mine.type.rank

    def fits(v) -> bool:
        return (
            v.dtype is mine.dtype
            and v.type.rank == mine.type.rank
            and all(
                a == b
                for i, (a, b) in enumerate(zip(v.shape, mine.shape, strict=True))
                if i != axis
            )
        )

    parts = [x]
    for _ in range(d.integer(1, 3)):
        shape = [d.integer(1, 5) if i == axis else n for i, n in enumerate(mine.shape)]
        others = d.refs(fits)
        known = bool(others) and d.chance(0.7)
        parts.append(d.one_of(others) if known else d.operand(shape, mine.dtype))
    return ops.Concat(axis if d.chance(0.5) else axis - mine.type.rank), tuple(parts)


@spec("tile")
def _tile(d: Draft) -> Choice:
    x = d.pick(ranks=(1, 4))
    return ops.Tile(tuple(d.one_of([1, 1, 2, 3]) for _ in d.value(x).shape)), (x,)


@spec("identity")
def _identity(d: Draft) -> Choice:
    return ops.Identity(), (d.pick(),)


@spec("shape_of")
def _shape_of(d: Draft) -> Choice:
    return ops.ShapeOf(d.one_of([I64, I32])), (d.pick(ranks=(1, 5)),)


@spec("dims")
def _dims(d: Draft) -> Choice:
    values = d.one_of([(d.batch, 3, 2), (d.batch * 2 + 1,), d.batch])
    return ops.Dims(values, d.one_of([I64, I32])), ()


# ---- indices -------------------------------------------------------------------------------


def _indices(d: Draft, shape, size: int, negative: bool = True) -> Ref:
    domain = Domain(-size if negative else 0, size - 1)
    return d.operand(shape, d.one_of([I64, I32]), domain)


@spec("gather")
def _gather(d: Draft) -> Choice:
    x = d.pick(ranks=(1, 4))
    shape = d.value(x).shape
    axis = axis_of(d, len(shape)) % len(shape)
    if not is_static(shape[axis]) or shape[axis] == 0:
        raise Skip
    batch = d.integer(0, axis) if d.chance(0.3) else 0
    tail = [d.integer(1, 4) for _ in range(d.integer(0, 2))]
    places = _indices(d, [*shape[:batch], *tail], int(shape[axis]))  # type: ignore[arg-type]
    return ops.Gather(axis, batch), (x, places)


def _places(d: Draft, shape, batch: int) -> Ref:
    """Indices ``[*shape[:batch], n, depth]`` into the dimensions after the first ones."""
    depth = d.integer(1, len(shape) - batch)
    sizes = shape[batch : batch + depth]
    if not all(is_static(n) and n > 0 for n in (*shape[:batch], *sizes)):
        raise Skip
    lead = [*(int(n) for n in shape[:batch]), d.integer(1, 5)]
    columns = [d.rng.integers(-int(n), int(n), lead) for n in sizes]
    return d.constant(np.stack(columns, -1).astype(d.one_of([np.int64, np.int32])))


@spec("gather_nd")
def _gather_nd(d: Draft) -> Choice:
    x = d.pick(ranks=(1, 4))
    shape = d.value(x).shape
    batch = d.integer(0, 1) if len(shape) > 1 and d.chance(0.4) else 0
    return ops.GatherNd(batch), (x, _places(d, shape, batch))


@spec("scatter_nd")
def _scatter_nd(d: Draft) -> Choice:
    x = d.pick(NUMBERS, (1, 4))
    shape = d.value(x).shape
    places = _places(d, shape, 0)
    lead, depth = d.array(places).shape[:-1], d.array(places).shape[-1]
    updates = d.operand([*lead, *shape[depth:]], d.value(x).dtype)
    reduction = d.one_of(["none", "add", "mul", "max", "min"])
    return ops.ScatterNd(reduction), (x, places, updates)


@spec("one_hot")
def _one_hot(d: Draft) -> Choice:
    indices = d.pick((I64, I32), (0, 3))
    dtype = d.dtype(tuple(DType))
    on, off = d.constant(np.ones((), dtype.numpy)), d.constant(np.zeros((), dtype.numpy))
    axis = d.one_of([-1, 0])
    return ops.OneHot(d.integer(1, 6), axis), (indices, on, off)
