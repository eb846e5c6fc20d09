"""Operators that take a tensor apart or put one together: slice, split, concatenate."""

from __future__ import annotations

from collections.abc import Sequence

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters import sizes
from planish.frontends.onnx.converters.sizes import Item, items
from planish.frontends.onnx.registry import converter
from planish.graph import Dim, DimLike, Value
from planish.graph.dims import ceildiv, floordiv
from planish.ops import Concat, Slice, normalize_axis, slice_bounds


@converter("Concat")
def _concat(c: Conversion) -> Value:
    values = c.present()
    if len(values) == 1:
        return values[0]
    return c.add(Concat(c.axis(values[0].type.rank)), *values)


@converter("Slice")
def _slice_by_attributes(c: Conversion) -> Value:
    starts, ends = c.attr("starts", ()), c.attr("ends", ())
    return _sliced(c, starts, ends, c.attr("axes"), None)


@converter("Slice", since=10)
def _slice(c: Conversion) -> Value:
    axes = c.integers(3, "the list of axes") if c.optional(3) else None
    steps = c.integers(4, "the step") if c.optional(4) else None
    return _sliced(c, items(c, 1, "the start"), items(c, 2, "the end"), axes, steps)


def _sliced(
    c: Conversion,
    starts: Sequence[Item],
    ends: Sequence[Item],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> Value:
    x = c.input(0)
    axes = range(len(starts)) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise c.shape_error(
            "Slice needs as many starts as ends, axes and steps",
            f"it has {len(starts)}, {len(ends)}, {len(axes)} and {len(steps)}",
        )
    begin: list[DimLike] = [0] * x.type.rank
    size, strides = list(x.shape), [1] * x.type.rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = normalize_axis(axis, x.type.rank)
        if isinstance(start, Value) or isinstance(end, Value):
            found = sizes.slice_bounds(c, x.shape[place], start, end, step)
        else:
            found = _bounds(c, x.shape[place], start, end, step)
        begin[place], size[place] = found
        strides[place] = step
    if tuple(size) == x.shape and not any(begin) and set(strides) <= {1}:
        return x
    return c.add(Slice(tuple(begin), tuple(size), tuple(strides)), x)


def _bounds(
    c: Conversion, dim: DimLike, start: DimLike, end: DimLike, step: int
) -> tuple[DimLike, DimLike]:
    """The first element and their number; a symbolic end inside the dimension is not clamped."""
    if isinstance(dim, int) and isinstance(start, int) and isinstance(end, int) and step:
        return _clamped(dim, start, end, step)
    if step == 1 and isinstance(dim, int) and isinstance(end, Dim):
        ordered = c.limits.bounds(start)[0] >= 0 and c.limits.bounds(end - start)[0] >= 0
        if ordered and c.limits.at_most(end, dim):
            return start, end - start
    return slice_bounds(dim, start, end, step)


def _clamped(dim: int, start: int, end: int, step: int) -> tuple[int, int]:
    """ONNX's rule, not NumPy's: backwards, a start before the data is its first element."""
    start, end = (place + dim if place < 0 else place for place in (start, end))
    if step > 0:
        start, end = min(max(start, 0), dim), min(max(end, 0), dim)
    else:
        start, end = min(max(start, 0), dim - 1), min(max(end, -1), dim - 1)
    size = max(-((start - end) // step), 0)
    return (start, size) if size else (0, 0)


@converter("Split")
def _split_by_attribute(c: Conversion) -> list[Value]:
    return _split_into(c, c.attr("split"))


@converter("Split", since=13)
def _split(c: Conversion) -> list[Value]:
    return _split_into(c, c.dims(1, "the sizes of the parts") if c.optional(1) else None)


def _split_into(c: Conversion, sizes: Sequence[DimLike] | None) -> list[Value]:
    x = c.input(0)
    axis, count = c.axis(x.type.rank, 0), len(c.node.output)
    if sizes is None:
        sizes = _equal_parts(c, x.shape[axis], count)
    if len(sizes) != count:
        raise c.shape_error(f"Split has {count} outputs and {len(sizes)} sizes")
    total: DimLike = 0
    parts = []
    for size in sizes:
        begin = tuple(total if i == axis else 0 for i in range(x.type.rank))
        shape = tuple(size if i == axis else d for i, d in enumerate(x.shape))
        parts.append(c.add(Slice(begin, shape, (1,) * x.type.rank), x))
        total = total + size
    if isinstance(rest := x.shape[axis] - total, int) and rest:
        raise c.shape_error(f"Split of {x.shape[axis]} into parts of {total} in total")
    return parts


def _equal_parts(c: Conversion, dim: DimLike, count: int) -> list[DimLike]:
    if c.opset < 18:
        if isinstance(dim, int) and dim % count:
            raise c.shape_error(f"Split of {dim} into {count} equal parts")
        return [floordiv(dim, count)] * count
    part = ceildiv(dim, count)  # the last part may be smaller
    return [part] * (count - 1) + [dim - part * (count - 1)]
